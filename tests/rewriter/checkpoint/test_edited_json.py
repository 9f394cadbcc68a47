"""An edited config.json keeps everything that was not edited, to the letter of its numbers."""

import json

import pytest

from rewriter.checkpoint.edited_json import config_text, parse_config


@pytest.mark.parametrize("number", ["1e-06", "1E-6", "0.10", "-0.0", "1e400", "Infinity", "3", "1.0e+20", "NaN"])
def test_numbers_stay_as_written(number: str) -> None:
    assert config_text(parse_config(f'{{"a": {number}}}')) == f'{{\n  "a": {number}\n}}\n'


@pytest.mark.parametrize(
    "text",
    ["\0001\0", "\0001E5\0", "number-0-as-written:1E5", "1E5", '"', "\\u00001\\u0000"],
    ids=ascii,
)
def test_no_text_is_taken_for_a_number(text: str) -> None:
    """A string that looks as numbers do on their way through json must come out a string, also beside such a number."""
    document = {"text": text, "number": 0.5, text: [text]}
    source = json.dumps(document).replace("0.5", "5E-1")
    written = config_text(parse_config(source))
    assert json.loads(written) == document and "5E-1" in written
