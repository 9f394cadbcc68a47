"""Finding a base: a folder, the local Hub cache, a download; nothing in the cache is ever written."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from hub_double.fixtures import BASE_ID, TOKEN, Hub
from hub_double.models import build_base, build_sparse_base, expert_file

from rewriter.errors import InputError
from rewriter.hub.models import cache_identity, looks_like_repo_id, missing_files, resolve_model


def state(folder: Path) -> dict[str, tuple[int, str]]:
    """Modification time and content of every file below a folder, links not followed."""
    found = {}
    for base, _, names in os.walk(folder):
        for name in names:
            path = Path(base) / name
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            found[str(path)] = (path.lstat().st_mtime_ns, hashlib.sha256(content).hexdigest())
    return found


def test_local_folder(tmp_path: Path) -> None:
    base = build_base(tmp_path / "base")
    resolved = resolve_model(str(base))
    assert (resolved.folder, resolved.repo_id, resolved.revision, resolved.source) == (base, None, None, "folder")
    assert os.fspath(resolved) == str(base)
    with pytest.raises(InputError, match="--revision v1 can only be given with a Hub model id"):
        resolve_model(str(base), "v1")


@pytest.mark.parametrize("name", ["./missing", "/no/such/folder", "a/b/c", "has space", ""])
def test_what_is_neither_folder_nor_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    if name:
        assert not looks_like_repo_id(name)
        with pytest.raises(InputError, match="neither an existing folder nor a Hub model id"):
            resolve_model(name)


def test_snapshot_folder_knows_its_repo(tmp_path: Path) -> None:
    # huggingface_hub refuses repo names with "--" in them, so the folder's name can be taken apart again.
    assert cache_identity(tmp_path / "models--org--name" / "snapshots" / ("a" * 40)) == ("org/name", "a" * 40)
    assert cache_identity(tmp_path / "datasets--org--name" / "snapshots" / ("a" * 40)) is None
    assert cache_identity(tmp_path / "snapshots" / "main") is None


def test_missing_files_are_those_of_the_index(tmp_path: Path) -> None:
    base = build_base(tmp_path / "base")
    assert missing_files(base) == []
    (base / "model-00002-of-00006.safetensors").unlink()
    assert missing_files(base) == ["model-00002-of-00006.safetensors"]


def test_download_then_cache_then_offline(hub: Hub) -> None:
    experts = expert_file(hub.root, [(2, 1)], BASE_ID)
    (hub.base / "pytorch_model.bin").write_bytes(b"weights in another format")
    hub.double.seed("org/with-bin", hub.base)
    (hub.base / "pytorch_model.bin").unlink()

    first = hub.rewrite("--suppress", experts, "-o", "first", "--model", "org/with-bin")
    assert "not in the local cache: downloading" in first.stderr and "free)" in first.stderr
    cache = hub.double.home / "hub" / "models--org--with-bin"
    assert not list(cache.rglob("pytorch_model.bin"))
    before = state(cache)

    hub.double.requests(clear=True)
    again = hub.rewrite("--suppress", experts, "-o", "again", "--model", "org/with-bin", HF_HUB_OFFLINE="1")
    assert "using the local cache at revision" in again.stderr
    assert hub.double.requests() == []
    assert state(cache) == before
    block = json.loads((hub.root / "again" / "config.json").read_text())["mote"]
    assert block["base_model"] == "org/with-bin" and len(block["base_revision"]) == 40
    card = (hub.root / "again" / "README.md").read_text()
    assert "base_model: org/with-bin" in card and "license: mit" in card


def test_interrupted_download_is_completed(hub: Hub) -> None:
    hub.double.seed("org/interrupted", hub.base)
    experts = expert_file(hub.root, [(2, 1)])
    hub.rewrite("--suppress", experts, "-o", "x1", "--model", "org/interrupted")
    snapshots = hub.double.home / "hub" / "models--org--interrupted" / "snapshots"
    (next(snapshots.iterdir()) / "model-00004-of-00006.safetensors").unlink()
    hub.double.requests(clear=True)
    hub.rewrite("--suppress", experts, "-o", "x2", "--model", "org/interrupted")
    assert (hub.root / "x2" / "model-00004-of-00006.safetensors").read_bytes() == (
        hub.base / "model-00004-of-00006.safetensors"
    ).read_bytes()


def test_download_that_does_not_fit_is_refused_before_it_starts(hub: Hub) -> None:
    huge = build_sparse_base(hub.root / "huge", 30, 10**12)
    hub.double.seed("org/huge", huge, hashes="names")
    experts = expert_file(hub.root, [(2, 1)])
    refused = hub.rewrite("--suppress", experts, "--model", "org/huge", "-o", "no", fails=True)
    assert "downloading 34 files, 27.28 TiB" in refused.stderr
    assert "this is a large download" in refused.stderr and "--remote-plan" in refused.stderr
    assert "needs 27.28 TiB" in hub.error(refused) and "HF_HUB_CACHE" in hub.error(refused)
    assert all(request["range"] for request in hub.double.requests() if "_cdn" in request["path"])


def test_what_can_be_refused_is_refused_before_the_download(hub: Hub) -> None:
    """The output, the experts and the plan need a few byte ranges of the base, not its 689 GB."""
    hub.double.seed("org/not-here", hub.base)
    experts = expert_file(hub.root, [(2, 1)])
    (hub.root / "taken").mkdir()
    (hub.root / "taken" / "mine.txt").write_text("kept")
    hub.double.requests(clear=True)
    taken = hub.rewrite("--suppress", experts, "--model", "org/not-here", "-o", "taken", fails=True)
    assert "taken: exists" in hub.error(taken) and hub.double.requests() == []
    wrong = expert_file(hub.root, [(77, 1)])
    refused = hub.rewrite("--suppress", wrong, "--model", "org/not-here", "-o", "free", fails=True)
    assert "layer 77 is not one of the model's MoE layers" in hub.error(refused)
    assert "downloading" not in refused.stderr
    assert not (hub.double.home / "hub" / "models--org--not-here" / "snapshots").exists()


def test_blobs_of_other_revisions_do_not_count_as_downloaded(hub: Hub) -> None:
    huge = build_sparse_base(hub.root / "huge2", 30, 10**12)
    hub.double.seed("org/huge2", huge, hashes="names")
    blobs = hub.double.home / "hub" / "models--org--huge2" / "blobs"
    blobs.mkdir(parents=True)
    for number in range(30):
        with (blobs / f"{number:064x}").open("wb") as blob:
            blob.truncate(10**12)
    refused = hub.rewrite("--suppress", expert_file(hub.root, [(2, 1)]), "--model", "org/huge2", "-o", "no", fails=True)
    shutil.rmtree(blobs)  # too large to be searched for tokens
    assert "needs 27.28 TiB" in hub.error(refused)


def test_gated_private_missing_and_offline_bases(hub: Hub) -> None:
    hub.double.seed("org/gated", hub.base, gated="auto")
    hub.double.seed("org/private", hub.base, private=True)
    experts = expert_file(hub.root, [(2, 1)])

    def refused(model: str, **options: object) -> str:
        return hub.error(hub.rewrite("--suppress", experts, "--model", model, fails=True, **options))

    assert "'org/gated' is gated (403): ask for access at http" in refused("org/gated")
    assert "'org/gated' is gated (401)" in refused("org/gated", token=None)
    assert "'org/private' does not exist on the Hub, or the token may not see it (404)" in refused("org/private")
    assert "the Hub does not accept the token (401)" in refused("org/private", token=None)
    assert "'org/nothing' does not exist on the Hub" in refused("org/nothing")
    assert "HF_HUB_OFFLINE is set" in refused("org/nothing", HF_HUB_OFFLINE="1")
    bad = hub.rewrite("--suppress", experts, "--model", BASE_ID, "--revision", "v9", fails=True)
    assert f"'{BASE_ID}' has no such revision (404)" in hub.error(bad)


def test_access_by_token_file_and_to_own_private_base(hub: Hub) -> None:
    hub.double.seed("alice/private", hub.base, private=True)
    experts = expert_file(hub.root, [(2, 1)])
    home = hub.root / "token-home"
    home.mkdir()
    (home / "token").write_text(TOKEN)
    done = hub.rewrite("--suppress", experts, "--model", "alice/private", "-o", "mine", token=None, HF_HOME=str(home))
    assert "downloading" in done.stderr
    (home / "token").unlink()
