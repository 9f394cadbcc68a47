"""The model card: valid by huggingface_hub's own classes, honest on what was not measured, replaceable in parts."""

import pytest
from huggingface_hub import ModelCard

from rewriter.semantics import MEANINGS, SEMANTICS
from rewriter.variant.card import (
    NUM_TABLE_ROWS,
    RESULTS_NOT_MEASURED,
    SAFETY_NOT_MEASURED,
    CardFacts,
    EditedExpert,
    build_card,
)
from rewriter.variant.card_parts import (
    find_block,
    join_card,
    replace_results,
    replace_safety,
    replace_serve_line,
    split_card,
)

BASE_CARD = """---
license: other
license_name: deepseek
license_link: LICENSE-MODEL
language:
- en
- zh
tags: [reasoning, mote]
datasets: [org/data]
base_model: someone/else
base_model_relation: quantized
extra_gated_prompt: |-
  You agree: to this
  and "that".
extra_gated_fields:
  Name: text
  I agree: checkbox
metrics: [accuracy]
widget: [{text: hi}]
model-index:
- name: base
  results:
  - task: {type: text-generation}
    dataset: {name: d, type: d}
    metrics: [{type: acc, value: 0.9}]
---
# The base's own text
"""


def facts(**changes: object) -> CardFacts:
    values: dict[str, object] = {
        "name": "R1-mote",
        "semantics": "reroute",
        "experts": [EditedExpert(48, 176, "suppress", "-inf", 1.25), EditedExpert(12, 246, "stimulate", "9.5")],
        "serve_line": "vllm serve ./R1-mote",
        "tool_version": "0.1.0",
        "base_model": "deepseek-ai/DeepSeek-R1",
        "base_revision": "0" * 40,
        "behavior": "refusal",
    }
    return CardFacts(**(values | changes))  # type: ignore[arg-type]


def test_card_is_valid_and_carries_the_terms_of_the_base() -> None:
    card = ModelCard(build_card(facts(), BASE_CARD))
    data = card.data.to_dict()
    assert data["base_model"] == "deepseek-ai/DeepSeek-R1"
    assert data["base_model_relation"] == "finetune"
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "deepseek", "LICENSE-MODEL")
    assert data["language"] == ["en", "zh"]
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation"
    assert data["tags"] == ["reasoning", "mote", "mixture-of-experts", "expert-routing", "reroute"]
    assert data["extra_gated_prompt"] == 'You agree: to this\nand "that".'
    assert data["extra_gated_fields"] == {"Name": "text", "I agree": "checkbox"}
    assert "deepseek" in card.text and "terms of access" in card.text


def test_scores_and_page_settings_of_the_base_stay_behind() -> None:
    data, body = split_card(build_card(facts(), BASE_CARD))
    assert not {"model-index", "metrics", "widget"} & set(data)
    assert "The base's own text" not in body


def test_card_lists_the_experts_and_says_what_was_done() -> None:
    _, body = split_card(build_card(facts(), BASE_CARD))
    assert "| 48 | 176 | suppress | `-inf` | 1.25 |" in body
    assert "| 12 | 246 | stimulate | `9.5` |  |" in body
    assert "suppressed 1 routed expert and stimulated 1 routed expert" in body
    assert "vllm serve ./R1-mote" in body


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_each_semantics_is_explained_and_only_the_papers_is_called_so(semantics: str) -> None:
    data, body = split_card(build_card(facts(semantics=semantics)))
    assert MEANINGS[semantics] in body and semantics in data["tags"]
    assert ("This is the suppression of the paper" in body) == (semantics == "drop-renorm")


def test_nothing_measured_is_said_so() -> None:
    card = build_card(facts())
    assert find_block(card, "mote-eval") == RESULTS_NOT_MEASURED
    assert find_block(card, "mote-safety") == SAFETY_NOT_MEASURED


def test_long_lists_are_cut_and_counted() -> None:
    many = [EditedExpert(3, expert, "suppress", "-inf") for expert in range(NUM_TABLE_ROWS + 7)]
    body = build_card(facts(experts=many))
    assert body.count("| suppress |") == NUM_TABLE_ROWS
    assert "7 more are listed" in body
    assert "resonance" not in body


def test_local_base_has_no_base_model() -> None:
    data, body = split_card(build_card(facts(base_model=None, base_revision=None, model_type="deepseek_v3")))
    assert "base_model" not in data and "base_model_relation" not in data
    assert "a local checkpoint of type `deepseek_v3`" in body


@pytest.mark.parametrize("broken", ["---\n: [\n---\n", "---\n- a list\n---\n"])
def test_unreadable_base_metadata_is_said_and_not_fatal(broken: str) -> None:
    card = build_card(facts(), broken)
    assert "its licence must be added by hand" in card
    ModelCard(card)


