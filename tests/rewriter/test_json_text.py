"""JSON from strangers: a value, or one clause that says what is wrong with it."""

import json

import pytest

from rewriter.json_text import MAX_DEPTH, JsonError, read_json, whole_characters


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"\xff{}", "byte 0 is not UTF-8"),
        ("{", "Expecting property name"),
        ("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "nests deeper than 64 levels"),
        ("[" * 100_000, "nests deeper than 64 levels"),
        ('{"a": "\\ud800"}', "half of a surrogate pair"),
        ('{"\\udfff": 1}', "half of a surrogate pair"),
        ("[NaN]", "the number NaN is not finite"),
        ("[-Infinity]", "the number -Infinity is not finite"),
        ("[1e400]", "the number 1e400 is not finite"),
        ("1" * 5000, "Exceeds the limit"),
    ],
)
def test_what_is_refused(text: str | bytes, words: str) -> None:
    with pytest.raises(JsonError, match=words) as caught:
        read_json(text)
    assert len(str(caught.value)) < 200 and str(caught.value).isprintable()


def test_what_is_read() -> None:
    document = {
        "a": [1, 2.5, None, True, "\N{GRINNING FACE}\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")]
    }
    assert read_json(json.dumps(document)) == document
    assert read_json("[Infinity, 1e400]", finite=False) == [float("inf")] * 2
    assert read_json("[" * MAX_DEPTH + "]" * MAX_DEPTH) is not None


def test_half_characters_become_the_replacement_character_and_two_halves_one() -> None:
    given = json.loads(
        r'{"a\ud800": ["\udfff", "x\ud83d", 1, null, "\u4e16"], "b": {"c": "\ud83d\ude00 \ude00\ud83d"}}'
    )
    assert whole_characters(given) == {
        "a\ufffd": ["\ufffd", "x\ufffd", 1, None, "\u4e16"],
        "b": {"c": "\N{GRINNING FACE} \ufffd\ufffd"},
    }
    # Two halves that met only here.
    assert whole_characters("\ud83d" + "\ude00") == "\N{GRINNING FACE}"
