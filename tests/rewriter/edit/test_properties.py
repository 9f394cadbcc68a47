"""Properties of whole rewrites on random checkpoints: only planned bytes change, and the inverse gives the base back."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import (
    CONFIG,
    INDEX,
    NUMPY_DTYPES,
    Tensor,
    bias_name,
    down_proj_name,
    memory_folder,
    read_header,
    read_tensors,
    tree_state,
    values_of,
    write_json,
    write_shard,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.patches import EditOptions
from rewriter.edit.plan import make_plan
from rewriter.edit.tensors import round_toward
from rewriter.expert_set import ExpertEntry, ExpertSet
from rewriter.variant.copying import LinkMode
from rewriter.variant.verify import verify
from rewriter.variant.write import write_variant

NUM_EXPERTS, NUM_LAYERS, TOP_K = 8, 3, 3
DTYPES = ["F32", "BF16", "F16"]


@dataclass(frozen=True)
class Case:
    """A checkpoint and an edit of it."""

    tensors: dict[str, Tensor]  # in the order in which they lie
    cuts: list[int]  # where one shard ends and the next begins
    padding: list[int]  # spaces behind each shard's header, so that bodies start at any offset
    metadata: bool
    suppressed: list[tuple[int, int]]
    stimulated: list[tuple[int, int]]
    options: EditOptions
    link: LinkMode


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    expert_dtype = draw(st.sampled_from([*DTYPES, "F8_E4M3"]))
    bias_dtype = draw(st.sampled_from(DTYPES))
    tensors = {}
    for layer in range(1, NUM_LAYERS + 1):
        tensors[bias_name(layer)] = _random(rng, bias_dtype, (NUM_EXPERTS,), finite=True)
        for expert in range(NUM_EXPERTS):
            shape = (draw(st.integers(1, 5)), draw(st.integers(0, 5)))
            tensors[down_proj_name(layer, expert)] = _random(rng, expert_dtype, shape)
    for number in range(draw(st.integers(0, 3))):  # tensors of odd sizes in between shift all that follow
        tensors[f"other.{number}"] = _random(rng, "F8_E4M3", (draw(st.integers(0, 5000)),))
    names = draw(st.permutations(list(tensors)))
    cuts = sorted(draw(st.sets(st.integers(1, len(names) - 1), max_size=4)))
    pair = st.tuples(st.integers(1, NUM_LAYERS), st.integers(0, NUM_EXPERTS - 1))
    suppressed = draw(st.lists(pair, unique=True, max_size=NUM_EXPERTS - TOP_K))
    stimulated = draw(st.lists(pair, unique=True, max_size=TOP_K))
    semantics = draw(st.sampled_from(["reroute", "drop"]))
    assume(not set(suppressed) & set(stimulated) and (suppressed or stimulated))
    return Case(
        {name: tensors[name] for name in names},
        [*cuts, len(names)],
        draw(st.lists(st.integers(0, 5000), min_size=len(cuts) + 1, max_size=len(cuts) + 1)),
        draw(st.booleans()),
        suppressed,
        stimulated,
        EditOptions(semantics=semantics, suppress_bias=draw(st.sampled_from(["auto", "-inf", "margin"]))),
        draw(st.sampled_from(["auto", "hardlink", "symlink", "copy"])),
    )


@settings(max_examples=30, deadline=None)
@given(cases())
def test_only_planned_bytes_change_and_the_inverse_gives_the_base_back(case: Case) -> None:
    with scratch() as folder:
        base, target = folder / "base", folder / "out"
        write_case(case, base)
        before = tree_state(base)
        plan = make_plan(
            Checkpoint.open(base), as_set(case.suppressed), as_set(case.stimulated), case.options, base_folder="base"
        )
        write_variant(plan, base, target, link=case.link)
        assert tree_state(base) == before
        result = verify(target, base)
        assert result.num_patches == len(plan.patches)
        assert verify(target, base, full=True).bytes_by_inode == 0

        ours, theirs = read_tensors(base), read_tensors(target)
        assert list(ours) == list(theirs)
        planned = {patch.tensor for patch in plan.patches}
        for name, tensor in ours.items():
            if name not in planned:
                assert theirs[name] == tensor, name
        check_semantics(case, ours, theirs)

        undo(plan, base, target)
        for shard in base.glob("*.safetensors"):
            body = read_header(shard)[1]
            restored = (target / shard.name).read_bytes()
            assert shard.read_bytes()[body:] == restored[read_header(target / shard.name)[1] :]
            grown = len(restored) - shard.stat().st_size
            assert grown % 4096 == 0 and (grown > 0) == (shard.name in plan.changed_shards)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_stacked_experts_lose_their_row_and_nothing_else(data: st.DataObject) -> None:
    """Families that keep all experts of a layer in one tensor [E, ...]: here gpt_oss's, whose outputs have a bias as well."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    dtype = data.draw(st.sampled_from([*DTYPES, "F8_E4M3"]))
    shape = (NUM_EXPERTS, data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5)))
    prefix = "model.layers.0.mlp."
    stacked, output_bias = f"{prefix}experts.down_proj", f"{prefix}experts.down_proj_bias"
    tensors = {
        f"{prefix}router.bias": _random(rng, "BF16", (NUM_EXPERTS,), finite=True),
        stacked: _random(rng, dtype, shape),
        output_bias: _random(rng, "BF16", shape[:2]),
    }
    chosen = data.draw(st.sets(st.integers(0, NUM_EXPERTS - 1), min_size=1, max_size=4))
    with scratch() as folder:
        base, target = folder / "base", folder / "out"
        base.mkdir()
        names = data.draw(st.permutations(list(tensors)))
        write_shard(
            base / "model.safetensors",
            {name: tensors[name] for name in names},
            padding=data.draw(st.integers(0, 9)),
        )
        config = {"model_type": "gpt_oss", "num_hidden_layers": 1, "num_local_experts": 8, "num_experts_per_tok": 2}
        write_json(base / "config.json", config)
        suppress = as_set([(0, expert) for expert in sorted(chosen)])
        plan = make_plan(Checkpoint.open(base), suppress, None, EditOptions(semantics="drop"), base_folder="base")
        write_variant(plan, base, target)
        verify(target, base, full=True)
        found = read_tensors(target)
        for name in (stacked, output_bias):
            rows = np.split(np.frombuffer(found[name].data, np.uint8), NUM_EXPERTS)
            originals = np.split(np.frombuffer(tensors[name].data, np.uint8), NUM_EXPERTS)
            for expert in range(NUM_EXPERTS):
                wanted = np.zeros_like(rows[expert]) if expert in chosen else originals[expert]
                assert rows[expert].tobytes() == wanted.tobytes()
        assert found[f"{prefix}router.bias"] == tensors[f"{prefix}router.bias"]
        undo(plan, base, target)
        assert read_tensors(target) == tensors


