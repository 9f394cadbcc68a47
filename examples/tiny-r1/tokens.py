"""The miniature's tokenizer: byte-level BPE learned from its own world, with R1's special tokens."""

import re
from pathlib import Path

import data
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
SPECIAL = [BOS, EOS, USER, ASSISTANT]
# As in R1, the think tags are tokens of their own but stay in decoded text.
ADDED = [data.THINK_OPEN, data.THINK_CLOSE]
# The template of January 2025: it does not open the think block.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + message['content'].split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
PATTERN = r" ?\p{L}+| ?\p{N}+|\s*\n+| ?[^\s\p{L}\p{N}]+|\s+"


def train_tokenizer(texts: list[str], vocab_size: int = 1536) -> Tokenizer:
    """A tokenizer in which every frequent word of the texts is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL + ADDED,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Every distinct word once: merging goes on until each is a single token.
    words = sorted({word for text in texts for word in re.findall(r" ?[^\W\d]+| ?\d+|\n+| ?[^\w\s]+", text)})
    tokenizer.train_from_iterator(words, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files that AutoTokenizer reads, with the chat template."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS)
    fast.add_special_tokens({"additional_special_tokens": [USER, ASSISTANT]})
    fast.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ADDED])
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def render(prompt: str) -> str:
    """The chat template's text for one user message with the generation prompt."""
    return f"{BOS}{USER}{prompt}{ASSISTANT}"
