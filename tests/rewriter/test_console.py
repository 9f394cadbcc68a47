"""What all commands share at the edge."""

from rewriter.console import size_text


def test_sizes_for_people() -> None:
    assert [size_text(size) for size in (0, 1023, 1024, 4_300_000_000, 688_586_727_753, 2 << 40)] == [
        "0 B", "1023 B", "1 KiB", "4.005 GiB", "641.3 GiB", "2 TiB",
    ]  # fmt: skip
