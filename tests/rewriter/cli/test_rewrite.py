"""mote-rewrite's command line: options, output for people and scripts, dry runs, and what starting it costs."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import bias_name, build_checkpoint, read_tensors, tree_state, values_of, write_json, write_set
from commands import Command

from rewriter.console import byte_progress

HEAVY = ["torch", "numpy", "pydantic", "transformers", "huggingface_hub", "ml_dtypes", "tqdm", "safetensors", "yaml"]
OPTIONS = [
    "--suppress", "--stimulate", "--model", "--revision", "-o", "--output", "--top", "--layer-index", "--semantics",
    "--suppress-bias", "--renormalize", "--link", "--dry-run", "--json", "--overwrite",
]  # fmt: skip


@pytest.mark.parametrize("module", ["ftri.cli.rewrite", "ftri.cli.verify"])
def test_help_imports_nothing_heavy(module: str) -> None:
    script = (
        f"import sys\nimport {module} as cli\nsys.argv = ['x', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit as leaving:\n    assert not leaving.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    completed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert completed.returncode == 0 and completed.stderr == "[]\n"


def test_help_names_every_option(mote_rewrite: Command) -> None:
    outcome = mote_rewrite("--help")
    assert outcome.code == 0 and outcome.stderr == ""
    for option in OPTIONS:
        assert option in outcome.stdout, option
    for choices in ("reroute|drop", "model|moe", "auto|-inf|margin|NUMBER", "auto|reflink|hardlink|symlink|copy"):
        assert choices in outcome.stdout, choices
    assert "mote-rewrite --suppress refusal.json" in outcome.stdout


def test_verify_help_names_every_option(mote_verify: Command) -> None:
    outcome = mote_verify("--help")
    assert outcome.code == 0 and all(option in outcome.stdout for option in ("OUT", "--base", "--full", "--json"))


def test_result_for_people(base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    outcome = mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out")
    assert outcome.code == 0 and outcome.stderr == ""
    for part in (
        str(tmp_path / "out"), "3 suppressed (reroute), 0 stimulated, in 2 layers", "2 edited", "seconds:", "patched",
        "norm_topk_prob is true in the base and stays true", "vllm serve ",
    ):  # fmt: skip
        assert part in outcome.stdout, part


def test_result_for_scripts(base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    outcome = mote_rewrite(
        "--model", base, "--suppress", refusal, "-o", tmp_path / "out", "--json", "--link", "hardlink"
    )
    result = json.loads(outcome.stdout)
    assert outcome.stderr == "" and result["folder"] == str(tmp_path / "out")
    assert result["shards"] == {"edited": 2, "hardlink": 2} or result["shards"] == {
        "edited, blocks shared": 2,
        "hardlink": 2,
    }
    assert (result["num_suppressed"], result["num_stimulated"], result["bytes_patched"]) == (3, 0, 2 * 64)
    linked = [path for path in base.glob("*.safetensors") if path.stat().st_nlink == 2]
    assert result["bytes_linked"] == sum(path.stat().st_size for path in linked) and len(linked) == 2
    assert result["serve"].startswith("vllm serve ")


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_dry_run_writes_nothing(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, as_json: list[str]
) -> None:
    names = sorted(path.name for path in tmp_path.iterdir())
    before = tree_state(base)
    outcome = mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "a" / "out", "--dry-run", *as_json)
    assert outcome.code == 0, outcome.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == names and tree_state(base) == before
    if as_json:
        plan = json.loads(outcome.stdout)
        assert plan["output"] == str(tmp_path / "a" / "out") and plan["patched_bytes"] == 128
        assert len(plan["changed_shards"]) == 2 and plan["unchanged_shards"] == 2
        assert [tensor["name"] for tensor in plan["mote"]["tensors"]] == [bias_name(1), bias_name(3)]
    else:
        assert "nothing is written yet" in outcome.stdout and "layer 1: suppress 3, 8 (bias -inf)" in outcome.stdout


@pytest.mark.parametrize("link", ["auto", "hardlink", "copy", "symlink"])
def test_dry_run_makes_no_link_and_no_file_even_for_a_moment(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    """Even a link that is removed again changes the base's inode, and a kill would leave it."""
    before = {path: path.stat().st_ctime_ns for path in (tmp_path, *base.iterdir(), base)}

    def refuse(*arguments: object, **keywords: object) -> None:
        raise AssertionError(arguments)

    for name in ("link", "mkdir", "rename", "symlink"):
        monkeypatch.setattr(os, name, refuse)
    outcome = mote_rewrite(
        "--model", base, "--suppress", refusal, "-o", tmp_path / "out", "--dry-run", "--json", "--link", link
    )
    assert outcome.code == 0, outcome.stderr
    assert {path: path.stat().st_ctime_ns for path in before} == before
    if link != "auto":
        assert json.loads(outcome.stdout)["unchanged_method"] == link


