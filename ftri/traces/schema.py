"""What stands in a trace folder's two JSON files, each as a type: the only reader of either."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rewriter.errors import InputError, first_problem, printable, quoted
from rewriter.small_file import read_small

SCHEMA = "mote.traces/1"
MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.jsonl"
# Ids are kept in two bytes at most.
MAX_CHOICES = 1 << 16
# A map of [layers, experts] is held for each response: 4 bytes an entry, and no model comes near this.
MAX_MAP_ENTRIES = 1 << 22
# More than four times what any model's tokens select.
MAX_TOP_K = 1 << 10
MAX_INT32 = (1 << 31) - 1
MAX_SIZE = 1 << 40
# Stands for each token of responses that were imported without their tokens (`has_token_ids` false in the manifest).
UNKNOWN_TOKEN_ID = MAX_INT32
CHECKSUM_KEY = b', "line_crc32": '

# What makes routing comparable. Sampling, prompts and engine settings may differ.
IDENTITY_KEYS = (
    "config_sha256",
    "content_sha256",
    "moe_layers",
    "num_experts",
    "num_other_choices",
    "top_k",
    "template_sha256",
    "has_token_ids",
)
MAYBE_UNKNOWN = frozenset({"content_sha256"})

Count = Annotated[int, Field(ge=0, le=MAX_INT32)]
TokenId = Annotated[int, Field(ge=0, le=MAX_INT32)]
Checksum = Annotated[int, Field(ge=0, lt=1 << 32)]
WeightsName = Literal["float16", "float32"]


class TraceError(InputError):
    """A trace folder is damaged, in use, or does not fit what is asked of it."""


class Manifest(BaseModel):
    """What tells recordings apart; what else a manifest says (prompts, sampling, engine, versions) is kept as it is.

    `num_other_choices` are those behind the E routed experts that a router may select too (zero-computation experts): an id
    lies below the sum of both. `content_sha256` stands for the weights, see rewriter/checkpoint/identity.py; traces from
    before it was recorded have none. `weights` is the type that the selected experts' weights are kept in, None where they are
    not kept. `has_token_ids` is false where the rows alone are known: every token is
    UNKNOWN_TOKEN_ID, and all count as the prompt's.
    """

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    schema_: Literal["mote.traces/1"] = Field(alias="schema")
    model: str
    revision: str | None = None
    model_type: str | None = None
    config_sha256: str
    content_sha256: str | None = None
    template_sha256: str | None = None
    moe_layers: list[Count] = Field(min_length=1)
    num_experts: int = Field(ge=1, le=MAX_CHOICES)
    num_other_choices: int = Field(default=0, ge=0, le=MAX_CHOICES)
    top_k: int = Field(ge=1, le=MAX_TOP_K)
    capture: str | None = None
    weights: WeightsName | None = None
    has_token_ids: bool = True
    prompts: dict[str, Any] | None = None
    sampling: dict[str, Any] | None = None
    engine_arguments: dict[str, Any] | None = None
    versions: dict[str, str] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Manifest:
        if any(first >= second for first, second in zip(self.moe_layers, self.moe_layers[1:], strict=False)):
            raise ValueError("the layers of moe_layers ascend, expected each once")
        if self.num_choices > MAX_CHOICES:
            raise ValueError(
                f"num_experts and num_other_choices are {self.num_choices}, expected at most {MAX_CHOICES}"
            )
        if self.top_k > self.num_choices:
            raise ValueError(f"top_k is {self.top_k}, expected at most the {self.num_choices} that can be selected")
        if len(self.moe_layers) * self.num_choices > MAX_MAP_ENTRIES:
            raise ValueError(
                f"{len(self.moe_layers)} layers of {self.num_choices} experts, expected {MAX_MAP_ENTRIES} in all at most"
            )
        return self

    @property
    def num_choices(self) -> int:
        """How many ids a router chooses from: the routed experts and what lies behind them."""
        return self.num_experts + self.num_other_choices

    @property
    def row_shape(self) -> tuple[int, int]:
        """(L, K)."""
        return len(self.moe_layers), self.top_k


class IndexEntry(BaseModel):
    """One response of the index: the record without its experts, and where they lie.

    `start`, `rows`: tokens; `crc32` of the rows' bytes, `weights_crc32` of their weights' where they are kept; `line_crc32` of
    all bytes of the index up to the comma before it, so that a changed or missing line is noticed at the next one. Lines from
    before it was written have none.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    prompt_id: str
    sample: Count
    prompt: str
    rendered_prompt: str
    prompt_token_ids: list[TokenId] = Field(min_length=1)
    completion_token_ids: list[TokenId]
    text: str
    finish_reason: str
    factors: dict[str, str] = Field(default_factory=dict)
    chunk: Count
    start: int = Field(ge=0, le=MAX_SIZE)
    rows: int = Field(ge=0, le=MAX_SIZE)
    crc32: Checksum
    weights_crc32: Checksum | None = None
    line_crc32: Checksum | None = None

    @model_validator(mode="after")
    def _has_its_rows(self) -> IndexEntry:
        expected = num_rows_of(self.prompt_token_ids, self.completion_token_ids)
        if self.rows != expected:
            raise ValueError(f"rows is {self.rows}, expected {expected}, one a token that was run")
        return self

    @property
    def key(self) -> tuple[str, int]:
        """What identifies a response within a folder."""
        return self.prompt_id, self.sample


def identity_difference(first: Manifest, other: Manifest) -> tuple[str, Any, Any] | None:
    """(key, its value in `first`, in `other`) of the first fact by which two recordings are not of one model and template.

    The weights tell where both manifests know them; a recording from before they were kept is told by its config alone.
    """
    for key in IDENTITY_KEYS:
        here, there = getattr(first, key), getattr(other, key)
        if here != there and not (key in MAYBE_UNKNOWN and None in (here, there)):
            return key, here, there
    return None


