"""The defaults beneath a user's engine arguments."""

import pytest
from vllm.platforms import current_platform

from ftri.engine.arguments import choose_arguments

on_cpu = pytest.mark.skipif(not current_platform.is_cpu(), reason="a default for CPU engines")


@on_cpu
@pytest.mark.parametrize("dtype", ["float", "float32"])
def test_float32_asks_for_the_attention_that_takes_it(dtype):
    assert choose_arguments({"dtype": dtype}, "folder")["attention_backend"] == "CPU_MLA"


@on_cpu
@pytest.mark.parametrize("given", [{}, {"dtype": "bfloat16"}, {"dtype": "float32", "attention_config": {}}])
def test_other_engines_keep_vllms_choice(given):
    assert "attention_backend" not in choose_arguments(given, "folder")


def test_what_the_user_gives_wins():
    given = {"dtype": "float32", "attention_backend": "AMX_MLA", "seed": 7}
    assert choose_arguments(given, "folder") == choose_arguments(given, "folder") | given | {"model": "folder"}
