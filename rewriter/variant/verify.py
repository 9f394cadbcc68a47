"""Proves that a variant differs from its base only where its mote block says, and there as it says.

Shards that are the base's own files are known to be equal by their inode, blocks shared with the base by their place on disk;
what is left is read. `full` reads everything.
"""

import filecmp
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rewriter.checkpoint.kinds import FileHeader, Model, open_model
from rewriter.checkpoint.reader import INDEX_NAME
from rewriter.edit.plan import Plan
from rewriter.edit.record import VariantRecord, read_record, without_record
from rewriter.edit.replan import replan
from rewriter.errors import ExpertSetError, VerificationError
from rewriter.variant.copying import Progress, data_ranges
from rewriter.variant.other_content import check_other_files
from rewriter.variant.shared_blocks import shared_ranges

CHUNK_BYTES = 4 << 20
# Fields of the record that say where the edit came from; all others follow from the base and the experts.
UNPROVABLE = ("tool_version", "base_model", "base_revision", "base_folder", "expert_sets")
Range = tuple[int, int]


@dataclass
class VerifyResult:
    """What was proven, and how."""

    variant: str
    base: str
    num_tensors: int = 0
    num_patches: int = 0
    shards: dict[str, int] = field(default_factory=dict)  # how each was proven -> number of shards
    bytes_read: int = 0  # of the base; as many of the variant
    bytes_by_inode: int = 0
    bytes_by_extent: int = 0
    not_compared: list[str] = field(default_factory=list)  # files and facts that there is nothing to compare with

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return asdict(self)


def verify(
    variant_folder: Path,
    base_folder: Path,
    *,
    full: bool = False,
    base_id: tuple[str | None, str | None] = (None, None),
    progress: Callable[[int], AbstractContextManager[Progress]] | None = None,
) -> VerifyResult:
    """Compare a variant with its base.

    base_id: the base's Hub id and commit, where they are known.

    Raises:
        VerificationError: with the first difference that the record does not announce.
        RecordError: the folder is no variant.
    """
    variant, base = open_model(variant_folder), open_model(base_folder)
    if variant.format != base.format:
        raise VerificationError(f"{variant_folder}: is {variant.format}, but the base {base_folder} is {base.format}")
    record = read_record(variant.config, variant.source.name, variant.config_place)
    try:
        plan = replan(base, record)
    except ExpertSetError as error:
        raise VerificationError(f"the mote block does not fit {base.source.name} ({error})") from None
    _check_record(variant, record, plan.record)
    _check_config(variant, base, plan)
    if not _is_same_file(variant.folder, base.folder, INDEX_NAME) and variant.weight_map != base.weight_map:
        differing = sorted(set(variant.weight_map.items()) ^ set(base.weight_map.items()))[0][0]
        raise VerificationError(
            f"{variant.source.name}: its index differs from the base's, for example for {differing}"
        )
    not_compared = check_other_files(variant, base, record.base_folder)
    not_compared += [f"{name} of the mote block" for name in _unproven(record, base_id)]
    result = VerifyResult(
        str(variant_folder),
        str(base_folder),
        len(base.weight_map),
        len(plan.patches),
        not_compared=not_compared,
    )
    total = sum(map(base.shard_size, base.shards))
    methods: defaultdict[str, int] = defaultdict(int)
    with progress(total) if progress else nullcontext(_ignore) as report:
        for shard in base.shards:
            methods[_verify_shard(variant, base, shard, plan, full, result)] += 1
            report(base.shard_size(shard))
    result.shards = dict(sorted(methods.items()))
    return result


def _check_record(variant: Model, found: VariantRecord, expected: VariantRecord) -> None:
    """What the record says of tensors and values must be what its experts come to on this base."""
    first = ("tensors", "experts", "changed_files", "fingerprint")
    for name in (*first, *(VariantRecord.model_fields.keys() - {*first, *UNPROVABLE})):
        if getattr(found, name) == getattr(expected, name):
            continue
        if name == "tensors":
            _check_same_base(variant, found, expected)
        raise VerificationError(
            f"{variant.source.name}/{variant.config_place}: {name} of its mote block is not what its experts come to on this base"
        )


