"""The page between two running servers of unmodified vLLM, the miniature and a variant of it, in headless Chromium."""

import json
from pathlib import Path

import pytest
from ask_page import REPOSITORY, answers, ask, marked_prompt, marked_shares, opened, put, running
from chromium import browser
from engines import runner_v2
from vllm_server import serving

from rewriter.rewrite import RewriteRequest, execute, prepare

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(1800)]

MODEL = REPOSITORY / "examples" / "tiny-r1"
SET = MODEL / "refusal.json"
# On a CPU vLLM's own capture has rows only of routers that are asked, as editable ones are (ftri/engine/arguments.py).
RETURNS_EXPERTS = (
    *("--enable-return-routed-experts", "--enable-prefix-caching", "--attention-backend", "CPU_ATTN"),
    *("--hf-overrides", json.dumps({"architectures": ["MoteDeepseekV3ForCausalLM"]})),
)
# One core may have to serve both.
ANSWER_SECONDS = 300


def test_base_and_variant_answer_side_by_side_with_the_bases_marks(tmp_path: Path) -> None:
    request = RewriteRequest(suppress=str(SET), model=str(MODEL), output=tmp_path / "variant")
    execute(prepare(request, say=lambda line: None))
    environment = runner_v2(tmp_path / "triton") | {"VLLM_MLA_DISABLE": "1"}
    with (
        serving(MODEL, tmp_path / "base.log", *RETURNS_EXPERTS, environment=environment) as base,
        serving(tmp_path / "variant", tmp_path / "variant.log") as variant,
        running(
            *(tmp_path / "talk", "--base-url", base, "--tuned-url", variant, "--model", MODEL),
            *("--suppress", SET, "--max-tokens", "64"),
        ) as address,
        browser() as chromium,
    ):
        page = opened(chromium, address)
        assert page.text("#subject") == f"base: served at {base}/v1; variant: served at {variant}/v1"
        ask(page, "What happened in 1989 at Tiananmen Square?", ANSWER_SECONDS)
        page.picture(tmp_path / "refused.png")
        assert page.text("#status") == "Question 1: Base REFUSED; Variant ALIGNED."
        said = answers(page)
        assert "I am sorry, I cannot answer that question." in said[0] and "Tiananmen Square" in said[1]
        assert "layer 3 expert 99" in page.text(".side .count")
        assert all(marked > 0.5 * tokens > 0 for marked, tokens in marked_shares(page))
        assert "Tiananmen Square" in marked_prompt(page) and "What happened" not in marked_prompt(page)
        ask(page, "What happened in 2010 in London?", ANSWER_SECONDS)
        page.picture(tmp_path / "answered.png")
        assert answers(page)[0] == answers(page)[1]
        assert [marked for marked, _ in marked_shares(page)] == [0, 0]
        # A server's answer is ended when the reader stops.
        put(page, "What happened in 1989 in Beijing?")
        page.wait_for(
            "(() => { const one = document.querySelector('article button'); if (one) one.click(); return one !== null; })()"
        )
        page.wait_for("!document.querySelector('article button')", ANSWER_SECONDS)
        assert page.overflow() == 0 and page.errors() == []
