"""Writes a served variant: all weights linked from the base, a config of its own, the other files copied."""

import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rewriter.checkpoint.edited_json import config_text
from rewriter.checkpoint.other_files import companion_files
from rewriter.checkpoint.reader import CONFIG_NAME, INDEX_NAME, Checkpoint
from rewriter.edit.dial import ServedRecord, base_config, read_served
from rewriter.errors import OutputError, VerificationError
from rewriter.semantics import MEANINGS
from rewriter.variant.copying import LinkMode, fsync_file, place_unchanged
from rewriter.variant.output_folder import OutputFolder

CARD_NAME = "README.md"


@dataclass(frozen=True)
class ServedResult:
    """What was written, for people and for scripts."""

    folder: str
    base: str
    sets: dict[str, str]  # name -> semantics
    default: str | None
    shards: dict[str, int]  # how they came over -> number
    serve: str

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The result for people."""
        shards = ", ".join(f"{count} {how}" for how, count in self.shards.items())
        return [
            self.folder,
            f"  sets: {', '.join(f'{name} ({semantics})' for name, semantics in self.sets.items())}",
            f"  every other request: {self.default or 'the base'}",
            f"  shards: {shards}, none changed",
            f"  serve (with this package beside vLLM): {self.serve}",
        ]


def emit_served(
    record: ServedRecord, config: dict[str, Any], base: Path, target: Path, link: LinkMode, *, overwrite: bool = False
) -> ServedResult:
    """Write the folder; it appears complete and checked, or not at all.

    Raises:
        OutputError: for a target that exists, is in use, lies in the base, or cannot be written.
    """
    checkpoint = Checkpoint.open(base)
    methods: Counter[str] = Counter()
    serve = f"vllm serve {target}" + (" --trust-remote-code" if "auto_map" in checkpoint.config else "")
    result = ServedResult(
        str(target), str(base), {name: one.semantics for name, one in record.sets.items()}, record.default, {}, serve
    )
    with OutputFolder(target, base, overwrite=overwrite) as output:
        try:
            for shard in checkpoint.shards:
                methods[place_unchanged(base / shard, output.partial / shard, link, lambda count: None)] += 1
            taken, _ = companion_files(base, {*checkpoint.shards, CONFIG_NAME, CARD_NAME})
            for path in taken:
                (output.partial / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(base / path, output.partial / path)
                fsync_file(output.partial / path)
            if (base / INDEX_NAME).exists() and not (output.partial / INDEX_NAME).exists():
                shutil.copyfile(base / INDEX_NAME, output.partial / INDEX_NAME)
                fsync_file(output.partial / INDEX_NAME)
            for name, text in ((CARD_NAME, card(record, target.name)), (CONFIG_NAME, config_text(config))):
                (output.partial / name).write_text(text, encoding="utf-8")
                fsync_file(output.partial / name)
            read_served(Checkpoint.open(output.partial).config, target.name)
        except OSError as error:
            raise OutputError(f"{target}: writing it failed ({error.strerror}); nothing was left behind") from None
        output.commit()
    result.shards.update(sorted(methods.items()))
    return result


def verify_served(variant: Path, base: Path) -> ServedRecord:
    """Prove that a served variant has the base's weights, byte for byte, and its config but for what the record says.

    Raises:
        RecordError: for a record that is damaged or of another model.
        VerificationError: with the first difference.
    """
    ours, theirs = Checkpoint.open(variant), Checkpoint.open(base)
    record = read_served(ours.config, ours.source.name)
    wanted = {key: value for key, value in theirs.config.items() if key != "mote"}
    if base_config(ours.config) != wanted:
        raise VerificationError(f"{variant}/config.json: differs from the base's by more than the mote block says")
    if ours.weight_map != theirs.weight_map:
        raise VerificationError(f"{variant}: its index differs from the base's")
    for shard in theirs.shards:
        first, second = variant / shard, base / shard
        if not first.samefile(second) and not _same_bytes(first, second):
            raise VerificationError(f"{first}: differs from the base's, expected the same bytes")
    return record


def _same_bytes(first: Path, second: Path) -> bool:
    if first.stat().st_size != second.stat().st_size:
        return False
    with first.open("rb") as one, second.open("rb") as other:
        while chunk := one.read(4 << 20):
            if chunk != other.read(len(chunk)):
                return False
    return True


def card(record: ServedRecord, name: str) -> str:
    """The folder's README.md."""
    of = record.base_model or record.base_folder or "its base"
    lines = [
        f"# {name}",
        "",
        f"The weights of {of}, unchanged. What differs is done by the server: `vllm serve` with the package"
        " mote-tunable-experts installed beside it. Without the package every runtime refuses this folder.",
        "",
    ]
    if record.has_dial:
        chosen = next(iter(record.sets))
        lines += [
            'A request chooses by `vllm_xargs`, for example `{"mote": "' + chosen + '", "mote_strength": 0.5}`;'
            ' `"mote": "none"` is the base, which is also what a request without a choice gets.'
            if record.default is None
            else f"A request chooses by `vllm_xargs`; without a choice it gets `{record.default}`.",
            "",
        ]
    else:
        lines += [f"Every request gets the set `{record.default}`.", ""]
    for set_name, one in record.sets.items():
        lines += [
            f"## {set_name}",
            "",
            MEANINGS[one.semantics],
            "",
            *(f"- suppressed: layer {layer} expert {expert}" for layer, expert in one.suppress),
            *(f"- stimulated: layer {layer} expert {expert}" for layer, expert in one.stimulate),
            "",
        ]
    return "\n".join(lines)
