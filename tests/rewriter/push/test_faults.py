"""Pushes that go wrong: refused, rate-limited, cut off, killed. Each ends in one sentence, or resumes to one commit."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from hub_double.fixtures import BASE_ID, EDITED, PAIRS, TOKEN, Hub
from hub_double.models import build_base, build_variant


def commits(hub: Hub, repo_id: str, branch: str = "main") -> int:
    """How many commits a branch has beyond the repo's first."""
    repo = hub.double.repo(repo_id)
    assert repo is not None
    count, commit = 0, repo["branches"][branch]
    while commit is not None:
        count, commit = count + 1, repo["commits"][commit]["parent"]
    return count - 1


def puts(hub: Hub) -> list[dict[str, object]]:
    return [request for request in hub.double.requests() if request["method"] == "PUT"]


@pytest.fixture
def old(hub: Hub, tmp_path: Path) -> Path:
    """A variant of a base that has no Xet hashes and larger shards, so that uploads pass the double itself."""
    base = build_base(tmp_path / "base", num_layers=3, filler_bytes=8_000_000)
    return build_variant(base, tmp_path / "variant", None, None, [(2, 1)])


FAILURES: list[tuple[str, dict[str, object], str]] = [
    ("POST /api/repos/create", {"status": 401}, "the Hub does not accept the token for 'alice/f0' (401)"),
    ("POST /api/repos/create", {"status": 403}, "the token has no permission for 'alice/f1' (403): it needs write"),
    ("POST .*/commit/", {"status": 404, "headers": {"X-Error-Code": "RepoNotFound"}},
     "'alice/f2' does not exist on the Hub, or the token may not see it (404)"),
    ("POST .*/commit/", {"status": 409}, "'alice/f3' was changed by somebody else meanwhile, or exists already (409)"),
    ("POST .*/commit/", {"status": 400, "message": "bad pointer"},
     "the Hub refused the request for 'alice/f4' (400), saying: bad pointer"),
    ("POST /api/repos/create", {"status": 429, "headers": {"Retry-After": "0"}},
     "the Hub limits the rate of requests for 'alice/f5' (429), for another 0 s: run the command again later"),
    ("POST .*/commit/", {"status": 503, "headers": {"Retry-After": "0"}}, "the Hub failed on 'alice/f6' (503)"),
    ("POST .*/commit/", {"drop_after_bytes": 10}, "the connection to http"),
    ("GET .*/xet-write-token", {"status": 403}, "403 Forbidden"),
    ("POST /api/repos/create", {"body": "<html>log in</html>"}, "gave an answer about 'alice/f9' that is not the Hub's"),
    ("GET /api/models/alice", {"body": "[]"}, "gave an answer about 'alice/f10' that is not the Hub's"),
    ("POST .*/commit/", {"body": '{"a": 1}'}, "'alice/f11'"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(FAILURES)))
def test_each_failure_is_one_sentence(hub: Hub, number: int) -> None:
    match, fault, sentence = FAILURES[number]
    repo_id = f"alice/f{number}"
    hub.double.fault(match, times=99, **fault)
    failed = hub.push(hub.variant, repo_id, "--yes", fails=True)
    assert sentence in hub.error(failed)
    assert failed.stdout == ""
    assert hub.double.repo(repo_id) is None or commits(hub, repo_id) == 0, "nothing but the empty repo"


def test_server_that_echoes_the_token_is_not_repeated(hub: Hub) -> None:
    hub.double.fault("POST .*/commit/", status=400, message=f"bad header: Bearer {TOKEN}")
    failed = hub.push(hub.variant, "alice/echo", "--yes", fails=True)
    assert "saying: bad header" in hub.error(failed) and TOKEN not in failed.stderr


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429, "headers": {"Retry-After": "1"}},
        {"status": 503},
        {"drop_after_bytes": 100},
        {"lose_response": True},
    ],
    ids=["rate limit", "server error", "dropped", "answer lost"],
)
def test_commit_is_made_once_whatever_happens_to_the_request(hub: Hub, fault: dict[str, object]) -> None:
    name = f"alice/once-{'-'.join(fault)}"
    hub.double.fault("POST .*/commit/", **fault)
    done = hub.push(hub.variant, name, "--yes")
    assert commits(hub, name) == 1
    assert hub.double.repo(name)["branches"]["main"] in done.stdout  # type: ignore[index]


def test_another_commit_meanwhile_is_a_conflict_and_stays(hub: Hub) -> None:
    hub.push(hub.variant, "alice/shared", "--yes")
    (hub.variant / "notes.txt").write_text("more")
    hub.double.fault("POST .*/commit/main", foreign_commit="alice/shared")
    failed = hub.push(hub.variant, "alice/shared", "--yes", fails=True)
    assert "got another commit" in hub.error(failed)
    assert "notes.txt" not in hub.double.files("alice/shared")
    hub.push(hub.variant, "alice/shared", "--yes")
    assert "notes.txt" in hub.double.files("alice/shared")
    (hub.variant / "notes.txt").unlink()


def test_failed_push_leaves_no_branch_behind(hub: Hub) -> None:
    hub.push(hub.variant, "alice/branches", "--duplicate-base", "--yes")
    hub.double.fault("POST .*/commit/", times=99, status=400, message="no")
    hub.push(hub.variant, "alice/branches", "--revision", "tuned", "--yes", fails=True)
    repo = hub.double.repo("alice/branches")
    assert repo is not None and list(repo["branches"]) == ["main"]