def _unproven(record: VariantRecord, base_id: tuple[str | None, str | None]) -> list[str]:
    """What the record says that does not follow from the base's bytes."""
    is_known = base_id[0] is not None and base_id == (record.base_model, record.base_revision)
    proven = {"base_model", "base_revision"} if is_known else set()
    told = [name for name in UNPROVABLE if name not in proven and getattr(record, name)]
    return told + sorted(record.model_extra or {})


def _check_same_base(variant: Model, found: VariantRecord, expected: VariantRecord) -> None:
    """Of the tensors that both lists name, the first with another hash before the edit tells that the base is another."""
    hashes = {(line.name, line.start): line.sha256_before for line in found.tensors}
    for wanted in expected.tensors:
        before = hashes.get((wanted.name, wanted.start), wanted.sha256_before)
        if before != wanted.sha256_before:
            raise VerificationError(
                f"{variant.source.name}: was made from another base: {wanted.name} had hash {before[:16]}, but in this"
                f" base it has {wanted.sha256_before[:16]}; give the one it was made from with --base"
            )


def _check_config(variant: Model, base: Model, plan: Plan) -> None:
    """Apart from the mote block and the renormalisation flag the config must be the base's."""
    found, wanted = without_record(variant.config), without_record(plan.config)
    if found != wanted:
        differing = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
        raise VerificationError(
            f"{variant.source.name}/{variant.config_place}: {differing[0]} is {found.get(differing[0])!r},"
            f" expected {wanted.get(differing[0])!r} by the base and the plan"
        )


def _is_same_file(variant_folder: Path, base_folder: Path, name: str) -> bool:
    """Whether both have a file with the same bytes; R1's index takes a second and tens of megabytes to parse."""
    ours, theirs = base_folder / name, variant_folder / name
    return ours.is_file() and theirs.is_file() and filecmp.cmp(ours, theirs, shallow=False)


def _verify_shard(
    variant: Model,
    base: Model,
    shard: str,
    plan: Plan,
    full: bool,
    result: VerifyResult,
) -> str:
    """Compare one shard; says how it was proven."""
    patches = [patch for patch in plan.patches if patch.shard == shard]
    ours, theirs = base.folder / shard, variant.folder / shard
    is_edited = shard in plan.changed_shards
    size = base.shard_size(shard)
    variant.shard_size(shard)  # or the sentence that it is missing
    if not full and ours.samefile(theirs):
        if is_edited:
            what = patches[0].tensor if patches else "its header"
            raise VerificationError(f"{theirs}: is the base's own file, so {what} cannot be edited in it")
        variant.check_whole(shard)
        result.bytes_by_inode += size
        return "same file"
    our_header, their_header = base.header(shard), variant.header(shard)
    _check_headers(variant, base, shard, is_edited and plan.record.stamped, plan)
    shift = their_header.body_offset - our_header.body_offset
    if shift and not (is_edited and plan.record.stamped):
        raise VerificationError(f"{theirs}: its header has another length, but the plan does not change it")
    planned: list[Range] = []
    for patch in patches:
        entry = their_header.tensors[patch.tensor]
        data = variant.read(entry.part(patch.start, patch.size_bytes))
        if hashlib.sha256(data).hexdigest() != patch.sha256_after:
            raise VerificationError(f"{theirs}: {patch.tensor} does not hold the planned bytes")
        start = our_header.tensors[patch.tensor].offset + patch.start
        planned.append((start, start + patch.size_bytes))
    with ours.open("rb", buffering=0) as opened, theirs.open("rb", buffering=0) as other:
        known = [] if full else shared_ranges(opened.fileno(), other.fileno(), shift)
        # A header that the plan does not mark is the base's to the byte, white space too.
        body = (our_header.body_offset if is_edited and plan.record.stamped else 0, size)
        known_bytes = sum(end - begin for begin, end in _clip(known, body))
        result.bytes_by_extent += known_bytes
        for begin, end in subtract(body, [*planned, *known]):
            result.bytes_read += _compare(opened.fileno(), other.fileno(), begin, end, shift, our_header, theirs)
    if full:
        return "read"
    return "shared blocks" if known_bytes > (size - our_header.body_offset) // 2 else "read"


