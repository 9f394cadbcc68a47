"""Executes a plan into a new folder: unchanged shards are linked, edited ones copied by the kernel and patched in the copy."""

import errno
import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from rewriter.checkpoint.kinds import Model, open_model
from rewriter.checkpoint.other_files import CARD_NAME
from rewriter.edit.plan import Plan
from rewriter.edit.scale import Scaling
from rewriter.errors import CheckpointError, OutputError
from rewriter.variant.base_state import BaseState
from rewriter.variant.card import serve_line, variant_card
from rewriter.variant.copying import (
    BLOCK_BYTES,
    PLAIN_CHUNK_BYTES,
    LinkMethod,
    LinkMode,
    Progress,
    copy_range,
    disk_bytes,
    fsync_file,
    place_unchanged,
    write_fully,
    write_repeated,
)
from rewriter.variant.output_folder import OutputFolder
from rewriter.variant.preview import preview


@dataclass
class WriteResult:
    """What was done, for people and for scripts."""

    folder: str
    base: str
    behavior: str
    semantics: str
    num_suppressed: int
    num_stimulated: int
    shards: dict[str, int] = field(default_factory=dict)  # how -> number of shards
    bytes_shared: int = 0  # reflinked
    bytes_linked: int = 0  # hard or symbolic links
    bytes_copied: int = 0
    bytes_patched: int = 0
    files_left_out: list[str] = field(default_factory=list)
    renormalization: str = ""
    serve: str = ""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return asdict(self)


def write_variant(
    plan: Plan,
    base: Path,
    target: Path,
    *,
    link: LinkMode = "auto",
    overwrite: bool = False,
    progress: Callable[[int], AbstractContextManager[Progress]] | None = None,
) -> WriteResult:
    """Write the variant folder; it appears complete and checked, or not at all.

    base: what the plan was made from, a folder or a GGUF file, never opened for writing. progress: given the bytes in all, a
    context that takes the bytes done.

    Raises: OutputError for a target that exists, is in use, lies in the base, or does not fit on the disk; CheckpointError when
    the base changed since it was planned or cannot be read.
    """
    started = time.monotonic()
    checkpoint = open_model(base)
    with OutputFolder(target, base, overwrite=overwrite) as output:
        seen = preview(plan, checkpoint, target, link, scratch=output.partial)
        if seen.needed_bytes > seen.free_bytes:
            raise OutputError(
                f"{target.parent}: has {seen.free_bytes:,} bytes free, but the variant needs {seen.needed_bytes:,}"
                f" ({seen.num_changed} edited shards copied, {seen.num_unchanged} others by {seen.unchanged_method});"
                " choose another -o, or make room"
            )
        result = _new_result(plan, checkpoint, base, target)
        before = state_of_base(checkpoint)
        total = seen.unchanged_bytes + sum(checkpoint.shard_size(shard) for shard in plan.changed_shards)
        try:
            with progress(total) if progress else nullcontext(ignore) as report:
                _write_shards(plan, checkpoint, output.partial, link, result, report)
            _write_companions(plan, checkpoint, output.partial, target, result)
            before.check_unchanged()
            check_patched(output.partial, plan)
        except OSError as error:
            raise explained(error, base, target) from None
        output.commit()
    result.seconds = time.monotonic() - started
    return result


def state_of_base(checkpoint: Model) -> BaseState:
    """What the base's files are now, each shard as long as its header says.

    Raises:
        CheckpointError: a shard is truncated, or a file is being written.
    """
    others = [*checkpoint.other_files()[0], Path(checkpoint.config_place), Path(CARD_NAME)]
    present = {str(path) for path in others if (checkpoint.folder / path).is_file()}
    state = BaseState.of(checkpoint.folder, {*checkpoint.shards, *present})
    for shard in checkpoint.shards:
        checkpoint.check_whole(shard)
    return state


def check_patched(folder: Path, plan: Plan) -> None:
    """Read the planned bytes of a written variant back.

    Raises: CheckpointError when a shard is malformed or a planned tensor is not as planned.
    """
    written = open_model(folder)
    for patch in plan.patches:
        entry = written.header(patch.shard).tensors[patch.tensor]
        data = written.read(entry.part(patch.start, patch.size_bytes))
        if hashlib.sha256(data).hexdigest() != patch.sha256_after:
            raise CheckpointError(
                f"{folder / patch.shard}: {patch.tensor} read back differs from what was written; the disk is faulty"
            )


def ignore(count: int) -> None:
    """A progress report that nobody watches."""


def shown_folder(target: Path) -> str:
    """A folder as a command from here calls it."""
    shown = os.path.relpath(target)
    return str(target) if shown.startswith("..") else f"./{shown}"


def _new_result(plan: Plan, checkpoint: Model, base: Path, target: Path) -> WriteResult:
    return WriteResult(
        folder=str(target),
        base=str(base),
        behavior=plan.record.behavior,
        semantics=plan.record.semantics,
        num_suppressed=sum(len(edit.suppressed) for edit in plan.layers),
        num_stimulated=sum(len(edit.stimulated) for edit in plan.layers),
        bytes_patched=plan.patched_bytes,
        renormalization=plan.record.renormalization,
        serve=serve_line(shown_folder(target), checkpoint),
    )


