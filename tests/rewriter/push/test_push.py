"""Pushing variants to a server process that speaks the Hub's protocol: what moves, what does not, and what comes back."""

import filecmp
import json
import shutil
from pathlib import Path

import pytest
from hub_double.fixtures import BASE_ID, EDITED, PAIRS, READ_TOKEN, Hub
from hub_double.models import build_base, build_sparse_base, build_variant, expert_file


def writes(hub: Hub) -> list[str]:
    """The requests that change something on the Hub."""
    asked = ("paths-info", "preupload", "validate-yaml")
    return [
        f"{request['method']} {request['path']}"
        for request in hub.double.requests()
        if request["method"] not in ("GET", "HEAD") and not any(part in request["path"] for part in asked)
    ]


def assert_same_files(downloaded: Path, variant: Path) -> None:
    """Every file of the variant came back as it is; the card with the repo's name in it."""
    names = sorted(path.name for path in variant.iterdir() if path.name != "README.md")
    match, mismatch, errors = filecmp.cmpfiles(downloaded, variant, names, shallow=False)
    assert (sorted(match), mismatch, errors) == (names, [], [])


def test_plan_comes_first_and_needs_a_yes(hub: Hub) -> None:
    shown = hub.push(hub.variant, "alice/asked", "--dry-run")
    assert shown.stdout.startswith("Create the public repo alice/asked, branch main")
    plan = json.loads(hub.push(hub.variant, "alice/asked", "--dry-run", "--json").stdout)["plan"]
    assert plan["totals"]["copy"]["files"] == 4 and plan["totals"]["upload"]["files"] == 7
    refused = hub.push(hub.variant, "alice/asked", fails=True)
    assert "there is nobody to ask: give --yes" in hub.error(refused)
    assert "Create the public repo alice/asked" in refused.stderr
    assert writes(hub) == [] and hub.double.repo("alice/asked") is None


def test_new_repo_gets_unchanged_shards_from_the_base_and_the_rest_from_here(hub: Hub) -> None:
    done = hub.push(hub.variant, "first", "--yes", "--private", "--json")
    result = json.loads(done.stdout)
    assert result["repo_id"] == "alice/first" and result["url"].endswith("/alice/first/tree/main")
    repo = hub.double.repo("alice/first")
    assert repo is not None and repo["private"] and len(repo["commits"]) == 2, "one commit beside the first"
    assert result["commit"] == repo["branches"]["main"]

    files, base = hub.double.files("alice/first"), hub.double.files(BASE_ID)
    shards = [name for name in files if name.endswith(".safetensors")]
    assert [name for name in shards if files[name]["lfs"] != base[name]["lfs"]] == EDITED
    duplicated = [item for item in writes(hub) if "lfs-files/duplicate" in item]
    assert duplicated == [f"POST /api/models/{BASE_ID}/lfs-files/duplicate"]
    assert_same_files(hub.download("alice/first"), hub.variant)

    card = (hub.download("alice/first") / "README.md").read_text()
    assert "vllm serve alice/first\n" in card and "license: mit" in card and f"base_model: {BASE_ID}" in card

    again = hub.push(hub.variant, "alice/first", "--yes")
    assert "nothing to do: the branch holds this variant" in again.stdout
    assert len(hub.double.repo("alice/first")["commits"]) == 2  # type: ignore[index]


def test_branch_of_the_users_copy_moves_only_what_changed(hub: Hub) -> None:
    hub.push(hub.variant, "alice/copy", "--duplicate-base", "--revision", "refusal-off", "--yes")
    repo = hub.double.repo("alice/copy")
    assert repo is not None
    assert repo["branches"]["main"] == hub.commit, "main is the base, with its history"
    main, branch = hub.double.files("alice/copy"), hub.double.files("alice/copy", "refusal-off")
    changed = {name for name in branch if branch[name] != main.get(name)}
    assert changed == {*EDITED, "config.json", "README.md"}
    assert not any("lfs-files/duplicate" in item for item in writes(hub))
    assert_same_files(hub.download("alice/copy", "refusal-off"), hub.variant)

    other = build_variant(hub.base, hub.root / "other", BASE_ID, hub.commit, [(3, 0)])
    hub.double.requests(clear=True)
    done = json.loads(hub.push(other, "alice/copy", "--revision", "second", "--yes", "--json").stdout)
    assert done["plan"]["totals"]["upload"]["files"] == 3, "one shard, config and card"
    assert done["plan"]["create_branch"] and done["plan"]["start_commit"] == hub.commit
    assert_same_files(hub.download("alice/copy", "second"), other)
    assert "--revision second" in (hub.download("alice/copy", "second") / "README.md").read_text()