def num_rows_of(prompt_token_ids: list[int], completion_token_ids: list[int]) -> int:
    """How many tokens were run through the model: the last sampled one never is."""
    return len(prompt_token_ids) + max(len(completion_token_ids), 1) - 1


def load_manifest(folder: Path) -> dict[str, Any]:
    """Read a trace folder's manifest, all of it, checked against `Manifest`.

    Raises:
        TraceError: the folder is none, or its manifest is malformed or of another schema.
    """
    path = folder / MANIFEST_NAME
    # A pipe in its place would be waited for.
    if not path.is_file():
        raise TraceError(f"{folder} is not a trace folder: it has no {MANIFEST_NAME} (mote-record writes one)")
    try:
        content = read_small(path, error=TraceError)
        Manifest.model_validate_json(content)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        raise TraceError(f"{path} {_manifest_problem(error)}") from None
    document: dict[str, Any] = json.loads(content)
    return document


def _manifest_problem(error: ValidationError) -> str:
    """What keeps a document from being a manifest, as the end of a sentence."""
    problems = error.errors(include_url=False)
    missing = [str(problem["loc"][0]) for problem in problems if problem["type"] == "missing"]
    schema = next((problem for problem in problems if problem["loc"] == ("schema",)), None)
    if problems[0]["type"] == "json_invalid":
        return f"is not JSON ({printable(problems[0]['msg'])}), expected the manifest of a trace folder"
    if schema is not None and schema["type"] != "missing":
        return f"has schema {quoted(schema['input']).replace(chr(34), chr(39))}, expected '{SCHEMA}'"
    if missing:
        return f"lacks {', '.join(missing)}, expected the manifest of a trace folder"
    return f"is no manifest of a trace folder: {first_problem(error)}"


def checksummed(body: bytes, checksum: int) -> tuple[bytes, int]:
    """An index line with its checksum and line end, and the checksum of the index with it.

    body: a JSON object; checksum: that of the index before it.
    """
    before = body.removesuffix(b"}")
    checksum = zlib.crc32(before, checksum)
    rest = CHECKSUM_KEY + str(checksum).encode() + b"}\n"
    return before + rest, zlib.crc32(rest, checksum)


def parse_index_line(line: bytes, checksum: int, path: Path, number: int, is_summed: bool) -> tuple[IndexEntry, int]:
    """One response's index entry, and the checksum of the index with it.

    checksum: that of the index before the line; is_summed: whether an earlier line had one, so that this one must.

    Raises:
        TraceError: the line is not such an entry, or it or one before it was changed or cut out.
    """
    try:
        entry = IndexEntry.model_validate_json(line)
    except ValidationError as error:
        raise TraceError(f"{path}, line {number}: not a trace entry ({first_problem(error)})") from None
    end = line.rfind(CHECKSUM_KEY)
    if entry.line_crc32 is None:
        if is_summed:
            raise TraceError(f"{path}, line {number}: has no checksum though the lines before it have one")
    elif zlib.crc32(line[: max(end, 0)], checksum) != entry.line_crc32:
        raise TraceError(f"{path}: line {number} or one before it was changed or cut out (its checksum does not fit)")
    return entry, zlib.crc32(line, checksum)


ITEM_SIZE_BYTES = {"U8": 1, "U16": 2, "F16": 2, "F32": 4}


class TensorHeader(BaseModel):
    """A tensor of a chunk's safetensors header."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    dtype: Literal["U8", "U16", "F16", "F32"]
    shape: list[Annotated[int, Field(ge=0, le=MAX_SIZE)]] = Field(min_length=1, max_length=3)
    data_offsets: list[Annotated[int, Field(ge=0, le=MAX_SIZE)]] = Field(min_length=2, max_length=2)

    @property
    def size_bytes(self) -> int:
        """What the shape takes."""
        return math.prod(self.shape) * ITEM_SIZE_BYTES[self.dtype]


class ChunkHeader(BaseModel):
    """The header of a chunk's safetensors file: one tensor, as it is or compressed."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    metadata: dict[str, str] = Field(default_factory=dict, alias="__metadata__")
    experts: TensorHeader | None = None
    experts_zlib: TensorHeader | None = None
    weights: TensorHeader | None = None


def parse_chunk_header(text: bytes, path: Path, name: str = "experts") -> tuple[TensorHeader, bool]:
    """The one tensor of a chunk, `name`, and whether it is compressed, which weights never are.

    Raises:
        TraceError: the header is none of a chunk.
    """
    try:
        header = ChunkHeader.model_validate_json(text)
    except ValidationError as error:
        raise TraceError(f"{path}: no chunk's safetensors header ({first_problem(error)})") from None
    is_packed = name == "experts" and header.metadata.get("encoding") == "zlib"
    name = f"{name}_zlib" if is_packed else name
    tensor: TensorHeader | None = getattr(header, name)
    if tensor is None:
        raise TraceError(f"{path}: holds no tensor {name}, expected one")
    begin, end = tensor.data_offsets
    if begin != 0 or end != tensor.size_bytes:
        raise TraceError(
            f"{path}: its tensor lies at bytes {begin} to {end}, expected 0 to {tensor.size_bytes} by its shape"
        )
    return tensor, is_packed


def shown(prompt_id: str) -> str:
    """A prompt's id within a sentence: in quotes, on one line and not too long."""
    return f"'{printable(prompt_id if len(prompt_id) <= 80 else f'{prompt_id[:77]}...')}'"
