"""Command lines run in this process, since a new one spends seconds on imports."""

import contextlib
import io
import subprocess
import sys
from unittest import mock


def run_main(main, name, *arguments, stdin=None):
    """Call a console entry point with arguments; what it printed and its exit code."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", [name, *map(str, arguments)]),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO((stdin or "").encode()))),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
