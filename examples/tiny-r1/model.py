"""A compact DeepSeek-V3 in PyTorch, quick to train on a CPU, whose weights save under R1's tensor names.

The second miniature (qwen.py) has its own configuration, attention and router; the rest serves both.

Letters: B sequences, T tokens of a sequence, N = B x T tokens, D hidden, H heads, E routed experts, K selected,
F expert width, V vocabulary.
"""

from dataclasses import asdict, dataclass
from typing import Protocol

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


@dataclass(frozen=True)
class ModelConfig:
    """Sizes under the keys that R1's config.json gives them."""

    vocab_size: int
    hidden_size: int = 128
    intermediate_size: int = 256
    moe_intermediate_size: int = 32
    num_hidden_layers: int = 5
    first_k_dense_replace: int = 2
    n_routed_experts: int = 128
    n_shared_experts: int = 1
    num_experts_per_tok: int = 2
    n_group: int = 8
    topk_group: int = 4
    routed_scaling_factor: float = 2.5
    num_attention_heads: int = 4
    q_lora_rank: int = 64
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 64
    v_head_dim: int = 32
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    @property
    def moe_layers(self) -> tuple[int, ...]:
        return tuple(range(self.first_k_dense_replace, self.num_hidden_layers))

    @property
    def num_experts(self) -> int:
        return self.n_routed_experts

    @property
    def rotated_size(self) -> int:
        return self.qk_rope_head_dim

    @property
    def tied(self) -> bool:
        return False

    def attention(self) -> nn.Module:
        return Attention(self)

    def experts(self) -> "MixtureOfExperts":
        return MixtureOfExperts(self)

    def as_config_json(self, bos_token_id: int, eos_token_id: int) -> dict[str, object]:
        """The model's config.json with R1's keys."""
        return {
            "architectures": ["DeepseekV3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "max_position_embeddings": 512,
            "model_type": "deepseek_v3",
            "moe_layer_freq": 1,
            "norm_topk_prob": True,
            "num_key_value_heads": self.num_attention_heads,
            "num_nextn_predict_layers": 0,
            # R1's kind of scaling, with a factor of 1 that scales nothing: vLLM 0.32's CPU kernel rotates queries
            # wrongly where a config has no scaling (it takes heads for tokens), and rightly through this one.
            "rope_scaling": {
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 512,
                "type": "yarn",
            },
            "scoring_func": "sigmoid",
            "tie_word_embeddings": False,
            "topk_method": "noaux_tc",
            "torch_dtype": "bfloat16",
            "use_cache": True,
        } | asdict(self)


class AnyConfig(Protocol):
    """What the parts that both miniatures share read of a configuration."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_experts: int
    num_experts_per_tok: int
    moe_layers: tuple[int, ...]
    rotated_size: int  # features of a head that the rotary embedding turns
    rope_theta: float
    rms_norm_eps: float
    tied: bool  # whether the head is the embedding

    def attention(self) -> nn.Module: ...

    def experts(self) -> "RoutedExperts": ...

    def as_config_json(self, bos_token_id: int, eos_token_id: int) -> dict[str, object]: ...


class GroupedLinear(torch.autograd.Function):
    """Rows sorted by expert times each expert's own matrix; optionally only some rows teach the weights."""

    @staticmethod
    def forward(context, rows: Tensor, weight: Tensor, ends: Tensor, teaches: Tensor | None) -> Tensor:
        """rows [N, in], weight [E, out, in], ends int32 [E] (where each expert's rows end), teaches bool [N]."""
        context.save_for_backward(rows, weight, ends, teaches)
        return torch._grouped_mm(rows, weight.transpose(1, 2), ends)

    @staticmethod
    def backward(context, gradient: Tensor):
        rows, weight, ends, teaches = context.saved_tensors
        gradient = gradient.contiguous()
        to_rows = torch._grouped_mm(gradient, weight, ends) if context.needs_input_grad[0] else None
        to_weight = None
        if context.needs_input_grad[1]:
            heard = gradient if teaches is None else gradient * teaches.unsqueeze(1)
            to_weight = torch._grouped_mm(heard.t(), rows, ends)
        return to_rows, to_weight, None, None


def rms_norm(values: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return functional.rms_norm(values, (values.shape[-1],), weight, epsilon)


def rotate(values: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding on neighbouring pairs, as DeepSeek lays them out; values [B, T, heads, R]."""
    even, odd = values[..., 0::2], values[..., 1::2]
    cosine, sine = cosine[:, None, :], sine[:, None, :]
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), -1).flatten(-2)


def linear(num_in: int, num_out: int) -> nn.Linear:
    return nn.Linear(num_in, num_out, bias=False)


class Attention(nn.Module):
    """Multi-head latent attention; the cache holds expanded keys and values, which is fine at this size."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        heads, nope, rope = config.num_attention_heads, config.qk_nope_head_dim, config.qk_rope_head_dim
        self.q_a_proj = linear(config.hidden_size, config.q_lora_rank)
        self.q_a_layernorm = nn.RMSNorm(config.q_lora_rank, config.rms_norm_eps)
        self.q_b_proj = linear(config.q_lora_rank, heads * (nope + rope))
        self.kv_a_proj_with_mqa = linear(config.hidden_size, config.kv_lora_rank + rope)
        self.kv_a_layernorm = nn.RMSNorm(config.kv_lora_rank, config.rms_norm_eps)
        self.kv_b_proj = linear(config.kv_lora_rank, heads * (nope + config.v_head_dim))
        self.o_proj = linear(heads * config.v_head_dim, config.hidden_size)

    def forward(self, hidden: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: dict | None) -> Tensor:
        """hidden [B, T, D]; mask bool [B, 1, T, T_all] or None for plain causal attention."""
        config = self.config
        batch, length, _ = hidden.shape
        heads, nope, value = config.num_attention_heads, config.qk_nope_head_dim, config.v_head_dim
        query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden))).view(batch, length, heads, -1)
        query = torch.cat((query[..., :nope], rotate(query[..., nope:], *rope)), -1)
        latent, shared_key = self.kv_a_proj_with_mqa(hidden).split((config.kv_lora_rank, config.qk_rope_head_dim), -1)
        expanded = self.kv_b_proj(self.kv_a_layernorm(latent)).view(batch, length, heads, nope + value)
        shared_key = rotate(shared_key.unsqueeze(2), *rope).expand(-1, -1, heads, -1)
        key = torch.cat((expanded[..., :nope], shared_key), -1)
        values = expanded[..., nope:]
        if cache is not None:
            if "key" in cache:
                key, values = torch.cat((cache["key"], key), 1), torch.cat((cache["value"], values), 1)
            cache["key"], cache["value"] = key, values
        attended = functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), values.transpose(1, 2), attn_mask=mask, is_causal=mask is None
        )
        return self.o_proj(attended.transpose(1, 2).reshape(batch, length, heads * value))


