"""What sharing a variant costs, against a server process that speaks the Hub's protocol (tests/hub_double).

Each way runs as a process of its own; measured are its seconds, the bytes it reads, and the bytes that reach the server:
HTTP bodies plus the growth of the Xet store. Network time is not in the figures: the store is on this machine's disk.

usage: python benchmarks/hub_push.py [--shards 8] [--shard-mb 256]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hub_double.client import HubDouble

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

TOKEN = "hf_benchmarkbenchmarkbenchmarkbench"
BASE_ID = "org/Base"
# Writes down what the process has read when it ends.
COUNTING = """
import atexit, os, sys
def count():
    lines = open("/proc/self/io").read().splitlines()
    open(os.environ["COUNT_FILE"], "w").write(lines[0].split()[1])
atexit.register(count)
sys.argv = ["mote-push", *sys.argv[2:]] if sys.argv[1] == "mote-push" else sys.argv[1:]
if sys.argv[0] == "mote-push":
    from rewriter.cli.push import main
    main()
else:
    from huggingface_hub import HfApi
    HfApi().create_repo(sys.argv[1], exist_ok=True)
    HfApi().upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2])
"""


def measure(double: "HubDouble", root: Path, name: str, *arguments: str, forget: bool = False) -> dict[str, object]:
    """Run one way; forget drops what this machine knows of the store's chunks."""
    if forget:
        shutil.rmtree(root / "double" / "hub" / "cas" / "xet" / "shard-cache", ignore_errors=True)
    double.requests(clear=True)
    stored, counted = double.xet_bytes(), root / "count"
    environment = {**double.environment(TOKEN), "PYTHONPATH": str(ROOT), "COUNT_FILE": str(counted)}
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", COUNTING, *arguments], env=environment, check=True, capture_output=True)
    seconds = time.monotonic() - started
    received = sum(request["received_bytes"] for request in double.requests())
    return {
        "way": name,
        "seconds": round(seconds, 2),
        "read_bytes": int(counted.read_text()),
        "sent_bytes": double.xet_bytes() - stored + received,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--shard-mb", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="where to put the data [default: the temporary folder]")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="mote-hub-", dir=arguments.folder))
    from hub_double.client import HubDouble
    from hub_double.models import build_base, build_variant

    double = HubDouble(root / "double")
    try:
        double.add_token(TOKEN, "alice")
        base = build_base(root / "base", arguments.shards, arguments.shard_mb * 10**6)
        commit = double.seed(BASE_ID, base)
        edits = [[(2, 1)], [(3, 1)], [(4, 1)], [(5, 1)]]
        variants = [
            str(build_variant(base, root / f"variant-{number}", BASE_ID, commit, pairs))
            for number, pairs in enumerate(edits)
        ]
        # The user's copy of the base is made once, whatever is pushed later.
        measure(double, root, "", "mote-push", variants[3], "copy", "--duplicate-base", "--revision", "first", "--yes")
        rows = [
            measure(double, root, "upload_folder, new repo", "upload_folder", "alice/naive", variants[0], forget=True),
            measure(double, root, "mote-push, new repo", "mote-push", variants[1], "new", "--yes", forget=True),
            measure(
                double, root, "mote-push, branch of own copy",
                "mote-push", variants[2], "copy", "--revision", "second", "--yes", forget=True,
            ),
            measure(
                double, root, "the same branch again", "mote-push", variants[2], "copy", "--revision", "second", "--yes"
            ),
            measure(double, root, "mote-push --recipe", "mote-push", variants[1], "recipe", "--recipe", "--yes"),
        ]  # fmt: skip
        total = sum(path.stat().st_size for path in base.glob("*.safetensors"))
        print(f"base: {arguments.shards} shards, {total:,} bytes; one edited; load {os.getloadavg()[0]:.1f}")
        print("| way | seconds | bytes read here | bytes sent | upload_folder's seconds / these |")
        print("|---|---|---|---|---|")
        slowest = float(str(rows[0]["seconds"]))
        for row in rows:
            ratio = slowest / float(str(row["seconds"]))
            print(f"| {row['way']} | {row['seconds']} | {row['read_bytes']:,} | {row['sent_bytes']:,} | {ratio:.1f} |")
        print(json.dumps(rows), file=sys.stderr)
    finally:
        double.stop()
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
