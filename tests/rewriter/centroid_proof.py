"""How often a centroid is selected, and how far its model is from the true reroute and from the drop: on models that run.

    python tests/rewriter/centroid_proof.py            # the table of docs/bias-free.md: minutes

The true reroute is unmodified transformers with the suppressed experts' router logits set to -inf where a router's linear layer
hands them out. KL is summed over the whole vocabulary in float64, nats per token.

Legend: T tokens, V vocabulary.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from family_models import BASE, GROUPED, LATENT_ATTENTION, TINY_MODELS, VOCABULARY, TinyModel, build_tiny_model

from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.patches import EditOptions
from rewriter.edit.plan import make_plan
from rewriter.expert_set import ExpertEntry, ExpertSet
from rewriter.families.family import RouterLayout
from rewriter.semantics import DROP, REROUTE
from rewriter.variant.write import write_variant

Pairs = list[tuple[int, int]]  # (model layer, expert)
ROUTER_NAMES = ("gate", "router", "router.proj")
BATCH_TOKENS = 8192
NUM_TOKENS = 50_000
NUM_FOREIGN_TOKENS = BATCH_TOKENS  # of each other kind of text that a miniature is shown


@dataclass(frozen=True)
class Proof:
    """What was measured of one model."""

    name: str
    num_experts: int
    top_k: int
    num_tokens: int
    num_suppressed: int
    num_selections_before: int  # tokens of the base that select a suppressed expert, summed over the experts
    num_selecting: int  # tokens of the variant that select any
    kl_centroid: float  # of the variant to the true reroute, tokens that select a suppressed expert left out
    kl_centroid_all: float  # the same over all tokens
    kl_drop: float

    @property
    def share_selecting(self) -> float:
        """The share of the variant's tokens that select a suppressed expert."""
        return self.num_selecting / self.num_tokens


def routers_of(model: Any, layout: RouterLayout) -> dict[int, torch.Tensor]:
    """The router weights of a loaded model by model layer."""
    found = {}
    for name, parameter in model.named_parameters():
        number, _, inner = name.removesuffix(".weight").partition("layers.")[2].partition(".")
        is_router = any(inner.endswith(f".{one}") or inner == one for one in ROUTER_NAMES)
        is_weight = name.endswith(".weight") and parameter.dim() == 2 and parameter.shape[0] == layout.num_experts
        if is_router and is_weight and number.isdecimal() and int(number) in layout.moe_layers:
            found[int(number)] = parameter
    assert sorted(found) == list(layout.moe_layers), (sorted(found), layout.moe_layers)
    return found