def test_own_copy_under_another_name_serves_as_source(hub: Hub) -> None:
    hub.double.seed("alice/mirror", hub.base)
    plan = json.loads(
        hub.push(hub.variant, "alice/from-mirror", "--base-repo", "alice/mirror", "--dry-run", "--json").stdout
    )["plan"]
    sources = {item["source_repo"] for item in plan["actions"] if item["action"] == "copy"}
    assert sources == {"alice/mirror"} and plan["totals"]["copy"]["files"] == 4


def test_base_that_the_variant_does_not_name_is_believed_only_by_hash(hub: Hub) -> None:
    """A variant of a local folder: --base-repo may be another model with shards of the same names and sizes."""
    local = build_variant(hub.base, hub.root / "local", None, None, PAIRS)
    shown = hub.push(local, "alice/local", "--base-repo", BASE_ID, "--dry-run", "--json")
    assert "hashing 4 files" in shown.stderr, "edited shards have another size"
    assert json.loads(shown.stdout)["plan"]["totals"]["copy"]["files"] == 4
    other = build_base(hub.root / "same-sizes", seed=3)
    stranger = build_variant(other, hub.root / "stranger", None, None, PAIRS)
    shown = hub.push(stranger, "alice/stranger", "--base-repo", BASE_ID, "--dry-run", "--json")
    assert json.loads(shown.stdout)["plan"]["totals"]["copy"]["files"] == 0


def test_duplicate_of_a_base_that_moved_on(hub: Hub) -> None:
    """The variant's base is a commit behind main: its branch starts at that commit, and main cannot be pushed to."""
    base = shutil.copytree(hub.base, hub.root / "moving")
    commit = hub.double.seed("org/moving", base)
    variant = build_variant(base, hub.root / "of-moving", "org/moving", commit, PAIRS)
    hub.double.fault("POST /api/validate-yaml", foreign_commit="org/moving")
    hub.push(variant, "alice/unrelated", "--yes")
    hub.push(variant, "alice/moved", "--duplicate-base", "--revision", "tuned", "--yes")
    repo = hub.double.repo("alice/moved")
    assert repo is not None and repo["commits"][repo["branches"]["tuned"]]["parent"] == commit
    assert repo["branches"]["main"] != commit
    refused = hub.error(hub.push(variant, "alice/moved-2", "--duplicate-base", "--yes", fails=True))
    assert "push to a branch of it with --revision BRANCH" in refused


def test_skip_by_hash_where_the_server_cannot_copy(hub: Hub) -> None:
    """A base without Xet hashes: the first push uploads all, the second finds everything in the target by hash."""
    base = shutil.copytree(hub.base, hub.root / "old-base")
    commit = hub.double.seed("org/old", base, xet=False)
    variant = build_variant(base, hub.root / "old-variant", "org/old", commit, PAIRS)
    first = json.loads(hub.push(variant, "alice/old", "--yes", "--json", xet=False).stdout)
    assert first["plan"]["totals"]["upload"]["files"] == 11 and "copy" in first["plan"]["totals"]
    assert any("no Xet hash" in note for note in first["plan"]["notes"])
    sent = [request for request in hub.double.requests() if request["method"] == "PUT"]
    assert len(sent) == 6, "every shard once"

    hub.double.requests(clear=True)
    second = json.loads(hub.push(variant, "alice/old", "--revision", "b", "--yes", "--json", xet=False).stdout)
    assert second["plan"]["totals"]["upload"]["files"] == 1, "the card, which names the branch"
    assert not [request for request in hub.double.requests() if request["method"] == "PUT"]
    assert_same_files(hub.download("alice/old", "b"), variant)


