"""The demo replaces only folders that a demo made."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_earlier_demo_is_replaced(demo: ModuleType, tmp_path: Path) -> None:
    demo.make_output(tmp_path / "out")
    (tmp_path / "out" / "traces").mkdir()
    demo.make_output(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [demo.MARK]


def test_an_empty_folder_is_used(demo: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    demo.make_output(tmp_path / "out")
    assert (tmp_path / "out" / demo.MARK).is_file()


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_anything_else_is_left_alone(demo: ModuleType, tmp_path: Path, kind: str) -> None:
    precious = tmp_path / "thesis"
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("precious")
        precious = out
    else:
        precious.mkdir()
        (precious / "chapter.txt").write_text("precious")
        out = precious
    if kind == "link":
        out = tmp_path / "out"
        out.symlink_to(precious)
    with pytest.raises(SystemExit, match="no demo made it"):
        demo.make_output(out)
    kept = precious if precious.is_file() else precious / "chapter.txt"
    assert kept.read_text() == "precious"
