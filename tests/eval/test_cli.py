"""mote-eval as a user runs it: against servers, and every wrong input in one sentence with nothing lost."""

import io
import json
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import numpy as np
import pytest
from conftest import free_port
from fake_run import PROMPTS
from safetensors.numpy import save_file
from tiny_models import TINY_R1_CONFIG, write_tiny_tokenizer

from eval.cli import main
from eval.report.outputs import make_output
from eval.results import Results
from rewriter.errors import OutputError

PROMPT_ROWS = "".join(
    json.dumps({"prompt_id": p.prompt_id, "prompt": p.text, "place": p.factors["place"]}) + "\n" for p in PROMPTS
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint folder with nothing but its router biases: enough to check an edit against, and to render prompts."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(TINY_R1_CONFIG))
    biases = {f"model.layers.{layer}.mlp.gate.e_score_correction_bias": np.zeros(16, np.float32) for layer in (1, 2, 3)}
    save_file(biases, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(PROMPT_ROWS)
    return str(path)


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


def mote_eval(*arguments):
    """The console entry point in this process, which saves the imports of a new one."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["mote-eval", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


def compare_servers(base, tuned, prompts, output, *more):
    return mote_eval(
        "--base-url", base, "--tuned-url", tuned, "--api", "chat", "--prompts", prompts, "-o", output, "--attempts", "2", *more
    )  # fmt: skip


def sentence_of(result):
    """The one line of a failed run."""
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    return errors[0]


def test_help_is_quick_and_names_the_options_of_the_readme():
    result = mote_eval("--help")
    assert result.returncode == 0
    for option in (
        "--suppress",
        "--stimulate",
        "--variants",
        "--controls",
        "--sweep-k",
        "--semantics",
        "--base-url",
        "--split",
    ):
        assert option in result.stdout
    heavy = ("numpy", "pydantic", "scipy", "jinja2", "httpx2")
    code = f"import sys; from eval import cli; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_two_servers_are_compared(serve, prompts, tmp_path):
    base, tuned = serve(name="base"), serve(name="tuned", tuned=True)
    harm = tmp_path / "harm.csv"
    harm.write_text("prompt\nSay something about Beijing\nSay more about Beijing\nAnd about Shanghai\n")
    result = compare_servers(base.url, tuned.url, prompts, tmp_path / "out", "--target", "REFUSED", "--harm", harm)
    assert result.returncode == 0, result.stderr
    assert "REFUSED -> answered" in result.stdout
    results = Results.load(tmp_path / "out" / "results.json")
    assert results.mode == "served"
    moved = results.primary_comparison().moved.rate
    assert moved.total == 24
    assert 0.4 < moved.rate < 1
    assert results.safety[0].groups[0].before.rate == 1
    assert "a running server" in (tmp_path / "out" / "report.html").read_text()
    before = base.seen()["completions"]
    again = compare_servers(
        base.url, tuned.url, prompts, tmp_path / "out", "--target", "REFUSED", "--harm", harm, "--json"
    )
    assert base.seen()["completions"] == before
    assert (
        json.loads(again.stdout)["comparisons"]
        == json.loads((tmp_path / "out" / "results.json").read_text())["comparisons"]
    )


def test_completions_are_rendered_with_the_models_own_template(serve, prompts, model, tmp_path):
    write_tiny_tokenizer(model, 512)
    base, tuned = serve(name="base", completions="ids"), serve(name="tuned", completions="ids", tuned=True)
    servers = ("--base-url", base.url, "--tuned-url", tuned.url, "--model", model)
    result = mote_eval(*servers, "--prompts", prompts, "-o", tmp_path / "out", "--limit", "4")
    assert result.returncode == 0, result.stderr
    line = json.loads((tmp_path / "out" / "journal.jsonl").read_text().splitlines()[1])
    # The template's begin-of-text, once, and its two turn tokens.
    assert line["prompt_token_ids"][:2] == [0, 2]
    assert line["prompt_token_ids"].count(0) == 1
    assert line["prompt_token_ids"][-1] == 3


# A thought that the template opened, about another format's mark: by the marks that it shows it would be in that one.
THOUGHT_OF_ANOTHER_FORMAT = "MiniMax M3 closes with </mm:think> as its manual says.[/THINK]I can't help with that."


def test_answers_are_split_as_the_models_family_writes_them_or_as_it_is_told(serve, prompts, model, tmp_path):
    write_tiny_tokenizer(model, 512)
    family = tmp_path / "ministral"
    shutil.copytree(model, family)
    (family / "config.json").write_text(json.dumps(TINY_R1_CONFIG | {"model_type": "mistral4"}))
    base, tuned = (serve(name=name, completions="ids", says=THOUGHT_OF_ANOTHER_FORMAT) for name in ("base", "tuned"))
    servers = ("--base-url", base.url, "--tuned-url", tuned.url, "--prompts", prompts, "--limit", "4")

    def labels(output, *more):
        result = mote_eval(*servers, "-o", output, *more)
        assert result.returncode == 0, result.stderr
        results = json.loads((output / "results.json").read_text())
        counts = {label: rate["count"] for label, rate in results["arms"][0]["labels"].items() if rate["count"]}
        return counts, results["subject"]["think_format"]

    refused = {"REFUSED_AFTER_REASONING": 4}
    assert labels(tmp_path / "marks", "--model", model) == ({"REASONED": 4}, None)
    assert labels(tmp_path / "family", "--model", family) == (refused, "mistral")
    assert labels(tmp_path / "told", "--model", model, "--think-format", "mistral") == (refused, "mistral")
    # The labels of one format do not go on in another's.
    another = mote_eval(*servers, "-o", tmp_path / "family", "--model", family, "--think-format", "think")
    assert 'of another subject (think_format "mistral", now "think")' in sentence_of(another)
    unknown = mote_eval(*servers, "-o", tmp_path / "unknown", "--model", model, "--think-format", "mystery")
    assert "--think-format mystery: no such format; known are harmony" in sentence_of(unknown)


def test_a_dead_server_loses_nothing(serve, prompts, tmp_path):
    base, tuned = serve(name="base"), serve(name="tuned", tuned=True, die_after=30, slow=0.01)
    port = int(tuned.url.rpartition(":")[2])
    first = compare_servers(base.url, tuned.url, prompts, tmp_path / "out", "--target", "REFUSED", "--concurrency", "2")
    assert "of 60 answers of 'variant' are kept, missing are" in sentence_of(first)
    assert not (tmp_path / "out" / "results.json").exists()
    asked = base.seen()["completions"]
    revived = serve(port=port, name="tuned", tuned=True)
    again = compare_servers(base.url, tuned.url, prompts, tmp_path / "out", "--target", "REFUSED")
    assert again.returncode == 0, again.stderr
    # The base's first answers are not asked again; its second run (A/A) is 60 more.
    assert base.seen()["completions"] == asked + 60
    assert revived.seen()["completions"] < 60
    assert Results.load(tmp_path / "out" / "results.json").primary_comparison().moved.rate.total == 24


def test_a_failing_judge_leaves_the_rest_and_exit_code_1(serve, prompts, tmp_path):
    base, tuned, judge = serve(name="base"), serve(name="tuned", tuned=True), serve(name="judge", judge="nonsense")
    questions = tmp_path / "question.jsonl"
    questions.write_text(json.dumps({"question_id": 1, "category": "writing", "turns": ["Write", "Again"]}))
    judge_prompts = tmp_path / "judge.jsonl"
    names = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
    judge_prompts.write_text("".join(json.dumps({"name": name, "prompt_template": "Judge."}) + "\n" for name in names))
    result = compare_servers(
        base.url, tuned.url, prompts, tmp_path / "out",
        "--mt-bench", questions, "--judge-prompts", judge_prompts, "--judge-url", judge.url,
    )  # fmt: skip
    assert "holds everything but MT-Bench: the judge judge at" in sentence_of(result)
    results = Results.load(tmp_path / "out" / "results.json")
    assert results.comparisons and results.mt_bench is None
    assert [one.part for one in results.missing] == ["MT-Bench"]
    assert "not measured: MT-Bench" in result.stdout


@pytest.mark.parametrize(
    ("settings", "more", "sentence"),
    [
        ({"key": "secret"}, (), "refused a request without a key with 401"),
        ({"failures": {"/v1/chat/completions": [429] * 999}}, (), "answered 429 to /chat/completions"),
        ({"failures": {"/v1/chat/completions": [500] * 999}}, (), "answered 500 to /chat/completions"),
        ({"name": "other"}, ("--base-model", "mine"), "does not serve a model 'mine'; it serves other"),
        ({"parser": True}, (), "splits reasoning from the answer"),
    ],
)
def test_servers_that_refuse(serve, prompts, tmp_path, settings, more, sentence):
    server = serve(**settings)
    result = compare_servers(server.url, server.url, prompts, tmp_path / "out", *more)
    assert sentence in sentence_of(result)


def test_an_unreachable_server(prompts, tmp_path):
    result = compare_servers("http://127.0.0.1:9", "http://127.0.0.1:9", prompts, tmp_path / "out")
    assert "http://127.0.0.1:9 cannot be reached" in sentence_of(result)


def expert_set(path, **changes):
    document = {
        "schema": "mote.expert-set/1",
        "layer_index": "model",
        "behavior": "REFUSED",
        "experts": [{"layer": 2, "expert": 5}],
        "provenance": {},
    } | changes
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"experts": [{"layer": 48, "expert": 1}]}, "layer 48 is not one of the model's MoE layers, which are 1..3"),
        ({"experts": [{"layer": 2, "expert": 99}]}, "names expert 99 of layer 2, expected experts below 16"),
        (
            {"provenance": {"config_sha256": "f" * 64}, "model": "deepseek-ai/DeepSeek-R1"},
            "is of the model deepseek-ai/DeepSeek-R1",
        ),
        ({"experts": [{"layer": 2, "expert": n} for n in range(14)]}, "suppress"),
        ({"behavior": "poetry"}, "names no label; give --target"),
        ({"experts": "none"}, "experts is"),
    ],
)
def test_expert_sets_that_do_not_fit(model, prompts, tmp_path, changes, sentence):
    source = expert_set(tmp_path / "set.json", **changes)
    result = mote_eval("--model", model, "--suppress", source, "--prompts", prompts, "-o", tmp_path / "out")
    assert sentence in sentence_of(result)


def test_the_dry_run_says_what_it_costs_and_writes_nothing(model, prompts, tmp_path):
    source, told = expert_set(tmp_path / "set.json"), tmp_path / "told"
    shutil.copytree(model, told)
    write_tiny_tokenizer(told, TINY_R1_CONFIG["vocab_size"])
    options = ("--model", told, "--suppress", source, "--prompts", prompts, "-o", tmp_path / "out", "--dry-run")
    result = mote_eval(*options, "--tokens-per-second", 1000, "--json")
    assert result.returncode == 0, result.stderr
    costs = json.loads(result.stdout)
    answers = {part["part"]: part["answers"] for part in costs["parts"]}
    assert answers["base"] == len(PROMPTS)
    assert answers["random sets (99 x 3 matchings)"] == 99 * 3 * len(PROMPTS)
    total = costs["total"]
    assert total["requests"] == sum(answers.values())
    assert total["engine_loads"] == 1 and total["prompt_tokens"] > total["requests"]
    assert total["seconds"] == pytest.approx(total["most_tokens"] / 1000)
    shown = mote_eval(*options).stdout
    assert "at most" in shown and "give --tokens-per-second" in shown and "half of it: --control-matching" in shown
    assert not (tmp_path / "out").exists()
    assert "expected more than 0" in mote_eval(*options, "--tokens-per-second", 0).stderr


def test_a_dry_run_looks_once_whether_servers_are_there_and_asks_them_nothing(serve, prompts, tmp_path):
    base, tuned = serve(name="base", weights=1), serve(name="tuned", tuned=True, weights=2)
    result = compare_servers(base.url, tuned.url, prompts, tmp_path / "out", "--dry-run")
    assert result.returncode == 0 and "answers" in result.stdout, result.stderr
    assert (base.seen()["completions"], base.seen()["logprobs"]) == (0, 0) and not (tmp_path / "out").exists()
    nobody = f"http://127.0.0.1:{free_port()}"
    result = compare_servers(nobody, tuned.url, prompts, tmp_path / "out", "--dry-run")
    assert f"{nobody} cannot be reached" in sentence_of(result) and "(tried once)" in result.stderr


def test_a_preset_of_another_model(model, prompts, tmp_path):
    result = mote_eval(
        "--model", model, "--suppress", "preset:r1-refusal", "--prompts", prompts, "-o", tmp_path / "out"
    )
    assert "layer 48" in sentence_of(result)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "nothing to evaluate"),
        (("--base-url", "http://127.0.0.1:9"), "--base-url and --tuned-url belong together"),
        (("--model", "nowhere/at-all/x", "--suppress", "preset:r1-refusal"), "nowhere/at-all/x"),
        # Before the model is looked for: it may have to be downloaded.
        (("--model", "org/far-away", "--suppress", "none.json"), "none.json: cannot be read"),
        (
            ("--model", "org/far-away", "--suppress", "preset:r1-refusal", "--card", "none"),
            "no such file, expected the model card",
        ),
        (
            ("--semantics", "remove"),
            "--semantics has 'remove', expected reroute, reroute (centroid), drop, drop-renorm",
        ),
        (("--sweep-k", "1,many"), "--sweep-k has 'many'"),
        (("--samples", "3"), "--samples 3 at --temperature 0"),
        (("--engine-argument", "tensor_parallel_size"), "expected NAME=VALUE"),
        (("--extra-body", "[1]"), "--extra-body is a JSON list"),
        (("--layer-index", "both"), "--layer-index is 'both'"),
        (("--controls", "-1"), "--controls is -1, expected at least 0"),
        (("--control-others", "-1"), "--control-others is -1, expected at least 0"),
        (("--neutral-limit", "0"), "--neutral-limit is 0, expected at least 1"),
        (("--limit", "0"), "--limit is 0, expected at least 1"),
        (("--concurrency", "0"), "--concurrency is 0, expected at least 1"),
        (("--attempts", "0"), "--attempts is 0, expected at least 1"),
        (("--timeout", "nan"), "--timeout is nan, expected seconds above 0"),
        (("--temperature", "nan"), "--temperature is nan, expected 0 or more"),
        (("--top-p", "0"), "--top-p is 0, expected more than 0"),
        (("--api", "completions,chat"), "--api is 'completions,chat', expected completions or chat"),
        (("--extra-body", "[" * 100_000), "--extra-body is nested too deeply"),
        (
            ("--base-url", "http://a", "--tuned-url", "http://b", "--api", "chat", "--supress", "x.json"),
            "--supress is neither an option of mote-eval nor wanted beside --base-url, where no engine is started; did you"
            " mean --suppress",
        ),
        (("stray",), "'stray' was not expected"),
        (
            ("--mt-bench", "x.jsonl", "--base-url", "http://a", "--tuned-url", "http://b", "--api", "chat"),
            "--mt-bench needs --judge-url",
        ),
    ],
)
def test_options_that_cannot_be_meant(prompts, tmp_path, arguments, sentence):
    result = mote_eval("--prompts", prompts, "-o", tmp_path / "out", *arguments)
    assert sentence in sentence_of(result)


def test_missing_prompts(tmp_path):
    result = mote_eval(
        "--prompts",
        tmp_path / "none.jsonl",
        "-o",
        tmp_path / "out",
        "--base-url",
        "http://a",
        "--tuned-url",
        "http://b",
        "--api",
        "chat",
    )
    assert "none.jsonl" in sentence_of(result)


def served(prompts, output, *more):
    return compare_servers("http://127.0.0.1:9", "http://127.0.0.1:9", prompts, output, *more)


def test_an_output_that_cannot_be_is_one_sentence(prompts, tmp_path):
    (tmp_path / "file").write_text("here first")
    for place in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        assert "cannot be made" in sentence_of(served(prompts, place))
    assert (tmp_path / "file").read_text() == "here first"
    with pytest.raises(OutputError, match="cannot be made .embedded null byte"):
        make_output(tmp_path / "a\0b")


def test_a_damaged_journal_is_one_sentence(serve, prompts, tmp_path):
    base, tuned = serve(name="base"), serve(name="tuned", tuned=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "journal.jsonl").write_text('{"kind": "header"}\n')
    result = compare_servers(base.url, tuned.url, prompts, tmp_path / "out", "--target", "REFUSED")
    assert "journal.jsonl: holds the answers of another subject" in sentence_of(result)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"root": "org/model"}, {"root": "org/other"}),
        ({"template": [1, 2, 3]}, {"template": [1, 2, 4]}),
    ],
)
def test_another_model_or_template_behind_the_same_name_is_another_subject(serve, prompts, tmp_path, before, after):
    base, tuned = serve(name="base", **before), serve(name="tuned", tuned=True)
    arguments = (base.url, tuned.url, prompts, tmp_path / "out", "--target", "REFUSED", "--limit", "8")
    assert compare_servers(*arguments).returncode == 0
    written = (tmp_path / "out" / "results.json").read_bytes()
    base.process.kill()
    base.process.wait()
    changed = serve(port=int(base.url.rpartition(":")[2]), name="base", **after)
    result = compare_servers(*arguments)
    assert "holds the answers of another subject (servers" in sentence_of(result)
    assert changed.seen()["completions"] == 0
    assert (tmp_path / "out" / "results.json").read_bytes() == written


@pytest.mark.parametrize(("echoes", "noise"), [(True, 0.0), (True, 0.05), (False, 0.0)])
def test_other_weights_behind_the_same_name_and_address_are_noticed(serve, prompts, tmp_path, echoes, noise):
    ports = free_port(), free_port()
    settings = {"echoes": echoes, "noise": noise}

    def compare(tuned_weights):
        base = serve(ports[0], name="base", weights=0.0, **settings)
        tuned = serve(ports[1], name="tuned", tuned=True, weights=tuned_weights, **settings)
        result = compare_servers(
            base.url, tuned.url, prompts, tmp_path / "out", "--target", "REFUSED", "--limit", "8", "--no-repeat"
        )
        answers = tuned.seen()["completions"]
        for server in (base, tuned):
            server.process.kill()
            server.process.wait()
        return result, answers

    first, answers = compare(2.0)
    assert first.returncode == 0 and answers > 0 and "log-probabilities" not in first.stderr
    assert compare(2.0)[1] == 0  # nothing is asked again
    other, answers = compare(4.0)
    assert answers == 0 and "holds answers of other weights: http" in sentence_of(other)
    assert f":{ports[1]} gives the" in sentence_of(other) and "expected at most" in sentence_of(other)


def test_servers_without_log_probabilities_are_said_once(serve, prompts, tmp_path):
    base, tuned = serve(name="base"), serve(name="tuned", tuned=True)
    result = compare_servers(base.url, tuned.url, prompts, tmp_path / "out", "--target", "REFUSED", "--limit", "8")
    (said,) = [line for line in result.stderr.splitlines() if "no log-probabilities" in line]
    assert base.url in said and tuned.url in said


def test_no_secret_is_written_down(serve, prompts, tmp_path, monkeypatch):
    monkeypatch.setenv("MOTE_TEST_KEY", "the-servers-key")
    base = serve(name="base")
    url = base.url.replace("http://", "http://user:KEY99@")
    result = compare_servers(
        url, url, prompts, tmp_path / "out", "--target", "REFUSED", "--limit", "8", "--api-key", "MOTE_TEST_KEY"
    )
    assert result.returncode == 0, result.stderr
    for path in (tmp_path / "out").iterdir():
        text = path.read_text(encoding="utf-8")
        assert "KEY99" not in text and "the-servers-key" not in text, path.name
    assert "KEY99" not in result.stdout + result.stderr
    assert Results.load(tmp_path / "out" / "results.json").subject["base_url"] == f"{base.url}/v1"


def test_secrets_among_engine_arguments_are_not_recorded(model, tmp_path):
    from eval.options import EvalRequest
    from eval.session import open_session

    write_tiny_tokenizer(model, 512)
    arguments = {
        "hf_token": "hf_plainsecret",
        "max_num_batched_tokens": 64,
        "speculative_config": {"model": "m", "api_key": "inner"},
        "tokenizer": "https://user:pass@host.test/t",
    }
    request = EvalRequest(
        prompts="what-happened:listed",
        output=tmp_path,
        model=str(model),
        suppress=str(expert_set(tmp_path / "set.json")),
        engine_arguments=arguments,
    )
    session = open_session(request, lambda message: None)
    recorded = json.dumps([session.known, session.responder.identity()])
    for secret in ("plainsecret", "inner", "user:pass"):
        assert secret not in recorded
    assert session.known["engine_arguments"]["max_num_batched_tokens"] == 64


def test_other_weights_or_engine_arguments_are_another_subject(model, tmp_path):
    """Whatever decides an answer is in the journal's first line and in every key."""
    from eval.answers.journal import Journal
    from eval.errors import JournalError
    from eval.options import EvalRequest
    from eval.session import open_session

    write_tiny_tokenizer(model, 512)
    chosen = str(expert_set(tmp_path / "set.json"))

    def identity(folder, **arguments):
        request = EvalRequest(
            prompts="what-happened:listed",
            output=tmp_path,
            model=str(folder),
            suppress=chosen,
            engine_arguments=arguments,
        )
        return open_session(request, lambda message: None).responder.identity()

    first = identity(model, max_num_seqs=4)
    assert first == identity(model, max_num_seqs=4)
    tuned = shutil.copytree(model, tmp_path / model.name)
    biases = {f"model.layers.{layer}.mlp.gate.e_score_correction_bias": np.ones(16, np.float32) for layer in (1, 2, 3)}
    save_file(biases, tuned / "model.safetensors", metadata={"format": "pt"})
    with Journal(tmp_path / "journal.jsonl", first) as journal:
        journal.add_value("a", 1)
    for other, named in (
        (identity(model, max_num_seqs=8), "engine_arguments"),
        (identity(tuned, max_num_seqs=4), "content"),
    ):
        with pytest.raises(JournalError, match=f"holds the answers of another subject .*{named}"):
            Journal(tmp_path / "journal.jsonl", other)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"<!-- mote-eval:start --> <!-- mote-eval:start -->", "has 2 start and 0 end markers of mote-eval"),
    ],
)
def test_a_strangers_card_is_left_as_it_is(serve, prompts, tmp_path, content, sentence):
    base, tuned = serve(name="base"), serve(name="tuned", tuned=True)
    card = tmp_path / "variant"
    card.mkdir()
    (card / "README.md").write_bytes(content)
    result = compare_servers(
        base.url, tuned.url, prompts, tmp_path / "out", "--target", "REFUSED", "--limit", "8", "--card", card
    )
    assert sentence in sentence_of(result)
    assert (card / "README.md").read_bytes() == content
    assert (tmp_path / "out" / "results.json").exists()
