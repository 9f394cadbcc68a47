"""A GGUF model: one file, or the files of a split, in which the record of an edit and the router's settings stand in the first.

Offers what the reader of safetensors folders offers (config, layout, shards, tensors), so that plans, writing and verifying are
the same for both. The config is the first file's metadata without the architecture's prefix, see rewriter/families/gguf.py.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from rewriter.checkpoint.edited_json import BLOCK_KEY
from rewriter.checkpoint.gguf.header import GgufHeader, read_header
from rewriter.checkpoint.gguf.stamp import FINGERPRINT_KEY, OWN_KEYS, RECORD_KEY, own_pairs_removed, stamped_head
from rewriter.checkpoint.gguf.types import BOOL
from rewriter.checkpoint.other_files import CARD_NAME
from rewriter.checkpoint.source import ByteSource, LocalFolder, TensorEntry
from rewriter.errors import CheckpointError
from rewriter.families.family import RouterLayout
from rewriter.families.gguf import ARCHITECTURE_KEY, BIASED_KEY, LAYERS_KEY, gguf_layout
from rewriter.small_file import MAX_CARD_BYTES, MAX_TEXT_BYTES, check_size, read_small

GGUF_SUFFIX = ".gguf"
SPLIT_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
SPLIT_NUMBER, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
OUTPUTS_TAIL = "ffn_down_exps.weight"
BIAS_TAILS = frozenset({"exp_probs_b.bias", "exp_probs_b", "ffn_gate_inp.bias"})
# The one setting of a router that an edit may change (--renormalize).
NORMALISE_TAIL = ".expert_weights_norm"
RECORD_FILE = "mote.json"
"""Beside the files where they carry no stamp: the record, so that the variant can still be verified."""


@dataclass
class GgufSet:
    """A GGUF model and what has been read of it."""

    format: ClassVar[Literal["gguf"]] = "gguf"
    settings_need_stamp: ClassVar[bool] = True
    bias_dtypes: ClassVar[tuple[str, ...]] = ("F32",)  # whatever the quantisation: llama.cpp adds it to float32 scores

    source: ByteSource
    shards: tuple[str, ...]  # the files in the order of the split
    headers: Mapping[str, GgufHeader] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path) -> "GgufSet":
        """The model that a file, any file of a split, or a folder with one model stands for.

        Raises:
            CheckpointError: no such file, more than one model in the folder, or a damaged or incomplete split.
        """
        given = Path(path)
        if given.is_dir():
            given = given / _only_model(given)
        return cls.of(LocalFolder(given.parent), given.name)

    @classmethod
    def of(cls, source: ByteSource, name: str) -> "GgufSet":
        """The model that a file of a source belongs to.

        Raises:
            CheckpointError: as `open`.
        """
        header = read_header(source, name)
        count = header.integer(SPLIT_COUNT) or 0  # merged files keep the key with 0
        if count <= 1:
            return cls(source, (name,), {name: header})
        names = _split_names(source, name, header, count)
        headers = {other: header if other == name else _read_part(source, other, name) for other in names}
        _check_split(source, names, headers)
        return cls(source, names, headers)

    @property
    def name(self) -> str:
        """How messages call the model."""
        return f"{self.source.name}/{self.shards[0]}"

    @property
    def folder(self) -> Path:
        """The folder on disk that the files lie in."""
        assert isinstance(self.source, LocalFolder)
        return self.source.path

    @property
    def title(self) -> str:
        """The name without the split's numbers and the suffix."""
        match = SPLIT_NAME.fullmatch(self.shards[0])
        return match["prefix"] if match else self.shards[0].removesuffix(GGUF_SUFFIX)

    @property
    def config_place(self) -> str:
        """The file with the config and the record."""
        in_file = self.first.text(RECORD_KEY) is not None or self.source.size_bytes(RECORD_FILE) is None
        return self.shards[0] if in_file else RECORD_FILE

    @property
    def first(self) -> GgufHeader:
        """The header of the first file, which holds the model's metadata."""
        return self.headers[self.shards[0]]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The metadata's numbers and strings without the architecture's prefix, and which layers have what."""
        architecture = self.first.text(ARCHITECTURE_KEY)
        if architecture is None:
            raise CheckpointError(f"{self.name}: has no {ARCHITECTURE_KEY}, expected a model's first file")
        prefix = f"{architecture}."
        config: dict[str, Any] = {
            key.removeprefix(prefix): list(found.value) if isinstance(found.value, tuple) else found.value
            for key, found in self.first.metadata.items()
            if found.value is not None and key not in OWN_KEYS and not key.startswith("tokenizer.")
        }
        expert_layers, biased = self._layers(config)
        config |= {LAYERS_KEY: expert_layers, BIASED_KEY: biased}
        block = self._record_block()
        return config if block is None else config | {BLOCK_KEY: block}

    @cached_property
    def config_text(self) -> str:
        """The config as JSON."""
        return json.dumps(self.config)

    @cached_property
    def layout(self) -> RouterLayout:
        """The routers as the files' own keys and tensors describe them."""
        return gguf_layout(self.config, self.name)

    @cached_property
    def weight_map(self) -> dict[str, str]:
        """Tensor name to file."""
        return {name: shard for shard in self.shards for name in self.headers[shard].tensors}

    def shard_size(self, shard: str) -> int:
        """Size of a file in bytes."""
        return self.headers[shard].file_size

    def header(self, shard: str) -> GgufHeader:
        """The header of a file."""
        return self.headers[shard]

    def check_whole(self, shard: str) -> None:
        """Check that a file is as long as its header says; see Checkpoint.check_whole.

        Raises:
            CheckpointError: it is truncated, or malformed in another way.
        """
        self.header(shard)  # reading it has checked that

    def names_from(self, prefix: str) -> Iterator[str]:
        """The tensors whose names begin with a prefix, sorted."""
        return iter(sorted(name for name in self.weight_map if name.startswith(prefix)))

    def find(self, names: tuple[str, ...]) -> TensorEntry | None:
        """The first of several possible tensor names that the model has."""
        for name in names:
            shard = self.weight_map.get(name)
            if shard is not None:
                return self.headers[shard].tensors[name]
        return None

    def read(self, entry: TensorEntry) -> bytes:
        """The bytes of a tensor.

        Raises:
            CheckpointError: the file ends within it.
        """
        return read_range(self.source, entry.shard, entry.offset, entry.size_bytes)

    def settings_shard(self, stamped: bool) -> str | None:
        """The first file, which carries the record of every edit; None where no file is stamped."""
        return self.shards[0] if stamped else None

    def marked_head(self, shard: str, fingerprint: str, config: Mapping[str, Any]) -> bytes:
        """The bytes before an edited file's tensors: its own metadata and tensor infos, the edit's fingerprint, and in the first
        file the edit's record and the router's settings as the config has them."""
        header = self.headers[shard]
        texts, flags = {FINGERPRINT_KEY: fingerprint}, {}
        if shard == self.shards[0]:
            texts = {RECORD_KEY: json.dumps(config[BLOCK_KEY], ensure_ascii=False), **texts}
            if config.get(NORMALISE_TAIL[1:]) != self.config.get(NORMALISE_TAIL[1:]):
                flags[f"{self.first.text(ARCHITECTURE_KEY)}{NORMALISE_TAIL}"] = bool(config[NORMALISE_TAIL[1:]])
        return stamped_head(header, self._head(shard), texts, flags)

    def bare_head(self, shard: str) -> Any:
        """A file's metadata and tensor infos as they stand, but for MoTE's own pairs and the setting that an edit may change."""
        header = self.headers[shard]
        settable = {
            key: True for key, found in header.metadata.items() if key.endswith(NORMALISE_TAIL) and found.kind == BOOL
        }
        return own_pairs_removed(header, self._head(shard), settable)

    def mark(self, shard: str) -> str | None:
        """The fingerprint in a file's metadata."""
        return self.headers[shard].text(FINGERPRINT_KEY)

    def side_file(self, config: Mapping[str, Any], stamped: bool) -> tuple[str, str] | None:
        """The record, where no file carries it."""
        return None if stamped else (RECORD_FILE, json.dumps(config[BLOCK_KEY], indent=2, ensure_ascii=False) + "\n")

    def other_files(self) -> tuple[list[Path], list[Path]]:
        """None: the tokenizer and the chat template are in the file, and what else lies in its folder is not the model's."""
        return [], []

    def card(self) -> str | None:
        """README.md beside the files, else the licence that the file names, as a card's metadata."""
        path = self.folder / CARD_NAME
        if path.exists():
            return read_small(path, MAX_CARD_BYTES, CheckpointError).decode("utf-8", errors="replace")
        facts = {
            "license": self.first.text("general.license"),
            "license_name": self.first.text("general.license.name"),
            "license_link": self.first.text("general.license.link"),
        }
        lines = [f"{key}: {json.dumps(value)}" for key, value in facts.items() if value]
        return "\n".join(["---", "library_name: gguf", *lines, "---", ""])

    def _head(self, shard: str) -> bytes:
        """A file up to its tensors."""
        return read_range(self.source, shard, 0, self.headers[shard].body_offset)

    def _layers(self, config: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """The layers with expert tensors and those with a bias; what predicts further tokens comes behind the last layer."""
        count = config.get("block_count")
        if type(count) is not int:
            raise CheckpointError(f"{self.name}: block_count is {count!r}, expected a whole number")
        ahead = config.get("nextn_predict_layers")
        end = count - (ahead if type(ahead) is int else 0)
        with_experts, biased = set(), set()
        for name in self.weight_map:
            match = BLOCK.fullmatch(name)
            if match and int(match[1]) < end:
                if match[2] == OUTPUTS_TAIL:
                    with_experts.add(int(match[1]))
                elif match[2] in BIAS_TAILS:
                    biased.add(int(match[1]))
        return sorted(with_experts), sorted(biased & with_experts)

    def _record_block(self) -> Any:
        """The record of an edit, as the first file carries it or as it lies beside the files; None where there is none."""
        text = self.first.text(RECORD_KEY)
        size = self.source.size_bytes(RECORD_FILE) if text is None else None
        if size is not None:
            check_size(f"{self.name}: {RECORD_FILE}", size, MAX_TEXT_BYTES, CheckpointError)
            text = self.source.read(RECORD_FILE, 0, size).decode("utf-8", errors="replace")
        if text is None:
            return None
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.name}: its {RECORD_KEY} is not JSON ({error})") from None