def test_copies_within_the_repo_when_another_branch_has_the_shards(hub: Hub) -> None:
    hub.push(hub.variant, "alice/within", "--yes")
    pruned = shutil.copytree(hub.variant, hub.root / "pruned", symlinks=True)
    for name in EDITED:
        (pruned / name).rename(pruned / name.replace(".safetensors", "-x.safetensors"))
    index = json.loads((pruned / "model.safetensors.index.json").read_text())
    index["weight_map"] = {
        tensor: name.replace(".safetensors", "-x.safetensors") if name in EDITED else name
        for tensor, name in index["weight_map"].items()
    }
    (pruned / "model.safetensors.index.json").write_text(json.dumps(index))
    plan = json.loads(hub.push(pruned, "alice/within", "--revision", "renamed", "--dry-run", "--json").stdout)["plan"]
    copies = [item for item in plan["actions"] if item["action"] == "copy"]
    assert [item["source_path"] for item in copies] == EDITED and copies[0]["source_repo"] is None
    assert [item["path"] for item in plan["actions"] if item["action"] == "delete"] == EDITED


def test_model_of_r1s_size_is_pushed_without_reading_its_unchanged_shards(hub: Hub) -> None:
    """120 shards of 4.3 GB: reading them would take an hour. Two small edited shards are all that is sent."""
    base = build_sparse_base(hub.root / "big", 120, 4_300_000_000)
    # Small shards to edit, so that the test uploads little.
    small = build_sparse_base(hub.root / "small", 120, 1_000_000)
    for number in (3, 5):
        name = f"model-{number:05d}-of-00120.safetensors"
        (base / name).unlink()
        shutil.copy(small / name, base / name)
    commit = hub.double.seed("org/Big", base, hashes="names")
    variant = build_variant(base, hub.root / "big-variant", "org/Big", commit, [(2, 1), (4, 3)])
    done = json.loads(hub.push(variant, "alice/Big-tuned", "--yes", "--json").stdout)
    totals = done["plan"]["totals"]
    assert totals["copy"]["files"] == 118 and totals["copy"]["bytes"] > 500_000_000_000
    assert totals["upload"]["bytes"] < 3_000_000
    assert len(hub.double.files("alice/Big-tuned")) == 120 + 4, "and README, config, index, .gitattributes"
    assert sum(request["received_bytes"] for request in hub.double.requests()) < 200_000


def test_results_of_eval_are_taken_into_the_card(hub: Hub) -> None:
    measured = shutil.copytree(hub.variant, hub.root / "measured", symlinks=True)
    (measured / "mote-eval.md").write_text("Refusals: 40 of 100 answered.")
    (measured / "mote-safety.md").write_text("XSTest: 3 of 200 unsafe prompts answered.")
    hub.push(measured, "alice/measured", "--yes")
    card = (hub.download("alice/measured") / "README.md").read_text()
    assert "40 of 100 answered" in card and "3 of 200 unsafe" in card and "Not measured" not in card
    assert "Not measured" in (measured / "README.md").read_text(), "the folder's own card stays"


def test_push_right_after_rewriting(hub: Hub) -> None:
    experts = expert_file(hub.root, PAIRS)
    done = hub.rewrite(
        "--suppress", experts, "--model", BASE_ID, "-o", "direct", "--push-to-hub", "alice/direct", "--yes", "--json"
    )
    result = json.loads(done.stdout)
    assert result["push"]["repo_id"] == "alice/direct" and result["num_suppressed"] == 2
    assert result["push"]["plan"]["totals"]["copy"]["files"] >= 4
    assert_same_files(hub.download("alice/direct"), hub.root / "direct")
    unasked = hub.rewrite(
        "--suppress", experts, "--model", hub.base, "-o", "unasked", "--push-to-hub", "alice/x", fails=True
    )
    assert "give --yes" in hub.error(unasked) and not (hub.root / "unasked").exists()


