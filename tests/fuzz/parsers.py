"""Every parser of a file that somebody else may have written: a small valid input, and how the program reads it."""

import json
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz.corpus import with_header_length

for place in ("rewriter", "ftri"):  # the helpers of their tests build the valid inputs
    sys.path.append(str(Path(__file__).parents[1] / place))

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Parser:
    """One parser: the folder that it reads from, the file of it that is mutated, and the call."""

    name: str
    seed: Callable[[Path], None]  # writes a valid folder
    target: str
    parse: Callable[[Path], object]  # is given the folder
    repair: Callable[[random.Random, bytes], bytes] | None = None  # keeps a mutation from dying at the first byte
    attacks: str = ""  # the folder of ../shared/attacks with inputs that once failed
    unpack: Callable[[bytes], dict[str, bytes]] | None = None  # such an input as files; else it is the target


def base(folder: Path) -> None:
    """A small checkpoint."""
    import shutil

    from checkpoints import build_checkpoint

    built = build_checkpoint(folder / "built", num_shards=1, hidden=2, num_hidden_layers=2)
    for path in built.iterdir():
        path.rename(folder / path.name)
    shutil.rmtree(built)


def variant(folder: Path) -> None:
    """A small checkpoint whose config.json carries the record of an edit."""
    base(folder)
    (folder / "config.json").write_text(json.dumps(_plan(folder).config))


def recipe(folder: Path) -> None:
    from rewriter.edit.record import Recipe

    base(folder)
    (folder / "recipe.json").write_text(Recipe.of(_plan(folder).record).to_json())


def expert_set(folder: Path) -> None:
    from checkpoints import write_set

    write_set(folder / "set.json", [(1, 3), (1, 8)], model="org/model", provenance={"layer_convention": "model"})


def gguf(folder: Path) -> None:
    from gguf_files import write_model

    write_model(folder / "tiny.gguf")


def base_card(folder: Path) -> None:
    base(folder)
    (folder / "README.md").write_text(
        "---\nlicense: mit\ntags: [a, b]\nlanguage:\n- en\nbase_model: org/base\nextra_gated_fields: {Name: text}\n---\n\n"
        "# Title\n\nText.\n"
    )


def variant_card(folder: Path) -> None:
    """A variant with its card, as a stranger may have edited it."""
    from rewriter.checkpoint.reader import Checkpoint
    from rewriter.variant.card import variant_card as write

    variant(folder)
    (folder / "README.md").write_text(write(_plan(folder), Checkpoint.open(folder), folder))


def traces(folder: Path) -> None:
    from synthetic import Plan, manifest, records

    from ftri.traces.writer import TraceWriter

    plan = Plan(
        num_layers=2, num_experts=16, top_k=2, times=("1980",), places=("in Paris", "in Beijing"), behavior_experts=((0, 3),)
    )  # fmt: skip
    with TraceWriter(folder / "traces", manifest(plan), chunk_size_bytes=1) as writer:  # a chunk a response
        for record in records(plan):
            writer.append(record)


def rows(name: str) -> Callable[[Path], None]:
    """A table of prompts that also has what the labels' and the responses' readers want."""
    lines = [
        {"prompt_id": f"p{number}", "prompt": f"Question {number}?", "sample": 0, "text": "<think>\nno\n</think>\nNo.",
         "label": "REFUSED", "finish_reason": "stop", "reasoning_content": None, "factors": {"place": "x"}}
        for number in range(3)
    ]  # fmt: skip

    def write(folder: Path) -> None:
        if name.endswith(".parquet"):
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(lines), folder / name)
        elif name.endswith(".csv"):
            (folder / name).write_text(
                "prompt_id,prompt,subject\n" + "".join(f"p{n},Question {n}?,s\n" for n in range(3))
            )
        elif name.endswith(".json"):
            (folder / name).write_text(json.dumps(lines))
        else:
            (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))

    return write


