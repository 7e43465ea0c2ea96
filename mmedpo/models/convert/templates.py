"""Conversation formats of the original models as Jinja chat templates.

The texts are those of the published code's conversation modes: microsoft/LLaVA-Med, haotian-liu/LLaVA and
UCSC-VLAA/MedTrinity-25M (`llava/conversation.py`), FreedomIntelligence/HuatuoGPT-Vision (`cli.py`).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from mmedpo.errors import InputError

IMAGE = "<image>"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"


@dataclass(frozen=True)
class Style:
    """Conversation format.

    Attributes:
        opening: text before all messages.
        user: texts before and after a question.
        assistant: text before an answer.
        ends: text after an earlier answer, and after the last one.
        bos: True where the published code's tokenizer puts its first token before the text.
    """

    opening: str
    user: tuple[str, str]
    assistant: str
    ends: tuple[str, str]
    bos: bool = True


STYLES = {  # keys are the published conversation modes
    "mistral_instruct": Style("", ("[INST] ", " [/INST]"), " ", (" </s>", " </s>")),
    "vicuna_v1": Style(f"{SYSTEM} ", ("USER: ", " "), "ASSISTANT: ", ("</s>", "</s>")),
    # The first token appears twice, as in the published code: in the opening, and from the tokenizer.
    "llama3": Style(
        f"<|begin_of_text|>{HEADER.format('system')}{SYSTEM}<|eot_id|>",
        (HEADER.format("user"), "<|eot_id|>"),
        HEADER.format("assistant"),
        ("<|eot_id|>", "<|eot_id|>"),
    ),
    # The published code writes no end after earlier answers; the model ends its answer with <|endoftext|>.
    "huatuo": Style("", ("<|user|>\n", "\n"), "<|assistant|>\n", (" \n", "<|endoftext|>"), bos=False),
}
# As in the published training code: images first; questions without stray placeholders and outer blanks.
TEMPLATE = """\
{%- macro said(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}{%- for part in content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- macro asked(content) -%}
{%- if content is not string -%}
{%- for part in content if part.type == 'image' -%}{{ IMAGE }}{%- endfor -%}
{%- endif -%}
{{ said(content) | replace('<image>', '') | trim }}
{%- endmacro -%}
{{- OPENING -}}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ USER + asked(message.content) + USER_END }}
{%- elif message.role == 'assistant' -%}{{ ASSISTANT + said(message.content) + (LAST_END if loop.last else END) }}
{%- else -%}{{ raise_exception('This model was trained with user and assistant messages only.') }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ PROMPT }}{%- endif -%}
"""


def usual_style(model_type: str, tokenizer: Any) -> str:
    """Return the style that the published models of an original model type were trained with.

    `llava_llama` means LLaVA-1.5 (`vicuna_v1`), or LLaVA-Med++ (`llama3`) with Llama 3's tokenizer.
    """
    if model_type in ("llava", "llava_llama"):
        return "llama3" if "<|start_header_id|>" in tokenizer.get_vocab() else "vicuna_v1"
    return {"llava_mistral": "mistral_instruct", "llava_qwen2": "huatuo"}[model_type]


def chat_template(name: str, tokenizer: Any) -> str:
    """Return the Jinja chat template of a style, for a tokenizer that knows `<image>`.

    The published code tokenizes the texts before and after an image separately. SentencePiece tokenizers add a blank
    before each part, and some omit it within a text. The template then writes that blank, so that the ids are those of
    training.

    Raises:
        InputError: no such style, or neither form gives the ids of training.
    """
    if name not in STYLES:
        raise InputError(f"template {name!r} does not exist; choose one of {', '.join(STYLES)}.")
    style = STYLES[name]
    bos = tokenizer.bos_token if style.bos else ""
    if bos is None:
        raise InputError(
            f"The template {name!r} begins with a first token, which this tokenizer does not have. Choose another."
        )

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    apart = [*([tokenizer.bos_token_id] if bos else []), *ids("a b "), *ids(IMAGE), *ids("\nc")]
    blank = next((blank for blank in ("", " ") if ids(f"{bos}{blank}a b {IMAGE}{blank}\nc") == apart), None)
    if blank is None:
        raise InputError(
            f"The template {name!r} does not give the token ids of the training with this tokenizer. Choose another."
        )
    texts = {
        "IMAGE": f"{IMAGE}{blank}\n",
        "OPENING": f"{bos}{blank}{style.opening}",
        "USER": style.user[0],
        "USER_END": style.user[1],
        "ASSISTANT": style.assistant,
        "END": style.ends[0],
        "LAST_END": style.ends[1],
        "PROMPT": style.assistant.rstrip(" "),
    }
    return re.sub(rf"\b({'|'.join(texts)})\b", lambda found: json.dumps(texts[found[0]]), TEMPLATE)