@settings(max_examples=300, deadline=None)
@given(st.floats(-60000, 60000), st.sampled_from(DTYPES), st.sampled_from([float("-inf"), float("inf")]))
def test_rounding_never_crosses_to_the_wrong_side_and_takes_the_nearest(
    value: float, name: str, direction: float
) -> None:
    dtype = np.dtype(NUMPY_DTYPES[name])
    rounded = round_toward(value, dtype, direction)
    assert rounded.dtype == dtype
    back = np.nextafter(rounded, dtype.type(-direction))
    if direction < 0:
        assert float(rounded) <= value < float(back)
    else:
        assert float(back) < value <= float(rounded)


def check_semantics(case: Case, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Planned tensors hold what the edit means, and all else of them is as it was."""
    for layer in range(1, NUM_LAYERS + 1):
        suppressed = {expert for at, expert in case.suppressed if at == layer}
        stimulated = {expert for at, expert in case.stimulated if at == layer}
        before, after = values_of(ours[bias_name(layer)]), values_of(theirs[bias_name(layer)])
        lowered = suppressed if case.options.semantics == "reroute" else set()
        for expert in range(NUM_EXPERTS):
            if expert in stimulated:
                assert after[expert] > before[[e for e in range(NUM_EXPERTS) if e not in stimulated]].max()
            elif expert in lowered:
                untouched = [e for e in range(NUM_EXPERTS) if e not in suppressed | stimulated]
                assert after[expert] < before[untouched].min()
            else:
                assert after[expert].tobytes() == before[expert].tobytes()
            name = down_proj_name(layer, expert)
            if expert in suppressed and case.options.semantics == "drop":
                assert not any(theirs[name].data)
            else:
                assert theirs[name] == ours[name]


def undo(plan: Any, base: Path, target: Path) -> None:
    """Write the base's bytes back into a variant, whose edited shards are its own."""
    checkpoint = Checkpoint.open(base)
    for patch in plan.patches:
        entry = checkpoint.header(patch.shard).tensors[patch.tensor]
        shard = target / patch.shard
        document, body = read_header(shard)
        with shard.open("r+b") as opened:
            opened.seek(body + document[patch.tensor]["data_offsets"][0] + patch.start)
            opened.write(checkpoint.read(entry.part(patch.start, patch.size_bytes)))


def write_case(case: Case, folder: Path) -> None:
    """Write the case's base."""
    folder.mkdir()
    names, weight_map, begin = list(case.tensors), {}, 0
    for number, (end, padding) in enumerate(zip(case.cuts, case.padding, strict=True)):
        shard = f"part-{number}.safetensors"
        chosen = {name: case.tensors[name] for name in names[begin:end]}
        write_shard(folder / shard, chosen, metadata={"format": "pt"} if case.metadata else None, padding=padding)
        weight_map |= dict.fromkeys(chosen, shard)
        begin = end
    write_json(folder / INDEX, {"metadata": {}, "weight_map": weight_map})
    changes = {"num_hidden_layers": NUM_LAYERS + 1, "n_routed_experts": NUM_EXPERTS, "n_group": 1, "topk_group": 1}
    write_json(folder / "config.json", CONFIG | changes | {"num_experts_per_tok": TOP_K})


def as_set(pairs: list[tuple[int, int]]) -> ExpertSet | None:
    """An expert set, or None for no pairs."""
    entries = [ExpertEntry(layer=layer, expert=expert) for layer, expert in pairs]
    return ExpertSet(layer_index="model", behavior="test", experts=entries) if entries else None


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one example, in memory where it can be: syncing to a busy disk is most of an example's time."""
    folder = Path(tempfile.mkdtemp(dir=memory_folder()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _random(rng: np.random.Generator, dtype: str, shape: tuple[int, ...], finite: bool = False) -> Tensor:
    """Any bit patterns, not numbers alone, since bytes must survive whatever they mean; or numbers."""
    numpy_dtype = np.dtype(NUMPY_DTYPES[dtype])
    if finite:
        return Tensor(dtype, shape, (rng.standard_normal(shape) * 3).astype(numpy_dtype).tobytes())
    return Tensor(dtype, shape, rng.bytes(int(np.prod(shape)) * numpy_dtype.itemsize))
