"""Vision-language models of the Hub (or a folder): loading, checking, and answering questions about images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmedpo.errors import InputError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


@dataclass(frozen=True)
class Sampling:
    """How answers are generated. `temperature` 0 is greedy; `samples` answers a question come from one seed."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1 or self.max_new_tokens < 1:
            raise InputError(f"samples ({self.samples}) and max_new_tokens ({self.max_new_tokens}) must be at least 1.")
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise InputError(f"temperature {self.temperature} must be >= 0 and top_p {self.top_p} in (0, 1].")
        if self.samples > 1 and self.temperature == 0:
            raise InputError(f"{self.samples} samples at temperature 0 would all be equal; raise the temperature.")


def load_processor(name: str, revision: str | None = None) -> Any:
    """The processor of a vision-language model, with its own chat template.

    Raises:
        InputError: nothing loadable under `name`, no image processor, or no chat template.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, ProcessorMixin

    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
        if type(config) not in AutoModelForImageTextToText._model_mapping:
            raise InputError(
                f"{name!r} is a {config.model_type!r} model, not a vision-language model: it cannot look at images. "
                "Give a model of the Hub's task image-text-to-text."
            )
        processor = AutoProcessor.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"The model {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    if not isinstance(processor, ProcessorMixin) or not hasattr(processor, "image_processor"):
        raise InputError(f"{name!r} has no image processor; save the processor beside the model.")
    if processor.chat_template is None and processor.tokenizer.chat_template is None:
        raise InputError(f"{name!r} has no chat template, and a guessed one would be wrong; save the model's own.")
    return processor


def load_model(name: str, revision: str | None = None, dtype: str = "auto", attention: str | None = None) -> Any:
    """The model itself. Raises InputError where its weights are missing or torn."""
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText

    try:
        return AutoModelForImageTextToText.from_pretrained(
            name, revision=revision, dtype=dtype, attn_implementation=attention
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"The weights of {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error


class VisionLanguageModel:
    """A Med-LVLM that answers questions about images, with or without a LoRA adapter.

    Args:
        name: Hub id or folder of the base model.
        adapter: Hub id or folder of a PEFT adapter trained on it.
    """

    def __init__(self, name: str, adapter: str | None = None, revision: str | None = None, dtype: str = "auto") -> None:
        import torch

        self.name, self.adapter = name, adapter
        self.processor = load_processor(name, revision)
        if self.processor.tokenizer.pad_token is None:
            self.processor.tokenizer.pad_token = self.processor.tokenizer.eos_token
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = load_model(name, revision, dtype)
        self.revision = getattr(model.config, "_commit_hash", None) or revision
        if adapter is not None:
            model = _with_adapter(model, name, adapter)
        self.model = model.to(self.device).eval()

    def answer(self, questions: Sequence[tuple[Image, str]], sampling: Sampling) -> list[list[str]]:
        """Answer a batch of (RGB image, question) pairs; `sampling.samples` answers each.

        Image placeholders and other special tokens but the end of text are never generated, since a sampled
        placeholder breaks the next forward pass. Out of memory is left to the caller, who chose the batch.
        """
        import torch

        inputs = self.encode(questions)
        tokenizer = self.processor.tokenizer
        ends = _end_tokens(self.model, tokenizer)
        torch.manual_seed(sampling.seed)
        with torch.inference_mode():
            sampled: dict[str, Any] = {}
            if sampling.temperature:
                sampled = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
            output = self.model.generate(
                **inputs,
                do_sample=sampling.temperature > 0,
                num_return_sequences=sampling.samples,
                max_new_tokens=sampling.max_new_tokens,
                repetition_penalty=1.0,  # this and top_k would else be the model's own defaults, unrecorded
                suppress_tokens=sorted(set(tokenizer.all_special_ids) - ends),
                pad_token_id=tokenizer.pad_token_id,
                **sampled,
            )
        texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        texts = [text.strip() for text in texts]
        return [texts[i : i + sampling.samples] for i in range(0, len(texts), sampling.samples)]

    def encode(self, questions: Sequence[tuple[Image, str]]) -> dict[str, torch.Tensor]:
        """Model inputs of a batch, left-padded, in the model's own chat template, on the model's device."""
        conversations = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
            for _, question in questions
        ]
        texts = [
            self.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
            for conversation in conversations
        ]
        return self.processor(
            text=texts,
            images=[[image] for image, _ in questions],
            padding=True,
            padding_side="left",
            add_special_tokens=False,  # the template has written them
            return_tensors="pt",
        ).to(self.device)


def _with_adapter(model: Any, name: str, adapter: str) -> Any:
    from peft import PeftConfig, PeftModel

    try:
        base = PeftConfig.from_pretrained(adapter).base_model_name_or_path
        loaded = PeftModel.from_pretrained(model, adapter)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"The adapter {adapter!r} does not fit {name!r}: {str(error).splitlines()[0]}") from error
    if base and Path(base).name != Path(name).name:
        raise InputError(f"The adapter {adapter!r} was trained on {base!r}, not on {name!r}; give its own base model.")
    return loaded


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    configured = model.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return {token for token in [*ends, tokenizer.eos_token_id] if token is not None}


def open_rgb(path: Path) -> Image:
    """An image file as RGB, upright; 16-bit greyscale is scaled by its own range, where a conversion would clip it."""
    from PIL import Image as pillow
    from PIL import ImageOps

    with pillow.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if is_deep(image):
            values = np.asarray(image, dtype=np.float64)
            spread = max(values.max() - values.min(), 1.0)
            return pillow.fromarray(np.uint8((values - values.min()) * 255 / spread)).convert("RGB")
        return image.convert("RGB")


def is_deep(image: Image) -> bool:
    """True for more than 8 bits a channel (16-bit greyscale, 32-bit integers, floats)."""
    return image.mode[0] in "IF"
