"""Engine arguments: what of vLLM's EngineArgs a user may give, what we put beneath, and how routing can be had with them."""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from ftri.engine.rows import HOOK, OWN_CAPTURE
from ftri.traces.rows import expert_dtype
from ftri.worker import internals
from ftri.worker.request import Recording
from rewriter.errors import InputError

# Arguments of vLLM's engine that the parts above are built on; a user's value would be overwritten.
RESERVED_ARGUMENTS = ("model", "revision", "worker_extension_cls", "enable_return_routed_experts", "aux_output_config")
# The other way to give one, NAME=VALUE.
PAIR_OPTION = "--engine-argument"
SECRET = "<secret>"
SECRET_WORDS = frozenset({"token", "secret", "password", "passwd", "key", "apikey", "credential", "credentials"})
# What vLLM raises for arguments and models that it cannot start with.
START_ERRORS = (ValueError, TypeError, RuntimeError, OSError, KeyError, NotImplementedError, AssertionError)
# What restores cached tokens into slots other than those they were computed in.
CACHE_MOVING_ARGUMENTS = ("kv_transfer_config", "kv_offloading_size")
# Without a word from the user vLLM takes nearly all of the machine's memory for the cache of a CPU engine.
CPU_CACHE_SIZE_BYTES = 1 << 30


def prepare_environment() -> None:
    """Settings that vLLM reads when it is first imported; what the user has set stays.

    Without VLLM_LOGGING_LEVEL vLLM is quiet: what it and PyTorch say at every start on a CPU (no Triton backend, NUMA
    policy, names deprecated inside PyTorch) would bury the progress bar, and a reader can do nothing about it. Its
    failures are raised. With VLLM_LOGGING_LEVEL=INFO everything is shown.
    """
    if "VLLM_LOGGING_LEVEL" not in os.environ:
        os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        # This one is said while vLLM is imported, before its own level applies (vllm/triton_utils/importing.py).
        logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")
    # Data alone goes to stdout.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def check_release(version: str) -> None:
    """See to it that a vLLM is one that recording and edits were run on.

    Raises:
        InputError: it is another one, and MOTE_ANY_VLLM is not set.
    """
    number = re.match(r"\d+\.\d+", version)
    if (number is None or number[0] not in internals.TESTED_RELEASES) and not os.environ.get("MOTE_ANY_VLLM"):
        raise InputError(
            f"vLLM is {version}, expected {', '.join(internals.TESTED_RELEASES)}, the releases that MoTE was run on"
            " (MOTE_ANY_VLLM=1 tries it all the same)"
        )


def check_arguments(given: Mapping[str, Any]) -> None:
    """Refuse engine arguments that vLLM does not have, or that are ours.

    Raises:
        InputError: one is given, or this vLLM is one that nothing was run on.
    """
    prepare_environment()
    from vllm import EngineArgs, __version__

    check_release(__version__)

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    for name in given:
        if name in RESERVED_ARGUMENTS:
            raise InputError(f"engine argument {name} is set by MoTE itself, expected it not to be given")
        if name not in known:
            raise InputError(f"{name} is not an engine argument of this vLLM, expected a field of its EngineArgs")


