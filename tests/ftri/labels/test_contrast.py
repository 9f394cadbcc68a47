"""What --behavior means, and labels from a file."""

import pytest
import synthetic

from ftri.labels import contrast
from rewriter.errors import InputError


@pytest.mark.parametrize(
    ("behavior", "name", "target", "others"),
    [
        ("refused", "REFUSED", ("REFUSED",), ("ALIGNED", "REASONED")),
        ("Aligned", "ALIGNED", ("ALIGNED",), ("REFUSED", "REASONED")),
        ("refused-after-reasoning", "REFUSED_AFTER_REASONING", ("REFUSED_AFTER_REASONING",), contrast.PAPER_CLASSES),
        ("refused-vs-aligned", "REFUSED-vs-ALIGNED", ("REFUSED",), ("ALIGNED",)),
        ("refused+truncated-vs-reasoned", "REFUSED+TRUNCATED-vs-REASONED", ("REFUSED", "TRUNCATED"), ("REASONED",)),
        ("thinking:english", "english", ("english",), ("chinese", "mixed")),
        ("thinking:english-vs-chinese", "english-vs-chinese", ("english",), ("chinese",)),
        ("thinking:chinese-vs-thinking:none", "chinese-vs-none", ("chinese",), ("none",)),
    ],
)
def test_built_in_contrasts(behavior, name, target, others):
    found = contrast.parse_contrast(behavior)
    assert (found.name, found.target, found.others) == (name, target, others)


def test_a_label_files_classes_may_be_called_anything():
    found = contrast.parse_contrast("head-vs-tail", ["head-vs-tail", "b", "a"])
    assert (found.target, found.others) == (("head-vs-tail",), ("a", "b"))
    assert found.group("a") == 1 and found.group("b") == 2 and found.group("c") is None
    assert contrast.parse_contrast("B-vs-a", ["a", "b", "c"]).target == ("b",)


@pytest.mark.parametrize(
    ("behavior", "classes", "sentence"),
    [
        ("refusing", None, "no class 'refusing'; the classes are REFUSED"),
        ("thinking:french", None, "no class 'french'; the classes are english"),
        ("refused-vs-refused", None, "REFUSED stands on both sides"),
        ("a-vs-b-vs-c", ["a", "b", "c"], "found 3 sides"),
        ("z", ["a"], "no class 'z'; the classes are a"),
    ],
)
def test_contrasts_that_cannot_be(behavior, classes, sentence):
    with pytest.raises(InputError, match="--behavior") as caught:
        contrast.parse_contrast(behavior, classes)
    assert sentence in str(caught.value)


def test_labels_by_prompt_and_by_sample(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("prompt_id,sample,label\na,,odd\nb,1,even\n", encoding="utf-8")
    labels = contrast.read_labels(str(path))
    assert labels == {"a": "odd", ("b", 1): "even"}
    record = next(synthetic.records(synthetic.Plan()))
    label = contrast.file_labeller(labels)
    found = []
    for record.prompt_id, record.sample in (("a", 0), ("a", 5), ("b", 1), ("b", 0)):
        found.append(label(record))
    assert found == ["odd", "odd", "even", contrast.UNLABELLED]
    contrast.check_labels_known(labels, {("a", 0), ("b", 1)}, "labels.csv")
    with pytest.raises(
        InputError, match="labels 1 responses that the traces do not hold, the first is sample 1 of prompt 'b'"
    ):
        contrast.check_labels_known(labels, {("a", 0), ("b", 0)}, "labels.csv")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("id,label\na,b\n", "expected the columns prompt_id and one of label, behavior, class, found id, label"),
        ("prompt_id,label\na,\n", "row 1 has no label"),
        ("prompt_id,label\na,x\na,y\n", "row 2 labels 'a' y, an earlier row x"),
        ("prompt_id,sample,label\na,one,x\n", "row 1 has the sample 'one'"),
        ("prompt_id,label\n,x\n", "row 1 has no prompt_id"),
        ("prompt_id,label\na,\x1b[31mred\n", 'row 1 has the label "\\u001b'),
        (f"prompt_id,label\na,{'x' * 200}\n", "expected a short text on one line"),
    ],
)
def test_bad_label_files(tmp_path, content, sentence):
    path = tmp_path / "labels.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="labels.csv") as caught:
        contrast.read_labels(str(path))
    assert sentence in str(caught.value)


def test_a_template_that_opens_the_think_block_is_seen_in_the_rendered_prompt():
    assert contrast.starts_inside_think("<user>Why?<assistant><think>\n")
    assert not contrast.starts_inside_think("<user><think></think>Why?<assistant>")
