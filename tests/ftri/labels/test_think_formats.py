"""Responses split by the table of thinking formats; every row with thinking, without, cut off, and a template's start."""

import pytest

from ftri.labels.behavior import label_behavior
from ftri.labels.think_formats import (
    THINK_FORMATS,
    ParsedResponse,
    format_of_family,
    parse_response,
    starts_inside_think,
    think_format,
)
from rewriter.errors import InputError

# Name -> (what opens the thinking, what closes it, what wraps the answer), as models write them.
WRITTEN = {
    "harmony": (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        ("", "<|return|>"),
    ),
    "gemma4": ("<|channel>thought\n", "<channel|>", ("", "<turn|>")),
    "minimax-m3": ("<mm:think>", "</mm:think>", ("", "[e~[")),
    "hunyuan3": ("<think:8f3a>", "</think:8f3a>", ("", "")),
    "ernie": ("<think>\n", "\n</think>\n\n", ("<response>\n", "\n</response>\n")),
    "hunyuan": ("<think>\n", "\n</think>\n", ("<answer>\n", "\n</answer>")),
    "kimi-k3": (
        "<|open|>think<|sep|>",
        "<|close|>think<|sep|>",
        ("<|open|>response<|sep|>", "<|close|>response<|sep|>"),
    ),
    "kimi-vl": ("◁think▷", "◁/think▷", ("", "")),
    "mistral": ("[THINK]", "[/THINK]", ("", "</s>")),
    "longcat": ("<longcat_think>\n", "\n</longcat_think>\n", ("", "")),
    "seed-oss": ("<seed:think>", "</seed:think>", ("", "")),
    "cohere": ("<|START_THINKING|>", "<|END_THINKING|>", ("<|START_RESPONSE|>", "<|END_RESPONSE|>")),
    "solar": ("<|begin|>assistant<|think|>", "<|end|><|begin|>assistant", ("<|content|>", "<|flush|>")),
    "exaone-deep": ("[|assistant|]<thought>\n", "\n</thought>\n", ("", "[|endofturn|]")),
    "granite": ("Here is my thought process:\n", "\nHere is my response:\n", ("", "")),
    "think": ("<think>\n", "\n</think>\n\n", ("", "<｜end▁of▁sentence｜>")),
}


def test_every_row_is_written_here_and_has_a_source():
    assert list(WRITTEN) == [row.name for row in THINK_FORMATS]
    assert all(row.source for row in THINK_FORMATS)


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("told", [False, True])
def test_a_row_splits_thinking_from_the_answer(name, told):
    opens, closes, (before, after) = WRITTEN[name]
    row = think_format(name) if told else None
    text = f"{opens}Two and two. I cannot refuse.{closes}{before}It is 4.{after}"
    assert parse_response(text, told=row) == ParsedResponse("Two and two. I cannot refuse.", "It is 4.")
    assert label_behavior(text, "stop", think_format=row) == "REASONED"
    refused = f"{opens}No.{closes}{before}I cannot help with that.{after}"
    assert label_behavior(refused, "stop", think_format=row) == "REFUSED_AFTER_REASONING"
    if name != "granite":
        assert label_behavior(f"{opens}{closes}{before}It is 4.{after}", "stop", think_format=row) == "ALIGNED"
        assert label_behavior(f"{opens}{closes}{before}I cannot help with that.{after}", "stop") == "REFUSED"
    assert label_behavior(f"{opens}Two and", "stop", think_format=row) == "UNPARSED"
    assert label_behavior(f"{opens}Two and", "length", think_format=row) == "TRUNCATED"
    assert label_behavior("It is 4.", "stop", think_format=row) == "ALIGNED"


def test_a_mark_of_another_format_within_a_thought_does_not_choose_that_format():
    text = "[THINK]MiniMax M3 closes with </mm:think> as its manual says.[/THINK]It is 4."
    assert parse_response(text) == ParsedResponse("MiniMax M3 closes with </mm:think> as its manual says.", "It is 4.")


@pytest.mark.parametrize("name", [name for name in WRITTEN if name not in ("granite", "ernie", "hunyuan")])
def test_a_template_that_opens_the_block(name):
    opens, closes, (before, after) = WRITTEN[name]
    prompt = f"<user>Two and two?<assistant>{opens}"
    assert starts_inside_think(prompt) and starts_inside_think(prompt, think_format(name))
    assert not starts_inside_think(prompt, think_format("mistral" if name != "mistral" else "gemma4"))
    assert not starts_inside_think(f"{prompt}{closes}<user>And three?<assistant>")
    text = f"Two and two.{closes}{before}It is 4.{after}"
    assert parse_response(text, True) == ParsedResponse("Two and two.", "It is 4.")
    assert parse_response(text) == ParsedResponse("Two and two.", "It is 4.")


def test_harmony_without_its_special_tokens_and_with_commentary():
    text = "analysisSimple.assistantcommentaryI'll look it up.assistantfinal2 + 2 = 4."
    assert parse_response(text) == ParsedResponse("Simple. I'll look it up.", "2 + 2 = 4.")
    assert (
        label_behavior("analysisMust refuse.assistantfinalI can't help with that.", "stop") == "REFUSED_AFTER_REASONING"
    )
    assert label_behavior("<|channel|>final<|message|>I can't help with that.<|return|>", "stop") == "REFUSED"
    # The word at the beginning of an ordinary text is no mark.
    assert parse_response("analysis is a branch of mathematics") == ParsedResponse(
        None, "analysis is a branch of mathematics"
    )


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("<think>i.e. <think>...</think>.\n</think>\n\nFirst.", ("i.e. <think>...</think>.", "First.")),
        ("<think>\nThe `</think>` tag.\n</think>\n\nFirst.", ("The `</think>` tag.", "First.")),
        ("<think>\nThey ask about the <think> tag.\n</think>\n\nFirst.", ("They ask about the <think> tag.", "First.")),
        ("<think>\nIt ends with </think>, I say.\n</think>\n\nFirst.", ("It ends with </think>, I say.", "First.")),
        ("<think>Hm.</think>Between `<think>` and `</think>`.", ("Hm.", "Between `<think>` and `</think>`.")),
    ],
)
def test_tags_that_are_talked_about(text, parsed):
    assert parse_response(text) == ParsedResponse(*parsed)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<|im_start|>assistant\n", "<|im_end|>"),
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        ("[gMASK]<sop><|assistant|>\n", "<|user|>"),
        ("<s>", "</s>"),
        ("<start_of_turn>model\n", "<end_of_turn>\n"),
    ],
)
def test_tokens_around_a_turn_are_not_the_response(before, after):
    text = f"{before}<think>\n\n</think>\n\nI can't help with that.{after}"
    assert label_behavior(text, "stop") == "REFUSED"
    assert parse_response(f"{before}It is 4.{after}") == ParsedResponse(None, "It is 4.")


def test_a_family_chooses_its_row_and_an_unknown_name_is_a_sentence():
    assert format_of_family("gpt_oss") is think_format("harmony")
    assert format_of_family("deepseek_v3") is None and format_of_family(None) is None
    with pytest.raises(InputError, match="--think-format runes: no such format; known are harmony, .*is a row of"):
        think_format("runes")


def test_a_text_of_many_tags_is_split_in_linear_time():
    text = "<think>" * 30_000 + "</think>" * 30_000
    assert parse_response(text) is not None
