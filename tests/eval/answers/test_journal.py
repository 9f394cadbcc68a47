import errno
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from eval.answers.arms import Answer, Arm, Request, Sampling, answer_key
from eval.answers.journal import Journal
from eval.errors import JournalError
from eval.outcomes.statistics import Rate

SHARED = Path(os.environ.get("MOTE_SHARED", Path(__file__).resolve().parents[4] / "shared"))
ATTACKS = SHARED / "attacks" / "journal.jsonl"


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


def test_half_of_a_character_is_read_as_the_replacement_character(tmp_path):
    """Reports and tables could not hold what a server once wrote."""
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.add_answer("a", "base", replace(answer(1), text="x\ud800"))
        journal.add_value("v", ["\udfff"])
        assert journal.answer("a").text == "x\ufffd" and journal.value("v") == ["\ufffd"]
    with Journal(tmp_path / "j.jsonl") as journal:
        assert journal.answer("a").text == "x\ufffd"


def test_another_file_is_no_journal(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text(json.dumps({"key": "", "schema": "other/1"}) + "\n")
    with pytest.raises(JournalError, match="'other/1'"):
        Journal(path)


def damaged(kind):
    """Lines that a journal's reader was seen to fail on: wrong types, missing keys, deep JSON."""
    good = {"kind": "answer", "key": "a", "arm": "base", **asdict(answer(1))}
    return {
        "not an object": "[1]",
        "no kind": json.dumps({"key": "a"}),
        "no key": json.dumps({"kind": "value", "value": 1}),
        "key of another type": json.dumps(good | {"key": ["a"]}),
        "missing text": json.dumps({name: value for name, value in good.items() if name != "text"}),
        "text of another type": json.dumps(good | {"text": None}),
        "token that is none": json.dumps(good | {"token_ids": [1, "x"]}),
        "token as text": json.dumps(good | {"token_ids": [1, "2"]}),
        "tokens that are none": json.dumps(good | {"prompt_token_ids": {"0": 1}}),
        "value missing": json.dumps({"kind": "value", "key": "a"}),
        "deep": "[" * 200_000,
        "not text": "\udcff",
    }[kind]


KINDS = (
    "not an object", "no kind", "no key", "key of another type", "missing text", "text of another type",
    "token that is none", "token as text", "tokens that are none", "value missing", "deep", "not text",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_damage_is_one_sentence(tmp_path, kind):
    path = tmp_path / "j.jsonl"
    with Journal(path):
        pass
    with path.open("ab") as file:
        file.write(damaged(kind).encode("utf-8", "surrogateescape") + b"\n")
    whole = path.read_bytes()
    with pytest.raises(JournalError, match="line 2 is damaged") as caught:
        Journal(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert path.read_bytes() == whole


@pytest.mark.parametrize("value", [None, {"x": 1}, [1], "text"])
def test_a_value_of_another_type_is_named_when_it_is_read(tmp_path, value):
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.add_value("v", value)
        with pytest.raises(JournalError, match="the value v is damaged .* expected a Rate"):
            journal.checked("v", Rate)


@pytest.mark.skipif(not ATTACKS.is_dir(), reason="the folder of attacks is not here")
@pytest.mark.parametrize("attack", sorted(ATTACKS.glob("*")), ids=lambda path: path.name)
def test_inputs_that_made_the_reader_fail(tmp_path, attack):
    path = tmp_path / "j.jsonl"
    path.write_bytes(attack.read_bytes())
    with pytest.raises(JournalError) as caught:
        Journal(path)
    assert str(caught.value).isprintable() and len(str(caught.value).removeprefix(str(path))) < 400


SUBJECT = {"model": "m", "content_sha256": "a" * 64, "engine_arguments": {"dtype": "float32"}}


def test_a_journal_of_another_subject_is_refused(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path, SUBJECT) as journal:
        journal.add_answer("a", "base", answer(1))
    whole = path.read_bytes()
    for change in ({"content_sha256": "b" * 64}, {"engine_arguments": {"dtype": "bfloat16"}}, {"model": "other"}):
        (name,) = change
        with pytest.raises(JournalError, match=f"holds the answers of another subject .{name}"):
            Journal(path, SUBJECT | change)
        assert path.read_bytes() == whole
    with Journal(path, SUBJECT) as journal:
        assert "a" in journal


def test_a_journal_that_does_not_name_its_subject_is_refused(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text(json.dumps({"kind": "header", "key": "", "schema": "mote.journal/1"}) + "\n")
    with pytest.raises(JournalError, match="do not say which model gave them"):
        Journal(path, SUBJECT)


class FullDisk:
    """A file that takes no more than `room` bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        if len(content) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(content)
        return self.file.write(content)


def test_a_full_disk_is_one_sentence_and_what_was_kept_stays(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.add_answer("a", "base", answer(1))
        journal._file = FullDisk(journal._file, room=10)
        with pytest.raises(
            JournalError, match="cannot be written .No space left on device.; what it holds so far is kept"
        ):
            journal.add_answer("b", "base", answer(2))
        assert "b" not in journal
    with Journal(path) as journal:
        assert journal.answer("a") == answer(1) and "b" not in journal


def test_a_line_without_an_end_is_not_read_whole(tmp_path):
    path = tmp_path / "journal.jsonl"
    with path.open("wb") as opened:
        opened.truncate(3 << 30)
    with pytest.raises(JournalError, match="line 1 has more than 67,108,864 bytes"):
        Journal(path, {})
    assert path.stat().st_size == 3 << 30


def test_a_special_file_is_never_read(tmp_path):
    os.mkfifo(tmp_path / "j.jsonl")
    with pytest.raises(JournalError, match="is no regular file"):
        Journal(tmp_path / "j.jsonl")


def test_a_place_that_cannot_be_opened_is_one_sentence(tmp_path):
    (tmp_path / "j.jsonl").mkdir()
    with pytest.raises(JournalError, match="is no regular file"):
        Journal(tmp_path / "j.jsonl")


def test_two_runs_cannot_write_one_journal(tmp_path):
    with Journal(tmp_path / "j.jsonl"), pytest.raises(JournalError, match="another run is writing"):
        Journal(tmp_path / "j.jsonl")


def key(arm=None, responder=None, **changes):
    sampling = Sampling(**({"max_tokens": 8, "temperature": 0.0, "seed": 1} | changes))
    request = Request("p", 0, (("user", "hello"),), sampling)
    return answer_key(responder or {"model": "m"}, arm or Arm("base", "base"), request)


def test_a_key_depends_on_what_decides_the_answer():
    edited = Arm("x", "variant", "reroute", ((1, 2), (1, 3)))
    assert key(edited) == key(Arm("another name", "sweep", "reroute", ((1, 3), (1, 2))))
    assert key(edited) != key(Arm("x", "variant", "drop", ((1, 2), (1, 3))))
    assert key(edited) != key()
    assert key(responder={"model": "other"}) != key()
    assert key(Arm("again", "repeat", repeat=1)) != key()
    assert key(max_tokens=9) != key()
    assert key(seed=2) == key(), "a greedy answer has no seed"
    assert key(seed=2, temperature=0.6) != key(seed=1, temperature=0.6)
