"""The experts under test: read from expert sets and checked against the model, or found on a part of the prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from eval.answers.arms import BASE, Answer, Arm, Pair, Shift, digest
from eval.answers.journal import Collector
from eval.answers.live import LiveResponder
from eval.answers.plan import NamedEdit, VariantFolder, requests_for
from eval.options import RunOptions
from eval.outcomes.held_out import PROVENANCE_KEY, prompt_sha256
from eval.outcomes.observed import label_answer
from ftri.analysis.by_traces import ByTraces, read_gain
from ftri.engine.edits import RouterEdit, by_layer, check_factors, check_shifts, planned_biases, shift_width
from ftri.labels.behavior import thinking_language
from ftri.labels.contrast import parse_contrast
from ftri.labels.think_formats import ThinkFormat
from ftri.prompts.sets import PromptRecord, without_path
from rewriter.checkpoint.identity import content_sha256
from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.dial import config_digest, open_described, open_served
from rewriter.edit.outputs import output_numbers
from rewriter.edit.patches import EditOptions
from rewriter.edit.record import without_record
from rewriter.edit.router_weight import check_survivors
from rewriter.errors import CheckpointError, InputError, PlanError, RecordError
from rewriter.expert_set import ExpertEntry, ExpertSet, LayerIndex
from rewriter.families.family import RouterLayout
from rewriter.rewrite import Edit, with_gain, with_strength
from rewriter.semantics import BIAS_FREE_SEMANTICS, CENTROID, DROP, DROP_RENORM, REROUTE, SEMANTICS, Semantics


@dataclass(frozen=True)
class ModelUnderTest:
    """What is known of the base without loading it."""

    model: str
    revision: str | None
    folder: Path
    repo_id: str | None
    config_sha256: str
    content_sha256: str
    layout: RouterLayout
    model_type: str | None

    @property
    def name(self) -> str:
        """What shared files and journals call it, however it was typed: its Hub id, or the folder's own name, never its path."""
        return self.repo_id or self.folder.resolve().name


def open_model(model: str, revision: str | None, say: Callable[[str], None]) -> ModelUnderTest:
    """Find a model and read its config. Raises: MoteError when it is missing, damaged or no known Mixture of Experts."""
    from rewriter.families.lookup import router_layout
    from rewriter.hub.models import resolve_model

    resolved = resolve_model(model, revision, say=say)
    checkpoint = Checkpoint.open(resolved.folder)
    config_sha256 = hashlib.sha256((resolved.folder / "config.json").read_bytes()).hexdigest()
    return ModelUnderTest(
        model,
        resolved.revision,
        resolved.folder,
        resolved.repo_id,
        config_sha256,
        content_sha256(resolved.folder),
        router_layout(checkpoint.config),
        checkpoint.config.get("model_type"),
    )


@dataclass(frozen=True)
class OutputOptions:
    """What --strength, --gain and --traces say, as mote-rewrite takes them."""

    strength: float | None = None
    gain: str | None = None
    traces: Path | None = None

    def put_into(
        self, model: ModelUnderTest, suppress: ExpertSet | None, stimulate: ExpertSet | None
    ) -> tuple[ExpertSet | None, ExpertSet | None]:
        """The sets with these numbers for each of their experts.

        Raises: MoteError for numbers that are none, traces that say nothing of such an edit, or without a set.
        """
        suppress = with_strength(suppress, self.strength)
        number, word = read_gain(self.gain, self.traces)
        stimulate = with_gain(stimulate, number)
        if self.traces is None:
            return suppress, stimulate
        measure = ByTraces(self.traces, word)
        edit = measure(Checkpoint.open(model.folder), Edit(EditOptions(semantics=DROP), suppress, stimulate))
        return edit.suppress, edit.stimulate


