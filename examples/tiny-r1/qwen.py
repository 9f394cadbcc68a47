"""A compact Qwen3-MoE in PyTorch: the second miniature, whose router has no bias. Letters as in model.py."""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as functional
from model import RoutedExperts, linear
from torch import Tensor, nn


@dataclass(frozen=True)
class QwenConfig:
    """Sizes under the keys that Qwen3-30B-A3B's config.json gives them."""

    vocab_size: int
    hidden_size: int = 64
    intermediate_size: int = 128
    moe_intermediate_size: int = 16
    num_hidden_layers: int = 4
    mlp_only_layers: tuple[int, ...] = (0,)
    num_experts: int = 64
    num_experts_per_tok: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    @property
    def moe_layers(self) -> tuple[int, ...]:
        return tuple(layer for layer in range(self.num_hidden_layers) if layer not in self.mlp_only_layers)

    @property
    def rotated_size(self) -> int:
        return self.head_dim

    @property
    def tied(self) -> bool:
        return True

    def attention(self) -> nn.Module:
        return GroupedQueryAttention(self)

    def experts(self) -> RoutedExperts:
        return SoftmaxExperts(self)

    def as_config_json(self, bos_token_id: int, eos_token_id: int) -> dict[str, object]:
        """The model's config.json with Qwen3-MoE's keys."""
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": bos_token_id,
            "decoder_sparse_step": 1,
            "eos_token_id": eos_token_id,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "max_position_embeddings": 512,
            "model_type": "qwen3_moe",
            "norm_topk_prob": True,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.001,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "use_sliding_window": False,
        } | asdict(self)


def rotate_halves(values: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding of the first half with the second, as Qwen lays them out; values [B, T, heads, R]."""
    first, second = values.chunk(2, -1)
    cosine, sine = cosine[:, None, :], sine[:, None, :]
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)


class GroupedQueryAttention(nn.Module):
    """Grouped-query attention with a norm on each head's queries and keys."""

    def __init__(self, config: QwenConfig) -> None:
        super().__init__()
        self.config = config
        hidden, size = config.hidden_size, config.head_dim
        self.q_proj = linear(hidden, config.num_attention_heads * size)
        self.k_proj = linear(hidden, config.num_key_value_heads * size)
        self.v_proj = linear(hidden, config.num_key_value_heads * size)
        self.o_proj = linear(config.num_attention_heads * size, hidden)
        self.q_norm = nn.RMSNorm(size, config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(size, config.rms_norm_eps)

    def forward(self, hidden: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: dict | None) -> Tensor:
        """hidden [B, T, D]; mask bool [B, 1, T, T_all] or None for plain causal attention."""
        batch, length, _ = hidden.shape
        size = self.config.head_dim
        query = rotate_halves(self.q_norm(self.q_proj(hidden).view(batch, length, -1, size)), *rope)
        key = rotate_halves(self.k_norm(self.k_proj(hidden).view(batch, length, -1, size)), *rope)
        value = self.v_proj(hidden).view(batch, length, -1, size)
        if cache is not None:
            if "key" in cache:
                key, value = torch.cat((cache["key"], key), 1), torch.cat((cache["value"], value), 1)
            cache["key"], cache["value"] = key, value
        shared_by = self.config.num_attention_heads // self.config.num_key_value_heads
        attended = functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.repeat_interleave(shared_by, 2).transpose(1, 2),
            value.repeat_interleave(shared_by, 2).transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
        )
        return self.o_proj(attended.transpose(1, 2).reshape(batch, length, -1))


class SoftmaxExperts(RoutedExperts):
    """Softmax router without a bias: top-k of the logits, the weights normalised over the selected."""

    chances: Tensor | None = None  # [N, E] of the last batch, differentiable

    def route(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        logits = functional.linear(hidden, self.gate_weight)
        self.choice = logits
        compared = logits if self.suppressed is None else logits + self.suppressed
        self.chances = compared.softmax(-1)
        selected = compared.detach().topk(self.config.num_experts_per_tok, -1).indices
        weights = self.chances.gather(1, selected)
        return selected, weights / weights.sum(-1, keepdim=True)

    def imbalance(self) -> Tensor:
        """How unevenly the last batch loads the experts: E x sum of load share x mean chance, 1 where it is even."""
        assert self.chances is not None and self.load is not None
        chances = self.chances if self.counted is None else self.chances[self.counted]
        return self.config.num_experts * (self.load / self.load.sum() * chances.mean(0)).sum()
