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

from rewriter.checkpoint.other_files import companion_files, is_weights
from rewriter.checkpoint.reader import CONFIG_NAME, INDEX_NAME, Checkpoint, ShardHeader
from rewriter.checkpoint.shard_header import MARK, unmarked
from rewriter.edit.plan import Plan
from rewriter.edit.record import VariantRecord, read_record, without_record
from rewriter.edit.replan import replan
from rewriter.errors import ExpertSetError, VerificationError
from rewriter.variant.copying import Progress, data_ranges
from rewriter.variant.shared_blocks import shared_ranges
from rewriter.variant.variant_card import CARD_NAME

CHUNK_BYTES = 4 << 20
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

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return asdict(self)


def verify(
    variant_folder: Path,
    base_folder: Path,
    *,
    full: bool = False,
    progress: Callable[[int], AbstractContextManager[Progress]] | None = None,
) -> VerifyResult:
    """Compare a variant with its base.

    Raises:
        VerificationError: with the first difference that the record does not announce.
        RecordError: the folder is no variant.
    """
    variant, base = Checkpoint.open(variant_folder), Checkpoint.open(base_folder)
    record = read_record(variant.config, variant.source.name)
    try:
        plan = replan(base, record)
    except ExpertSetError as error:
        raise VerificationError(f"the mote block does not fit {base.source.name} ({error})") from None
    _check_record(variant, record, plan.record)
    _check_config(variant, base, plan)
    if not _is_same_file(variant_folder, base_folder, INDEX_NAME) and variant.weight_map != base.weight_map:
        differing = sorted(set(variant.weight_map.items()) ^ set(base.weight_map.items()))[0][0]
        raise VerificationError(
            f"{variant.source.name}: its index differs from the base's, for example for {differing}"
        )
    _check_companions(variant_folder, base_folder, base)
    result = VerifyResult(str(variant_folder), str(base_folder), len(base.weight_map), len(plan.patches))
    total = sum(map(base.shard_size, base.shards))
    methods: defaultdict[str, int] = defaultdict(int)
    with progress(total) if progress else nullcontext(_ignore) as report:
        for shard in base.shards:
            methods[_verify_shard(variant, base, variant_folder, base_folder, shard, plan, full, result)] += 1
            report(base.shard_size(shard))
    result.shards = dict(sorted(methods.items()))
    return result


def _check_record(variant: Checkpoint, found: VariantRecord, expected: VariantRecord) -> None:
    """What the record says of tensors and values must be what its experts come to on this base."""
    for name in ("tensors", "experts", "changed_files", "fingerprint"):
        if getattr(found, name) == getattr(expected, name):
            continue
        if name == "tensors":
            _check_same_base(variant, found, expected)
        raise VerificationError(
            f"{variant.source.name}/config.json: {name} of its mote block is not what its experts come to on this base"
        )


def _check_same_base(variant: Checkpoint, found: VariantRecord, expected: VariantRecord) -> None:
    """Of the tensors that both lists name, the first with another hash before the edit tells that the base is another."""
    hashes = {(line.name, line.start): line.sha256_before for line in found.tensors}
    for wanted in expected.tensors:
        before = hashes.get((wanted.name, wanted.start), wanted.sha256_before)
        if before != wanted.sha256_before:
            raise VerificationError(
                f"{variant.source.name}: was made from another base: {wanted.name} had hash {before[:16]}, but in this"
                f" base it has {wanted.sha256_before[:16]}"
            )


def _check_config(variant: Checkpoint, base: Checkpoint, plan: Plan) -> None:
    """Apart from the mote block and the renormalisation flag the config must be the base's."""
    found, wanted = without_record(variant.config), without_record(plan.config)
    if found != wanted:
        differing = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
        raise VerificationError(
            f"{variant.source.name}/config.json: {differing[0]} is {found.get(differing[0])!r},"
            f" expected {wanted.get(differing[0])!r} by the base and the plan"
        )


def _is_same_file(variant_folder: Path, base_folder: Path, name: str) -> bool:
    """Whether both have a file with the same bytes; R1's index takes a second and tens of megabytes to parse."""
    ours, theirs = base_folder / name, variant_folder / name
    return ours.is_file() and theirs.is_file() and filecmp.cmp(ours, theirs, shallow=False)