def load_edit(
    model: ModelUnderTest,
    suppress: str | None,
    stimulate: str | None,
    *,
    layer_index: LayerIndex | None = None,
    any_model: bool = False,
    outputs: OutputOptions | None = None,
) -> tuple[NamedEdit, list[ExpertSet]]:
    """The experts of one or two expert-set files as one edit, and the sets that there are (suppress first).

    outputs: strengths and gains in place of the sets' own.

    Raises: ExpertSetError or InputError when a set is malformed, of another model, or does not fit the model.
    """
    down, up = (
        ExpertSet.load(source, model=model.model, layer_index=layer_index) if source else None
        for source in (suppress, stimulate)
    )
    for one, source in ((down, suppress), (up, stimulate)):
        if one is not None:
            check_same_model(model, one, str(source), any_model=any_model)
    if outputs is not None:
        down, up = outputs.put_into(model, down, up)
    strengths, gains = output_numbers(model.layout, down, up)
    kept = {pair: 1 - strength for pair, strength in strengths.items()}
    factors = tuple((*pair, factor) for pair, factor in (kept | gains).items())
    sets = [(one, str(name)) if one is not None else None for one, name in ((down, suppress), (up, stimulate))]
    pairs: list[tuple[Pair, ...]] = []
    shifts: tuple[Shift, ...] = ()
    for chosen in sets:
        if chosen is None:
            pairs.append(())
            continue
        expert_set, name = chosen
        pairs.append(tuple(expert_set.model_pairs(model.layout.moe_layers)))
        found = expert_set.bias_shifts(model.layout.moe_layers)
        if found and chosen is sets[1]:
            raise InputError(
                f"{name}: has experts with a bias_shift, which only suppressed ones can have, expected none"
            )
        shifts += tuple((*pair, shift) for pair, shift in found.items())
    both = set(pairs[0]) & set(pairs[1])
    if both:
        layer, expert = min(both)
        raise InputError(
            f"layer {layer} expert {expert} is both in {suppress} and in {stimulate}, expected in one of them"
        )
    loaded = [chosen[0] for chosen in sets if chosen is not None]
    file = Path(suppress or stimulate or "")
    # What a shell puts through a pipe is called by its descriptor's number.
    name = loaded[0].behavior if file.is_fifo() else file.stem
    return NamedEdit(name, pairs[0], pairs[1], shifts, factors), loaded


def check_same_model(model: ModelUnderTest, expert_set: ExpertSet, name: str, *, any_model: bool) -> None:
    """Raise InputError when a set was found on another model than the one under test, or names experts that it lacks."""
    expected = model.name
    hint = "; --any-model uses it all the same"
    theirs = expert_set.provenance.get("config_sha256")
    if not any_model and theirs is not None and theirs != model.config_sha256:
        raise InputError(
            f"{name}: is of the model {expert_set.model} with config SHA-256 {str(theirs)[:12]}..., expected"
            f" {model.config_sha256[:12]}... of {expected}{hint}"
        )
    named = expert_set.model if expert_set.model and _is_hub_id(expert_set.model) else None
    if not any_model and theirs is None and model.repo_id and named and named != model.repo_id:
        raise InputError(f"{name}: is of the model {expert_set.model}, expected {model.repo_id}{hint}")
    for layer, expert in expert_set.model_pairs(model.layout.moe_layers):
        if expert >= model.layout.num_experts:
            raise InputError(
                f"{name}: names expert {expert} of layer {layer}, expected experts below {model.layout.num_experts}, which is all"
                f" that {expected} has; is the set of another model?"
            )


def semantics_for(
    model: ModelUnderTest | None, asked: tuple[Semantics, ...], edit: NamedEdit | None = None
) -> tuple[Semantics, ...]:
    """The semantics to run: where nothing else was asked for, the one that a checkpoint without a bias holds is among them, and
    an edit that keeps a part of outputs is a drop first."""
    if asked != SEMANTICS:
        return asked
    known = BIAS_FREE_SEMANTICS if model is not None and not model.layout.has_bias else SEMANTICS
    if edit is None or not edit.is_partial:
        return known
    return (DROP, DROP_RENORM, *(one for one in known if one not in (DROP, DROP_RENORM)))


