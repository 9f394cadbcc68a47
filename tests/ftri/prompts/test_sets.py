"""Built-in sets: the counts and the string that the paper publishes; own prompts: files, the Hub, bad input."""

import json
from collections import Counter

import pytest

from ftri.prompts import sets as prompts
from ftri.prompts import tables
from rewriter.errors import HubError, InputError


def test_listed_set_is_49_times_by_11_places_and_all_the_papers():
    records = prompts.load_prompts("what-happened:listed")
    assert len(records) == 539
    assert len({record.factors["time"] for record in records}) == 49
    assert len({record.factors["place"] for record in records}) == 11
    assert {record.factors["origin"] for record in records} == {"paper"}
    texts = {record.text for record in records}
    assert {"What happened 2023 at Berlin Wall?", "What happened yesterday at Berlin Wall?"} <= texts
    assert len(texts) == 539


def test_reconstructed_set_holds_the_listed_one_and_marks_our_217():
    records = prompts.load_prompts("what-happened:reconstructed-756")
    assert len(records) == len({record.prompt_id for record in records}) == 756
    assert Counter(record.factors["origin"] for record in records) == {"paper": 539, "reconstruction": 217}
    listed = {record.prompt_id: record for record in prompts.load_prompts("what-happened:listed")}
    assert {record.prompt_id: record for record in records if record.factors["origin"] == "paper"} == listed


def test_language_set_is_600_with_the_published_string_exact():
    records = prompts.load_prompts("language")
    assert (
        len(records) == len({record.text for record in records}) == len({record.prompt_id for record in records}) == 600
    )
    published = next(record for record in records if record.text == "10加5等于多少? 请确保用英语回答。")
    assert published.factors["origin"] == "paper"
    forms = Counter((record.factors["question_language"], record.factors["extension"]) for record in records)
    assert set(forms.values()) == {100} and len(forms) == 6
    assert any(record.text == "What is 10 plus 5? Please make sure to answer in English." for record in records)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_own_prompts_keep_ids_and_turn_scalars_into_factors(tmp_path, suffix):
    rows = [
        {"id": "a", "prompt": "One\u2028line?", "subject": "x, y"},
        {"id": "b", "prompt": "“Two”?\nor three", "subject": "z"},
    ]
    path = tmp_path / f"own.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif suffix == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif suffix == "csv":
        path.write_text('id,prompt,subject\na,One\u2028line?,"x, y"\nb,"“Two”?\nor three",z\n', encoding="utf-8")
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    records = prompts.load_prompts(str(path))
    assert [(record.prompt_id, record.text, record.factors) for record in records] == [
        (row["id"], row["prompt"], {"subject": row["subject"]}) for row in rows
    ]


def test_first_turn_and_explicit_column_and_made_ids(tmp_path):
    path = tmp_path / "turns.jsonl"
    path.write_text('{"turns": ["first", "second"], "other": "column"}\n', encoding="utf-8")
    assert prompts.load_prompts(str(path)) == [prompts.PromptRecord("turns/00001", "first", {"other": "column"})]
    assert prompts.load_prompts(str(path), column="other")[0].text == "column"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "has no rows"),
        ('{"prompt": "a"}\nnonsense\n', "line 2 is not JSON"),
        ("[1]\n", "entry 1 is a JSON list, expected an object"),
        ('{"sentence": "a"}\n', "no column one of prompt, text"),
        ('{"prompt": " "}\n', "row 1 has no text in column 'prompt'"),
        ('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 1}\n', "row 2 repeats the prompt id '1'"),
    ],
)
def test_bad_files_are_named_with_what_is_wrong(tmp_path, content, sentence):
    path = tmp_path / "bad.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="bad.jsonl") as caught:
        prompts.load_prompts(str(path))
    assert sentence in str(caught.value)