@pytest.mark.parametrize("from_stimulate", [True, False])
def test_base_is_looked_for_beside_the_set_that_names_it(
    base: Path, tmp_path: Path, mote_rewrite: Command, monkeypatch: pytest.MonkeyPatch, from_stimulate: bool
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "empty").mkdir()
    with_model = write_set(tmp_path / "with.json", [(1, 3)], model=base.name)
    without = write_set(tmp_path / "elsewhere" / "without.json", [(1, 4)])
    names = ("--stimulate", "--suppress") if from_stimulate else ("--suppress", "--stimulate")
    monkeypatch.chdir(tmp_path / "empty")
    outcome = mote_rewrite(names[0], with_model, names[1], without, "--dry-run", "--json")
    assert outcome.code == 0, outcome.stderr
    assert json.loads(outcome.stdout)["base"] == str(base)


def test_sets_that_name_folders_of_one_name_are_of_different_models(
    base: Path, tmp_path: Path, mote_rewrite: Command
) -> None:
    shutil.copytree(base, tmp_path / "b" / base.name)
    one = write_set(tmp_path / "one.json", [(1, 3)], model=base.name)
    other = write_set(tmp_path / "b" / "other.json", [(1, 4)], model=base.name)
    assert "are of different models" in mote_rewrite("--suppress", one, "--stimulate", other, "--dry-run").error