def mt_bench(folder: Path) -> None:
    question = {"question_id": 81, "category": "math", "turns": ["a", "b"], "reference": ["x", "y"]}
    (folder / "question.jsonl").write_text(json.dumps(question) + "\n")
    prompts = [
        {"name": name, "type": "single", "system_prompt": "s", "output_format": "[[rating]]",
         "prompt_template": "{question} {answer} {ref_answer_1} {question_1} {question_2} {answer_1} {answer_2} {ref_answer_2}"}
        for name in ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
    ]  # fmt: skip
    (folder / "judge_prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in prompts))


def journal(folder: Path) -> None:
    from eval.answers.journal import Journal

    with Journal(folder / "journal.jsonl", {"model": "m"}) as opened:
        opened.add_value("v0", {"a": [1, 2.5]})
        opened.add_value("v1", [None])


def trace_files(data: bytes) -> dict[str, bytes]:
    """An attack on a trace folder: the name of a file in it, and the bytes of that file as a JSON string."""
    files = json.loads(data)
    name = files["target"]
    return {f"traces/{name}": files[name].encode("latin-1")}


def _plan(folder: Path) -> Any:
    from rewriter.checkpoint.reader import Checkpoint
    from rewriter.edit.plan import EditOptions, make_plan
    from rewriter.expert_set import ExpertEntry, ExpertSet

    chosen = ExpertSet(layer_index="model", behavior="x", experts=[ExpertEntry(layer=1, expert=3)])
    return make_plan(Checkpoint.open(folder), chosen, None, EditOptions())


def read_config(folder: Path) -> object:
    from rewriter.checkpoint.edited_json import config_text, parse_config
    from rewriter.checkpoint.reader import Checkpoint

    checkpoint = Checkpoint.open(folder)
    layout = checkpoint.layout
    text = config_text(parse_config(checkpoint.config_text))
    assert json.loads(text) == checkpoint.config or "NaN" in text, "an edit would change the config"
    return layout, text.encode()


def read_index(folder: Path) -> object:
    from rewriter.checkpoint.reader import Checkpoint

    return Checkpoint.open(folder).shards


def read_downloaded_index(folder: Path) -> object:
    from rewriter.hub.models import missing_files

    return missing_files(folder)


def read_header(folder: Path) -> object:
    from rewriter.checkpoint.reader import Checkpoint

    return Checkpoint.open(folder).header("model-00001-of-00001.safetensors").tensors


def read_block(folder: Path) -> object:
    from rewriter.checkpoint.reader import Checkpoint
    from rewriter.edit.record import find_record

    return find_record(Checkpoint.open(folder).config, "base")


def read_set(folder: Path) -> object:
    from rewriter.expert_set import ExpertSet

    return ExpertSet.load(folder / "set.json")


def read_recipe(folder: Path) -> object:
    from rewriter.hub.recipe import load_recipe

    return load_recipe(str(folder / "recipe.json"))


def read_gguf(folder: Path) -> object:
    from rewriter.checkpoint.gguf.files import GgufSet

    opened = GgufSet.open(folder / "tiny.gguf")
    return opened.layout, [opened.header(shard).tensors for shard in opened.shards]


def read_base_card(folder: Path) -> object:
    from rewriter.checkpoint.reader import Checkpoint
    from rewriter.variant.card import variant_card as write

    return write(_plan(folder), Checkpoint.open(folder), folder)


def read_variant_card(folder: Path) -> object:
    from rewriter.checkpoint.reader import Checkpoint
    from rewriter.edit.record import read_record
    from rewriter.push.card import pushed_card, recipe_card

    record = read_record(Checkpoint.open(folder).config, "variant")
    made = pushed_card(folder, record, "me/repo", "main", lambda message: None)
    return recipe_card(str((made.content or b"").decode()), "me/recipe", "main")


def read_traces(folder: Path) -> object:
    from ftri.traces.reader import TraceReader

    return [record.key for record in TraceReader(folder / "traces")]


def read_labels(folder: Path) -> object:
    from ftri.labels.contrast import read_labels as read

    return read(str(folder / "rows.jsonl"))


def read_prompts(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        from ftri.prompts.sets import load_prompts

        return load_prompts(str(folder / name))

    return read


def read_responses(folder: Path) -> object:
    from ftri.cli.label import read_responses as read
    from ftri.labels.responses import LabelSettings, labelled

    return [labelled(entry, LabelSettings()) for entry in read(str(folder / "rows.jsonl"))]


def read_questions(folder: Path) -> object:
    from eval.measures.mt_bench_files import load_questions

    return load_questions(str(folder / "question.jsonl"))


def read_judge_prompts(folder: Path) -> object:
    from eval.measures.mt_bench_files import load_judge_prompts

    return load_judge_prompts(str(folder / "judge_prompts.jsonl"))


def read_journal(folder: Path) -> object:
    from eval.answers.journal import Journal

    with Journal(folder / "journal.jsonl", {"model": "m"}) as opened:
        return list(opened.records())


SHARD = "model-00001-of-00001.safetensors"
INDEX = "model.safetensors.index.json"
PARSERS: tuple[Parser, ...] = (
    Parser("shard header", base, SHARD, read_header, with_header_length, attacks="shard-header"),
    Parser("config.json", base, "config.json", read_config, attacks="config.json"),
    Parser("index.json", base, INDEX, read_index, attacks="index.json"),
    Parser(
        "downloaded index",
        base,
        INDEX,
        read_downloaded_index,
        attacks="index-of-a-stranger-s-variant-push-download",
    ),
    Parser("mote block", variant, "config.json", read_block, attacks="mote-block-verify-push"),
    Parser("recipe", recipe, "recipe.json", read_recipe, attacks="recipe"),
    Parser("expert set", expert_set, "set.json", read_set, attacks="expert-set"),
    Parser("GGUF", gguf, "tiny.gguf", read_gguf),
    Parser("base README", base_card, "README.md", read_base_card, attacks="base-readme.md"),
    Parser(
        "stranger's card", variant_card, "README.md", read_variant_card, attacks="card-of-a-stranger-s-variant-push"
    ),
    Parser("trace manifest", traces, "traces/manifest.json", read_traces, attacks="trace-folder", unpack=trace_files),
    Parser("trace index", traces, "traces/index.jsonl", read_traces),
    Parser("trace chunk", traces, "traces/chunk-00000.safetensors", read_traces, with_header_length),
    Parser("labels file", rows("rows.jsonl"), "rows.jsonl", read_labels, attacks="labels-file"),
    Parser("responses", rows("rows.jsonl"), "rows.jsonl", read_responses, attacks="mote-label-responses"),
    Parser("prompts .jsonl", rows("p.jsonl"), "p.jsonl", read_prompts("p.jsonl"), attacks="prompts-.jsonl"),
    Parser("prompts .json", rows("p.json"), "p.json", read_prompts("p.json"), attacks="prompts-.json"),
    Parser("prompts .csv", rows("p.csv"), "p.csv", read_prompts("p.csv")),
    Parser("prompts .parquet", rows("p.parquet"), "p.parquet", read_prompts("p.parquet"), attacks="prompts-.parquet"),
    Parser("MT-Bench questions", mt_bench, "question.jsonl", read_questions, attacks="mt-bench-files"),
    Parser("MT-Bench judge prompts", mt_bench, "judge_prompts.jsonl", read_judge_prompts),
    Parser("journal", journal, "journal.jsonl", read_journal, attacks="journal.jsonl"),
)
