"""Recorded answers stand for the base's own where everything that decides an answer is the same, and for no others."""

from pathlib import Path

import pytest
from made_traces import MANIFEST, make_record

from eval.answers.arms import Arm, Request, Sampling
from eval.answers.journal import Collector, Journal
from eval.answers.recorded import take_over
from ftri.traces.writer import write_traces
from rewriter.errors import InputError

BASE = Arm("base", "base")
SAMPLING = Sampling(max_tokens=64)
IDENTITY = {
    "mode": "live",
    "content_sha256": "c" * 64,
    "template_sha256": "t" * 64,
    "engine_arguments": {"dtype": "auto"},
}


class NoResponder:
    """Answers nothing: whatever is asked of it was not recorded."""

    think_format = None

    def identity(self) -> dict[str, object]:
        return IDENTITY


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sampling = {"max_tokens": 64, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 0}
    told = {name: IDENTITY[name] for name in ("content_sha256", "template_sha256", "engine_arguments")}
    write_traces(tmp_path / "t", MANIFEST | told | {"sampling": sampling}, map(make_record, range(6)))
    return tmp_path / "t"


def requests(text: str | None = None) -> list[Request]:
    made = [one for one in map(make_record, range(6)) if one.sample == 0]
    return [Request(one.prompt_id, 0, (("user", text or one.prompt),), SAMPLING) for one in made]


def test_recorded_answers_are_the_bases(folder: Path, tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl", IDENTITY) as journal:
        assert take_over(folder, journal, IDENTITY, BASE, requests()) == len(requests())
        answers = list(Collector(NoResponder(), journal).answers(BASE, requests()))  # type: ignore[arg-type]
    made = {one.prompt_id: one for one in map(make_record, range(6)) if one.sample == 0}
    for answer in answers:
        record = made[answer.prompt_id]
        assert (answer.text, answer.token_ids) == (record.text, record.completion_token_ids)
        assert (answer.prompt_token_ids, answer.finish_reason) == (record.prompt_token_ids, record.finish_reason)


@pytest.mark.parametrize("name", ["content_sha256", "template_sha256", "engine_arguments"])
def test_a_recording_of_something_else_is_one_sentence(folder: Path, tmp_path: Path, name: str) -> None:
    other = IDENTITY | {name: {} if name == "engine_arguments" else "x"}
    with (
        Journal(tmp_path / "journal.jsonl", other) as journal,
        pytest.raises(InputError, match=f"was recorded with the {name} .*, expected"),
    ):
        take_over(folder, journal, other, BASE, requests())


def test_other_lengths_and_texts_are_refused(folder: Path, tmp_path: Path) -> None:
    longer = [Request(one.prompt_id, 0, one.messages, Sampling(max_tokens=65)) for one in requests()]
    with Journal(tmp_path / "journal.jsonl", IDENTITY) as journal:
        with pytest.raises(InputError, match="recorded with the max_tokens 64, expected 65"):
            take_over(folder, journal, IDENTITY, BASE, longer)
        with pytest.raises(InputError, match="was recorded with another text"):
            take_over(folder, journal, IDENTITY, BASE, requests("Another question?"))
        assert len(journal) == 0
