"""Which of a model folder's other files belong into a variant: what serving needs does; other weights and training do not."""

import os
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path

from rewriter.checkpoint.remote_code import remote_code

# Weights in other formats, or beside the index, would hold the tensors unedited, and some runtimes load whatever they find.
OTHER_WEIGHTS = (
    "*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.h5",
    "*.msgpack", "*.gguf", "*.onnx", "*.onnx_data", "*.npz", "*.distcp", "*.tflite", "*.ot",
)  # fmt: skip
TRAINING_STATE = (
    "optimizer*", "scheduler*", "rng_state*", "trainer_state.json", "training_args*", "events.out.tfevents*",
    "global_step*", "checkpoint-*", "runs", "wandb", "zero_to_fp32.py", "latest",
)  # fmt: skip
SCRIPTS = ("*.py", "*.sh", "*.ipynb")  # left out unless a config names them as the model's code
HIDDEN = (".*", "__pycache__")
CARD_NAME = "README.md"


def companion_files(folder: Path, handled: Collection[str]) -> tuple[list[Path], list[Path]]:
    """The other files of a model folder that come along, and those left out, both relative to it and sorted.

    handled: files at the top that are dealt with elsewhere (shards, index, config, card).
    """
    code = remote_code(folder)
    taken: list[Path] = []
    left: list[Path] = []
    for base, folders, files in os.walk(folder):
        here = Path(base).relative_to(folder)
        # A link to a folder is not followed, since it can lead anywhere.
        skipped = [name for name in sorted(folders) if _is_left_out(name) or (Path(base) / name).is_symlink()]
        left += [here / name for name in skipped]
        folders[:] = sorted(set(folders) - set(skipped))
        for name in sorted(files):
            path = here / name
            if str(path) not in handled:
                is_script = _matches(name, SCRIPTS) and path not in code
                (left if is_script or _is_left_out(name) else taken).append(path)
    return sorted(taken), sorted(path for path in left if not _matches(path.name, HIDDEN))


def is_weights(path: Path) -> bool:
    """Whether a file holds weights, in whatever format."""
    return _matches(path.name, OTHER_WEIGHTS)


def _is_left_out(name: str) -> bool:
    return _matches(name, (*OTHER_WEIGHTS, *TRAINING_STATE, *HIDDEN))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
