"""Foreign text on every command's way out: each line is escaped and of bounded length, and a failure is one line.

A command is tried with hostile words on its command line, all found by themselves, and with the files that it reads, which are
its rows here; one without rows fails.
"""

import importlib
import json
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import typer
from checkpoints import INDEX, build_checkpoint, write_set
from synthetic import Plan, manifest, records
from tiny_models import write_tiny_tokenizer

from eval.measures.transitions import compare
from eval.outcomes.held_out import HeldOut
from eval.outcomes.observed import ArmSummary, shares
from eval.outcomes.statistics import wilson
from eval.outcomes.targets import BEHAVIORS, LANGUAGES, Target
from eval.results import Results
from ftri.traces.writer import write_traces
from rewriter.checkpoint.reader import Checkpoint
from rewriter.console import NUM_LETTERS_OF_A_LINE
from rewriter.edit.plan import EditOptions, make_plan
from rewriter.edit.record import Recipe
from rewriter.errors import NUM_LETTERS_OF_A_MESSAGE
from rewriter.expert_set import ExpertEntry, ExpertSet

SCRIPTS: dict[str, str] = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
    "scripts"
]
# Colours, a C1 control, marks of direction, and a byte that is no UTF-8, as Python has it in arguments.
STEERING = "\x1b[31mred\x9b0m\u202e\u2066\udcff"
# A line that looks like the program's own, and a screen full of letters.
HOSTILE = f"{STEERING}\r\nerror: all is well\n{'B' * 20_000}"
# As text in a file may hold it.
WRITTEN = HOSTILE.replace("\udcff", "")
SEE_HELP = 60


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """A command's console entry in this process, away from the Hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(script: str, *words: object) -> Ran:
        module, function = SCRIPTS[script].split(":")
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            getattr(importlib.import_module(module), function)()
        code = end.value.code
        assert isinstance(code, int | None)
        return Ran(code or 0, *capsys.readouterr())

    return run


def check_lines(ran: Ran) -> None:
    """Every line is escaped and of bounded length."""
    for line in (ran.stdout + ran.stderr).split("\n"):
        assert line.isprintable(), line[:300]
        assert len(line) <= NUM_LETTERS_OF_A_LINE
    assert "\nerror: all is well" not in ran.stdout + ran.stderr


def check_failure(ran: Ran) -> None:
    """One sentence."""
    check_lines(ran)
    assert ran.code in (1, 2) and ran.stdout == "", ran
    assert ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1, ran.stderr
    assert len(ran.stderr) <= len("error: ") + NUM_LETTERS_OF_A_MESSAGE + SEE_HELP


def commands() -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Every command: its script, the words that choose it there, and what typer made of it."""
    for script, entry in SCRIPTS.items():
        made: Any = typer.main.get_command(importlib.import_module(entry.split(":")[0]).app)
        own = getattr(made, "commands", None)
        if own is None:
            yield script, (), made
        else:
            yield from ((script, (name,), command) for name, command in own.items())


COMMANDS = list(commands())
IDS = [" ".join((script, *words)) for script, words, _ in COMMANDS]


