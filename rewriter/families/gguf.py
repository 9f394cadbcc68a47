"""Rows for GGUF files: what llama.cpp calls a router's tensors and keys, one row for the architectures that share a loader.

The config of a GGUF is its metadata without the architecture's prefix (`deepseek2.expert_count` is `expert_count`), with two
keys that stand for its tensors: LAYERS_KEY and BIASED_KEY. So what an old file lacks is lacking here too: converted before
September 2025 it has no group keys, and llama.cpp routes it without groups.

Sources are files of llama.cpp b11549; names of layers and experts are those of the model's checkpoint on the Hub.
Legend: E routed experts.
"""

from dataclasses import replace

from rewriter.errors import UnknownFamilyError
from rewriter.families.family import Family, RouterLayout, Score, layout_of
from rewriter.families.layer_rules import Config, LayerRule

ARCHITECTURE_KEY = "general.architecture"
LAYERS_KEY = "layers with expert tensors"
BIASED_KEY = "layers with a selection bias"
GATING_KEY = "expert_gating_func"
# llama-hparams.h, llama_expert_gating_func_type: 3 is softmax over the chosen ones, whose bias is added to bare logits.
SCORES: dict[int, Score] = {1: "softmax", 2: "sigmoid", 3: "logit", 4: "sqrtsoftplus"}

BIAS = "blk.{layer}.exp_probs_b.bias"
OUTPUTS = (("blk.{layer}.ffn_down_exps.weight",),)
# The router [E, D], a row an expert, which llama-quantize never packs (src/llama-quant.cpp).
ROUTER = ("blk.{layer}.ffn_gate_inp.weight",)
MINUS_INF_WARNING = (
    "A router bias of -inf is refused by llama.cpp's --check-tensors and llama-quantize, and releases around November 2025"
    " compute 0 * -inf where experts are grouped, which gives wrong texts; the margin is right on all of them."
)
BY_TENSORS = LayerRule("those with expert tensors", lambda config: tuple(config[LAYERS_KEY]))


def _biased(
    *architectures: str,
    source: str,
    score: Score = "sigmoid",
    bias: str = BIAS,
    always_normalises: bool = False,
    router: tuple[str, ...] = (),
    notes: str = "",
) -> Family:
    """A row with a selection bias.

    score: what a file without the gating key means; always_normalises: the loader's graph reads no key for it; router: given
    where files of the architecture may lack the bias.
    """
    return Family(
        name=f"{architectures[0]} (GGUF)",
        model_types=architectures,
        source=source,
        layers=BY_TENSORS,
        num_experts="expert_count",
        top_k="expert_used_count",
        bias=(bias,),
        router=router,
        expert_outputs=OUTPUTS,
        score=score,
        num_groups="expert_group_count",
        groups_kept="expert_group_used_count",
        renormalize=None if always_normalises else "expert_weights_norm",
        renormalize_default=always_normalises,
        minus_inf_warning=MINUS_INF_WARNING,
        notes=notes,
    )


def _unbiased(*architectures: str, source: str, normalises: bool | None = True) -> Family:
    """A row whose routers have no bias: experts are rerouted by their router row, or dropped.

    normalises: what the loader's graph passes to build_moe_ffn; None: it reads the file's key.
    """
    return Family(
        name=f"{architectures[0]} (GGUF)",
        model_types=architectures,
        source=source,
        layers=BY_TENSORS,
        num_experts="expert_count",
        top_k="expert_used_count",
        router=ROUTER,
        expert_outputs=OUTPUTS,
        renormalize="expert_weights_norm" if normalises is None else None,
        renormalize_default=bool(normalises),
    )


