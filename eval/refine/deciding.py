"""Where responses decide what they will be, learned from recorded responses: the tokens whose probability is watched.

The responses to all prompts form a tree of tokens. A node is *deciding* where responses of the target behaviour and
others pass through it; beyond the last one the behaviour is settled. For a response, the chance that it shows the
behaviour is estimated from the next-token distributions at its deciding nodes alone, so an edit is judged by one
teacher-forced pass over a prompt and a few tokens instead of by a whole answer.

Legend: P responses, D deciding nodes of a response, V tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# A node is settled when all but this share of its responses agree: a stray label decides nothing.
MINORITY_SHARE = 0.02
# Chances nearer to 0 or 1 than this are not told apart: float32 log-probabilities and the listed tokens end there.
SMALLEST_CHANCE = 1e-6
# Responses are compared this far: what is decided later is no matter of the first tokens, and the tree stays small.
MAX_DEPTH = 64


@dataclass
class Node:
    """A place in the tree of responses: how many passed, how many of them showed the target behaviour."""

    num_responses: int = 0
    num_target: int = 0
    children: dict[int, Node] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The share of target responses among those that passed."""
        return self.num_target / self.num_responses

    @property
    def is_deciding(self) -> bool:
        """Whether responses of both kinds pass in numbers that matter."""
        return MINORITY_SHARE < self.share < 1 - MINORITY_SHARE


@dataclass(frozen=True)
class Probe:
    """What to read of one prompt: the tokens to force, and the deciding places among them.

    `token_ids` are the prompt's and the response's up to the last deciding node, and one more, since the tokens after a
    sequence's last are not scored; `positions` [D] are those whose next token is read (position n predicts token n + 1);
    `shares` [D] map a next token to the share of target responses behind it; `own` [D - 1] are the response's own next
    tokens at all places but the last.
    """

    prompt_id: str
    token_ids: tuple[int, ...]
    positions: tuple[int, ...]
    shares: tuple[Mapping[int, float], ...]
    own: tuple[int, ...]


def grow_tree(responses: Sequence[Sequence[int]], is_target: Sequence[bool]) -> Node:
    """The tree of P responses (token ids, the first MAX_DEPTH of each) with their labels.

    Raises:
        ValueError: when there are not as many labels as responses.
    """
    root = Node()
    for tokens, target in zip(responses, is_target, strict=True):
        node = root
        node.num_responses += 1
        node.num_target += target
        for token in tokens[:MAX_DEPTH]:
            node = node.children.setdefault(token, Node())
            node.num_responses += 1
            node.num_target += target
    return root


def probe_for(root: Node, prompt_id: str, prompt: Sequence[int], response: Sequence[int]) -> Probe | None:
    """The probe of one recorded response; None when nothing on its way is deciding."""
    positions: list[int] = []
    shares: list[Mapping[int, float]] = []
    node = root
    last = 0
    for depth in range(len(response) + 1):
        if node.is_deciding and len(node.children) > 1:
            positions.append(len(prompt) + depth - 1)
            shares.append({token: child.share for token, child in node.children.items()})
            last = depth
        if depth == len(response) or response[depth] not in node.children:
            break
        node = node.children[response[depth]]
        if not node.is_deciding:
            break
    if not positions:
        return None
    own = [response[position - len(prompt) + 1] for position in positions[:-1]]
    after = response[last] if last < len(response) else next(iter(shares[-1]))
    return Probe(prompt_id, (*prompt, *response[:last], after), tuple(positions), tuple(shares), tuple(own))


def chance(probe: Probe, next_tokens: Sequence[Mapping[int, float]]) -> float:
    """The chance that the response shows the behaviour.

    `next_tokens` [D] map tokens to probabilities at the probe's positions. At the last place the chance is the mean of
    the recorded shares, weighed by the probabilities; at an earlier one the response's own token leads to the place
    after it. Tokens that no recorded response had there say nothing and are left out; where none is left, so does the
    place: its recorded share is the mean over its tokens.
    """
    value: float | None = None
    for place in reversed(range(len(probe.positions))):
        shares, probabilities = probe.shares[place], next_tokens[place]
        weighed = known = 0.0
        for token, share in shares.items():
            probability = probabilities.get(token, 0.0)
            continued = value if value is not None and token == probe.own[place] else share
            weighed += probability * continued
            known += probability
        value = weighed / known if known > 0 else sum(shares.values()) / len(shares)
    assert value is not None
    return value


def log_odds(probability: float) -> float:
    """log(p / (1 - p)), bounded by what can be told apart."""
    bounded = min(max(probability, SMALLEST_CHANCE), 1 - SMALLEST_CHANCE)
    return math.log(bounded) - math.log1p(-bounded)


def deciding_tokens(root: Node) -> list[tuple[tuple[int, ...], dict[int, float]]]:
    """Every deciding node as (the tokens before it, next token -> share of target responses), nearest first."""
    found = []
    waiting: list[tuple[tuple[int, ...], Node]] = [((), root)]
    while waiting:
        path, node = waiting.pop(0)
        if not node.is_deciding:
            continue
        if len(node.children) > 1:
            found.append((path, {token: child.share for token, child in node.children.items()}))
        waiting.extend(((*path, token), child) for token, child in sorted(node.children.items()))
    return found
