"""Every name of vLLM's that is touched is where the table says: in the installed release, and in any whose sources are given."""

import ast
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from ftri.worker import internals
from ftri.worker.internals import INTERNALS, Internal

# Folders that hold an unpacked wheel each, so that a release is checked without installing it.
SOURCES = [Path(folder) for folder in os.environ.get("MOTE_VLLM_SOURCES", "").split(os.pathsep) if folder]


def installed() -> Path:
    spec = find_spec("vllm")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent.parent


def names_of(path: Path) -> set[str]:
    """What a module binds at its top level, and in its classes as Class.name, by reading it."""
    names = set()
    body = ast.parse(path.read_text(encoding="utf-8")).body
    # What is imported for type checkers, and given by the module's __getattr__.
    body += [inner for node in body if isinstance(node, ast.If) for inner in node.body]
    for node in body:
        bound = bound_by(node)
        names |= bound
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{name}" for inner in node.body for name in bound_by(inner)}
            names |= {f"{node.name}.{name}" for name in attributes_of(node)}
    return names


def bound_by(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.ImportFrom | ast.Import):
        return {alias.asname or alias.name for alias in node.names}
    if isinstance(node, ast.AnnAssign | ast.Assign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return {target.id for target in targets if isinstance(target, ast.Name)}
    return set()


def attributes_of(node: ast.ClassDef) -> set[str]:
    """What the class's own methods assign to self."""
    targets = [
        inner.targets if isinstance(inner, ast.Assign) else [inner.target]
        for inner in ast.walk(node)
        if isinstance(inner, ast.Assign | ast.AnnAssign)
    ]
    return {
        target.attr
        for several in targets
        for target in several
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
    }


@pytest.mark.parametrize("internal", INTERNALS.values(), ids=INTERNALS)
@pytest.mark.parametrize("root", [None, *SOURCES], ids=lambda root: "installed" if root is None else root.name)
def test_the_name_is_there(internal: Internal, root: Path | None) -> None:
    place = (root or installed()) / Path(*internal.module.split("."))
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    assert path.is_file(), f"no module {internal.module}"
    found = names_of(path)
    for name in (internal.name, *(f"{internal.name}.{member}" for member in internal.members)):
        assert name in found, f"{internal.module} has no {name}, relied on: {internal.relied_on}"


def test_a_name_that_went_away_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Internal("json", "no_such_name", "being there", "0.28")
    monkeypatch.setitem(INTERNALS, "no_such_name", gone)
    with pytest.raises(ImportError, match="no json.no_such_name, which MoTE relies on since 0.28"):
        internals.load("no_such_name")


def imported_by(path: Path) -> set[str]:
    """The modules that a file names in import statements, wherever they stand."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("package", ["ftri", "eval", "rewriter", "benchmarks"])
def test_no_other_module_imports_what_is_inside_vllm(package: str) -> None:
    """The package itself (`from vllm import EngineArgs`) is vLLM's public face; all below it stands in the table."""
    root = Path(internals.__file__).parents[2]
    files = list((root / package).rglob("*.py"))
    assert files
    found = {
        f"{path.relative_to(root)}: {name}" for path in files for name in imported_by(path) if name.startswith("vllm.")
    }
    assert not found, "expected ftri/worker/internals.py to name it"