def _write_shards(
    plan: Plan,
    checkpoint: Model,
    folder: Path,
    link: LinkMode,
    result: WriteResult,
    report: Progress,
) -> None:
    """Put all shards into the folder, the edited ones patched."""
    methods: Counter[str] = Counter()
    changed, base = plan.changed_shards, checkpoint.folder

    def write_edited(shard: str) -> LinkMethod:
        return _write_edited(plan, checkpoint, shard, folder / shard, report_or_stop)

    stopped = Event()

    def report_or_stop(count: int) -> None:
        if stopped.is_set():
            raise CancelledError
        report(count)

    # Two at a time: while one is being made durable, the next is read.
    with ThreadPoolExecutor(max_workers=2) as pool:
        try:
            edited = dict(zip(changed, pool.map(write_edited, changed), strict=True))
        except BaseException:  # Ctrl-C too must not wait for the shards that are being copied
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for shard in checkpoint.shards:
        method: LinkMethod
        if shard in edited:
            method = edited[shard]
            methods["edited" if method == "copy" else "edited, blocks shared"] += 1
        else:
            method = place_unchanged(base / shard, folder / shard, link, report)
            methods[method] += 1
        size = checkpoint.shard_size(shard)
        if method == "reflink":
            result.bytes_shared += size
        elif method == "copy":
            result.bytes_copied += disk_bytes(folder / shard)
        else:
            result.bytes_linked += size
    result.shards = dict(sorted(methods.items()))


def _write_edited(plan: Plan, checkpoint: Model, shard: str, target: Path, report: Progress) -> LinkMethod:
    """Copy one shard behind a marked header and patch the copy."""
    header, source = checkpoint.header(shard), checkpoint.folder / shard
    begin = header.body_offset
    head = b""
    if plan.record.stamped:
        head = checkpoint.marked_head(shard, plan.record.fingerprint, plan.config)
        shift = len(head) - begin
    else:
        shift, begin = 0, 0
    # Blocks are shared from the first whole one behind the header on; the piece before it is written.
    aligned = min(-(-begin // BLOCK_BYTES) * BLOCK_BYTES, header.file_size)
    with source.open("rb", buffering=0) as opened, target.open("x+b", buffering=0) as created:
        if os.fstat(opened.fileno()).st_size != header.file_size:
            raise CheckpointError(f"{source}: its size changed while it was read, expected {header.file_size} bytes")
        method = copy_range(
            opened.fileno(), created.fileno(), aligned, aligned + shift, header.file_size - aligned, report
        )
        report(aligned)
        piece = os.pread(opened.fileno(), aligned - begin, begin)
        write_fully(created.fileno(), head + piece, 0)
        for patch in (patch for patch in plan.patches if patch.shard == shard):
            place = header.tensors[patch.tensor].offset + patch.start
            if _sha256_of_range(opened.fileno(), place, patch.size_bytes) != patch.sha256_before:
                raise CheckpointError(f"{source}: {patch.tensor} changed since it was planned on; run again")
            at = place + shift
            if patch.scaling is not None:
                _write_scaled(opened.fileno(), created.fileno(), place, at, patch.size_bytes, patch.scaling)
            elif patch.data is None:
                write_repeated(created.fileno(), patch.fill, at, patch.size_bytes)
            else:
                write_fully(created.fileno(), patch.data, at)
        os.fsync(created.fileno())
    return method


def _write_scaled(source: int, target: int, place: int, at: int, size: int, scaling: Scaling) -> None:
    """Write a range of the base with its numbers multiplied, in pieces of whole blocks."""
    step = max(PLAIN_CHUNK_BYTES // scaling.packing.block_bytes, 1) * scaling.packing.block_bytes
    for done in range(0, size, step):
        piece = os.pread(source, min(step, size - done), place + done)
        if len(piece) < min(step, size - done):
            raise CheckpointError("the base ended within a tensor that it had a moment before; run again")
        write_fully(target, scaling.apply(piece), at + done)


def _sha256_of_range(descriptor: int, offset: int, size: int) -> str:
    """The hash of a part of a file, or of what there is of it."""
    digest, position = hashlib.sha256(), offset
    while position < offset + size and (
        data := os.pread(descriptor, min(PLAIN_CHUNK_BYTES, offset + size - position), position)
    ):
        digest.update(data)
        position += len(data)
    return digest.hexdigest()


def _write_companions(plan: Plan, checkpoint: Model, folder: Path, target: Path, result: WriteResult) -> None:
    """Write the other files, the card and, last, the config or record."""
    result.files_left_out = [str(path) for path in copy_other_files(checkpoint, folder)]
    write_text(folder / CARD_NAME, variant_card(plan, checkpoint, target))
    beside = checkpoint.side_file(plan.config, plan.record.stamped)
    if beside is not None:
        write_text(folder / beside[0], beside[1])


def copy_other_files(checkpoint: Model, folder: Path) -> list[Path]:
    """Copy what belongs to the model besides shards, config and card; returns what was left out, relative to its folder.

    Raises:
        CheckpointError: one of them is no regular file.
    """
    base = checkpoint.folder
    taken, left = checkpoint.other_files()
    for path in taken:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if not (base / path).is_file():  # a pipe would be waited for
            found = "a broken link" if (base / path).is_symlink() else "not a regular file"
            raise CheckpointError(f"{base / path}: is {found}, expected a file that can be copied")
        # Copied even where shards are linked: people edit these, and an edit must not reach the base.
        _copy_file(base / path, folder / path)
        fsync_file(folder / path)
    return left


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file into a new one; "x" since an existing one could be a link to the base's."""
    with source.open("rb") as opened, target.open("xb") as created:
        shutil.copyfileobj(opened, created)


def write_text(path: Path, text: str) -> None:
    """Write a new file of a variant, durably."""
    with path.open("x", encoding="utf-8") as created:
        created.write(text)
    fsync_file(path)


def explained(error: OSError, base: Path, target: Path) -> OutputError:
    """The sentence for what the operating system refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"{target}: the disk is full ({error.strerror}); nothing was left behind")
    place = error.filename or base
    return OutputError(f"{target}: writing it failed at {place} ({error.strerror}); nothing was left behind")
