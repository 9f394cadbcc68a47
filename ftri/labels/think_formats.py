"""How models mark off their thinking: the table of formats, one row each, and what splits a response by a row.

A row's markers are regular expressions. A response begins with `opens`, unless the chat template has written that
already; `closes` ends the thinking; what follows is the answer, which some formats wrap between `answer_opens` and
`answer_closes`. A text without any markers is an answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from rewriter.errors import InputError

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"

_VLLM = "vllm 0.32, vllm/reasoning/"

# Of a rendered prompt, what is looked at for an opening mark.
PROMPT_TAIL_CHARACTERS = 200


@dataclass(frozen=True)
class Markers:
    """The marks around the thinking and, where there are any, around the answer; regular expressions."""

    opens: str
    closes: str
    answer_opens: str = ""
    answer_closes: str = ""
    told_by: str = ""  # what must be found for this to be the format; empty: `opens` at the start, or `closes`
    many_blocks: bool = False  # the thinking may be opened again and again before it is closed

    @cached_property
    def opening(self) -> re.Pattern[str]:
        """`opens`, with the white space around it."""
        return re.compile(rf"\s*(?:{self.opens})")

    @cached_property
    def closing(self) -> re.Pattern[str]:
        """`closes`."""
        return re.compile(self.closes)

    @cached_property
    def either(self) -> re.Pattern[str]:
        """A mark of the thinking, `open` or `close`."""
        return re.compile(rf"(?P<open>{self.opens})|(?P<close>{self.closes})")

    def told(self, text: str, opened: bool = False) -> bool:
        """Whether a text shows that it is written in this format; `opened`: it begins with some format's opening mark."""
        if self.told_by:
            return bool(re.search(self.told_by, text, re.DOTALL))
        if self.opening.match(text):
            return True
        # A thought may talk about another format's closing mark.
        if not opened and self.closing.search(text):
            return True
        return bool(self.answer_opens and re.match(rf"\s*(?:{self.answer_opens})", text))

    def ends_open(self, prompt: str) -> bool:
        """Whether a rendered prompt ends with the opening mark, so that the response begins inside the block."""
        return bool(re.search(rf"(?:{self.opens})\s*\Z", prompt))


@dataclass(frozen=True)
class ThinkFormat:
    """One format: its name, the `model_type`s that write it, its marks (alternatives), and where that was read."""

    name: str
    model_types: tuple[str, ...]
    markers: tuple[Markers, ...]
    source: str