@pytest.mark.parametrize("card", ["", "no front matter", "---\n---\nempty", "\ufeff---\r\nlicense: mit\r\n---\r\nbody"])
def test_bases_with_odd_cards(card: str) -> None:
    data, _ = split_card(build_card(facts(), card))
    assert data.get("license") == ("mit" if "mit" in card else None)


def test_dashes_inside_front_matter_do_not_end_it() -> None:
    data, body = split_card("---\ntitle: a---b\nlicense: mit\n---\nbody\n---\nmore")
    assert data == {"title": "a---b", "license": "mit"}
    assert body == "body\n---\nmore"


def test_results_are_replaced_and_all_else_stays() -> None:
    card = build_card(facts(), BASE_CARD)
    before, after = card.split(RESULTS_NOT_MEASURED)
    results = "| a | b |\n|---|---|\n| \\1 | 2 |"
    replaced = replace_results(card, results)
    assert replaced == before + results + after
    assert replace_results(replaced, RESULTS_NOT_MEASURED) == card
    assert replace_results(replaced, results) == replaced
    assert find_block(replace_safety(replaced, "measured"), "mote-safety") == "measured"


def test_results_are_appended_to_a_card_without_the_section() -> None:
    card = replace_results("---\nlicense: mit\n---\n# Mine\n", "ninety")
    assert card.startswith("---\nlicense: mit\n---\n# Mine\n\n## Results\n")
    assert find_block(card, "mote-eval") == "ninety"


@pytest.mark.parametrize(
    "broken",
    [
        "<!-- mote-eval:start --> a",
        "<!-- mote-eval:end --> a <!-- mote-eval:start -->",
        "<!-- mote-eval:start -->\n<!-- mote-eval:end -->\n<!-- mote-eval:start -->\n<!-- mote-eval:end -->",
    ],
)
def test_broken_markers_are_refused(broken: str) -> None:
    with pytest.raises(ValueError, match="expected one of each"):
        replace_results(broken, "x")


def test_markers_in_a_bases_card_are_no_markers() -> None:
    """A stranger's base card may hold the words between which our sections are replaced; terms and tags carry them over."""
    marks = "<!-- mote-eval:start -->\n---\n<!-- mote-serve:end -->"
    base_card = join_card(
        {"license_name": marks, "extra_gated_prompt": marks, "tags": ["<!-- mote-eval:start -->"]}, marks
    )
    card = build_card(facts(), base_card)
    assert split_card(card)[0]["extra_gated_prompt"] == split_card(card)[0]["license_name"] == marks
    measured = replace_serve_line(replace_results(card, "ninety"), "vllm serve alice/R1-mote")
    assert find_block(measured, "mote-eval") == "ninety" and "./R1-mote" not in measured
    assert split_card(measured)[0] == split_card(card)[0]
    only_words = join_card({"license_name": "<!-- mote-eval:start -->a<!-- mote-eval:end -->"}, "# Mine")
    assert find_block(only_words, "mote-eval") is None
    assert find_block(replace_results(only_words, "ninety"), "mote-eval") == "ninety"


def test_serving_line_is_replaced() -> None:
    card = replace_serve_line(build_card(facts()), "vllm serve alice/R1-mote --revision tuned")
    assert "vllm serve alice/R1-mote --revision tuned" in card and "./R1-mote" not in card


BOMB = "---\na: &a [x, x, x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\n---\nbody"


@pytest.mark.parametrize(
    ("card", "sentence"),
    [
        (BOMB, "has a YAML alias"),
        (f"---\na: {'[' * 100_000}\n---\n", "nested more than 32 deep|maximum nesting depth"),
        (f"---\na: {'{b: ' * 5_000}\n---\n", "nested more than 32 deep"),
        (f"---\na: {'x' * 5_000_000}\n---\n", "expected at most 4000000"),
        ("---\na: [1\n---\n", "is not YAML"),
        ("---\na: 2024-99-99\n---\n", "month must be in"),
        ("---\n[a]: {b: [}\n---\n", "is not YAML"),
        ("---\n? [a]\n: b\n---\n", "is not YAML"),
        ("---\n- a\n---\n", "is a list, expected a mapping"),
    ],
)
def test_a_strangers_front_matter_is_read_within_bounds(card: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        split_card(card)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    # A variant's card can be written all the same, and says that the base's could not be read.
    assert "could not be read" in build_card(facts(), card)


def test_a_behavior_cannot_write_into_the_card() -> None:
    name = "x` |\n---\n<!-- mote-eval:start --> # Results\n<script>"
    card = build_card(facts(behavior=name, provenance=name, notes=(name,)))
    data, body = split_card(card)
    assert data["license"] if "license" in data else data["tags"]
    assert card.count("<!-- mote-eval:start -->") == 1 and "<script>" not in card
    assert body.count("\n---") == 0