def read_range(source: ByteSource, file: str, offset: int, size: int) -> bytes:
    """A range of a file's bytes.

    Raises:
        CheckpointError: the file ends within it.
    """
    parts, position, end = [], offset, offset + size
    while position < end:  # one read may return less than asked for
        part = source.read(file, position, end - position)
        if not part:
            raise CheckpointError(f"{source.name}/{file}: ends at byte {position}, expected at least {end}")
        parts.append(part)
        position += len(part)
    return b"".join(parts)


def is_gguf(path: Path) -> bool:
    """Whether a path stands for a GGUF model: a file of that suffix, or a folder that holds some and no safetensors."""
    if path.is_dir():
        names = [entry.name for entry in path.iterdir()]
        return any(name.endswith(GGUF_SUFFIX) for name in names) and not any(
            name.endswith((".safetensors", ".safetensors.index.json")) for name in names
        )
    return path.name.endswith(GGUF_SUFFIX)


def _only_model(folder: Path) -> str:
    """The first file of the one model in a folder; projectors of images (mmproj) are no models."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(GGUF_SUFFIX) and not path.name.lower().startswith("mmproj"):
            match = SPLIT_NAME.fullmatch(path.name)
            found.setdefault(f"{match['prefix']} of {match['count']}" if match else path.name, []).append(path.name)
    if len(found) != 1:
        listed = ", ".join(names[0] for names in found.values()) or "none"
        raise CheckpointError(f"{folder}: holds {len(found)} GGUF models ({listed}), expected one; name a file")
    return next(iter(found.values()))[0]


def _split_names(source: ByteSource, name: str, header: GgufHeader, count: int) -> tuple[str, ...]:
    """The names of a split's files, by the name and keys of one of them."""
    match, number = SPLIT_NAME.fullmatch(name), header.integer(SPLIT_NUMBER)
    if match is None or int(match["count"]) != count or number is None or int(match["number"]) != number + 1:
        raise CheckpointError(
            f"{source.name}/{name}: says it is file {number} (from 0) of a split of {count}, expected a name that ends in"
            f" -{(number or 0) + 1:05d}-of-{count:05d}.gguf, as llama.cpp does"
        )
    return tuple(f"{match['prefix']}-{part + 1:05d}-of-{count:05d}.gguf" for part in range(count))


