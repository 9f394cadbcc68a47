"""What mote-rewrite says of a plan and of a result, as lines for people and as documents for scripts."""

from typing import Any

from rewriter.console import size_text
from rewriter.edit.patches import LayerEdit
from rewriter.edit.plan import Plan, value_text
from rewriter.edit.record import BLOCK_KEY, MEAN_ROW, SHIFTED_ROW, VariantRecord
from rewriter.rewrite import Prepared, RemotePlan
from rewriter.semantics import CENTROID, DROP, PARTIAL, SHIFTED, SUPPRESS
from rewriter.variant.proof import Proof
from rewriter.variant.selections import Selection
from rewriter.variant.verify import VerifyResult
from rewriter.variant.write import WriteResult

NUM_LAYERS_SHOWN = 60


def plan_document(prepared: Prepared) -> dict[str, Any]:
    """The plan for `--dry-run --json`, on a base that is here."""
    preview = prepared.preview()
    return _plan_document(
        prepared.plan,
        base=str(prepared.base),
        output=str(prepared.target),
        changed_bytes=preview.changed_bytes,
        changed_share_blocks=preview.changed_shares_blocks,
        unchanged_shards=preview.num_unchanged,
        unchanged_method=preview.unchanged_method,
        needed_bytes=preview.needed_bytes,
        free_bytes=preview.free_bytes,
        download_files=0,
        download_bytes=0,
    )


def remote_plan_document(remote: RemotePlan) -> dict[str, Any]:
    """The plan for `--remote-plan --json`: the same keys, and None for what only a local base and output could tell."""
    tree = remote.remote.tree
    return _plan_document(
        remote.plan,
        base=tree.repo_id,
        changed_bytes=sum(tree.files[shard].size_bytes for shard in remote.plan.changed_shards),
        requests=remote.remote.num_requests,
        read_bytes=remote.remote.received_bytes,
        download_files=0 if remote.is_cached else remote.num_files,
        download_bytes=0 if remote.is_cached else remote.download_bytes,
    )


def _plan_document(
    plan: Plan,
    *,
    base: str,
    changed_bytes: int,
    download_files: int,
    download_bytes: int,
    output: str | None = None,
    changed_share_blocks: bool | None = None,
    unchanged_shards: int | None = None,
    unchanged_method: str | None = None,
    needed_bytes: int | None = None,
    free_bytes: int | None = None,
    requests: int | None = None,
    read_bytes: int | None = None,
) -> dict[str, Any]:
    """A plan as JSON, with every key whatever the base: where from and to, what moves, and the config's mote block."""
    return {
        "base": base,
        "base_revision": plan.record.base_revision,
        "output": output,
        "patched_bytes": plan.patched_bytes,
        "changed_shards": list(plan.changed_shards),
        "changed_bytes": changed_bytes,
        "changed_share_blocks": changed_share_blocks,
        "unchanged_shards": unchanged_shards,
        "unchanged_method": unchanged_method,
        "needed_bytes": needed_bytes,
        "free_bytes": free_bytes,
        "requests": requests,
        "read_bytes": read_bytes,
        "download_files": download_files,
        "download_bytes": download_bytes,
        "notes": list(plan.notes),
        BLOCK_KEY: plan.record.to_block(),
    }


def plan_lines(prepared: Prepared) -> list[str]:
    """The plan for people."""
    plan, preview = prepared.plan, prepared.preview()
    lines = [f"plan: {prepared.base} -> {prepared.target} (nothing is written yet)", *edit_lines(plan)]
    edited = (
        "sharing blocks with the base"
        if preview.changed_shares_blocks
        else f"{size_text(preview.changed_bytes)} copied"
    )
    lines += [
        f"  edited shards: {preview.num_changed} ({edited})",
        f"  other shards: {preview.num_unchanged} by {preview.unchanged_method}",
        f"  disk: {size_text(preview.needed_bytes)} needed, {size_text(preview.free_bytes)} free",
        f"  {plan.config_place}: {plan.record.renormalization}",
    ]
    return lines + [f"  note: {note}" for note in plan.notes]


def remote_plan_lines(remote: RemotePlan) -> list[str]:
    """The plan for people."""
    plan, tree = remote.plan, remote.remote.tree
    edited = sum(tree.files[shard].size_bytes for shard in plan.changed_shards)
    lines = [
        f"plan: {tree.repo_id} at revision {tree.commit} (nothing is downloaded or written)",
        *edit_lines(plan),
        f"  edited shards: {len(plan.changed_shards)}, {size_text(edited)}",
        f"  {plan.config_place}: {plan.record.renormalization}",
        f"  read for this plan: {remote.remote.num_requests} requests, {size_text(remote.remote.received_bytes)}",
    ]
    if remote.is_cached:
        lines.append("  a full run downloads nothing: the local cache has this revision")
    else:
        size = size_text(remote.download_bytes)
        lines.append(f"  a full run downloads {remote.num_files} files, {size}, into the local Hub cache")
    return lines + [f"  note: {note}" for note in plan.notes]


def edit_lines(plan: Plan) -> list[str]:
    """What a plan does to which layers, and to how many tensors."""
    lines = [f"  {_layer_text(edit, plan)}" for edit in plan.layers[:NUM_LAYERS_SHOWN]]
    if len(plan.layers) > NUM_LAYERS_SHOWN:
        lines.append(f"  ... and {len(plan.layers) - NUM_LAYERS_SHOWN} more layers")
    return [*lines, f"  tensors: {len(plan.patches)} patched, {size_text(plan.patched_bytes)}"]