# A row whose marks another row's include stands before it: the first that a text shows is taken.
THINK_FORMATS: tuple[ThinkFormat, ...] = (
    ThinkFormat(
        name="harmony",
        model_types=("gpt_oss",),
        markers=(
            Markers(
                opens=r"(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|"
                r"commentary)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>",
                closes=r"(?:<\|start\|>assistant)?<\|channel\|>final[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>",
                many_blocks=True,
            ),
            # What is left where special tokens are not printed, which is what servers do unless they are asked.
            Markers(
                opens=r"analysis(?=[^a-z\s,.:;])",
                closes=r"assistant\s?final",
                told_by=r"\A\s*analysis(?=[^a-z\s,.:;]).*assistant\s?(?:final|commentary)",
                many_blocks=True,
            ),
        ),
        source=_VLLM
        + "gptoss_reasoning_parser.py; special tokens left out: vllm/entrypoints/openai (skip_special_tokens)",
    ),
    ThinkFormat(
        name="gemma4",
        model_types=("gemma4", "gemma4_text"),
        markers=(Markers(opens=r"<\|channel>(?:thought\b)?\n?", closes=r"<channel\|>"),),
        source="vllm 0.32, vllm/parser/gemma4.py",
    ),
    ThinkFormat(
        name="minimax-m3",
        model_types=("minimax_m3", "minimax_m3_vl"),
        markers=(Markers(opens=r"<mm:think>", closes=r"</mm:think>"),),
        source=_VLLM + "minimax_m3_reasoning_parser.py",
    ),
    ThinkFormat(
        name="hunyuan3",
        model_types=("hy_v3", "hy_v4"),
        # The suffix is the tokenizer's `token_suffix`, which differs from release to release.
        markers=(
            Markers(opens=r"<think(?::[^\s<>]+)?>", closes=r"</think(?::[^\s<>]+)?>", told_by=r"</?think:[^\s<>]+>"),
        ),
        source=_VLLM + "hy_v3_reasoning_parser.py and hy_v4_reasoning_parser.py",
    ),
    ThinkFormat(
        name="ernie",
        model_types=("ernie4_5_moe",),
        markers=(
            Markers(
                opens=r"<think>",
                closes=r"</think>",
                answer_opens=r"<response>",
                answer_closes=r"</response>",
                told_by=r"(?:</think>\s*|\A\s*)<response>",
            ),
        ),
        source=_VLLM + "ernie45_reasoning_parser.py",
    ),
    ThinkFormat(
        name="hunyuan",
        model_types=("hunyuan_v1_moe", "hunyuan"),
        markers=(
            Markers(
                opens=r"<think>",
                closes=r"</think>",
                answer_opens=r"<answer>",
                answer_closes=r"</answer>",
                told_by=r"(?:</think>\s*|\A\s*)<answer>",
            ),
        ),
        source=_VLLM + "hunyuan_a13b_reasoning_parser.py",
    ),
    ThinkFormat(
        name="kimi-k3",
        model_types=("kimi_k3",),
        markers=(
            Markers(
                opens=r"<\|open\|>\s*think\s*<\|sep\|>",
                closes=r"<\|close\|>\s*think\s*<\|sep\|>",
                answer_opens=r"<\|open\|>\s*response\s*<\|sep\|>",
                answer_closes=r"<\|close\|>\s*(?:response|message)\s*<\|sep\|>",
            ),
        ),
        source=_VLLM + "kimi_k3_reasoning_parser.py",
    ),
    ThinkFormat(
        name="kimi-vl",
        model_types=("kimi_vl",),
        markers=(Markers(opens=r"◁think▷", closes=r"◁/think▷"),),
        source="chat template of moonshotai/Kimi-VL-A3B-Thinking",
    ),
    ThinkFormat(
        name="mistral",
        model_types=("mistral3", "mistral4"),
        markers=(Markers(opens=r"\[THINK\]", closes=r"\[/THINK\]"),),
        source="vllm 0.32, vllm/parser/mistral.py (begin_think and end_think of mistral_common)",
    ),
    ThinkFormat(
        name="longcat",
        model_types=("longcat_flash",),
        markers=(Markers(opens=r"<longcat_think>", closes=r"</longcat_think>"),),
        source="added tokens of meituan-longcat/LongCat-Flash-Thinking",
    ),
    ThinkFormat(
        name="seed-oss",
        model_types=("seed_oss",),
        markers=(Markers(opens=r"<seed:think>", closes=r"</seed:think>"),),
        source="vllm 0.32, vllm/parser/seed_oss.py",
    ),
    ThinkFormat(
        name="cohere",
        model_types=("cohere2_moe",),
        markers=(
            Markers(
                opens=r"<\|START_THINKING\|>",
                closes=r"<\|END_THINKING\|>",
                answer_opens=r"<\|START_(?:RESPONSE|TEXT)\|>",
                answer_closes=r"<\|END_(?:RESPONSE|TEXT)\|>",
            ),
        ),
        source=_VLLM + "cohere_command_reasoning_parser.py",
    ),
    ThinkFormat(
        name="solar",
        model_types=("solar_open",),
        markers=(
            Markers(
                opens=r"(?:<\|begin\|>assistant)?<\|think\|>",
                closes=r"<\|end\|>",
                answer_opens=r"(?:<\|begin\|>assistant)?<\|content\|>",
                answer_closes=r"<\|(?:end|flush)\|>",
                told_by=r"\A\s*(?:<\|begin\|>assistant)?<\|(?:think|content)\|>|"
                r"<\|end\|>\s*<\|begin\|>assistant(?:<\|content\|>)?",
            ),
        ),
        source="chat template of upstage/Solar-Open-100B",
    ),
    ThinkFormat(
        name="exaone-deep",
        model_types=("exaone",),
        markers=(Markers(opens=r"<thought>", closes=r"</thought>"),),
        source="chat template of LGAI-EXAONE/EXAONE-Deep-32B",
    ),
    ThinkFormat(
        name="granite",
        model_types=("granitemoe", "granitemoeshared", "granitemoehybrid"),
        markers=(
            Markers(
                opens=r"Here(?:'s| is) my thought process:",
                closes=r"Here(?:'s| is) my response:",
                told_by=r"\A\s*Here(?:'s| is) my thought process:",
            ),
            Markers(opens=r"<think>", closes=r"</think>", answer_opens=r"<response>", answer_closes=r"</response>"),
        ),
        source=_VLLM + "granite_reasoning_parser.py and granite_thinking_engine_reasoning_parser.py",
    ),
    ThinkFormat(
        name="think",
        # DeepSeek, Qwen, GLM, Kimi K2, MiniMax M2, Nemotron and most others: what a family without a row is taken for.
        model_types=(),
        markers=(Markers(opens=r"<think>", closes=r"</think>"),),
        source=_VLLM + "basic_parsers.py and deepseek_r1_reasoning_parser.py",
    ),
)