def test_another_commit_on_a_new_branch_is_not_deleted(hub: Hub) -> None:
    """Somebody pushed to the branch between its making and our commit: it is theirs now."""
    hub.push(hub.variant, "alice/new-branch", "--duplicate-base", "--yes")
    hub.double.fault("POST .*/commit/tuned", foreign_commit="alice/new-branch", branch="tuned")
    failed = hub.push(hub.variant, "alice/new-branch", "--revision", "tuned", "--yes", fails=True)
    assert "got another commit" in hub.error(failed)
    # The branch began where main stood before its own commit, and got the foreign one.
    assert commits(hub, "alice/new-branch", "tuned") == commits(hub, "alice/new-branch")


def test_a_commit_on_a_new_branch_is_tried_again(hub: Hub) -> None:
    hub.push(hub.variant, "alice/retried", "--duplicate-base", "--yes")
    (hub.variant / "notes.txt").write_text("more")
    hub.double.fault("POST .*/commit/tuned", status=503, headers={"Retry-After": "0"})
    hub.push(hub.variant, "alice/retried", "--revision", "tuned", "--yes")
    assert "notes.txt" in hub.double.files("alice/retried", "tuned")
    assert commits(hub, "alice/retried", "tuned") == commits(hub, "alice/retried")
    (hub.variant / "notes.txt").unlink()


@pytest.mark.parametrize("status", [403, 409, 412, 413])
def test_no_refusal_repeats_the_token(hub: Hub, status: int) -> None:
    hub.double.fault("POST .*/commit/", times=99, status=status, message=f"you sent {TOKEN}, https://me:{TOKEN}@host/x")
    failed = hub.push(hub.variant, f"alice/echo-{status}", "--yes", fails=True)
    assert TOKEN not in failed.stderr + failed.stdout and "you sent" in hub.error(failed)


def test_upload_resumes_after_a_dropped_connection(hub: Hub, old: Path) -> None:
    hub.double.fault("PUT /_lfs/", drop_after_bytes=1_000_000, skip=1)
    hub.push(old, "alice/dropped", "--yes", xet=False)
    assert commits(hub, "alice/dropped") == 1
    assert [request["status"] for request in puts(hub)].count("dropped") == 1
    assert len(puts(hub)) == 4, "three shards, one of them twice"


def _reached(hub: Hub, pattern: str, num_done: int) -> bool:
    """Whether so many matching requests were answered and one more is waiting for its answer."""
    matching = [r for r in hub.double.requests() if re.match(pattern, f"{r['method']} {r['path']}")]
    return [r["status"] for r in matching].count(200) == num_done and len(matching) > num_done


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_push_resumes_after_kill_9(hub: Hub, old: Path, xet: bool) -> None:
    name = f"alice/killed-{xet}"
    slow = "POST .*/commit/" if xet else "PUT /_lfs/"
    hub.double.fault(slow, delay_s=30, skip=0 if xet else 2)
    process = hub.start("rewriter.cli.push", old, name, "--yes", xet=xet)
    deadline = time.monotonic() + 60
    while not _reached(hub, slow, num_done=0 if xet else 2):
        assert time.monotonic() < deadline and process.poll() is None, "the push did not get to the slow request"
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert commits(hub, name) == 0, "a killed push commits nothing"
    stored = hub.double.xet_bytes()

    hub.double.clear_faults()
    hub.double.requests(clear=True)
    hub.push(old, name, "--yes", xet=xet)
    assert commits(hub, name) == 1
    if xet:
        assert hub.double.xet_bytes() - stored < 100_000, "Xet has the chunks already"
    else:
        assert len(puts(hub)) == 1, "the two shards that were there are not sent again"
    downloaded = hub.download(name)
    for path in old.glob("*.safetensors"):
        assert (downloaded / path.name).read_bytes() == path.read_bytes()


def test_server_restart_between_plan_and_push_is_survived(hub: Hub) -> None:
    hub.push(hub.variant, "alice/restart", "--yes")
    hub.double.stop()
    unreachable = hub.error(hub.push(hub.variant, "alice/restart", "--yes", fails=True))
    assert "the connection to http" in unreachable and "run the command again" in unreachable
    hub.double.start()
    assert "nothing to do" in hub.push(hub.variant, "alice/restart", "--yes").stdout


def test_other_storage_region_is_named_by_the_server(hub: Hub) -> None:
    base = shutil.copytree(hub.base, hub.root / "eu-base", dirs_exist_ok=True)
    commit = hub.double.seed("org/eu", base, region="eu")
    variant = build_variant(base, hub.root / "eu-variant", "org/eu", commit, PAIRS)
    sentence = hub.error(hub.push(variant, "alice/us", "--yes", fails=True))
    assert "different storage regions" in sentence
    done = json.loads(hub.push(variant, "alice/us", "--yes", "--upload-all", "--json").stdout)
    assert done["plan"]["totals"]["copy"]["files"] == 0
    assert set(EDITED) < set(hub.double.files("alice/us"))


def test_base_that_is_gone_from_the_hub_means_uploading_all(hub: Hub) -> None:
    variant = build_variant(hub.base, hub.root / "orphan", "org/vanished", "0" * 40, PAIRS)
    done = hub.push(variant, "alice/orphan", "--yes", "--json")
    assert "the base cannot be looked at on the Hub" in done.stderr
    assert json.loads(done.stdout)["plan"]["totals"]["upload"]["files"] == 11
    assert BASE_ID not in hub.double.files("alice/orphan")