def _check_companions(variant_folder: Path, base_folder: Path, base: Checkpoint) -> None:
    """The other files must be the base's, and no further weights may lie about, since some runtimes load all they find."""
    handled = {*base.shards, INDEX_NAME, CONFIG_NAME, CARD_NAME}
    wanted, _ = companion_files(base_folder, handled)
    _, left = companion_files(variant_folder, handled)
    extra = [path for path in left if is_weights(path)]
    if extra:
        raise VerificationError(
            f"{variant_folder / extra[0]}: holds weights that the index does not name, expected none: some runtimes would"
            " load them"
        )
    for path in wanted:
        if not (variant_folder / path).is_file():
            raise VerificationError(f"{variant_folder / path}: no such file, but the base has it")
        if not filecmp.cmp(base_folder / path, variant_folder / path, shallow=False):
            raise VerificationError(f"{variant_folder / path}: differs from the base's, expected the same bytes")


def _verify_shard(
    variant: Checkpoint,
    base: Checkpoint,
    variant_folder: Path,
    base_folder: Path,
    shard: str,
    plan: Plan,
    full: bool,
    result: VerifyResult,
) -> str:
    """Compare one shard; says how it was proven."""
    patches = [patch for patch in plan.patches if patch.shard == shard]
    ours, theirs = base_folder / shard, variant_folder / shard
    size = base.shard_size(shard)
    variant.shard_size(shard)  # or the sentence that it is missing
    if not full and ours.samefile(theirs):
        if patches:
            raise VerificationError(f"{theirs}: is the base's own file, so {patches[0].tensor} cannot be edited in it")
        result.bytes_by_inode += size
        return "same file"
    our_header, their_header = base.header(shard), variant.header(shard)
    _check_headers(our_header, their_header, bool(patches), plan, theirs)
    shift = their_header.length - our_header.length
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
        body = (our_header.body_offset, size)
        known_bytes = sum(end - begin for begin, end in _clip(known, body))
        result.bytes_by_extent += known_bytes
        for begin, end in subtract(body, [*planned, *known]):
            result.bytes_read += _compare(opened.fileno(), other.fileno(), begin, end, shift, our_header, theirs)
    if full:
        return "read"
    return "shared blocks" if known_bytes > (size - our_header.body_offset) // 2 else "read"


def _check_headers(ours: ShardHeader, theirs: ShardHeader, is_edited: bool, plan: Plan, path: Path) -> None:
    """Same tensors, types, shapes and places; an edited shard carries the plan's fingerprint, no other has a mark."""
    if unmarked(ours.document) != unmarked(theirs.document):
        for name, entry in ours.tensors.items():
            other = theirs.tensors.get(name)
            if other is None or (other.dtype, other.shape) != (entry.dtype, entry.shape):
                found = "missing" if other is None else f"{other.dtype} {list(other.shape)}"
                raise VerificationError(f"{path}: {name} is {found}, expected {entry.dtype} {list(entry.shape)}")
        raise VerificationError(f"{path}: its header differs from the base's beyond the edit's mark")
    mark = (theirs.document.get("__metadata__") or {}).get(MARK)
    wanted = plan.record.fingerprint if is_edited else (ours.document.get("__metadata__") or {}).get(MARK)
    if mark != wanted:
        raise VerificationError(f"{path}: its header's mote mark is {mark!r}, expected {wanted!r}")


def _compare(ours: int, theirs: int, begin: int, end: int, shift: int, header: ShardHeader, path: Path) -> int:
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
                name = next(
                    entry.name
                    for entry in header.tensors.values()
                    if entry.offset <= at < entry.offset + entry.size_bytes
                )
                raise VerificationError(
                    f"{path}: byte {at - header.tensors[name].offset} of {name} differs from the base, but the plan does"
                    " not change it"
                )
    return num_read


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
    record = read_record(Checkpoint.open(variant_folder).config, str(variant_folder))
    if not record.base_model:
        raise VerificationError(
            f"{variant_folder}/config.json: names no base on the Hub (its base was the local folder"
            f" {record.base_folder!r}); give --base"
        )
    return record.base_model, record.base_revision