DEFAULT_FORMAT = THINK_FORMATS[-1]
_BY_MODEL_TYPE = {name: row for row in THINK_FORMATS for name in row.model_types}

# What a tokenizer writes around a turn, where special tokens are printed.
_BEFORE_TURN = re.compile(
    r"\s*(?:<\|im_start\|>\s*assistant|<\|start_header_id\|>assistant<\|end_header_id\|>|<start_of_turn>model|"
    r"<\|turn>\s*model|"
    r"\[gMASK\]|<sop>|<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>|<\|assistant\|>|<｜begin▁of▁sentence｜>|"
    r"<｜Assistant｜>|\]~b\]ai|"
    r"<\|im_assistant\|>assistant<\|im_middle\|>|<\|hy_Assistant\|>|<\|CHATBOT_TOKEN\|>|"
    r"<\|START_OF_TURN_TOKEN\|>)[ \t]*"
)
_AFTER_TURN = re.compile(
    r"(?:<\|(?:im_end|return|end|endoftext|end_of_text|eot_id|eot|call|user|observation|END_OF_TURN_TOKEN|"
    r"end_of_msg)\|>|"
    r"<｜end▁of▁sentence｜>|</s>|<eos>|<turn\|>|<end_of_turn>|\[e~\[)\s*\Z"
)
# What ends one of several blocks, where `closes` ends the last.
_END_OF_BLOCK = re.compile(r"<\|(?:end|call|start)\|>(?:assistant)?|assistantcommentary")
# Marks that the text talks about, rather than uses: between backticks or quotation marks.
_MENTIONED = re.compile(r"`[^`\n]*`|\"</?[^\"\s]{0,30}\"|“</?[^”\s]{0,30}”|'</?[^'\s]{0,30}'")


@dataclass(frozen=True)
class ParsedResponse:
    """A response split at its think block: no block, no `thinking`; a block that never ends, no `answer`."""

    thinking: str | None
    answer: str | None


def think_format(name: str) -> ThinkFormat:
    """The row of a name.

    Raises:
        InputError: no row has that name.
    """
    for row in THINK_FORMATS:
        if row.name == name:
            return row
    known = ", ".join(row.name for row in THINK_FORMATS)
    raise InputError(
        f"--think-format {name}: no such format; known are {known}. A new one is a row of ftri/labels/think_formats.py"
    )


def format_of_family(model_type: str | None) -> ThinkFormat | None:
    """The format that a `model_type` of config.json writes; None where the table does not say."""
    return _BY_MODEL_TYPE.get(model_type or "")


def choose_format(name: str | None, model_type: str | None) -> ThinkFormat | None:
    """The row that is told by name, else the one of the model's family; None: the text of each response tells it.

    Raises:
        InputError: no row has that name.
    """
    return think_format(name) if name else format_of_family(model_type)