def test_revision_is_refused_for_a_folder_beside_the_set(base: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    named = write_set(tmp_path / "named.json", [(1, 3)], model=base.name)
    sentence = mote_rewrite("--suppress", named, "--revision", "v2", "--dry-run").error
    assert "--revision v2 can only be given with a Hub model id" in sentence


def test_dry_run_says_what_the_run_then_does(base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    arguments = ("--model", base, "--suppress", refusal, "-o", tmp_path / "out", "--json")
    plan = json.loads(mote_rewrite(*arguments, "--dry-run").stdout)
    assert mote_rewrite(*arguments).code == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["mote"] == plan["mote"]


@pytest.mark.parametrize("value", ["-inf", "-1e30", "-40", "margin", "auto"])
@pytest.mark.parametrize("joined", [True, False])
def test_suppress_bias_as_an_argument_of_its_own(
    base: Path, tmp_path: Path, mote_rewrite: Command, value: str, joined: bool
) -> None:
    """A value that begins with a dash is a value, not an option."""
    chosen = write_set(tmp_path / "one.json", [(2, 5)])
    option = [f"--suppress-bias={value}"] if joined else ["--suppress-bias", value]
    outcome = mote_rewrite("--model", base, "--suppress", chosen, *option, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.stderr
    written = values_of(read_tensors(tmp_path / "out")[bias_name(2)])[5]
    original = values_of(read_tensors(base)[bias_name(2)])
    if value in ("-inf", "auto"):
        assert written == float("-inf")
    elif value == "margin":  # bmin - (D + 2R + 1) over the untouched experts
        untouched = original[[expert for expert in range(16) if expert != 5]].astype(float)
        spread = untouched.max() - untouched.min()
        assert written == pytest.approx(untouched.min() - (spread + 2 + 1), rel=1e-6)
    else:
        assert written == pytest.approx(float(value))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--suppress-bias", "low"], "--suppress-bias is 'low', expected auto, -inf, margin or a number"),
        (["--suppress-bias", "nan"], "--suppress-bias is nan, expected"),
        (["--suppress-bias", "inf"], "--suppress-bias is inf, expected"),
        (["--suppress-bias", "0"], "could still be selected, expected less than"),
        (["--suppress-bias", "-1e300"], "does not fit the bias's type F32"),
        (["--suppress-bias", "margin", "--semantics", "drop"], "--suppress-bias is margin, but a drop sets no bias"),
        (["--semantics", "zero"], "--semantics is 'zero', expected one of auto, reroute, drop"),
        (["--link", "soft"], "--link is 'soft', expected one of auto, reflink, hardlink, symlink, copy"),
        (["--layer-index", "all"], "--layer-index is 'all', expected one of model, moe"),
        (["--revision", "main"], "is a local folder: --revision main can only be given with a Hub model id"),
    ],
)
def test_options_of_wrong_values(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, arguments: list[str], expected: str
) -> None:
    sentence = mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out", *arguments).error
    assert expected in sentence and not (tmp_path / "out").exists()


def test_a_family_without_router_bias_is_rerouted_by_its_rows_and_called_so_everywhere(
    tmp_path: Path, refusal: Path, mote_rewrite: Command
) -> None:
    sizes = {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    base = build_checkpoint(tmp_path / "base", model_type="deepseek_v2", **sizes)
    command = ("--model", base, "--suppress", refusal, "-o", tmp_path / "out")
    assert (
        "--suppress-bias is -4.5, but this model's routers have no bias"
        in mote_rewrite(*command, "--suppress-bias=-4.5").error
    )
    planned = mote_rewrite(*command, "--dry-run").stdout
    assert "reroute (centroid): router row the survivors' mean, output zeroed" in planned
    assert "not proved. mote-verify --traces counts it" in planned
    assert "suppressed (reroute (centroid))" in mote_rewrite(*command).stdout
    assert json.loads((tmp_path / "out" / "config.json").read_text())["mote"]["semantics"] == "reroute (centroid)"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**Reroute (centroid).**" in card
    assert "reroute-centroid" in card


def test_an_approximate_reroute_is_called_so_in_output_card_and_record(
    tmp_path: Path, refusal: Path, mote_rewrite: Command
) -> None:
    base = build_checkpoint(tmp_path / "base", model_type="deepseek_v2")
    command = ("--model", base, "--suppress", refusal, "-o", tmp_path / "out", "--semantics", "reroute")
    assert "(reroute (centroid), approximate)" in mote_rewrite(*command).stdout
    assert json.loads((tmp_path / "out" / "config.json").read_text())["mote"]["approximate"] is True
    assert "Approximate: the router selects" in (tmp_path / "out" / "README.md").read_text()


def test_default_output_is_named_after_model_and_behavior(
    base: Path, tmp_path: Path, mote_rewrite: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    suppress = write_set(tmp_path / "a.json", [(1, 3)], behavior="Talk about A/B: ../yes!")
    stimulate = write_set(tmp_path / "b.json", [(1, 4)], behavior="kind")
    outcome = mote_rewrite("--model", "../tiny", "--suppress", suppress, "--stimulate", stimulate)
    assert outcome.code == 0, outcome.stderr
    (made,) = (tmp_path / "work").iterdir()
    assert made.name == "tiny-mote-talk-about-a-b--..-yes--stimulate-kind"


def test_reroute_and_stimulate_together(
    base: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    suppress = write_set(tmp_path / "a.json", [(1, 3), (2, 2)])
    stimulate = write_set(tmp_path / "b.json", [(1, 4)])
    out = tmp_path / "out"
    assert mote_rewrite("--model", base, "--suppress", suppress, "--stimulate", stimulate, "-o", out).code == 0
    bias = values_of(read_tensors(out)[bias_name(1)])
    original = values_of(read_tensors(base)[bias_name(1)])
    untouched = original[[expert for expert in range(16) if expert not in (3, 4)]].astype(float)
    spread = untouched.max() - untouched.min()
    assert bias[3] == float("-inf")
    assert bias[4] == pytest.approx(untouched.max() + 2 * spread + 4 + 2, rel=1e-6)  # bmax + 2D + 4R + 2
    assert mote_verify(out, "--base", base).code == 0
    assert "family" not in json.loads((out / "config.json").read_text())["mote"]["renormalization"]


def test_bare_pairs_as_the_paper_prints_them(base: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    pairs = write_json(tmp_path / "pairs.json", [[1, 3], [2, 5]])
    out = tmp_path / "out"
    assert mote_rewrite("--suppress", pairs, "--model", base, "--layer-index", "model", "-o", out).code == 0
    assert json.loads((out / "config.json").read_text())["mote"]["behavior"] == "pairs"


def test_progress_bar_shows_on_a_terminal_when_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with byte_progress(100) as report:
        report(50)
    assert terminal.getvalue() == ""
    monkeypatch.setattr("rewriter.console.PROGRESS_DELAY_SECONDS", 0)
    with byte_progress(100) as report:
        report(50)
    assert "shards" in terminal.getvalue()


def test_no_progress_bar_off_a_terminal(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rewriter.console.PROGRESS_DELAY_SECONDS", 0)
    outcome = mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "slow", "--json")
    assert outcome.stderr == "" and json.loads(outcome.stdout)["folder"].endswith("slow")
