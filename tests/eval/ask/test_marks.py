"""Tokens as pieces of text with their marks, against the slow obvious way."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.ask.marks import marks_of, pieces, selected_experts


def by_bytes(token_ids):
    return bytes(token_ids).decode("utf-8", "replace")


@settings(max_examples=25)
@given(st.text(max_size=40), st.text(max_size=10), st.integers(0, 2**31 - 1))
def test_pieces_are_the_text_and_lose_no_mark(text, before, seed):
    token_ids = list(text.encode("utf-8", "ignore"))
    marks = [[int(one)] if one < 3 else [] for one in np.random.default_rng(seed).integers(0, 9, len(token_ids))]
    found = pieces(by_bytes, token_ids, marks, list(before.encode("utf-8", "ignore")))
    assert "".join(piece for piece, _ in found) == text
    assert {one for _, marked in found for one in marked} == {one for marked in marks for one in marked}


def test_the_bytes_of_one_character_are_one_piece_with_the_marks_of_all():
    assert pieces(by_bytes, list("a€b".encode()), [[], [1], [], [0, 1], []]) == [("a", []), ("€", [1, 0]), ("b", [])]


def test_half_a_character_at_the_end_is_shown_as_such():
    assert pieces(by_bytes, "a€".encode()[:-1], [[], [2]]) == [("a", []), ("\ufffd", [2])]


def test_the_first_token_reads_as_it_does_after_those_before():
    # A tokenizer that writes a space before all words but the first of a text.
    words = {1: "Rome", 2: "was", 3: "built"}

    def decode(token_ids):
        return " ".join(words[one] for one in token_ids)

    assert pieces(decode, [2, 3], [[0]], [1]) == [(" was", [0]), (" built", [])]
    assert pieces(decode, [2, 3], [[0]]) == [("was", [0]), (" built", [])]


@settings(max_examples=10)
@given(st.integers(0, 2**31 - 1))
def test_selected_experts_are_those_of_the_row(seed):
    generator = np.random.default_rng(seed)
    experts = np.argsort(generator.random((7, 3, 8)), axis=-1)[..., :2]
    marked = [(0, 5), (2, 1), (2, 5)]
    expected = [
        [n for n, (row, expert) in enumerate(marked) if expert in experts[token, row].tolist()] for token in range(7)
    ]
    assert selected_experts(experts, marked) == expected


def test_counts_are_of_tokens_and_the_last_that_was_not_run_has_no_mark():
    experts = np.array([[[0, 1]], [[1, 2]], [[3, 2]]])
    found = marks_of(by_bytes, list(b"abcd"), experts, [(0, 1), (0, 2), (0, 9)])
    assert found.pieces == [("a", [0]), ("b", [0, 1]), ("c", [1]), ("d", [])]
    assert (found.num_tokens, found.num_marked, found.counts) == (4, 3, [(0, 2), (1, 2)])
