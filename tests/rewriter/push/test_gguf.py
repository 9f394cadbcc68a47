"""GGUF variants and the Hub: a recipe is shared and fits every quantisation of the model; weights are not published."""

from pathlib import Path

from checkpoints import write_set
from gguf_files import bias_name, gguf_bytes, model_metadata, model_tensors, outputs_name, write_model
from hub_double.fixtures import Hub

from rewriter.checkpoint.gguf.files import GgufSet


def test_a_recipe_fits_every_quantisation(hub: Hub, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base" / "tiny-F16.gguf")
    biases = {name: tensor for name, tensor in model_tensors().items() if "exp_probs_b" in name}
    other = base.with_name("tiny-Q8_0.gguf")
    other.write_bytes(gguf_bytes(model_metadata(), model_tensors(expert_dtype="Q8_0") | biases))
    chosen = write_set(tmp_path / "refusal.json", [(1, 3), (3, 0)])
    hub.rewrite("--suppress", chosen, "--model", base, "-o", tmp_path / "variant")
    hub.push(tmp_path / "variant", "alice/gguf-recipe", "--recipe", "--yes")
    assert "mote-recipe.json" in hub.double.files("alice/gguf-recipe")
    hub.rewrite("--recipe", "alice/gguf-recipe", "--model", other, "-o", tmp_path / "applied")
    first, second = GgufSet.open(tmp_path / "variant"), GgufSet.open(tmp_path / "applied")
    for layer in (1, 3):
        entries = [model.find((bias_name(layer),)) for model in (first, second)]
        assert first.read(entries[0]) == second.read(entries[1])
    assert first.find((outputs_name(1),)).dtype == "F16" and second.find((outputs_name(1),)).dtype == "Q8_0"


def test_weights_are_not_published(hub: Hub, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base.gguf")
    chosen = write_set(tmp_path / "refusal.json", [(1, 3)])
    hub.rewrite("--suppress", chosen, "--model", base, "-o", tmp_path / "variant")
    sentence = hub.error(hub.push(tmp_path / "variant", "alice/gguf", "--yes", fails=True))
    assert "holds GGUF files, which mote-push does not publish" in sentence
    assert hub.double.repo("alice/gguf") is None
