"""Runs a parser on mutated inputs in a process of its own, within a second and 200 MB each, and prints each fault as JSON.

python -m fuzz.runner NUM_INPUTS SEED [PARSER ...]
"""

import json
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from fuzz.corpus import mutations
from fuzz.parsers import PARSERS, Parser
from rewriter.errors import MoteError

MAX_SECONDS = 1.0  # of processor time
MAX_BYTES = 200 << 20
MAX_LETTERS = 400
MAX_FAULTS = 20  # of one parser; the next ones are of the same kind, mostly


class TooSlowError(BaseException):
    """An input took longer than it may."""


def attacks(parser: Parser) -> list[Path]:
    """The inputs that failed once."""
    shared = Path(os.environ.get("MOTE_SHARED", Path(__file__).parents[3] / "shared"))
    return sorted((shared / "attacks" / parser.attacks).glob("*.bin")) if parser.attacks else []


def inputs(parser: Parser, valid: bytes, rng: random.Random) -> Iterator[dict[str, bytes]]:
    """The inputs that failed once, then mutations of the valid one, each as the files of the folder that it replaces."""
    for path in attacks(parser):
        data = path.read_bytes()
        yield parser.unpack(data) if parser.unpack else {parser.target: data}
    for data in mutations(valid, rng):
        yield {parser.target: parser.repair(rng, data) if parser.repair else data}


def fault_of(parser: Parser, folder: Path) -> str:
    """What is wrong with how a parser takes the input that lies in the folder; empty where nothing is."""
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    try:
        parser.parse(folder)
    except MoteError as error:
        sentence = str(error)
        if len(sentence) > MAX_LETTERS or not sentence.isprintable():
            return f"a sentence of {len(sentence)} characters: {sentence[:200]!r}"
    except (Exception, TooSlowError) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {where.filename.rpartition('/')[2]}:{where.lineno}: {str(error)[:200]!r}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return ""


def run(parser: Parser, num_inputs: int, seed: int) -> int:
    """Try a parser; prints what failed and returns how many inputs were tried."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parser.seed(folder)
        target = folder / parser.target
        valid = target.read_bytes()
        parser.parse(folder)  # the valid input, which also imports all that it needs before memory is counted
        limit = _size_bytes() + MAX_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        faults: Counter[str] = Counter()
        for number, files in enumerate(islice(inputs(parser, valid, random.Random(seed)), num_inputs)):
            before = {name: (folder / name).read_bytes() for name in files}
            for name, data in files.items():
                (folder / name).write_bytes(data)
            fault = fault_of(parser, folder)
            for name, data in before.items():
                (folder / name).write_bytes(data)
            if fault:
                faults[fault.partition(": ")[0]] += 1
                if faults.total() <= MAX_FAULTS:
                    print(
                        json.dumps(
                            {"parser": parser.name, "number": number, "fault": fault, "input": repr(files)[:300]}
                        )
                    )
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(json.dumps({"parser": parser.name, "tried": num_inputs, "faults": faults}), flush=True)
    return num_inputs


def main() -> None:
    """As the module's docstring says."""
    num_inputs, seed, names = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    signal.signal(signal.SIGPROF, _too_slow)
    for parser in PARSERS:
        if not names or parser.name in names:
            run(parser, num_inputs, seed)


def _too_slow(number: int, frame: object) -> None:
    raise TooSlowError(f"more than {MAX_SECONDS} s")


def _size_bytes() -> int:
    """The process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