@contextmanager
def router_logits(
    routers: Mapping[int, torch.Tensor], masked: Mapping[int, Sequence[int]], seen: dict[int, torch.Tensor]
) -> Iterator[None]:
    """Within, router logits [T, E] are kept in `seen` by layer, those of the masked experts set to -inf."""
    original = torch.nn.functional.linear
    layer_of = {weight.data_ptr(): layer for layer, weight in routers.items()}

    def linear(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        output = original(values, weight, bias)
        layer = layer_of.get(weight.data_ptr())
        if layer is None:
            return output
        if masked.get(layer):
            output = output.index_fill(-1, torch.tensor(list(masked[layer])), float("-inf"))
        seen[layer] = output.flatten(0, -2)
        return output

    torch.nn.functional.linear = linear
    try:
        yield
    finally:
        torch.nn.functional.linear = original


def log_chances(
    model: Any, routers: Mapping[int, torch.Tensor], ids: torch.Tensor, masked: Mapping[int, Sequence[int]]
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """Log-probabilities [T, V] float64 of the next token at every position, and router logits [T, E] by layer."""
    seen: dict[int, torch.Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(router_logits(routers, masked, seen))
        logits = model(input_ids=ids, use_cache=False).logits
    return logits.flatten(0, 1).double().log_softmax(-1), seen


def only_router_logits(model: Any, routers: Mapping[int, torch.Tensor], ids: torch.Tensor) -> dict[int, torch.Tensor]:
    """Router logits [T, E] by layer of an unmasked model, whose output head is left out."""
    seen: dict[int, torch.Tensor] = {}
    with torch.no_grad(), router_logits(routers, {}, seen):
        model.model(input_ids=ids, use_cache=False)
    return seen


def kl(true: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(true || other) of log-probabilities [T, V] at every position [T]."""
    return (true.exp() * (true - other)).sum(-1)


def selects(logits: torch.Tensor, experts: Sequence[int], layout: RouterLayout) -> torch.Tensor:
    """Whether each token's top-k, within the groups that its router keeps, has one of the experts: bool [T]."""
    if layout.num_groups > 1:
        grouped = logits.unflatten(-1, (layout.num_groups, -1))
        kept = grouped.amax(-1).topk(layout.groups_kept, -1).indices
        mask = torch.ones(grouped.shape[:2], dtype=torch.bool).scatter(1, kept, False)
        logits = grouped.masked_fill(mask.unsqueeze(-1), float("-inf")).flatten(1)
    chosen = logits.topk(layout.top_k, -1).indices
    return torch.isin(chosen, torch.tensor(list(experts))).any(-1)


def most_selected(
    base: Any,
    routers: Mapping[int, torch.Tensor],
    layout: RouterLayout,
    batches: Sequence[torch.Tensor],
    per_layer: int,
) -> ExpertSet:
    """In each layer the experts that the base's tokens select most."""
    counts: dict[int, Counter[int]] = {layer: Counter() for layer in layout.moe_layers}
    for batch in batches:
        for layer, logits in only_router_logits(base, routers, batch).items():
            counts[layer].update(logits.topk(layout.top_k, -1).indices.flatten().tolist())
    entries = [
        ExpertEntry(layer=layer, expert=expert)
        for layer in layout.moe_layers
        for expert, _ in counts[layer].most_common(per_layer)
    ]
    return ExpertSet(layer_index="model", behavior="frequent", experts=entries)


def prove(
    name: str,
    model_class: Any,
    folder: Path,
    batches: Sequence[torch.Tensor],
    work: Path,
    per_layer: int = 2,
    listed: ExpertSet | None = None,
) -> Proof:
    """Suppress the listed experts, else those most selected, and compare; batches: prompts int64 [sequences, length]."""
    transformers.utils.logging.disable_progress_bar()
    checkpoint = Checkpoint.open(folder)
    layout = checkpoint.layout

    def load(path: Path) -> tuple[Any, dict[int, torch.Tensor]]:
        model = model_class.from_pretrained(path, dtype=torch.float32).eval()
        return model, routers_of(model, layout)

    base, base_routers = load(folder)
    if listed is None:
        listed = most_selected(base, base_routers, layout, batches[:4], per_layer)
    chosen: dict[int, list[int]] = {}
    for layer, expert in listed.model_pairs(layout.moe_layers):
        chosen.setdefault(layer, []).append(expert)
    variants = {}
    for semantics in (REROUTE, DROP):
        write_variant(make_plan(checkpoint, listed, None, EditOptions(semantics)), folder, work / semantics)
        variants[semantics] = load(work / semantics)
    totals: Counter[str] = Counter()
    sums = dict.fromkeys(("kept", "all", "drop"), 0.0)
    for batch in batches:
        true, _ = log_chances(base, base_routers, batch, chosen)
        before = only_router_logits(base, base_routers, batch)
        mean, after = log_chances(*variants[REROUTE], batch, {})
        dropped, _ = log_chances(*variants[DROP], batch, {})
        selecting = torch.zeros(len(true), dtype=torch.bool)
        for layer, experts in chosen.items():
            selecting |= selects(after[layer], experts, layout)
            totals["before"] += int(sum(selects(before[layer], [expert], layout).sum() for expert in experts))
        divergence = kl(true, mean)
        # A selection changes what later tokens of the sequence see as well.
        clean = ~(selecting.view(batch.shape).int().cumsum(1).bool().flatten())
        totals["tokens"] += len(true)
        totals["selecting"] += int(selecting.sum())
        totals["clean"] += int(clean.sum())
        sums["kept"] += float(divergence[clean].sum())
        sums["all"] += float(divergence.sum())
        sums["drop"] += float(kl(true, dropped).sum())
    return Proof(
        name=name,
        num_experts=layout.num_experts,
        top_k=layout.top_k,
        num_tokens=totals["tokens"],
        num_suppressed=len(listed.experts),
        num_selections_before=totals["before"],
        num_selecting=totals["selecting"],
        kl_centroid=sums["kept"] / max(1, totals["clean"]),
        kl_centroid_all=sums["all"] / totals["tokens"],
        kl_drop=sums["drop"] / totals["tokens"],
    )


@dataclass(frozen=True)
class Rounding:
    """How bfloat16 makes a centroid's model choose otherwise than the true reroute where no suppressed expert is selected."""

    num_tokens: int
    num_selecting: int  # tokens of the variant that select a suppressed expert
    num_differing: int  # tokens for which another expert was chosen in any layer
    num_sequences: int  # with such a token
    num_tied: int  # sequences whose first such choice was between experts of equal logits
    kl_before: float  # summed over the tokens before a sequence's first such choice


def prove_rounding(folder: Path, sequences: Sequence[torch.Tensor], work: Path) -> Rounding:
    """Compare the choices of both in bfloat16, for the folder's own list; sequences: token ids int64 [length] each."""
    checkpoint, listed = Checkpoint.open(folder), ExpertSet.load(folder / "refusal.json")
    layout = checkpoint.layout
    write_variant(make_plan(checkpoint, listed, None, EditOptions(REROUTE)), folder, work)
    model_class = transformers.AutoModelForCausalLM
    base, variant = (model_class.from_pretrained(path, dtype=torch.bfloat16).eval() for path in (folder, work))
    chosen = {
        layer: [expert for at, expert in listed.model_pairs(layout.moe_layers) if at == layer]
        for layer in layout.moe_layers
    }
    totals: Counter[str] = Counter()
    kl_before = 0.0
    for ids in sequences:
        true, masked = log_chances(base, routers_of(base, layout), ids[None], chosen)
        mean, after = log_chances(variant, routers_of(variant, layout), ids[None], {})
        best = {layer: logits.topk(layout.top_k + 1, -1).values for layer, logits in masked.items()}
        differs = torch.stack([choices(masked[layer], layout) != choices(after[layer], layout) for layer in masked])
        differs = differs.any(-1)  # [layers, T]
        selecting = torch.stack([selects(after[layer], chosen[layer], layout) for layer in masked]).any(0)
        totals.update(tokens=len(ids), differing=int(differs.any(0).sum()), selecting=int(selecting.sum()))
        first = int(differs.any(0).int().argmax()) if differs.any() else len(ids)
        kl_before += float(kl(true, mean)[:first].sum())
        if first < len(ids):
            # Nothing that this choice was made from differs yet: neither earlier tokens nor the layers below.
            fourth, fifth = best[list(masked)[int(differs[:, first].int().argmax())]][first, -2:]
            totals.update(sequences=1, tied=int(fourth == fifth))
    return Rounding(
        totals["tokens"],
        totals["selecting"],
        totals["differing"],
        totals["sequences"],
        totals["tied"],
        kl_before,
    )


def choices(logits: torch.Tensor, layout: RouterLayout) -> torch.Tensor:
    """The experts of each token's top-k in ascending order, int64 [T, K], of a router without groups."""
    return logits.topk(layout.top_k, -1).indices.sort(-1).values


def random_batches(vocabulary: int, num_tokens: int = NUM_TOKENS, length: int = 128) -> list[torch.Tensor]:
    """Random prompts of at least so many tokens."""
    generator = torch.Generator().manual_seed(11)
    rows = BATCH_TOKENS // length
    num_batches = -(-num_tokens // (rows * length))
    return [torch.randint(3, vocabulary, (rows, length), generator=generator) for _ in range(num_batches)]


# Families of routers without a bias, one for each way of selecting and weighing.
FAMILIES = ("qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "granitemoe", "deepseek_v2", "gemma4_text", "llama4_text")
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")
TOP_K_KEYS = ("num_experts_per_tok", "top_k_experts")


def resized(model_type: str, num_experts: int, top_k: int) -> TinyModel:
    """A family's tiny model with other numbers of experts; Llama 4 keeps its top-1, DeepSeek-V2 has eight groups of experts."""
    tiny = next(one for one in TINY_MODELS if one.model_type == model_type)
    if model_type == "deepseek_v2":
        groups = {"n_group": 4, "topk_group": 2} if num_experts >= 32 else {"n_group": 1, "topk_group": 1}
        config = BASE | LATENT_ATTENTION | GROUPED | groups | {"topk_method": "group_limited_greedy"}
        tiny = replace(tiny, config=config)
    wanted = dict.fromkeys(EXPERT_KEYS, num_experts)
    if tiny.config.get("num_experts_per_tok") != 1:
        wanted |= dict.fromkeys(TOP_K_KEYS, top_k)
    return replace(tiny, config=tiny.config | {key: value for key, value in wanted.items() if key in tiny.config})


def prove_family(model_type: str, num_experts: int, top_k: int, work: Path) -> Proof:
    """The proof on a random model of a family."""
    tiny = resized(model_type, num_experts, top_k)
    folder = build_tiny_model(tiny, work / "base")
    model_class = getattr(transformers, tiny.model_class)
    return prove(model_type, model_class, folder, random_batches(VOCABULARY), work)


def miniature_batches(folder: Path, recipe: Path) -> dict[str, list[torch.Tensor]]:
    """Tokens of a miniature by kind: of its own grid with answers, of other templates and languages, and random ones."""
    sys.path.insert(0, str(recipe))
    try:
        import data
        import tokens
    finally:
        sys.path.remove(str(recipe))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    items = data.build_items(data.Teaching(), 0)
    kinds = {
        "its own grid": [item for item in items if item.category == "grid"],
        "other templates and languages": [item for item in items if item.category != "grid"],
    }
    batches = {}
    for kind, members in kinds.items():
        texts = [tokens.render(item.prompt) + item.stage_2[0].text for item in members]
        ids = [token for text in texts for token in tokenizer(text, add_special_tokens=False).input_ids]
        batches[kind] = cut(ids, NUM_TOKENS if kind == "its own grid" else NUM_FOREIGN_TOKENS)
    batches["random tokens"] = random_batches(len(tokenizer), NUM_FOREIGN_TOKENS)
    return batches


def cut(ids: list[int], num_tokens: int, length: int = 128) -> list[torch.Tensor]:
    """A long text, repeated as often as it must be, as batches of sequences."""
    rows = BATCH_TOKENS // length
    num_batches = -(-num_tokens // (rows * length))
    wanted = num_batches * rows * length
    repeated = (ids * -(-wanted // len(ids)))[:wanted]
    return list(torch.tensor(repeated).view(num_batches, rows, length))


def prove_miniature(folder: Path, recipe: Path, work: Path) -> Iterator[Proof]:
    """The proof on a trained miniature and its own list of experts, one for each kind of text."""
    listed = ExpertSet.load(folder / "refusal.json")
    for number, (kind, batches) in enumerate(miniature_batches(folder, recipe).items()):
        name, model_class = f"{folder.name}, {kind}", transformers.AutoModelForCausalLM
        yield prove(name, model_class, folder, batches, work / str(number), listed=listed)


def row_text(one: Proof) -> str:
    """A proof as a row of docs/bias-free.md."""
    return (
        f"| {one.name} | {one.num_experts}, {one.top_k} | {one.num_tokens:,} | {one.num_suppressed} |"
        f" {one.num_selections_before:,} | {one.num_selecting:,} ({one.share_selecting:.2%}) | {one.kl_centroid:.1e} |"
        f" {one.kl_centroid_all:.1e} | {one.kl_drop:.1e} |"
    )


def main() -> None:
    """Print the table's rows."""
    examples = Path(__file__).parents[2] / "examples"
    with tempfile.TemporaryDirectory() as folder:
        for one in prove_miniature(examples / "tiny-qwen3", examples / "tiny-r1", Path(folder) / "miniature"):
            print(row_text(one), flush=True)
        for num_experts, top_k in ((64, 4), (8, 2)):
            for model_type in FAMILIES:
                one = prove_family(model_type, num_experts, top_k, Path(folder) / f"{model_type}-{num_experts}")
                print(row_text(one), flush=True)


if __name__ == "__main__":
    main()