def choose_arguments(given: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """The user's engine arguments with our defaults beneath."""
    arguments: dict[str, Any] = {"disable_log_stats": True, "use_tqdm_on_load": False, "seed": 0, "max_logprobs": -1}
    if internals.load("current_platform").is_cpu():
        # The CPU build's rotary kernel garbles the rope part of latent attention when several tokens are run at once
        # (vLLM 0.32, configs without rope_scaling); with the operator off, vLLM's own PyTorch code does it.
        arguments["compilation_config"] = {"custom_ops": ["-rotary_embedding"]}
        # With a seed per request, the CPU build's sampler fails on a prompt that is run in several chunks.
        arguments["enable_chunked_prefill"] = False
        if given.get("dtype") in ("float", "float32") and not {"attention_backend", "attention_config"} & given.keys():
            # Latent attention with AMX instructions, which the CPU build prefers where the processor has them, takes no
            # float32 weights (vLLM 0.32); models without latent attention ignore the choice.
            arguments["attention_backend"] = "CPU_MLA"
        if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
            arguments["kv_cache_memory_bytes"] = CPU_CACHE_SIZE_BYTES
        if given.get("tensor_parallel_size", 1) * given.get("pipeline_parallel_size", 1) == 1:
            # One process instead of three: on a CPU the imports of the others take longer than many a run.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    return arguments | dict(given) | {"model": folder}


def register_plugin() -> None:
    """Make the editable architectures and served variants known in this process; the others find them by the package's entry
    point."""
    from ftri.worker.plugin import register

    register()


def editable_arguments(
    arguments: Mapping[str, Any], config: Mapping[str, Any], recording: Recording | None = None
) -> dict[str, Any]:
    """Arguments that load the model by its class with editable routers (ftri.worker.models), and tell it what to record.

    Raises:
        InputError: for hf_overrides that are a function, or a config.json without an architecture.
    """
    from ftri.worker.models import PREFIX

    register_plugin()
    overrides = arguments.get("hf_overrides") or {}
    if not isinstance(overrides, Mapping):
        raise InputError("hf_overrides is a function, expected a mapping where routing is recorded or edited")
    architectures = overrides.get("architectures") or config.get("architectures") or []
    if not architectures:
        raise InputError("config.json: architectures is missing, expected the name of the model's class")
    added: dict[str, Any] = {} if recording is None else dict(recording.as_override())
    if not architectures[0].startswith(PREFIX):
        added["architectures"] = [PREFIX + architectures[0]]
    return {"hf_overrides": {**overrides, **added}} if added else {}


def check_slots_stay(arguments: Mapping[str, Any]) -> None:
    """Refuse, for the routing hook, what moves cached tokens between slots: the rows of a token lie by its slot.

    Raises:
        InputError: such an argument is given.
    """
    for name in CACHE_MOVING_ARGUMENTS:
        if arguments.get(name):
            raise InputError(
                f"engine argument {name} moves cached tokens to other slots, so that their rows would be those of other"
                " tokens; expected none of it while routing is recorded"
            )


def choose_capture(
    arguments: Mapping[str, Any],
    num_experts: int = 0,
    num_choices: int = 0,
    keeps_weights: bool = False,
    is_editable: bool = False,
) -> str:
    """How routing can be got out of an engine of these arguments: "routed_experts" where it takes the argument, else
    "router_hook".

    vLLM's own capture keeps ids as wide as its experts need, which `num_choices` may not fit, and no weights. On a CPU it has
    rows only of `is_editable` classes, since the kernels of vLLM's own route by themselves, past it; and before 0.31 none, since
    that worker never starts it.
    """
    from vllm import EngineArgs

    asked = capture_arguments()
    if not asked or keeps_weights or expert_dtype(num_choices) != expert_dtype(num_experts):
        return HOOK
    if internals.load("current_platform").is_cpu() and not (is_editable and "aux_output_config" in asked):
        return HOOK
    try:
        EngineArgs(**arguments, **asked).create_engine_config()
    except START_ERRORS:
        return HOOK  # what is wrong with the arguments themselves is said when the engine is started with them
    return OWN_CAPTURE


def capture_arguments() -> dict[str, Any]:
    """What asks vLLM for its own capture, by the argument that this release has; nothing where it has none."""
    from vllm import EngineArgs

    names = {field.name for field in dataclasses.fields(EngineArgs)}
    if "aux_output_config" in names:
        return {"aux_output_config": {"enable_return_routed_experts": True}}
    return {"enable_return_routed_experts": True} if "enable_return_routed_experts" in names else {}


def parse_engine_arguments(
    words: Sequence[str], command: str = "mote-record", own: Iterable[str] = ()
) -> dict[str, Any]:
    """Engine arguments as every command takes them: vLLM's own options (`--max-model-len 4096`), or the alias
    `--engine-argument NAME=VALUE`.

    Those left at vLLM's default are left out. `own` are the command's options, to name the one that a mistyped word is near to.

    Raises:
        InputError: vLLM's parser does not know a word or refuses a value, or a name is set by MoTE itself.
    """
    # Before anything imports PyTorch, which reads its own settings then: a tokenizer does, long before the engine.
    prepare_environment()
    words, pairs = _split_pairs(words)
    given: dict[str, Any] = {}
    if words:
        if not words[0].startswith("-"):
            raise InputError(f"{words[0]!r} was not expected: {command} takes its inputs by options, see --help")
        given = _parse_words(words, command, own)
    for pair in pairs:
        name, value = _pair(pair)
        if name in given:
            raise InputError(f"engine argument {name} is given twice, expected once")
        given[name] = value
    for name in RESERVED_ARGUMENTS:
        if name in given:
            raise InputError(f"engine argument {name} is set by MoTE itself, expected it not to be given")
    return given


def _split_pairs(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(vLLM's own options, the values of `--engine-argument`)."""
    own, pairs = list[str](), list[str]()
    remaining = iter(words)
    for word in remaining:
        if word == PAIR_OPTION:
            pairs.append(next(remaining, ""))
        elif word.startswith(f"{PAIR_OPTION}="):
            pairs.append(word.partition("=")[2])
        else:
            own.append(word)
    return own, pairs


def _pair(pair: str) -> tuple[str, Any]:
    """NAME=VALUE; the value is JSON where it parses as such, else text."""
    name, equals, value = pair.partition("=")
    if not equals or not name:
        raise InputError(f"{PAIR_OPTION} is {pair!r}, expected NAME=VALUE")
    try:
        return name.replace("-", "_"), json.loads(value)
    except (ValueError, RecursionError):
        return name.replace("-", "_"), value


def _parse_words(words: Sequence[str], command: str, own: Iterable[str]) -> dict[str, Any]:
    prepare_environment()
    from vllm import EngineArgs

    class Parser(internals.load("FlexibleArgumentParser")):  # type: ignore[misc]
        """vLLM's parser with its errors as exceptions."""

        def error(self, message: str) -> NoReturn:
            raise InputError(f"vLLM refuses the engine arguments {' '.join(words)!r}: {message}")

    parser = EngineArgs.add_cli_args(Parser(add_help=False, prog=command))
    found, unknown = parser.parse_known_args(list(words))
    if unknown:
        raise unknown_option(unknown[0], command, own, "nor an engine argument of this vLLM")
    defaults = vars(parser.parse_args([]))
    # A flag that was taken back (--no-enforce-eager) says something, though vLLM has the same by default.
    flags = {word[5:].replace("-", "_") for word in words if word.startswith("--no-")}
    return {name: value for name, value in vars(found).items() if value != defaults[name] or name in flags}


def unknown_option(word: str, command: str, own: Iterable[str], otherwise: str) -> InputError:
    """The sentence for a word that is no option, with the options that it is near to."""
    near = difflib.get_close_matches(word.partition("=")[0], list(own), n=2)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return InputError(f"{word} is neither an option of {command} {otherwise}{hint}")


def without_secrets(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Engine arguments as they may be written down: without what is a token, key or password by its name, and without
    credentials in URLs."""
    return {name: SECRET if _is_secret(name, value) else _shown(value) for name, value in arguments.items()}


def _is_secret(name: str, value: Any) -> bool:
    # hf_token may also be True, which says only that the machine's own token is used.
    return isinstance(value, str) and bool(SECRET_WORDS & set(re.split(r"[^a-z]+", name.lower())))


def _shown(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_secrets({str(name): one for name, one in value.items()})
    if isinstance(value, list | tuple):
        return [_shown(one) for one in value]
    if isinstance(value, str):
        return re.sub(r"://[^\s/@]+@", f"://{SECRET}@", value)
    return value if isinstance(value, int | float | bool | None) else str(value)
