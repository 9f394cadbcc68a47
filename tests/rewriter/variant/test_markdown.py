"""Foreign text is shown in a card and does nothing there."""

import pytest

from rewriter.variant.card_parts import block, find_block, replace_results
from rewriter.variant.markdown import MAX_CHARACTERS, inline, inline_code, sentence

HOSTILE = [
    "<!-- mote-eval:start -->",
    "<!-- mote-eval:end --> gone",
    "---\ntitle: mine\n---",
    "# heading\n\ntext",
    "a | b | c",
    "[click](http://example.test)",
    "![x](http://example.test/x.png)",
    "<img src=x onerror=alert(1)>",
    "`code` *bold* _slanted_ ~~struck~~",
    "\x1b[31mred\u202eback",
    "x" * 20_000,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_one_line_without_marks(text: str) -> None:
    for shown in (inline(text), inline_code(text)):
        assert shown.isprintable()
        assert len(shown) < 2 * MAX_CHARACTERS
        assert "<" not in shown
        if not shown.startswith("`"):
            for mark in "`*[]|~":
                assert shown.count(mark) == shown.count(f"\\{mark}")


@pytest.mark.parametrize("text", HOSTILE)
def test_the_cards_own_markers_cannot_be_named(text: str) -> None:
    card = f"# Card\n\n{block('mote-eval', inline(text))}\n"
    again = replace_results(card, f"anew {inline_code(text)}")
    assert again.count("<!-- mote-eval:start -->") == again.count("<!-- mote-eval:end -->") == 1
    assert (find_block(again, "mote-eval") or "").startswith("anew ")


def test_ordinary_text_stays_as_it_is() -> None:
    text = "REFUSED -> answered, 52 of 100 (52.0 %, 95 % CI 42-62); REFUSED_AFTER_REASONING & so on"
    assert inline(text) == text
    assert inline_code("hub:org/name@main") == "`hub:org/name@main`"


def test_a_sentence_keeps_its_own_code_and_takes_up_no_marker() -> None:
    assert sentence("written by `mote-eval`") == "written by `mote-eval`"
    assert sentence("a\n---\n<!-- mote-eval:start -->\x1b") == "a --- &lt;!-- mote-eval:start -->\\x1b"