@pytest.mark.parametrize(("script", "chosen", "command"), COMMANDS, ids=IDS)
def test_words_of_the_command_line(
    script: str, chosen: tuple[str, ...], command: Any, run_command: Callable[..., Ran], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    tried = [(HOSTILE,), (HOSTILE, HOSTILE)]
    if not command.context_settings.get("ignore_unknown_options"):  # else vLLM is asked, see ftri's tests of arguments
        tried.append((f"--{HOSTILE}",))
    for parameter in command.params:
        if parameter.param_type_name == "option" and not parameter.is_flag:
            tried += [(parameter.opts[-1], HOSTILE), (parameter.opts[-1], STEERING)]
        elif parameter.param_type_name == "option":
            tried.append((f"{parameter.opts[-1]}={HOSTILE}",))
    for words in tried:
        check_failure(run_command(script, *chosen, *words))
    assert list(tmp_path.iterdir()) == []


class World:
    """Files that strangers wrote, each hostile in one place, beside those that are in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = build_checkpoint(folder / "base", num_shards=1, hidden=2, num_hidden_layers=2)
        self.set = write_set(folder / "set.json", [(1, 3), (1, 8)])
        self.plan = Plan(num_layers=2, num_experts=16, top_k=2, times=("1980", "1981"), behavior_experts=((0, 3),))
        write_traces(folder / "traces", manifest(self.plan), records(self.plan))
        self.traces = folder / "traces"
        self.prompts = self.write("prompts.jsonl", {"prompt_id": "a", "prompt": "Why?"})

    def write(self, name: str, *documents: Any) -> Path:
        """A JSON file, or one of JSON lines."""
        path = self.folder / name
        path.write_text("\n".join(json.dumps(document) for document in documents))
        return path

    def edited(self, source: Path, name: str, file: str, change: Callable[[Any], Any]) -> Path:
        """A copy of a folder with one of its JSON files changed."""
        copy = Path(shutil.copytree(source, self.folder / name))
        document = json.loads((copy / file).read_text())
        (copy / file).write_text(json.dumps(change(document)))
        return copy

    def with_config(self, name: str, **changes: Any) -> Path:
        """The base with other values in config.json."""
        return self.edited(self.base, name, "config.json", lambda config: config | changes)

    def toml(self, name: str, text: str) -> Path:
        """A file for --config."""
        path = self.folder / name
        path.write_text(text)
        return path

    def record(self, behavior: str = "x") -> Any:
        """The record of an edit of the base."""
        chosen = ExpertSet(layer_index="model", behavior=behavior, experts=[ExpertEntry(layer=1, expert=3)])
        return make_plan(Checkpoint.open(self.base), chosen, None, EditOptions()).record


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def of_models(world: World) -> Iterator[Path]:
    """Models whose description is hostile."""
    yield world.with_config("type", model_type=WRITTEN)
    yield world.with_config("number", n_routed_experts=WRITTEN)
    yield world.with_config("key", **{WRITTEN: {"model_type": "deepseek_v3"}, "model_type": "other"})


def of_requests(world: World) -> Iterator[tuple[object, ...]]:
    """What mote-eval, mote-refine and mote-tune read alike."""
    for model in of_models(world):
        yield "--model", model, "--prompts", world.prompts, "-o", world.folder / "none"
    for number, text in enumerate((f"{json.dumps(WRITTEN)} = 1", f"model = [{json.dumps(WRITTEN)}]", WRITTEN)):
        yield "--config", world.toml(f"{number}.toml", text)
    columns = world.write("columns.jsonl", {WRITTEN: "a"})
    yield "--model", world.base, "--prompts", columns, "-o", world.folder / "none"


def of_variants(world: World) -> Iterator[Path]:
    """Variants whose record is hostile."""
    block = world.record().to_block()
    yield world.with_config("block", mote=WRITTEN)
    yield world.with_config("schema", mote=block | {"schema": WRITTEN})
    yield world.with_config("semantics", mote=block | {"semantics": WRITTEN})
    yield world.with_config("tensor", mote=block | {"tensors": [block["tensors"][0] | {WRITTEN: 1, "start": WRITTEN}]})


def of_rewrite(world: World) -> Iterator[tuple[object, ...]]:
    for model in of_models(world):
        yield "--suppress", world.set, "--model", model
    index = {"weight_map": {WRITTEN: WRITTEN}}
    indexed = world.edited(world.base, "index", "config.json", lambda config: config)
    (indexed / INDEX).write_text(json.dumps(index))
    yield "--suppress", world.set, "--model", indexed
    sets: tuple[Any, ...] = (
        {"schema": WRITTEN}, {WRITTEN: 1}, [[1, WRITTEN]],
        json.loads(world.set.read_text()) | {"model": WRITTEN}, json.loads(world.set.read_text()) | {"behavior": [WRITTEN]},
    )  # fmt: skip
    for number, document in enumerate(sets):
        given = world.write(f"set-{number}.json", document)
        yield "--suppress", given
        yield "--model", world.base, "--layer-index", "model", "--dial", f"a={given}" if number != 3 else f"a={WRITTEN}"
    recipe = json.loads(Recipe.of(world.record()).to_json())
    for number, changes in enumerate(({"schema": WRITTEN}, {"semantics": WRITTEN}, {"base_model": WRITTEN})):
        yield "--recipe", world.write(f"recipe-{number}.json", recipe | changes)
    named = world.record(behavior=WRITTEN)
    assert named.behavior == WRITTEN
    yield "--recipe", world.write("named.json", json.loads(Recipe.of(named).to_json())), "--model", world.base


def of_verify(world: World) -> Iterator[tuple[object, ...]]:
    for variant in of_variants(world):
        yield variant, "--base", world.base
    yield (world.with_config("folder", mote=world.record().to_block() | {"base_folder": WRITTEN}),)


def of_push(world: World) -> Iterator[tuple[object, ...]]:
    for variant in of_variants(world):
        yield variant, "me/it", "--yes"
    carded = world.with_config("carded", mote=world.record().to_block())
    (carded / "README.md").write_text(f"---\n{WRITTEN}: [\n---\n")
    yield carded, "me/it", "--yes"
    yield carded, "me/it", "--yes", "--recipe"


def of_record(world: World) -> Iterator[tuple[object, ...]]:
    yield from of_requests(world)
    write_tiny_tokenizer(world.base, 512)
    template = world.folder / "template.jinja"
    template.write_text("{{ raise_exception(" + json.dumps(WRITTEN) + ") }}")
    yield (
        "--model", world.base, "--prompts", world.prompts, "-o", world.folder / "none", "--chat-template", template
    )  # fmt: skip


def of_traces(world: World, name: str) -> Iterator[Path]:
    """Trace folders whose manifest or index is hostile."""
    for number, changes in enumerate(({"schema": WRITTEN}, {"num_experts": WRITTEN}, {"weights": WRITTEN})):
        yield world.edited(world.traces, f"{name}-{number}", "manifest.json", lambda found, of=changes: found | of)
    indexed = Path(shutil.copytree(world.traces, world.folder / f"{name}-index"))
    first = json.loads((indexed / "index.jsonl").read_text().partition("\n")[0])
    (indexed / "index.jsonl").write_text(json.dumps(first | {"prompt_id": WRITTEN, "rows": WRITTEN, WRITTEN: 1}) + "\n")
    yield indexed


def of_find(world: World) -> Iterator[tuple[object, ...]]:
    for traces in of_traces(world, "find"):
        yield traces, "--behavior", "refused"
    named = world.edited(world.traces, "model", "manifest.json", lambda found: found | {"config_sha256": WRITTEN})
    other = world.write(
        "other.json", json.loads(world.set.read_text()) | {"provenance": {"config_sha256": WRITTEN * 2}}
    )
    yield named, "--behavior", "refused", "--compare", other
    for number, document in enumerate(
        ({WRITTEN: 1}, {"prompt_id": WRITTEN, "label": "x"}, {"prompt_id": "a", "label": 1})
    ):
        yield world.traces, "--behavior", "x", "--labels", world.write(f"labels-{number}.jsonl", document)
    labels = [
        {"prompt_id": f"{time}/{place}", "label": WRITTEN} for time in world.plan.times for place in world.plan.places
    ]
    yield world.traces, "--behavior", "x", "--labels", world.write("alike.jsonl", *labels)


def of_merge(world: World) -> Iterator[tuple[object, ...]]:
    for traces in of_traces(world, "merge"):
        yield traces, world.traces, "-o", world.folder / "none"
    other = world.edited(world.traces, "other", "manifest.json", lambda found: found | {"config_sha256": WRITTEN})
    yield other, world.traces, "-o", world.folder / "none"


def of_import(world: World) -> Iterator[tuple[object, ...]]:
    for model in of_models(world):
        yield world.write("answers.jsonl", {WRITTEN: WRITTEN}), "--model", model, "-o", world.folder / "none"
    yield world.folder / "answers.jsonl", "--model", world.base, "-o", world.folder / "none"


def of_label(world: World) -> Iterator[tuple[object, ...]]:
    for number, document in enumerate(
        ({WRITTEN: 1}, WRITTEN, {"prompt": "", "text": [WRITTEN], "finish_reason": "stop"},
         {"prompt": "", "text": "", "finish_reason": "stop", "reasoning": [WRITTEN]})
    ):  # fmt: skip
        yield (world.write(f"responses-{number}.jsonl", document),)


def results_of(
    change: Callable[[dict[str, Any]], Any] = lambda document: None, named: str = "variant"
) -> dict[str, Any]:
    """The results of a small evaluation, changed; `named` is the variant."""
    before, after = ["REFUSED", "ALIGNED"] * 4, ["ALIGNED", "ALIGNED"] * 4
    edits = {"suppress": [(1, 3)], "stimulate": [], "checkpoint": None}
    outcomes = {"num_answers": 8, "looping": wilson(0, 8), "garbled": wilson(0, 8), "canned": wilson(0, 8)}
    arms = [
        ArmSummary(
            name=name,
            kind=kind,
            semantics=semantics,
            labels=shares(labels, BEHAVIORS),
            languages=shares(["none"] * 8, LANGUAGES),
            mean_answer_characters=1.0,
            **edits,
            **outcomes,
        )
        for name, kind, semantics, labels in (("base", "base", None, before), (named, "variant", "reroute", after))
    ]
    target = Target("behavior", "REFUSED", "leave")
    document = Results(
        schema="mote.results/1",
        tool_version="1",
        created="now",
        mode="live",
        subject={"model": "m"},
        behavior="REFUSED",
        target={"axis": target.axis, "label": target.label, "direction": target.direction, "change": target.describe()},
        primary=named,
        options={"temperature": 0.0},
        prompts={"spec": "s", "num_prompts": 8},
        held_out=HeldOut(status="unknown", num_prompts=8, sentence="."),
        clusters="prompt",
        arms=arms,
        comparisons=[compare(target, "base", named, before, after, [str(number) for number in range(8)])],
        examples=[],
        paper=[],
        warnings=[],
        missing=[],
        transcripts={},
    ).model_dump(mode="json", by_alias=True)
    change(document)
    return document


def of_ask(world: World) -> Iterator[tuple[object, ...]]:
    for model in of_models(world):
        yield "--model", model, "--suppress", world.set
    for number, text in enumerate((f"{json.dumps(WRITTEN)} = 1", f"model = [{json.dumps(WRITTEN)}]", WRITTEN)):
        yield "--config", world.toml(f"ask-{number}.toml", text)
    given = world.write("asked.json", json.loads(world.set.read_text()) | {"behavior": [WRITTEN]})
    yield "--model", world.base, "--suppress", given


def of_compare(world: World) -> Iterator[tuple[object, ...]]:
    output = world.folder / "none"
    changes: tuple[Callable[[dict[str, Any]], Any], ...] = (
        lambda document: document.update(schema=WRITTEN),
        lambda document: document.update(primary=WRITTEN),
        lambda document: document["target"].update(label=WRITTEN),
        lambda document: document["comparisons"][0].update(after=WRITTEN),
        lambda document: document.update(arms=[{WRITTEN: WRITTEN}]),
    )
    for number, change in enumerate(changes):
        yield world.write(f"results-{number}.json", results_of(change)), "-o", output
    whole = world.write("whole.json", results_of())
    others: tuple[Callable[[dict[str, Any]], Any], ...] = (
        lambda document: document["subject"].update(model=WRITTEN),
        lambda document: document["prompts"].update(spec=WRITTEN),
        lambda document: document["target"].update({WRITTEN: "x"}),
        lambda document: document.update(tool_version=WRITTEN),
    )
    for number, change in enumerate(others):
        yield whole, world.write(f"other-{number}.json", results_of(change)), "-o", output
    yield world.write("text.json", WRITTEN), "-o", output


# A command's files. One that reads none of a stranger's would have an empty row, and say why.
FILES: dict[str, Callable[[World], Iterator[tuple[object, ...]]]] = {
    "mote-rewrite": of_rewrite,
    "mote-verify": of_verify,
    "mote-push": of_push,
    "mote-record": of_record,
    "mote-ftri find": of_find,
    "mote-ftri merge": of_merge,
    "mote-ftri import": of_import,
    "mote-label": of_label,
    "mote-eval evaluate": of_requests,
    "mote-eval ask": of_ask,
    "mote-eval compare": of_compare,
    "mote-refine": of_requests,
    "mote-tune": of_requests,
}


def test_every_command_has_its_files() -> None:
    assert set(FILES) == set(IDS), "a new command needs a row of the files that it reads"


@pytest.mark.parametrize("name", FILES)
def test_what_files_hold(
    name: str, run_command: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script, *chosen = name.split()
    world = World(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    for words in FILES[name](world):
        check_failure(run_command(script, *chosen, *words))
    assert before <= {path.name for path in tmp_path.iterdir()}


def of_holes(world: World) -> Iterator[tuple[Path, tuple[object, ...]]]:
    """A file, and a command that reads it."""
    base, none = world.base, world.folder / "none"
    variant = world.with_config("variant", mote=world.record().to_block())
    rewriting = ("mote-rewrite", "--suppress", world.set, "--model", base, "-o", none)
    for name in ("config.json", INDEX, "README.md"):
        yield base / name, rewriting
    yield world.set, rewriting
    recipe = world.folder / "recipe.json"
    yield recipe, ("mote-rewrite", "--recipe", recipe, "--model", base)
    yield variant / "config.json", ("mote-verify", variant, "--base", base)
    yield variant / "README.md", ("mote-push", variant, "me/it", "--yes")
    find = ("mote-ftri", world.traces, "--behavior", "refused")
    yield world.traces / "manifest.json", find
    yield world.traces / "index.jsonl", find
    for suffix in ("jsonl", "csv", "parquet"):
        labels = world.folder / f"labels.{suffix}"
        yield labels, (*find, "--labels", labels)
    responses, options, template = (world.folder / name for name in ("responses.jsonl", "options.toml", "t.jinja"))
    yield responses, ("mote-label", responses)
    for script in ("mote-eval", "mote-refine", "mote-record", "mote-tune"):
        yield options, (script, "--config", options)
    recording = ("mote-record", "--model", base, "-o", none)
    yield template, (*recording, "--prompts", world.prompts, "--chat-template", template)
    yield world.prompts, (*recording, "--prompts", world.prompts)


def test_files_of_holes_are_not_read_whole(
    run_command: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three gigabytes that take no place on the disk: each is refused by its size, or by a line without an end."""
    monkeypatch.chdir(tmp_path)
    world = World(tmp_path)
    for path, command in of_holes(world):
        before = path.read_bytes() if path.exists() else None
        with path.open("wb") as opened:
            opened.truncate(3 << 30)
        ran = run_command(*command)
        check_failure(ran)
        assert "bytes, expected" in ran.stderr, (path.name, command, ran.stderr)
        path.unlink()
        if before is not None:
            path.write_bytes(before)


def test_results_name_what_is_hostile_and_steer_nothing(
    run_command: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names are anybody's to choose: what a command says of its own success is held to the same."""
    monkeypatch.chdir(tmp_path)
    world = World(tmp_path)
    hostile = world.write(
        "hostile.json", json.loads(world.set.read_text()) | {"behavior": WRITTEN, "provenance": {"a": WRITTEN}}
    )
    (world.base / "notes.py").write_text("left out")
    (world.base / f"{STEERING[:-1]}.py").write_text("left out")
    commands: list[tuple[object, ...]] = []
    for more in ((), ("--json",)):
        out = tmp_path / f"out{len(more)}"
        commands += [
            ("mote-rewrite", "--suppress", hostile, "--model", world.base, "-o", out, "--dry-run", *more),
            ("mote-rewrite", "--suppress", hostile, "--model", world.base, "-o", out, *more),
            ("mote-verify", out, "--base", world.base, *more),
        ]
    plan = replace(world.plan, places=("in Beijing", WRITTEN, "in Paris"))
    write_traces(tmp_path / "named", manifest(plan, model=WRITTEN), records(plan))
    labels = [{"prompt_id": f"{time}/{place}", "label": place[3:4]} for time in plan.times for place in plan.places]
    found = ("mote-ftri", tmp_path / "named", "--behavior", "B", "--labels", world.write("labelled.jsonl", *labels))
    quick = ("--permutations", 99, "--bootstraps", 10)
    commands += [(*found, *quick), (*found, *quick, "-o", tmp_path / "found.json")]
    response = {"prompt": WRITTEN[:100], "text": f"{WRITTEN[:100]}. No.", "finish_reason": "stop", WRITTEN[:60]: 1}
    commands.append(("mote-label", world.write("responses.jsonl", response)))
    evaluated = world.write("evaluated.json", results_of(named=WRITTEN[:200]))
    commands += [("mote-eval", "compare", evaluated, "-o", tmp_path / "compared", *more) for more in ((), ("--json",))]
    for command in commands:
        ran = run_command(*command)
        assert ran.code == 0, (command, ran.stderr)
        is_data = "--json" in command or command[0] == "mote-label" or command[-1] == 10
        for line in (*ran.stderr.split("\n"), *ran.stdout.split("\n")):
            assert line.isprintable(), (command, line[:300])
        if is_data:
            # Data is what it was, in other escapes; mote-verify has no place for a behaviour's name.
            assert (json.dumps(STEERING[:-1])[1:-1] in json.dumps(json.loads(ran.stdout))) == (
                command[0] != "mote-verify"
            )
        else:
            check_lines(ran)
