import hashlib

import pytest
from fake_run import PROMPTS

from eval.outcomes.held_out import check_held_out, cluster_of, split_prompts
from ftri.prompts.sets import PromptRecord, language
from rewriter.errors import InputError


def test_prompts_that_found_the_experts_are_told():
    hashes = [hashlib.sha256(prompt.text.encode()).hexdigest() for prompt in PROMPTS[:7]]
    held_out = check_held_out([{"prompt_sha256": hashes}], PROMPTS)
    assert (held_out.status, held_out.num_overlapping) == ("overlap", 7)
    assert "7 of the 60 prompts also found the experts" in held_out.sentence
    assert check_held_out([{"prompt_sha256": hashes}], PROMPTS[7:]).status == "held-out"
    assert check_held_out([{}], PROMPTS).status == check_held_out([], PROMPTS).status == "unknown"


def test_of_two_sets_neither_hides_what_found_the_other():
    """One set to suppress and one to stimulate: the prompts of either flatter."""
    seen, other = [
        {"prompt_sha256": [hashlib.sha256(text.encode()).hexdigest()]} for text in (PROMPTS[0].text, "elsewhere")
    ]
    for provenances in ([seen, other], [other, seen], [seen, {}]):
        assert check_held_out(provenances, PROMPTS).num_overlapping == 1
    unknown = check_held_out([other, {}], PROMPTS)
    assert unknown.status == "unknown" and unknown.sentence.startswith("Not every expert set says which prompts")
    assert check_held_out([other, other], PROMPTS).status == "held-out"


def test_a_split_loses_and_doubles_nothing():
    finding, testing = split_prompts(PROMPTS, 0.5, seed=3)
    assert len(finding) == len(testing) == 30
    assert {p.prompt_id for p in finding} | {p.prompt_id for p in testing} == {p.prompt_id for p in PROMPTS}
    assert split_prompts(PROMPTS, 0.5, seed=3) == (finding, testing)
    assert split_prompts(PROMPTS, 0.5, seed=4) != (finding, testing)


def test_a_prompt_that_stands_twice_is_on_one_side():
    twice = [*PROMPTS, *(PromptRecord(f"again/{one.prompt_id}", one.text, one.factors) for one in PROMPTS)]
    for by in (None, "time"):
        finding, testing = split_prompts(twice, 0.5, by=by)
        assert not {p.text for p in finding} & {p.text for p in testing}
        assert len(finding) + len(testing) == len(twice)


def test_a_split_by_place_shares_no_place():
    finding, testing = split_prompts(PROMPTS, 0.4, by="place")
    assert not {p.factors["place"] for p in finding} & {p.factors["place"] for p in testing}
    assert len(finding) == 24


@pytest.mark.parametrize(
    ("share", "by", "sentence"),
    [
        (0, None, "--split is 0"),
        (1.5, None, "--split is 1.5"),
        (0.5, "planet", "factors are place, time"),
        (0.001, None, "some of both"),
    ],
)
def test_splits_that_cannot_be(share, by, sentence):
    with pytest.raises(InputError, match=sentence):
        split_prompts(PROMPTS, share, by=by)


def test_clusters_are_places_subjects_or_number_pairs():
    assert cluster_of(PROMPTS[0]) == "in Beijing"
    assert cluster_of(PromptRecord("x", "text", {"subject": "Taiwan", "place": "Paris"})) == "Taiwan"
    assert cluster_of(PromptRecord("x", "text", {})) == "x"
    assert len({cluster_of(prompt) for prompt in language()}) == 100
