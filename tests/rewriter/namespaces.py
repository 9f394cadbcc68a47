"""Small filesystems for tests: in a mount namespace of the command's own, so that nothing outlives it.

As root, and for everyone where the kernel lets users have namespaces, `unshare` gives one in which a tmpfs or a read-only view
can be mounted.
"""

import shutil
import subprocess
from functools import cache
from pathlib import Path


@cache
def why_no_mounts() -> str:
    """Why nothing can be mounted here; empty when it can."""
    if shutil.which("unshare") is None:
        return "unshare (util-linux) is not installed"
    tried = subprocess.run(
        [*_UNSHARE, "mount -t tmpfs tmpfs /mnt"], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    return tried.stderr.strip() if tried.returncode else ""


def run_with_mounts(mounts: list[str], command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a mount namespace in which the shell lines of `mounts` were run before."""
    script = " && ".join([*mounts, 'exec "$@"'])
    return subprocess.run(
        [*_UNSHARE, script, "sh", *command], capture_output=True, text=True, cwd=cwd, stdin=subprocess.DEVNULL
    )


def read_only_view(folder: Path) -> str:
    """The shell line that makes a folder read-only, for root too."""
    return f"mount --bind '{folder}' '{folder}' && mount -o remount,bind,ro '{folder}'"


_UNSHARE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