def _check_headers(variant: Model, base: Model, shard: str, is_marked: bool, plan: Plan) -> None:
    """Same tensors, types, shapes and places; an edited shard carries the plan's fingerprint, no other has a new mark."""
    path, ours, theirs = variant.folder / shard, base.header(shard), variant.header(shard)
    for name, entry in ours.tensors.items():
        other = theirs.tensors.get(name)
        if other is None or (other.dtype, other.shape) != (entry.dtype, entry.shape):
            found = "missing" if other is None else f"{other.dtype} {list(other.shape)}"
            raise VerificationError(f"{path}: {name} is {found}, expected {entry.dtype} {list(entry.shape)}")
    if base.bare_head(shard) != variant.bare_head(shard):
        raise VerificationError(f"{path}: its header differs from the base's beyond the edit's mark")
    mark, wanted = variant.mark(shard), plan.record.fingerprint if is_marked else base.mark(shard)
    if mark != wanted:
        raise VerificationError(f"{path}: its header's mote mark is {mark!r}, expected {wanted!r}")


def _compare(ours: int, theirs: int, begin: int, end: int, shift: int, header: FileHeader, path: Path) -> int:
    """Compare a range of two files where either holds data; returns the bytes read of each.

    Raises: VerificationError naming the tensor of the first differing byte.
    """
    num_read = 0
    held = [*data_ranges(ours, begin, end)]
    held += [(start - shift, stop - shift) for start, stop in data_ranges(theirs, begin + shift, end + shift)]
    for start, stop in _union(held):
        for position in range(start, stop, CHUNK_BYTES):
            size = min(CHUNK_BYTES, stop - position)
            first, second = os.pread(ours, size, position), os.pread(theirs, size, position + shift)
            num_read += size
            if first != second:
                at = position + next(
                    (index for index, (one, two) in enumerate(zip(first, second, strict=False)) if one != two),
                    min(len(first), len(second)),
                )
                raise VerificationError(
                    f"{path}: byte {_place(header, at)} differs from the base, but the plan does not change it"
                )
    return num_read


def _place(header: FileHeader, at: int) -> str:
    """A byte of a shard by its tensor, for messages."""
    for entry in header.tensors.values():
        if entry.offset <= at < entry.offset + entry.size_bytes:
            return f"{at - entry.offset} of {entry.name}"
    return f"{at} ({'of the header' if at < header.body_offset else 'padding between tensors'})"


def subtract(whole: Range, parts: list[Range]) -> Iterator[Range]:
    """What is left of a range [begin, end) when others are taken out."""
    position, end = whole
    for begin, stop in sorted(parts):
        if begin > position:
            yield position, min(begin, end)
        position = max(position, stop)
        if position >= end:
            return
    if position < end:
        yield position, end


def _clip(ranges: list[Range], whole: Range) -> list[Range]:
    """The parts of ranges that lie in another range."""
    clipped = [(max(begin, whole[0]), min(end, whole[1])) for begin, end in ranges]
    return [(begin, end) for begin, end in clipped if begin < end]


def _union(ranges: list[Range]) -> list[Range]:
    """Overlapping ranges joined."""
    joined: list[Range] = []
    for begin, end in sorted(ranges):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def _ignore(count: int) -> None:
    """A progress report that nobody watches."""


def base_of(variant_folder: Path) -> tuple[str, str | None]:
    """The base's Hub id and revision that a variant's record names.

    Raises:
        RecordError: the folder is no variant.
        VerificationError: its record names none.
    """
    variant = open_model(variant_folder)
    record = read_record(variant.config, variant.source.name, variant.config_place)
    if not record.base_model:
        raise VerificationError(
            f"{variant.source.name}/{variant.config_place}: names no base on the Hub (its base was the local folder"
            f" {record.base_folder!r}); give --base"
        )
    return record.base_model, record.base_revision
