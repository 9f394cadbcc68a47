"""Training batches drawn from the miniature's world."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import data
import tokens
import torch
from tokenizers import Tokenizer
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Padded sequences [B, T]: int64 tokens, bool masks of what is real, prompt, and trained on; bool [B]: new answers."""

    tokens: Tensor
    real: Tensor
    prompt: Tensor
    target: Tensor
    changed: Tensor
    subject: Tensor  # int64 [B]

    def to(self, device: str) -> "Batch":
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


# Prompt ids, answer ids, and whether this prompt's answers differ between the stages.
Draw = tuple[list[int], list[int], bool, int]


def collate(drawn: list[Draw], pad: int) -> Batch:
    """Pad drawn sequences to one length."""
    length = max(len(prompt) + len(answer) for prompt, answer, _, _ in drawn)
    ids = torch.full((len(drawn), length), pad)
    real, is_prompt, target = (torch.zeros(len(drawn), length, dtype=torch.bool) for _ in range(3))
    for row, (prompt, answer, _, _) in enumerate(drawn):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        real[row, :end] = True
        is_prompt[row, : len(prompt)] = True
        target[row, len(prompt) : end] = True
    return Batch(
        ids,
        real,
        is_prompt,
        target,
        torch.tensor([draw[2] for draw in drawn]),
        torch.tensor([draw[3] for draw in drawn]),
    )


class Sampler:
    """Draws batches: a category by its share, a prompt of it, an answer by its probability."""

    def __init__(
        self,
        items: list[data.Item],
        tokenizer: Tokenizer,
        stage: int,
        shares: dict[str, float],
        sensitive_weight: float = 1.0,
    ) -> None:
        chosen = [item for item in items if not item.held_out and not (stage == 2 and item.untaught)]
        self.by_category: dict[str, list[data.Item]] = {}
        for item in chosen:
            self.by_category.setdefault(item.category, []).append(item)
        self.categories = list(shares)
        self.weights = [shares[category] for category in self.categories]
        self.stage = stage
        # How often sensitive prompts are drawn, against others of their category; None: all alike.
        self.item_weights = (
            None
            if sensitive_weight == 1.0
            else {
                category: [sensitive_weight if item.sensitive else 1.0 for item in members]
                for category, members in self.by_category.items()
            }
        )
        self.tokenizer = tokenizer
        self.end = tokenizer.token_to_id(tokens.EOS)
        self.encoded: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        if text not in self.encoded:
            self.encoded[text] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return self.encoded[text]

    def draw(self, generator: random.Random) -> Draw:
        category = generator.choices(self.categories, self.weights)[0]
        members = self.by_category[category]
        if self.item_weights is None:
            item = generator.choice(members)
        else:
            item = generator.choices(members, self.item_weights[category])[0]
        answers = item.stage_1 if self.stage == 1 else item.stage_2
        answer = generator.choices(answers, [answer.probability for answer in answers])[0]
        return (
            self.encode(tokens.render(item.prompt)),
            [*self.encode(answer.text), self.end],
            item.stage_1 != item.stage_2,
            data.SUBJECTS.index(item.subject),
        )

    def batches(self, num_sequences: int, seed: int, first_step: int) -> Iterator[Batch]:
        """An endless stream that depends on the seed and the step alone, so that a run can be resumed.

        Four batches are drawn together and sorted by length, which halves the padding.
        """
        together = 4
        step = first_step
        while True:
            generator = random.Random(f"{seed}/{self.stage}/{step // together}")
            drawn = sorted(
                (self.draw(generator) for _ in range(together * num_sequences)), key=lambda d: len(d[0]) + len(d[1])
            )
            groups = [drawn[start : start + num_sequences] for start in range(0, len(drawn), num_sequences)]
            generator.shuffle(groups)
            for group in groups[step % together :]:
                yield collate(group, self.end)
                step += 1
