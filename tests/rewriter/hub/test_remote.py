"""Planning on the Hub's files: byte ranges only, the same plan as on a folder, and what a full run would cost."""

import json

import pytest
from hub_double.fixtures import BASE_ID, EDITED, PAIRS, Hub
from hub_double.models import build_sparse_base, expert_file


def shard_requests(hub: Hub) -> list[dict[str, object]]:
    return [
        request for request in hub.double.requests() if "_cdn" in request["path"] or "safetensors" in request["path"]
    ]


def test_remote_plan_is_the_local_plan_by_ranges_only(hub: Hub) -> None:
    experts = expert_file(hub.root, PAIRS, BASE_ID)
    hub.double.requests(clear=True)
    remote = json.loads(hub.rewrite("--suppress", experts, "--remote-plan", "--json").stdout)
    requests = shard_requests(hub)
    local = json.loads(hub.rewrite("--suppress", experts, "--model", hub.base, "--dry-run", "--json").stdout)

    for key in ("tensors", "experts", "changed_files", "fingerprint", "renormalization"):
        assert remote["mote"][key] == local["mote"][key], key
    assert remote["mote"]["base_model"] == BASE_ID and remote["base_revision"] == hub.commit
    assert remote["changed_shards"] == EDITED
    assert remote.keys() == local.keys(), "a script that reads plans would have to know where the base is"

    contents = [request for request in requests if "_cdn" in str(request["path"])]
    assert all(request["range"] for request in contents), "a shard was asked for whole"
    sent = sum(int(str(request["sent_bytes"])) for request in contents)
    assert sent <= remote["read_bytes"]
    assert not any(request["authorization"] for request in contents), "the token went to another origin"

    files = [path for path in hub.base.iterdir() if path.is_file()]
    assert remote["download_files"] == len(files) + 1  # and .gitattributes
    assert abs(remote["download_bytes"] - sum(path.stat().st_size for path in files)) < 100
    assert not list((hub.double.home / "hub").rglob("*.safetensors")), "something was downloaded"


def test_dry_run_of_an_id_that_is_not_cached_reads_ranges(hub: Hub) -> None:
    experts = expert_file(hub.root, PAIRS, BASE_ID)
    shown = hub.rewrite("--suppress", experts, "--dry-run").stdout
    assert "nothing is downloaded or written" in shown
    assert "a full run downloads 12 files, 1.1" in shown and " MiB, into the local Hub cache" in shown


def test_a_served_variant_is_planned_before_its_base_is_downloaded(hub: Hub) -> None:
    """A dry run fetches no weights, and a folder that is taken is told before they come."""
    experts = expert_file(hub.root, PAIRS, BASE_ID)
    shown = hub.rewrite("--dial", f"a={experts}", "--dry-run", "--json").stdout
    assert json.loads(shown)["mote"]["base_revision"] == hub.commit and json.loads(shown)["base"] == BASE_ID
    taken = hub.root / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("kept")
    sentence = hub.error(hub.rewrite("--dial", f"a={experts}", "-o", taken, fails=True))
    assert f"{taken}: exists" in sentence
    assert not list((hub.double.home / "hub").rglob("*.safetensors")), "something was downloaded"


def test_plan_of_a_model_of_r1s_size_costs_a_few_requests(hub: Hub) -> None:
    base = build_sparse_base(hub.root / "big", 160, 4_300_000_000)
    hub.double.seed("org/Big", base, hashes="names")
    experts = expert_file(hub.root, [(layer, 3) for layer in range(0, 90, 10)])
    plan = json.loads(hub.rewrite("--suppress", experts, "--model", "org/Big", "--remote-plan", "--json").stdout)
    assert plan["download_bytes"] > 688_000_000_000
    assert len(plan["changed_shards"]) == 9
    # config and index once, then one block a shard, which holds header and bias here.
    assert plan["requests"] <= 2 + 2 * 9
    assert plan["read_bytes"] < 2_000_000
    stat = hub.double.requests()
    assert sum(request["sent_bytes"] for request in stat) < 3_000_000


def test_server_that_ignores_ranges_is_refused(hub: Hub) -> None:
    base = build_sparse_base(hub.root / "wide", 3, 4_300_000_000)
    hub.double.seed("org/Wide", base, hashes="names")
    experts = expert_file(hub.root, [(1, 3)])
    hub.double.fault("GET /_cdn/", times=99, ignore_range=True)
    sentence = hub.error(hub.rewrite("--suppress", experts, "--model", "org/Wide", "--remote-plan", fails=True))
    assert "org/Wide/model-00002-of-00003.safetensors: the server answered 200 instead of the byte range" in sentence


def test_local_folder_has_no_remote_plan(hub: Hub) -> None:
    experts = expert_file(hub.root, PAIRS)
    sentence = hub.error(hub.rewrite("--suppress", experts, "--model", hub.base, "--remote-plan", fails=True))
    assert "is no Hub id; use --dry-run" in sentence


@pytest.mark.parametrize("status", [429, 503])
def test_reads_are_repeated_after_rate_limits_and_server_errors(hub: Hub, status: int) -> None:
    experts = expert_file(hub.root, PAIRS, BASE_ID)
    headers = {"Retry-After": "0"}
    hub.double.fault("GET /api/models", times=1, status=status, headers=headers)
    hub.double.fault("GET /deepseek-ai/Small/resolve/.*/config.json", times=1, status=status, headers=headers)
    shown = hub.rewrite("--suppress", experts, "--remote-plan")
    assert "a full run downloads" in shown.stdout