def starts_inside_think(rendered_prompt: str, told: ThinkFormat | None = None) -> bool:
    """Whether the chat template has opened the think block, so that the response begins inside it.

    R1's own does since 9-10 February 2025.
    """
    tail = rendered_prompt[-PROMPT_TAIL_CHARACTERS:]
    rows = (told,) if told else THINK_FORMATS
    return any(markers.ends_open(tail) for row in rows for markers in row.markers)


def parse_response(text: str, starts_inside: bool = False, told: ThinkFormat | None = None) -> ParsedResponse | None:
    """Split raw text at its think block; None when the marks do not make one block at the start.

    Without `told` the format is the first of the table that the text shows. A text that a template's opening mark
    precedes carries only the closing one; that is recognised by itself, so `starts_inside` matters only where the block
    is never closed.
    """
    body, markers = _body_and_markers(text, told)
    opening = markers.opening.match(body)
    if opening:
        body = body[opening.end() :]
    marks = _marks(markers, body)
    inside = starts_inside or opening is not None
    if not inside and not marks:
        return ParsedResponse(None, _answer(markers, body))
    if not inside and marks[0].opens:
        return None
    if not marks:
        return ParsedResponse(_thinking(markers, body), None)
    end = _end_of_block(markers, marks, body)
    if end is None:
        # The marks are there, but are no block that ends.
        return (
            None
            if not inside or any(not mark.opens for mark in marks)
            else ParsedResponse(_thinking(markers, body), None)
        )
    if any(mark.start >= end.end for mark in marks):
        return None
    return ParsedResponse(_thinking(markers, body[: end.start]), _answer(markers, body[end.end :]))


@dataclass(frozen=True)
class _Mark:
    opens: bool
    start: int
    end: int


def _body_and_markers(text: str, told: ThinkFormat | None) -> tuple[str, Markers]:
    """The text without the tokens around a turn, and the marks that it is to be split by."""
    body = text.strip()
    while match := _AFTER_TURN.search(body):
        body = body[: match.start()]
    rows = (told,) if told else THINK_FORMATS
    while True:
        opened = any(markers.opening.match(body) for row in rows for markers in row.markers)
        for row in rows:
            for markers in row.markers:
                # A format that is known needs no more than its opening, which an unfinished response has alone.
                if markers.told(body, opened) or (told and markers.opening.match(body)):
                    before = _BEFORE_TURN.match(body)
                    while before and before.end():
                        body = body[before.end() :]
                        before = _BEFORE_TURN.match(body)
                    return body, markers
        before = _BEFORE_TURN.match(body)
        if not before or not before.end():
            return body, rows[-1].markers[0]
        body = body[before.end() :]


def _marks(markers: Markers, body: str) -> list[_Mark]:
    """The marks of a text that are used, not talked about, in their order."""
    masked = _MENTIONED.sub(lambda match: "\0" * len(match.group()), body)
    return [_Mark(found.lastgroup == "open", found.start(), found.end()) for found in markers.either.finditer(masked)]


def _end_of_block(markers: Markers, marks: list[_Mark], body: str) -> _Mark | None:
    """The mark that closes the block that is open at the beginning of `body`; None where none does."""
    depth = 1
    for place, mark in enumerate(marks):
        if mark.opens:
            depth += not markers.many_blocks
            continue
        depth -= 1
        if depth == 0:
            rest = marks[place + 1 :]
            # A thought about the tags closes early; the block's own end then stands on a line of its own.
            later = [other for other in rest if body[: other.start].endswith("\n")]
            return later[-1] if rest and later and not any(other.opens for other in rest) else mark
        if place == len(marks) - 1:
            # A thought about the tags has opened one without closing it.
            return mark
    return None


def _thinking(markers: Markers, text: str) -> str:
    if markers.many_blocks:
        text = _END_OF_BLOCK.sub(" ", re.sub(markers.opens, " ", text))
    return text.strip()


def _answer(markers: Markers, text: str) -> str:
    answer = text.strip()
    if markers.answer_opens:
        answer = re.sub(rf"\A(?:{markers.answer_opens})", "", answer)
        answer = re.sub(rf"(?:{markers.answer_closes})\s*\Z", "", answer)
    return answer.strip()