GGUF_FAMILIES: tuple[Family, ...] = (
    # DeepSeek V3 and R1, Kimi K2, GLM 4.7 Lite; V2 has no bias, and its files before V3 no gating key.
    _biased("deepseek2", "mistral4", source="src/models/deepseek2.cpp, mistral4.cpp", score="softmax", router=ROUTER),
    _biased("deepseek2-ocr", source="src/models/deepseek2ocr.cpp", score="softmax", router=ROUTER),
    _biased("deepseek32", source="src/models/deepseek32.cpp"),
    _biased(
        "deepseek4",
        source="src/models/deepseek4.cpp",
        score="sqrtsoftplus",
        notes="Tokens of images are routed by a bias of their own (exp_probs_b_vl), which is left as it is.",
    ),
    _biased("glm4moe", source="src/models/glm4-moe.cpp"),
    _biased("glm-dsa", source="src/models/glm-dsa.cpp"),
    _biased("glm5-next", source="src/models/glm5-next.cpp"),
    _biased("dots1", source="src/models/dots1.cpp"),
    _biased("dots3note", source="src/models/dots3note.cpp"),
    _biased("bailingmoe2", source="src/models/bailingmoe2.cpp"),
    _biased("bailingmoe3", source="src/models/bailingmoe3.cpp"),
    _biased("exaone-moe", source="src/models/exaone-moe.cpp"),
    _biased("minimax-m2", source="src/models/minimax-m2.cpp", always_normalises=True),
    _biased("minimax-m3", source="src/models/minimax-m3.cpp"),
    _biased("kimi-linear", source="src/models/kimi-linear.cpp", always_normalises=True),
    _biased("kimi-k3", source="src/models/kimi-k3.cpp"),
    _biased("afmoe", source="src/models/afmoe.cpp"),
    _biased("laguna", source="src/models/laguna.cpp"),
    _biased("hy_v3", source="src/models/hy-v3.cpp", bias="blk.{layer}.exp_probs_b"),
    _biased("hy_v4", source="src/models/hy-v4.cpp"),
    _biased("lfm2moe", source="src/models/lfm2.cpp, lfm2moe.cpp", always_normalises=True),
    _biased(
        "ernie4_5-moe",
        source="src/models/ernie4-5.cpp, ernie4-5-moe.cpp",
        score="softmax",
        always_normalises=True,
    ),
    _biased("nemotron_h_moe", source="src/models/nemotron-h.cpp, nemotron-h-moe.cpp"),
    _biased("step35", source="src/models/step35.cpp"),
    _biased("mimo2", source="src/models/mimo2.cpp", always_normalises=True),
    Family(
        name="gpt-oss (GGUF)",
        model_types=("gpt-oss",),
        source="src/models/openai-moe.cpp",
        layers=BY_TENSORS,
        num_experts="expert_count",
        top_k="expert_used_count",
        bias=("blk.{layer}.ffn_gate_inp.bias",),
        expert_outputs=OUTPUTS,  # whose .bias is zeroed along with it
        score="logit",
        can_stimulate=False,
        minus_inf_warning=MINUS_INF_WARNING,
    ),
    _unbiased("llama", source="src/models/llama.cpp (Mixtral)"),
    _unbiased("llama4", source="src/models/llama4.cpp", normalises=False),
    _unbiased("qwen2moe", source="src/models/qwen2moe.cpp", normalises=False),
    _unbiased("qwen3moe", source="src/models/qwen3moe.cpp"),
    _unbiased("qwen3next", source="src/models/qwen3next.cpp"),
    _unbiased("qwen3vlmoe", source="src/models/qwen3vlmoe.cpp"),
    _unbiased("qwen35moe", source="src/models/qwen35moe.cpp"),
    _unbiased("olmoe", source="src/models/olmoe.cpp", normalises=False),
    _unbiased("deepseek", source="src/models/deepseek.cpp", normalises=False),
    _unbiased("bailingmoe", source="src/models/bailingmoe.cpp", normalises=None),
    _unbiased("hunyuan-moe", source="src/models/hunyuan-moe.cpp"),
    _unbiased("granitemoe", "granitehybrid", source="src/models/granite.cpp, granite-moe.cpp, granite-hybrid.cpp"),
    # Its norm before the router is an RMS norm to llama.cpp, whatever bias it has: no constant shift, so the centroid.
    _unbiased("phimoe", source="src/models/phi3.cpp, phimoe.cpp"),
    _unbiased("gemma4", source="src/models/gemma4.cpp"),
    _unbiased("cohere2moe", source="src/models/cohere2moe.cpp", normalises=None),
    _unbiased("minimax-01", source="src/models/minimax-01.cpp"),
    _unbiased("smallthinker", source="src/models/smallthinker.cpp"),
    _unbiased("dbrx", source="src/models/dbrx.cpp"),
    _unbiased("jamba", source="src/models/jamba.cpp", normalises=False),
    _unbiased("grok", source="src/models/grok.cpp"),
    _unbiased("arctic", source="src/models/arctic.cpp"),
)

BY_ARCHITECTURE: dict[str, Family] = {name: row for row in GGUF_FAMILIES for name in row.model_types}


def gguf_layout(config: Config, where: str) -> RouterLayout:
    """The routers of a GGUF as its own keys and tensors describe them; `where` is how messages call the file.

    Raises:
        UnknownFamilyError: no row has the file's architecture; the message says how to add one.
        CheckpointError: a key that the row needs is missing or not a positive number.
    """
    architecture = config.get(ARCHITECTURE_KEY)
    row = BY_ARCHITECTURE.get(str(architecture))
    if row is None:
        raise UnknownFamilyError(
            f"{where}: {ARCHITECTURE_KEY} {architecture!r} has no row in the table of GGUF families; known are"
            f" {', '.join(sorted(BY_ARCHITECTURE))}; to add it, append a row with its tensor names to"
            " rewriter/families/gguf.py"
        )
    # gpt-oss's loader reads no such key: its bias is one of logits.
    if row.bias and row.score != "logit" and config.get(GATING_KEY) in SCORES:
        row = replace(row, score=SCORES[config[GATING_KEY]])
    top_k = config.get("expert_used_count")
    if isinstance(top_k, list) and top_k:  # one a layer: what is safe for the largest is safe for all
        config = {**config, "expert_used_count": max(top_k)}
    layout = layout_of(row, config, where)
    biased = tuple(config[BIASED_KEY])
    return replace(
        layout,
        bias_enabled=bool(biased),
        unbiased_layers=tuple(layer for layer in layout.moe_layers if layer not in biased) if biased else (),
    )