def test_unknown_set_suffix_and_dataset_id(tmp_path):
    with pytest.raises(InputError, match="what-happened:listed"):
        prompts.load_prompts("what-happened:lost")
    (tmp_path / "x.txt").write_text("a")
    with pytest.raises(InputError, match="found '.txt'"):
        prompts.load_prompts(str(tmp_path / "x.txt"))
    (tmp_path / "x.parquet").write_bytes(b"PAR")
    with pytest.raises(InputError, match="is not a Parquet file"):
        prompts.load_prompts(str(tmp_path / "x.parquet"))
    with pytest.raises(InputError, match="not a dataset id"):
        prompts.load_prompts("hub:only-a-name")


class FakeApi:
    """Stands for the Hub's API: one dataset of two data files."""

    file_names = ("README.md", "data/a.csv", "data/b.csv")

    def dataset_info(self, repo, revision=None):
        from types import SimpleNamespace

        return SimpleNamespace(
            sha="c0ffee" if revision in (None, "v1") else "00",
            siblings=[SimpleNamespace(rfilename=name) for name in self.file_names],
        )


def test_hub_dataset_downloads_the_one_file_at_the_resolved_commit(tmp_path, monkeypatch):
    import huggingface_hub

    downloads = []

    def download(repo, file_name, *, repo_type, revision):
        downloads.append((repo, file_name, repo_type, revision))
        path = tmp_path / "b.csv"
        path.write_text("prompt,subject\nWhy?,s\n")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    prompt_set = prompts.load_prompt_set("hub:org/name@v1/data/b.csv:subject")
    assert downloads == [("org/name", "data/b.csv", "dataset", "c0ffee")]
    assert [record.text for record in prompt_set.records] == ["s"]
    assert prompt_set.source["revision"] == "c0ffee" and prompt_set.source["file"] == "org/name/data/b.csv"
    with pytest.raises(HubError, match="2 data files; name one as hub:org/name/FILE: data/a.csv, data/b.csv"):
        prompts.load_prompts("hub:org/name")
    with pytest.raises(HubError, match="no file 'c.csv'"):
        prompts.load_prompts("hub:org/name/c.csv")
    assert tables.choose_data_file("org/name", ["x.parquet", "README.md"], None) == "x.parquet"


def test_without_the_hub_the_local_cache_is_read(monkeypatch, tmp_path):
    import httpx2
    import huggingface_hub

    class Offline:
        def dataset_info(self, repo, revision=None):
            raise httpx2.ConnectError("no route")

    snapshot = tmp_path / "c0ffee"
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "data" / "a.csv").write_text("prompt\nWhy?\n")
    monkeypatch.setattr(huggingface_hub, "HfApi", Offline)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **how: str(snapshot))
    for spec in ("hub:org/name", "hub:org/name/data/a.csv"):
        found = prompts.load_prompt_set(spec)
        assert [record.text for record in found.records] == ["Why?"] and found.source["revision"] == "c0ffee"
    with pytest.raises(HubError, match="cannot read dataset org/name: .*no route"):
        prompts.load_prompts("hub:org/name/data/b.csv")


def test_unreachable_hub_is_one_sentence(monkeypatch, tmp_path):
    import httpx2
    import huggingface_hub

    class Offline:
        def dataset_info(self, repo, revision=None):
            raise httpx2.ConnectError("no route")

    monkeypatch.setattr(huggingface_hub, "HfApi", Offline)
    monkeypatch.setattr(tables, "_cached_dataset_file", lambda repo, revision, file_name: None)
    with pytest.raises(HubError, match="cannot read dataset org/name at revision v2: .*no route"):
        prompts.load_prompts("hub:org/name", revision="v2")


def test_what_is_shared_does_not_say_where_prompts_lie():
    for spec in ("what-happened:listed", "hub:org/set@main/a.csv:goal"):
        assert prompts.without_path(spec) == spec
    assert (
        prompts.without_path("/home/alice/secret/mine.jsonl") == prompts.without_path("../mine.jsonl") == "mine.jsonl"
    )