def _read_part(source: ByteSource, name: str, known: str) -> GgufHeader:
    """The header of another file of a split."""
    if source.size_bytes(name) is None:
        raise CheckpointError(
            f"{source.name}/{name}: no such file, but {known} is of the same split; fetch it too, as hf download does"
        )
    return read_header(source, name)


def _check_split(source: ByteSource, names: tuple[str, ...], headers: Mapping[str, GgufHeader]) -> None:
    """Each file must say that it has its place in this split, and together they hold every tensor once."""
    owners: dict[str, str] = {}
    total = headers[names[0]].integer(SPLIT_TENSORS)
    for number, name in enumerate(names):
        header = headers[name]
        found = (header.integer(SPLIT_NUMBER), header.integer(SPLIT_COUNT), header.integer(SPLIT_TENSORS))
        if found != (number, len(names), total):
            raise CheckpointError(
                f"{source.name}/{name}: says it is file {found[0]} (from 0) of {found[1]} with {found[2]} tensors in all,"
                f" expected file {number} of {len(names)} with {total}: it is of another split"
            )
        for tensor in header.tensors:
            if tensor in owners:
                raise CheckpointError(f"{source.name}/{name}: has the tensor {tensor}, but so has {owners[tensor]}")
            owners[tensor] = name
    if total is not None and len(owners) != total:
        raise CheckpointError(
            f"{source.name}/{names[0]}: says its split has {total} tensors, but the files hold {len(owners)}"
        )
