import pytest

from eval.outcomes.garble import check_text, repeated_tail

PROSE = (
    "The Berlin Wall fell in November 1989, after weeks of protest in the cities of East Germany. People crossed at"
    " Bornholmer Strasse first, and within hours the other checkpoints opened too. The border regime ended over the"
    " following months, and the country was united in October 1990. Historians still argue about which of the many"
    " causes weighed most: the economy, the exodus through Hungary, or the refusal of Moscow to step in."
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        PROSE,
        "<think>\n\n</think>\n\n1989年，柏林墙倒塌。许多人从Bornholmer Strasse过境，随后其他关口也开放了。",
        "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 3 + "-" * 80,
        "See https://example.org/a/very/long/path/that/goes/on/and/on/and/never/ends/at/all for more.",
        "Ha ha ha ha, that is funny.",
        "Voilà: Ελλάδα, Россия and 日本 are names of countries in their own scripts.",
    ],
)
def test_ordinary_text_is_in_order(text):
    assert not check_text(text).damaged


@pytest.mark.parametrize(
    "text",
    [
        PROSE + " I must think again." * 8,
        "Wait, let me reconsider. " * 20 + "Wait, let me rec",
        "的" * 60,
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, " * 5,
    ],
)
def test_loops_are_found_also_when_cut_in_the_middle(text):
    health = check_text(text)
    assert health.looping
    assert not health.garbled


def test_a_loop_whose_unit_changes_a_little_is_found_by_compression():
    text = "".join(f"Step {number}: I should check the answer again before I go on. " for number in range(100))
    assert repeated_tail(text) == 0
    assert check_text(text).looping


@pytest.mark.parametrize(
    "text",
    [
        "The wall \ufffd\ufffd fell \ufffd in \ufffd\ufffd 1989",
        "qwеrtу plоt zеbrа fооbаr шlасk bоrк the end",
        "a" * 30 + "".join(chr(97 + n % 26) for n in range(0, 300, 7)),
        "\x00\x01\x02 broken \x03\x04 output \x05 here",
    ],
)
def test_garble_is_found(text):
    assert check_text(text).garbled


def test_long_loops_are_found_without_looking_at_every_multiple_again():
    """The stretch that a period repeats over is walked once: the work is the text's length, not 400 times that."""
    for unit in ("x", "I will say it again and again. ", "天地玄黄宇宙洪荒", "x" * 399 + "y"):
        walked = CountingText(unit * (20_000 // len(unit)))
        assert repeated_tail(walked) == len(walked)
        assert walked.num_looked_at < 8 * len(walked)


class CountingText(str):
    """A text that counts how often one of its characters is looked at."""

    num_looked_at = 0

    def __getitem__(self, place):
        self.num_looked_at += 1
        return super().__getitem__(place)


def test_the_shortest_period_stands_for_its_multiples():
    """Against the obvious way, which walks every period."""
    for text in ("ab" * 40 + "c", "abcabc" * 20, "xy" * 30 + "z" + "xyxyz" * 20, "aaab" * 30, "-" * 90, "a-" * 50):
        assert repeated_tail(text) == slow_repeated_tail(text)


def slow_repeated_tail(text):
    best = 0
    for period in range(1, len(text) // 4 + 1):
        length = period
        while length < len(text) and text[-1 - length] == text[-1 - length + period]:
            length += 1
        says = any(map(str.isalnum, text[-period:]))
        if length >= 4 * period and length >= 40 and says:
            best = max(best, length)
    return best