def result_lines(result: WriteResult, plan: Plan) -> list[str]:
    """The result for people."""
    shards = ", ".join(f"{count} {how}" for how, count in result.shards.items())
    lines = [
        f"{result.folder}",
        f"  experts: {result.num_suppressed} suppressed ({_semantics_text(plan.record)}), {result.num_stimulated} stimulated,"
        f" in {len(plan.layers)} layers",
        f"  shards: {shards}",
        f"  bytes: {size_text(result.bytes_copied)} copied, {size_text(result.bytes_shared)} shared,"
        f" {size_text(result.bytes_linked)} linked, {size_text(result.bytes_patched)} patched",
        f"  {plan.config_place}: {result.renormalization}",
    ]
    if result.files_left_out:
        lines.append(
            f"  left out (other weights, training state, scripts, linked folders): {', '.join(result.files_left_out)}"
        )
    if result.bytes_linked:
        lines.append("  note: linked shards are the base's own files; do not edit them in place")
    lines += [f"  note: {note}" for note in plan.notes]
    return lines + [f"  seconds: {result.seconds:.2f}", f"  serve: {result.serve}"]


def _layer_text(edit: LayerEdit, plan: Plan) -> str:
    parts = []
    factors = {one.expert: one.factor for one in edit.scaled}
    if edit.suppressed:
        whole = sorted(set(edit.suppressed) - {one.expert for one in edit.shifted} - factors.keys())
        if whole:
            parts.append(f"suppress {', '.join(map(str, whole))} ({_suppression_text(edit, plan.record)})")
        parts += [f"suppress {one.expert} ({SHIFTED}, {one.shift:g}: bias {one.value:g})" for one in edit.shifted]
        parts += [
            f"suppress {expert} ({PARTIAL}: output x {factors[expert]:.6g})"
            for expert in edit.suppressed
            if expert in factors
        ]
    if edit.stimulated:
        bias = f"bias {value_text(edit.stimulate_value)}"
        plain = [str(expert) for expert in edit.stimulated if expert not in factors]
        parts += [f"stimulate {', '.join(plain)} ({bias})"] if plain else []
        parts += [
            f"stimulate {expert} ({bias}, output x {factors[expert]:.6g})"
            for expert in edit.stimulated
            if expert in factors
        ]
    return f"layer {edit.layer}: {'; '.join(parts)}"


def _semantics_text(record: VariantRecord) -> str:
    if record.shifts_bias:
        are_all = all(one.bias_shift is not None for one in record.experts if one.action == SUPPRESS)
        return SHIFTED if are_all else f"{record.semantics}, some a {SHIFTED}"
    if record.is_partial:
        are_all = all(one.strength is not None for one in record.experts if one.action == SUPPRESS)
        return PARTIAL if are_all else f"{record.semantics}, some a {PARTIAL}"
    return f"{record.semantics}, approximate" if record.approximate else record.semantics


def _suppression_text(edit: LayerEdit, record: VariantRecord) -> str:
    """How a layer's experts are switched off, in few words."""
    if record.semantics == DROP:
        return "output zeroed"
    values = {one.value for one in record.experts if one.layer == edit.layer and one.action == SUPPRESS}
    if MEAN_ROW in values:
        return f"{CENTROID}: router row the survivors' mean, output zeroed"
    if SHIFTED_ROW in values:
        return f"router row {edit.suppress_value:.4g} below the survivors' mean"
    return f"bias {value_text(edit.suppress_value)}"


def verify_lines(result: VerifyResult, runtimes: list[dict[str, str]]) -> list[str]:
    """What was proven of a variant, for people."""
    shards = ", ".join(f"{count} {how}" for how, count in result.shards.items())
    lines = [
        f"verified: {result.variant} is {result.base} but for {result.num_patches} planned patches and its config",
        f"  tensors: {result.num_tensors:,}, same names, types and shapes",
        f"  shards: {shards}",
        f"  bytes: {size_text(result.bytes_by_inode)} equal by inode, {size_text(result.bytes_by_extent)} by shared blocks,"
        f" {size_text(result.bytes_read)} read",
        *([f"  not compared with anything: {', '.join(result.not_compared)}"] if result.not_compared else []),
        "  runtimes:",
    ]
    for row in runtimes:
        reason = f" - {row['reason']}" if row["reason"] else ""
        lines.append(f"    {row['verdict']:8} {row['runtime']} ({row['evidence']}){reason}")
    return lines


def proof_lines(proof: Proof) -> list[str]:
    """What a variant's bytes prove of its suppressed experts, and what they do not, for people."""
    return [f"  proved from the bytes: {sentence}" for sentence in proof.proved] + [
        f"  not proved: {sentence}" for sentence in proof.not_proved
    ]


def selection_lines(selections: list[Selection]) -> list[str]:
    """How often each suppressed expert was selected, for people."""
    if not selections:
        return []
    lines = ["  selections counted by llama-imatrix (variant, base):"]
    for line in selections:
        base = "not given" if line.base_share is None else f"{line.base_share:.2%} of tokens"
        lines.append(f"    layer {line.layer} expert {line.expert}: {line.count} of {line.num_tokens} tokens, {base}")
    return lines
