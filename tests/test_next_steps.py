"""What stops a user says what to run or give next: representative mistakes of each command, each one sentence."""

import json
from pathlib import Path

import pytest
from made_traces import MANIFEST, make_record
from running import run_main

import eval.cli
import ftri.cli.find
import ftri.cli.record
import ftri.cli.rewrite
import ftri.cli.verify
import rewriter.cli.push
from ftri.traces.writer import TraceWriter
from rewriter.errors import InputError, OutputError
from rewriter.variant.output_folder import OutputFolder

MINIATURE = Path(__file__).resolve().parent.parent / "examples" / "tiny-r1"
REFUSAL = MINIATURE / "refusal.json"
PROMPTS = ("--prompts", "what-happened:listed")
COMMANDS = {
    "mote-eval": eval.cli.main,
    "mote-ftri": ftri.cli.find.main,
    "mote-push": rewriter.cli.push.main,
    "mote-record": ftri.cli.record.main,
    "mote-rewrite": ftri.cli.rewrite.main,
    "mote-verify": ftri.cli.verify.main,
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the mistakes need: an empty folder, a dense model, traces with and without responses."""
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("dense").mkdir()
    Path("dense/config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 2}))
    Path("partial").mkdir()
    Path("partial/config.json").write_text((MINIATURE / "config.json").read_text())
    Path("partial/model.safetensors.index.json").write_text((MINIATURE / "model.safetensors.index.json").read_text())
    Path("moved.json").write_text(json.dumps(json.loads(REFUSAL.read_text()) | {"model": "elsewhere"}))
    with TraceWriter(Path("traces"), MANIFEST) as writer:
        writer.append(make_record(1))
    with TraceWriter(Path("begun"), MANIFEST):
        pass
    return tmp_path


@pytest.mark.parametrize(
    ("words", "next_step"),
    [
        # No experts, no such set, too few of them, those of another model.
        ("mote-rewrite", "give --suppress FILE, --stimulate FILE or both"),
        ("mote-rewrite --suppress none.json", "mote-ftri TRACES --behavior CLASS -o FILE writes one"),
        (f"mote-rewrite --suppress {REFUSAL} --model {MINIATURE} --top 50", "or find more with mote-ftri -k 50"),
        (f"mote-rewrite --suppress preset:r1-refusal --model {MINIATURE}", "set is of deepseek-ai/DeepSeek-R1, give --model"),
        ("mote-rewrite --suppress moved.json", "model folder 'elsewhere', which does not lie beside the set; give --model"),
        # No base, half of one, not a MoE.
        (f"mote-rewrite --suppress {REFUSAL} --model empty", "expected a model folder with it"),
        (f"mote-rewrite --suppress {REFUSAL} --model partial", "fetch the file anew, as hf download does"),
        (f"mote-eval --suppress {REFUSAL} --model dense {' '.join(PROMPTS)} -o r --dry-run", "if the model is one, append"),
        # The output is there.
        (f"mote-rewrite --suppress {REFUSAL} --model {MINIATURE} -o traces", "choose another -o, or give --overwrite"),
        # No variant.
        (f"mote-verify {MINIATURE}", "mote-rewrite -o FOLDER makes one"),
        ("mote-push empty me/repo", "mote-rewrite -o FOLDER makes one"),
        # No traces, no responses, no labels, too few of a class.
        ("mote-ftri --behavior refused", "mote-record writes them"),
        ("mote-ftri empty --behavior refused", "mote-record writes one"),
        ("mote-ftri begun --behavior refused", "mote-record with the same -o goes on"),
        ("mote-ftri traces --behavior refused", "record other --prompts or more --samples, or give your own --labels FILE"),
        # Traces with other settings, a folder of something else.
        (f"mote-record --model {MINIATURE} {' '.join(PROMPTS)} -o dense", "choose another -o"),
        # No server, half of a pair, no judge, no experts.
        (f"mote-record --base-url http://127.0.0.1:9 --attempts 1 --model {MINIATURE} {' '.join(PROMPTS)} -o t", "vllm serve"),
        (f"mote-eval --base-url http://127.0.0.1:9 {' '.join(PROMPTS)} -o r", "give the variant's server too"),
        (f"mote-eval --model {MINIATURE} {' '.join(PROMPTS)} -o r", "--split to find them"),
        (
            f"mote-eval --model {MINIATURE} --suppress {REFUSAL} {' '.join(PROMPTS)} -o r --mt-bench q.jsonl",
            "needs --judge-url and --judge-prompts FILE",
        ),
    ],
)  # fmt: skip
def test_a_mistake_ends_in_what_to_do_next(place, words, next_step):
    name, *arguments = words.split()
    ended = run_main(COMMANDS[name], name, *arguments)
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.returncode == 1 and ended.stdout == ""
    assert len(errors) == 1 and next_step in errors[0] and len(errors[0]) <= 407, ended.stderr


def test_other_settings_are_named_by_what_they_are_before_their_hashes(tmp_path):
    with TraceWriter(tmp_path / "t", MANIFEST | {"prompts": {"spec": "a", "records_sha256": "0"}}):
        pass
    with pytest.raises(
        InputError, match=r"prompts.spec is \"a\" there, \"b\" now; prompts.records_sha256 is .*give those"
    ):
        TraceWriter(tmp_path / "t", MANIFEST | {"prompts": {"spec": "b", "records_sha256": "1"}})


def test_a_partial_output_of_another_run_is_left_alone(tmp_path):
    with (
        OutputFolder(tmp_path / "out", MINIATURE),
        pytest.raises(OutputError, match=r"another run is writing it now .*wait for it, or choose another -o"),
        OutputFolder(tmp_path / "out", MINIATURE),
    ):
        pass
