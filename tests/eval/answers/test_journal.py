import json

import pytest

from eval.answers.arms import Answer, Arm, Request, Sampling, answer_key
from eval.answers.journal import Journal
from eval.errors import JournalError


def answer(number):
    return Answer(f"p{number}", 0, f"text {number} 北京\u2028", "stop", False, [1, 2], [3])


def test_what_was_written_is_there_again(tmp_path):
    with Journal(tmp_path / "j.jsonl") as journal:
        for number in range(5):
            journal.add_answer(f"k{number}", "base", answer(number))
        journal.add_value("v", {"x": [1.5]})
    with Journal(tmp_path / "j.jsonl") as journal:
        assert len(journal) == 6
        assert journal.answer("k3") == answer(3)
        assert journal.value("v") == {"x": [1.5]}
        assert "k9" not in journal


def test_a_key_is_written_once(tmp_path):
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.add_answer("k", "base", answer(1))
        journal.add_answer("k", "base", answer(2))
        assert journal.answer("k") == answer(1)
        assert len(list(journal.records())) == 1


@pytest.mark.parametrize("cut", [1, 7, 60])
def test_a_torn_last_line_is_cut_off_and_the_rest_kept(tmp_path, cut):
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.add_answer("a", "base", answer(1))
        journal.add_answer("b", "base", answer(2))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with Journal(path) as journal:
        assert "a" in journal
        assert "b" not in journal
        journal.add_answer("b", "base", answer(2))
    assert path.read_bytes() == whole


def test_damage_in_the_middle_is_named(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.add_answer("a", "base", answer(1))
        journal.add_answer("b", "base", answer(2))
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1][:20]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(JournalError, match="line 2 is damaged"):
        Journal(path)


def test_another_file_is_no_journal(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text(json.dumps({"key": "", "schema": "other/1"}) + "\n")
    with pytest.raises(JournalError, match="'other/1'"):
        Journal(path)


def test_two_runs_cannot_write_one_journal(tmp_path):
    with Journal(tmp_path / "j.jsonl"), pytest.raises(JournalError, match="another run is writing"):
        Journal(tmp_path / "j.jsonl")


def key(arm=None, **changes):
    sampling = Sampling(**({"max_tokens": 8, "temperature": 0.0, "seed": 1} | changes))
    return answer_key({"model": "m"}, arm or Arm("base", "base"), Request("p", 0, (("user", "hello"),), sampling))


def test_a_key_depends_on_what_decides_the_answer():
    edited = Arm("x", "variant", "reroute", ((1, 2), (1, 3)))
    assert key(edited) == key(Arm("another name", "sweep", "reroute", ((1, 3), (1, 2))))
    assert key(edited) != key(Arm("x", "variant", "drop", ((1, 2), (1, 3))))
    assert key(edited) != key()
    assert key(Arm("again", "repeat", repeat=1)) != key()
    assert key(max_tokens=9) != key()
    assert key(seed=2) == key(), "a greedy answer has no seed"
    assert key(seed=2, temperature=0.6) != key(seed=1, temperature=0.6)
