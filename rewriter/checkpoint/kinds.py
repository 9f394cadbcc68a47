"""What every kind of checkpoint offers to plans, writing and verifying: a folder of safetensors, or GGUF files.

A further kind is a further class with these members and a line in `open_model`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from rewriter.checkpoint.edited_json import BLOCK_KEY
from rewriter.checkpoint.gguf.files import RECORD_FILE, GgufSet, is_gguf
from rewriter.checkpoint.reader import CONFIG_NAME, Checkpoint
from rewriter.checkpoint.source import ByteSource, TensorEntry
from rewriter.errors import MoteError
from rewriter.families.family import RouterLayout

Format = Literal["safetensors", "gguf"]


class FileHeader(Protocol):
    """The header of one file with tensors."""

    @property
    def body_offset(self) -> int:
        """First byte behind the header."""
        ...

    @property
    def file_size(self) -> int:
        """Bytes of the whole file."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """Where its tensors lie."""
        ...


class Model(Protocol):
    """A checkpoint of any kind."""

    @property
    def format(self) -> Format:
        """Which kind it is."""
        ...

    @property
    def source(self) -> ByteSource:
        """Where its files come from."""
        ...

    @property
    def folder(self) -> Path:
        """The folder that its files lie in, where it is on disk."""
        ...

    @property
    def title(self) -> str:
        """What a variant's folder is named after."""
        ...

    @property
    def bias_dtypes(self) -> tuple[str, ...]:
        """Types that a selection bias may have."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """What describes the model, and the record of an edit under `mote`."""
        ...

    @property
    def config_text(self) -> str:
        """The config as JSON."""
        ...

    @property
    def config_place(self) -> str:
        """Where the config stands, for messages: a file's name."""
        ...

    @property
    def settings_need_stamp(self) -> bool:
        """Whether the router's settings stand in a shard's header, so that they change only with it."""
        ...

    @property
    def layout(self) -> RouterLayout:
        """Its routers."""
        ...

    @property
    def weight_map(self) -> Mapping[str, str]:
        """Tensor name to shard."""
        ...

    @property
    def shards(self) -> tuple[str, ...]:
        """The names of the files with tensors."""
        ...

    def shard_size(self, shard: str) -> int:
        """Bytes of a shard."""
        ...

    def header(self, shard: str) -> FileHeader:
        """The header of a shard."""
        ...

    def names_from(self, prefix: str) -> Iterator[str]:
        """The tensors whose names begin with a prefix, sorted."""
        ...

    def check_whole(self, shard: str) -> None:
        """Check that a shard is as long as its header says."""
        ...

    def find(self, names: tuple[str, ...]) -> TensorEntry | None:
        """The first of several possible tensor names that the checkpoint has."""
        ...

    def read(self, entry: TensorEntry) -> bytes:
        """The bytes of a tensor."""
        ...

    def settings_shard(self, stamped: bool) -> str | None:
        """The shard that every edit changes because the record or the router's settings stand in it; None where none does."""
        ...

    def marked_head(self, shard: str, fingerprint: str, config: Mapping[str, Any]) -> bytes:
        """All bytes before an edited shard's tensors: its own, with the edit's mark (and record, where it goes there)."""
        ...

    def bare_head(self, shard: str) -> Any:
        """What a shard's header says of the model, to be compared: marks, record and padding left out."""
        ...

    def mark(self, shard: str) -> str | None:
        """The fingerprint in a shard's header."""
        ...

    def side_file(self, config: Mapping[str, Any], stamped: bool) -> tuple[str, str] | None:
        """Name and text of the file beside the shards that carries a variant's config or record; None where none does."""
        ...

    def other_files(self) -> tuple[list[Path], list[Path]]:
        """The folder's other files that belong to the model, and those that a variant leaves out, relative to it."""
        ...

    def card(self) -> str | None:
        """The model's card, or what stands for one."""
        ...


def open_model(path: str | Path) -> Model:
    """A checkpoint on disk: a model folder, a GGUF file (any of a split), or a folder with one GGUF model.

    Raises:
        CheckpointError: there is none, or what is there is damaged.
    """
    given = Path(path)
    return GgufSet.open(given) if is_gguf(given) else Checkpoint.open(given)


def is_variant(folder: Path) -> bool:
    """Whether a folder holds a variant of any kind, be its record one that can be read or not."""
    if not (folder / CONFIG_NAME).is_file() and not (folder / RECORD_FILE).is_file() and not is_gguf(folder):
        return False
    try:
        return isinstance(open_model(folder).config.get(BLOCK_KEY), Mapping)
    except MoteError:
        return False
