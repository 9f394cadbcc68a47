"""How models mark off their thinking: the table of formats, one row each, and what tokenizers write around a turn.

A row's markers are regular expressions. A response begins with `opens`, unless the chat template has written that
already; `closes` ends the thinking; what follows is the answer, which some formats wrap between `answer_opens` and
`answer_closes`. A text without any markers is an answer. ftri/labels/think_formats.py splits a response by a row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

_VLLM = "vllm 0.32, vllm/reasoning/"


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
        # Its template opens the block: a turn begins with `[|assistant|]<thought>` and ends with `[|endofturn|]`.
        markers=(Markers(opens=r"<thought>", closes=r"</thought>"),),
        source="github.com/LG-AI-EXAONE/EXAONE-Deep, README.md (chat template; usage guideline, 1 and 2)",
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

# What a tokenizer writes around a turn, where special tokens are printed.
BEFORE_TURN = re.compile(
    r"\s*(?:<\|im_start\|>\s*assistant|<\|start_header_id\|>assistant<\|end_header_id\|>|<start_of_turn>model|"
    r"<\|turn>\s*model|"
    r"\[gMASK\]|<sop>|<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>|<\|assistant\|>|<｜begin▁of▁sentence｜>|"
    r"<｜Assistant｜>|\]~b\]ai|"
    r"<\|im_assistant\|>assistant<\|im_middle\|>|<\|hy_Assistant\|>|\[\|assistant\|\]|<\|CHATBOT_TOKEN\|>|"
    r"<\|START_OF_TURN_TOKEN\|>)[ \t]*"
)
AFTER_TURN = re.compile(
    r"(?:<\|(?:im_end|return|end|endoftext|end_of_text|eot_id|eot|call|user|observation|END_OF_TURN_TOKEN|"
    r"end_of_msg)\|>|"
    r"<｜end▁of▁sentence｜>|</s>|<eos>|<turn\|>|<end_of_turn>|\[\|endofturn\|\]|\[e~\[)\s*\Z"
)
