"""Replies of a random model, which would never write JSON by itself, keep to the schema of their request."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_local import save_language_model

from mmedpo.models.chat import ChatRequest
from mmedpo.models.chat.local import LocalChat

SPECIAL = ["<pad>", "</s>", "<user>", "<assistant>"]
THOUGHT = ["<think>", "</think>"]
TEMPLATE = "{% for message in messages %}<user>{{ message['content'] }}{% endfor %}<assistant>"
JUDGE = {
    "type": "object",
    "properties": {
        "rationale": {"type": "string", "maxLength": 6},
        "score": {"type": "number", "enum": [0, 0.1, 0.5, 1]},
    },
    "required": ["rationale", "score"],
    "additionalProperties": False,
}
WRITER = {
    "type": "object",
    "properties": {
        "answer": {"type": "string", "maxLength": 9},
        "kind": {"type": "string", "enum": ["finding", "place"]},
    },
    "required": ["answer", "kind"],
    "additionalProperties": False,
}
NOT_JSON = "his thought"


@pytest.fixture(scope="module")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Make a random Llama over bytes, whose head has more rows than the tokenizer has tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    def make(template: str = TEMPLATE) -> str:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        bytes_ = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
        bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bytes_.decoder = decoders.ByteLevel()
        bytes_.add_special_tokens(SPECIAL)
        bytes_.add_tokens([AddedToken(mark, special=False) for mark in THOUGHT])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=bytes_, pad_token="<pad>", eos_token="</s>", additional_special_tokens=SPECIAL[2:],
            chat_template=template,
        )  # fmt: skip
        config = LlamaConfig(
            vocab_size=len(tokenizer) + 10, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=400, initializer_range=0.3,
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        torch.manual_seed(0)
        folder = str(tmp_path_factory.mktemp("bytes"))
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def ask(text: str, schema: dict[str, Any] | None = None) -> ChatRequest:
    return ChatRequest("test@1", {}, text, schema=schema)


def follow(chat: LocalChat, said: str) -> None:
    """Make the model favour these tokens, one after the other, and say what it likes behind them."""
    tokens = iter(chat.tokenizer(said, add_special_tokens=False)["input_ids"])

    def favour(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        if (token := next(tokens, None)) is not None:
            logits[..., token] += 1000
        return logits

    chat.model.lm_head.register_forward_hook(favour)


def check(text: str | None, schema: dict[str, Any]) -> None:
    found = json.loads(text or "")
    assert list(found) == schema["required"]
    for name, rule in schema["properties"].items():
        assert found[name] in rule.get("enum", [found[name]])
        assert len(str(found[name])) <= rule.get("maxLength", 10)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_replies_of_a_batch_keep_to_the_schema_of_each(byte_model: Any, temperature: float) -> None:
    chat = LocalChat(byte_model(), batch_size=8, max_tokens=120, temperature=temperature, dtype="float32")
    schemas = [JUDGE, WRITER, None, WRITER, JUDGE]
    requests = [ask(f"{'long ' * i}question", schema) for i, schema in enumerate(schemas)]
    replies = chat.complete(requests)
    for reply, schema in zip(replies, schemas, strict=True):
        if schema is None:
            assert not (reply.said or "").startswith("{") and reply.sent is None
        else:
            check(reply.text, schema)
            assert reply.completion_tokens == len(chat.tokenizer(reply.text)["input_ids"]) + 1  # with the end token
            assert reply.sent == {"response_format": "json_schema"}
    assert chat.settings["response_format"] == "json_schema"
    assert [chat.complete([request]) for request in requests] == [[reply] for reply in replies]


@pytest.mark.parametrize(
    ("opened", "said"), [("<think>\n", f"{NOT_JSON}</think>"), ("", f"<think>{NOT_JSON}</think>"), ("", NOT_JSON)]
)
def test_a_thought_is_free_and_the_answer_behind_it_is_not(byte_model: Any, opened: str, said: str) -> None:
    chat = LocalChat(byte_model(f"{TEMPLATE}{opened}"), max_tokens=120, dtype="float32")
    follow(chat, said)
    (reply,) = chat.complete([ask("question", JUDGE)])
    check(reply.text, JUDGE)
    assert (NOT_JSON in (reply.raw or "")) == ("</think>" in said)


def test_a_tokenizer_without_bytes_is_said(tmp_path: Path) -> None:
    chat = LocalChat(str(save_language_model(tmp_path / "words")), max_tokens=4)
    with pytest.warns(UserWarning, match="replies are not held to their JSON schema, since llguidance cannot read"):
        (reply,) = chat.complete([ask("is there a mass", JUDGE)])
    assert reply.sent is None and "response_format" not in chat.settings
