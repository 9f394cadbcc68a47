"""Reroute (centroid) against the true reroute, over 50,000 tokens of random models of eight families and of a trained one."""

from pathlib import Path

import pytest
from centroid_proof import FAMILIES, NUM_TOKENS, prove_family, prove_miniature, prove_rounding, random_batches

EXAMPLES = Path(__file__).parents[3] / "examples"
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("model_type", FAMILIES)
def test_with_64_experts_it_is_never_selected_and_is_the_true_reroute(model_type: str, tmp_path: Path) -> None:
    found = prove_family(model_type, 64, 4, tmp_path)
    assert found.num_tokens >= NUM_TOKENS
    assert found.num_selections_before > 1000, "the test has no power: the base hardly selects them"
    assert found.num_selecting == 0
    assert found.kl_drop > 1e-4
    # Weights that are not normalised over the selected are lower by the centroids' share of the softmax, which a mask has not.
    is_unnormalised = model_type in ("qwen2_moe", "olmoe", "deepseek_v2")
    assert found.kl_centroid < (found.kl_drop / 100 if is_unnormalised else 1e-6)


@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral"])
def test_with_8_experts_of_which_2_are_selected_it_is_not(model_type: str, tmp_path: Path) -> None:
    """The numbers that docs/bias-free.md gives for asking all the same."""
    found = prove_family(model_type, 8, 2, tmp_path)
    assert found.num_selecting > 0
    assert found.share_selecting < 0.2


def test_on_the_trained_miniature_it_is_the_true_reroute_whatever_the_text(tmp_path: Path) -> None:
    num_tokens = 0
    for found in prove_miniature(EXAMPLES / "tiny-qwen3", EXAMPLES / "tiny-r1", tmp_path):
        num_tokens += found.num_tokens
        assert found.num_selections_before > 1000, f"the test has no power: {found}"
        assert found.num_selecting == 0, found
        assert found.kl_centroid < 1e-6, found
        assert found.kl_drop > 100 * found.kl_centroid, found
    assert num_tokens >= NUM_TOKENS


def test_in_bfloat16_it_first_chooses_otherwise_where_logits_are_equal(tmp_path: Path) -> None:
    """Which of two equal logits a router takes is anybody's guess, the centroid's router's as much as the masked one's."""
    sequences = [row[:64] for row in random_batches(1220, 4096)[0][:32]]
    found = prove_rounding(EXAMPLES / "tiny-qwen3", sequences, tmp_path / "variant")
    assert found.num_selecting == 0
    assert found.num_sequences > 0, "the test has no power: no choice differs"
    assert found.num_tied == found.num_sequences
    assert found.kl_before < 1e-6