def check_live_edit(model: ModelUnderTest, edit: NamedEdit, semantics: Sequence[Semantics]) -> None:
    """Raise PlanError when the engine could not make this edit; asked before it is loaded."""
    if CENTROID in semantics and model.layout.has_bias:
        raise PlanError(
            f"family {model.layout.family.name} has a router bias, expected {REROUTE} in place of {CENTROID}"
        )
    for one in semantics:
        factors = edit.factors_under(one)
        if factors:
            check_factors(RouterEdit(one, edit.suppress, edit.stimulate, factors=factors))
    if REROUTE in semantics and edit.bias_shifts:
        check_shifts(RouterEdit(REROUTE, edit.suppress, bias_shifts=edit.bias_shifts), model.layout)
    if (REROUTE in semantics or CENTROID in semantics) and edit.pairs:
        check_routable(model, edit.suppress, edit.stimulate, edit.bias_shifts)


def check_routable(
    model: ModelUnderTest, suppressed: Sequence[Pair], stimulated: Sequence[Pair], bias_shifts: Sequence[Shift] = ()
) -> None:
    """Raise PlanError when the model's routers could not choose enough experts with this edit, or not stimulate."""
    if not model.layout.has_bias:
        if stimulated:
            raise PlanError(
                f"family {model.layout.family.name} has no router bias, so a reroute stimulates nothing, expected"
                " --semantics drop-renorm"
            )
        for layer, experts in by_layer(suppressed).items():
            check_survivors(layer, model.layout, experts)
        return
    planned_biases(Checkpoint.open(model.folder), suppressed, stimulated, bias_shifts=bias_shifts)


def shift_widths(model: ModelUnderTest) -> dict[int, float]:
    """By layer, the shift of a router bias from which on it decides whatever the scores are; see eval.refine.tuning.

    Raises: PlanError where no live edit shifts the model's router biases.
    """
    layout = model.layout
    if not layout.has_bias or not layout.family.can_stimulate:
        why = "a router bias that is part of the logit" if layout.has_bias else "no router bias"
        raise PlanError(
            f"family {layout.family.name} has {why}, so no strength is tuned by it, expected no --tune-strength"
        )
    checkpoint = Checkpoint.open(model.folder)
    return {layer: shift_width(checkpoint, model.layout, layer) for layer in model.layout.moe_layers}


def is_routable(
    model: ModelUnderTest, suppressed: Sequence[Pair], stimulated: Sequence[Pair], bias_shifts: Sequence[Shift] = ()
) -> bool:
    """Whether a reroute passes: random sets that do not are drawn again."""
    try:
        check_live_edit(
            model, NamedEdit("random", tuple(suppressed), tuple(stimulated), tuple(bias_shifts)), (REROUTE,)
        )
    except PlanError:
        return False
    return True


def load_others(
    model: ModelUnderTest, sources: Sequence[str], *, layer_index: LayerIndex | None, any_model: bool
) -> list[NamedEdit | VariantFolder]:
    """Further variants: an expert-set file or preset is an edit (suppressed), a folder a checkpoint of its own; of a served
    variant with a dial, every set is a variant.

    Raises: InputError for a folder that is no checkpoint or of another model, or as `load_edit`.
    """
    others: list[NamedEdit | VariantFolder] = []
    for source in sources:
        if Path(source).is_dir():
            choices = check_variant(Path(source), model)
            sha256 = content_sha256(source)
            others += [VariantFolder(Path(source), sha256, choice) for choice in choices]
        else:
            others.append(load_edit(model, source, None, layer_index=layer_index, any_model=any_model)[0])
    return others


def check_variant(folder: Path, model: ModelUnderTest) -> list[str | None]:
    """What is to be chosen of a variant's folder, one after the other: the sets of a served variant with a dial, else None once.

    Raises: InputError for a folder that is no checkpoint or of another model.
    """
    try:
        variant, base = open_described(folder).config, Checkpoint.open(model.folder).config
        served = open_served(folder)
    except (CheckpointError, RecordError) as error:
        raise InputError(
            f"{error}; expected a checkpoint folder that mote-rewrite wrote, or an expert-set file"
        ) from None
    theirs, ours = variant.get("model_type"), base.get("model_type")
    if theirs != ours:
        raise InputError(f"{folder}: is a {theirs} model, expected {ours} like {model.model}")
    if served is not None and config_digest(without_record(base)) != served.base_config_sha256:
        raise InputError(
            f"{folder}: is a served variant of a model with another config.json, expected one of {model.model}"
        )
    return [*served.sets] if served is not None and served.has_dial else [None]


