"""What all commands share at the edge."""

from rewriter.console import size_text
from rewriter.errors import InputError, quoted


def test_sizes_for_people() -> None:
    assert [size_text(size) for size in (0, 1023, 1024, 4_300_000_000, 688_586_727_753, 2 << 40)] == [
        "0 B", "1023 B", "1 KiB", "4.005 GiB", "641.3 GiB", "2 TiB",
    ]  # fmt: skip


def test_a_sentence_is_one_line_whatever_it_quotes() -> None:
    """Text of a file can neither reach the terminal's controls nor fill its screen; both ends of a long sentence stay."""
    hostile = "\x1b[31mred\x1b[0m\nnext\r\u202e\u2066\ud800\x00"
    sentence = str(InputError(f"set.json: {hostile} found{'x' * 20_000}, expected a name"))
    assert sentence.isprintable() and len(sentence) == 400
    assert sentence.startswith("set.json: \\x1b[31mred") and sentence.endswith("expected a name")
    assert str(InputError("short: \N{GREEK SMALL LETTER ALPHA}")) == "short: \N{GREEK SMALL LETTER ALPHA}"
    assert len(quoted({"a": "b" * 1000})) <= 80