@pytest.mark.parametrize("kind", ["gated", "private"])
def test_gated_and_private_bases_ask_for_a_flag(hub: Hub, kind: str) -> None:
    options = {"gated": {"gated": "auto", "readers": ["alice"]}, "private": {"private": True}}[kind]
    owner = {"gated": "org", "private": "alice"}[kind]
    commit = hub.double.seed(f"{owner}/{kind}", hub.base, **options)
    variant = build_variant(hub.base, hub.root / f"of-{kind}", f"{owner}/{kind}", commit, PAIRS)
    refused = hub.error(hub.push(variant, f"alice/of-{kind}", "--yes", fails=True))
    assert f"the base '{owner}/{kind}' is {kind}, and 'alice/of-{kind}' would be public" in refused
    assert hub.double.repo(f"alice/of-{kind}") is None
    duplicated = hub.push(
        variant, f"alice/of-{kind}", "--duplicate-base", "--allow-public-from-gated", "--yes", fails=True
    )
    assert "would publish the base itself: use --private" in hub.error(duplicated)
    shown = hub.push(variant, f"alice/of-{kind}", "--private", "--dry-run").stdout
    assert "Create the private repo" in shown
    hub.push(variant, f"alice/of-{kind}", "--allow-public-from-gated", "--yes")
    card = (hub.download(f"alice/of-{kind}") / "README.md").read_text()
    assert "extra_gated_prompt: You agree to the terms." in card and "license: mit" in card
    assert "LICENSE" in hub.double.files(f"alice/of-{kind}")


def test_licence_of_the_base_is_fetched_where_the_card_lacks_it(hub: Hub) -> None:
    bare = shutil.copytree(hub.base, hub.root / "bare")
    (bare / "README.md").unlink()
    (bare / "LICENSE").unlink()
    variant = build_variant(bare, hub.root / "bare-variant", BASE_ID, hub.commit, PAIRS)
    hub.push(variant, "alice/bare", "--yes")
    downloaded = hub.download("alice/bare")
    card = (downloaded / "README.md").read_text()
    assert "license: mit" in card and "extra_gated_prompt" in card
    assert (downloaded / "LICENSE").read_text() == (hub.base / "LICENSE").read_text()


def test_what_is_no_variant_is_not_pushed(hub: Hub, tmp_path: Path) -> None:
    assert "has no mote block" in hub.error(hub.push(hub.base, "alice/no", "--yes", fails=True))
    assert "is not a folder" in hub.error(hub.push(tmp_path / "none", "alice/no", "--yes", fails=True))
    broken = shutil.copytree(hub.variant, tmp_path / "broken", symlinks=True)
    (broken / EDITED[0]).unlink()
    assert f"lacks {EDITED[0]}" in hub.error(hub.push(broken, "alice/no", "--yes", fails=True))
    assert "is not a repo name" in hub.error(hub.push(hub.variant, "a/b/c", "--yes", fails=True))
    (broken / "config.json").write_text("{")
    shutil.copy(hub.variant / EDITED[0], broken / EDITED[0])
    assert "not JSON" in hub.error(hub.push(broken, "alice/no", "--yes", fails=True))
    assert writes(hub) == []


@pytest.mark.parametrize("name", ["merges.txt", "nested/notes.txt", "model-00001-of-00006.safetensors"])
def test_a_link_to_a_file_outside_the_model_is_not_published(hub: Hub, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "token"
    secret.write_text("a token of the user's own")
    linked = shutil.copytree(hub.variant, tmp_path / "linked")
    (linked / name).unlink(missing_ok=True)
    (linked / name).parent.mkdir(exist_ok=True)
    (linked / name).symlink_to(secret)
    for more in ((), ("--recipe",), ("--private",)):
        refused = hub.error(hub.push(linked, "alice/linked", "--yes", *more, fails=True))
        assert f"{name}: is a link to {secret}, which lies outside the model's folder" in refused
    assert hub.double.repo("alice/linked") is None and writes(hub) == []


def test_a_linked_folder_is_not_passed_over(hub: Hub, tmp_path: Path) -> None:
    """What a variant seems to hold would be missing from what is published, and nobody told."""
    linked = shutil.copytree(hub.variant, tmp_path / "linked")
    (tmp_path / "elsewhere").mkdir()
    (linked / "assets").symlink_to(tmp_path / "elsewhere")
    for more in ((), ("--recipe",)):
        refused = hub.error(hub.push(linked, "alice/linked", "--yes", *more, fails=True))
        assert f"'{linked / 'assets'}' is a link to a folder, expected none in a variant" in refused
    assert hub.double.repo("alice/linked") is None and writes(hub) == []


def test_token_that_may_only_read(hub: Hub) -> None:
    refused = hub.error(hub.push(hub.variant, "alice/readonly", "--yes", token=READ_TOKEN, fails=True))
    assert "the token has no permission for 'alice/readonly' (403): it needs write access" in refused