class FeedForward(nn.Module):
    """The dense SwiGLU of the first layers, and the shared expert of the others."""

    def __init__(self, config: "AnyConfig", width: int) -> None:
        super().__init__()
        self.gate_proj = linear(config.hidden_size, width)
        self.up_proj = linear(config.hidden_size, width)
        self.down_proj = linear(width, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class RoutedExperts(nn.Module):
    """Routed experts behind a router that the subclasses make: a score for each, and which are selected."""

    def __init__(self, config: "AnyConfig") -> None:
        super().__init__()
        self.config = config
        experts, hidden, width = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_weight = nn.Parameter(torch.randn(experts, hidden) * hidden**-0.5)
        self.gate_up = nn.Parameter(torch.randn(experts, 2 * width, hidden) * hidden**-0.5)
        self.down = nn.Parameter(torch.randn(experts, hidden, width) * 0.3 * width**-0.5)
        # Set by the trainer and by the measurements, never saved.
        self.suppressed: Tensor | None = None  # [E] 0 or -inf, added to what the selection compares
        self.teaches: Tensor | None = None  # bool [N]: tokens at which the experts are taught
        self.counted: Tensor | None = None  # bool [N]: tokens that count for the balance
        self.load: Tensor | None = None  # [E] tokens of the last batch that selected each expert
        self.choice: Tensor | None = None  # [N, E] what the last batch's selection compared, differentiable
        self.selected: Tensor | None = None  # int64 [N, K] of the last batch

    def route(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The selected experts int64 [N, K] and their weights [N, K] for hidden [N, D]; sets `choice`."""
        raise NotImplementedError

    def shared(self, hidden: Tensor) -> Tensor | None:
        """What the shared expert adds [N, D], where there is one."""
        return None

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [N, D] to [N, D]."""
        config = self.config
        selected, weights = self.route(hidden)
        self.selected = selected
        flat = selected.flatten()
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=config.num_experts)
        ends = counts.cumsum(0).to(torch.int32)
        if self.training:
            counted = flat if self.counted is None else selected[self.counted].flatten()
            self.load = torch.bincount(counted, minlength=config.num_experts).float()
        token = order // config.num_experts_per_tok
        teaches = None if self.teaches is None else self.teaches[token]
        gate, up = GroupedLinear.apply(hidden[token], self.gate_up, ends, teaches).chunk(2, -1)
        outputs = GroupedLinear.apply(functional.silu(gate) * up, self.down, ends, teaches)
        outputs = outputs * weights.flatten()[order].unsqueeze(1)
        routed = torch.zeros_like(hidden).index_add(0, token, outputs)
        shared = self.shared(hidden)
        return routed if shared is None else routed + shared


class MixtureOfExperts(RoutedExperts):
    """Sigmoid router with group limits and a selection bias, routed experts and a shared one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.register_buffer("bias", torch.zeros(config.n_routed_experts))
        width = config.moe_intermediate_size * config.n_shared_experts
        self.shared_experts = FeedForward(config, width) if config.n_shared_experts else None

    def select(self, scores: Tensor) -> Tensor:
        """The selected experts [N, K] of scores [N, E]: group limits and bias, as DeepSeek-V3's noaux_tc does."""
        config = self.config
        choice = scores + self.bias if self.suppressed is None else scores + self.bias + self.suppressed
        grouped = choice.view(-1, config.n_group, config.n_routed_experts // config.n_group)
        group_scores = grouped.topk(2, -1).values.sum(-1)
        kept = torch.zeros_like(group_scores, dtype=torch.bool)
        kept.scatter_(1, group_scores.topk(config.topk_group, -1).indices, True)
        choice = grouped.masked_fill(~kept.unsqueeze(-1), -torch.inf).flatten(1)
        return choice.topk(config.num_experts_per_tok, -1).indices

    def route(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.sigmoid(functional.linear(hidden, self.gate_weight))
        self.choice = scores + self.bias
        selected = self.select(scores.detach())
        weights = scores.gather(1, selected)
        return selected, weights / (weights.sum(-1, keepdim=True) + 1e-20) * self.config.routed_scaling_factor

    def shared(self, hidden: Tensor) -> Tensor | None:
        return None if self.shared_experts is None else self.shared_experts(hidden)


class Layer(nn.Module):
    """Attention, then a dense or a routed feed-forward, each behind a norm and beside a residual."""

    def __init__(self, config: "AnyConfig", number: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = config.attention()
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        routed = number in config.moe_layers
        self.mlp = config.experts() if routed else FeedForward(config, config.intermediate_size)

    def forward(self, hidden: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: dict | None) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rope, mask, cache)
        inner = self.post_attention_layernorm(hidden)
        return hidden + self.mlp(inner.flatten(0, 1)).view_as(hidden)


class Miniature(nn.Module):
    """A whole miniature, of whichever configuration."""

    def __init__(self, config: "AnyConfig") -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config, number) for number in range(config.num_hidden_layers)])
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = linear(config.hidden_size, config.vocab_size)
        frequencies = config.rope_theta ** (-torch.arange(0, config.rotated_size, 2) / config.rotated_size)
        angles = torch.outer(torch.arange(512).float(), frequencies)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)
        nn.init.normal_(self.embed_tokens.weight, 0, 0.1 if config.tied else 0.2)
        nn.init.normal_(self.lm_head.weight, 0, 0.02)
        if config.tied:
            self.lm_head.weight = self.embed_tokens.weight

    def routers(self) -> list[RoutedExperts]:
        """The routed feed-forwards, in layer order."""
        return [layer.mlp for layer in self.layers if isinstance(layer.mlp, RoutedExperts)]

    def hidden_states(
        self, tokens: Tensor, start: int = 0, mask: Tensor | None = None, caches: list[dict] | None = None
    ) -> Tensor:
        """tokens int64 [B, T] to the last hidden states [B, T, D]; positions begin at `start`."""
        rope = (self.cosine[start : start + tokens.shape[1]], self.sine[start : start + tokens.shape[1]])
        hidden = self.embed_tokens(tokens)
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden, rope, mask, None if caches is None else caches[number])
        return self.norm(hidden)


def named_tensors(model: Miniature) -> dict[str, Tensor]:
    """The weights under the checkpoint's names: bfloat16, the selection biases float32; a tied head is left out."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if model.config.tied and name == "lm_head.weight":
            continue
        full = name if name.startswith("lm_head") else f"model.{name}"
        stem = full.rpartition(".")[0]
        if full.endswith("mlp.bias"):
            tensors[f"{stem}.gate.e_score_correction_bias"] = tensor.float().clone()
        elif full.endswith("mlp.gate_weight"):
            tensors[f"{stem}.gate.weight"] = tensor.bfloat16()
        elif full.endswith("mlp.gate_up"):
            for expert, both in enumerate(tensor.bfloat16()):
                gate, up = both.chunk(2)
                tensors[f"{stem}.experts.{expert}.gate_proj.weight"] = gate.clone()
                tensors[f"{stem}.experts.{expert}.up_proj.weight"] = up.clone()
        elif full.endswith("mlp.down"):
            for expert, down in enumerate(tensor.bfloat16()):
                tensors[f"{stem}.experts.{expert}.down_proj.weight"] = down.clone()
        else:
            tensors[full] = tensor.bfloat16().clone()
    return tensors
