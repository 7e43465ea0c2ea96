"""Prompts in the chat template of a model, which is code of third parties: limits of its time and length."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from mmedpo.data.images import open_rgb
from mmedpo.errors import InputError

Shown = Any  # images of a question: a list, one image, or None
SECONDS = 20.0  # a template takes milliseconds
LONGEST = 2**20  # characters; a template adds a few hundred to the question


class _TooMuch(BaseException):
    """Limit exceeded. A BaseException, so that the code under test cannot catch it."""


def check(name: str, write: Callable[[], str], seconds: float = SECONDS) -> None:
    """Raise InputError where `write` takes longer than `seconds` or returns more than `LONGEST` characters.

    Other errors are ignored here; the later call of `write` reports them. Limits are checked at each line of Python, so
    a single huge operation is not interrupted.
    """
    ends, before = time.monotonic() + seconds, sys.gettrace()

    def watch(frame: FrameType, event: str, value: Any) -> Any:
        if time.monotonic() > ends or any(
            isinstance(held, str | list) and len(held) > LONGEST for held in (*frame.f_locals.values(), value)
        ):
            raise _TooMuch
        return watch

    why = ""
    sys.settrace(watch)
    try:
        if len(write()) > LONGEST:
            why = f"renders a question with more than {LONGEST:,} characters"
    except _TooMuch:
        why = f"did not finish within {seconds:g} s and {LONGEST:,} characters"
    except (MemoryError, RecursionError, OverflowError) as error:
        why = f"did not finish ({type(error).__name__})"
    except Exception:  # an error of the template is reported when a question is rendered
        return
    finally:
        sys.settrace(before)
    if why:
        raise InputError(f"The chat template of {name!r} {why}. Use the template that the model was trained with.")


def render(processor: Any, text: str, images: int = 1) -> str:
    """Return a user message in the model's chat template, with `images` image tokens and the generation prompt.

    `processor` may be a tokenizer, whose template takes plain text.
    """
    content: Any = [*([{"type": "image"}] * images), {"type": "text", "text": text}]
    message = {"role": "user", "content": content if hasattr(processor, "image_processor") else text}
    rendered: str = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    return rendered


def listed(shown: Shown) -> list[Any]:
    """Return the images that a question is about as a list."""
    return [*shown] if isinstance(shown, list | tuple) else [] if shown is None else [shown]


def encode(processor: Any, questions: Sequence[tuple[Shown, str]]) -> Any:
    """Return model inputs of a batch of (image, text) pairs, left-padded, in the model's chat template.

    Images are given for all pairs or for none; without images `processor` may be a tokenizer.
    """
    images = [[*map(open_rgb, listed(shown))] for shown, _ in questions]
    texts = [render(processor, text, len(own)) for own, (_, text) in zip(images, questions, strict=True)]
    sees = hasattr(processor, "image_processor")
    return processor(
        text=texts,
        **({"images": images} if any(images) else {}),
        padding=True,
        padding_side="left",
        add_special_tokens=sees and lacks_first_token(processor.tokenizer, texts[0]),
        return_tensors="pt",
    )


def lacks_first_token(tokenizer: Any, text: str) -> bool:
    """Return True where a chat template leaves the first token to the tokenizer, as LLaVA's on the Hub do.

    This is the rule of transformers' `ProcessorMixin.apply_chat_template`.
    """
    return tokenizer.bos_token is not None and not text.startswith(tokenizer.bos_token)
