"""docs/bias-free.md on bf16 in vLLM: the centroid chooses otherwise than the true reroute at equal logits, and nowhere else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
pytestmark = [pytest.mark.slow, pytest.mark.vllm]


def test_with_ties_broken_alike_the_centroid_is_the_true_reroute_to_the_bit() -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks/ties.py"), str(REPOSITORY / "examples/tiny-qwen3")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr[-2000:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in ran.stdout.splitlines()[2:]]
    (_, _, _, selecting, other, sequences, _, kl), alike = rows
    num_differing, num_at_ties = sequences.split(", ")
    assert selecting == "0"
    assert int(other) > 0 and float(kl) > 0, "the test has no power: no choice differs"
    assert num_differing == num_at_ties
    assert alike[3:5] == ["0", "0"] and float(alike[7]) == 0