def _is_hub_id(model: str) -> bool:
    from rewriter.hub.models import looks_like_repo_id

    return looks_like_repo_id(model)


class FoundExperts(BaseModel):
    """The experts that `--split` found, as the journal keeps them."""

    experts: list[ExpertEntry]


def find_experts(
    collector: Collector,
    live: LiveResponder,
    prompts: Sequence[PromptRecord],
    options: RunOptions,
    *,
    behavior: str,
    count: int,
    model: ModelUnderTest,
    spec: str,
) -> ExpertSet:
    """The `count` experts most distinctive of a behaviour by the paper's fTRI map over these prompts' tokens.

    Raises: InputError when the class or the others have fewer than two answers.
    """
    import numpy as np

    from ftri.analysis.maps import count_selections
    from ftri.analysis.resonance import resonance_map, top_experts

    contrast = parse_contrast(behavior)
    answers = list(collector.answers(Arm(BASE, "base"), requests_for(prompts, options)))
    groups = [
        contrast.group(_label(answer, contrast.rule == "thinking language", options.label_cut, collector.think_format))
        for answer in answers
    ]
    taking_part = [position for position, group in enumerate(groups) if group is not None]
    in_class = np.array([groups[position] == 0 for position in taking_part], dtype=bool)
    if min(int(in_class.sum()), int((~in_class).sum())) < 2:
        raise InputError(
            f"--split: the finding part has {int(in_class.sum())} answers of {contrast.name} and {int((~in_class).sum())} others,"
            " expected at least 2 of each; give more prompts or another --split"
        )
    key = digest(
        ["found", live.identity(), [answers[p].prompt_token_ids for p in taking_part], in_class.tolist(), count]
    )[:32]
    if key not in collector.journal:
        base = Arm(BASE, "base")
        model_layers = live.model_for(base).moe_layers
        model_of_base = live.model_for(base)
        num_experts, num_other_choices = model_of_base.num_experts, model_of_base.num_other_choices
        counts = np.zeros((len(taking_part), len(model_layers), num_experts), dtype=np.int32)
        sequences = [answers[position].prompt_token_ids for position in taking_part]
        for scored in live.score(base, sequences, None, routing=True):
            assert scored.routing is not None
            prompt = scored.routing[: len(sequences[scored.index])]
            selected = count_selections(prompt, num_experts, num_other_choices)
            counts[scored.index] = selected.reshape(len(model_layers), num_experts)
        resonance = resonance_map(counts, in_class)
        found = [
            {"layer": int(model_layers[row]), "expert": expert, "resonance": float(resonance[row, expert])}
            for row, expert in top_experts(resonance, count)
        ]
        collector.journal.add_value(key, {"experts": found})
    return ExpertSet(
        model=model.name,
        revision=model.revision,
        layer_index="model",
        behavior=contrast.name,
        experts=collector.journal.checked(key, FoundExperts).experts,
        provenance={
            "source": "mote-eval --split",
            "prompts": without_path(spec),
            "config_sha256": model.config_sha256,
            "statistic": "paper",
            "positions": "prompt",
            "num_in_class": int(in_class.sum()),
            "num_others": int((~in_class).sum()),
            PROVENANCE_KEY: sorted({prompt_sha256(prompt.text) for prompt in prompts}),
        },
    )


def _label(answer: Answer, by_language: bool, label_cut: bool, told: ThinkFormat | None) -> str:
    if by_language:
        return thinking_language(answer.text, answer.starts_inside_think, told)
    return label_answer(answer, told, label_cut=label_cut)


def save_found(expert_set: ExpertSet, output: Path) -> Path:
    """Keep the set that was found beside the results, ready for mote-rewrite; returns its path."""
    path = output / "found-experts.json"
    expert_set.save(path)
    return path
