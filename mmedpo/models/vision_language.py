"""Vision-language models from a folder or the Hub: load, check, answer questions about images."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from mmedpo.data import hub, placeholders, trust
from mmedpo.data.text import number_of
from mmedpo.errors import InputError
from mmedpo.models.adapters import adapter_commit, adapter_digest, base_of, check_base, with_adapter
from mmedpo.models.chat_template import Shown, encode, render
from mmedpo.models.chat_template import check as check_template
from mmedpo.models.fingerprint import fingerprint
from mmedpo.models.generation import AnswerReader, NumbersOnly, Sampling, check_vocabulary, generation_config
from mmedpo.models.thoughts import Answer
from mmedpo.runs.device import best_device

if TYPE_CHECKING:
    from mmedpo.models.prompts import Prompts

UNLOADABLE = (  # raised by `from_pretrained`
    OSError, ValueError, RuntimeError, KeyError, ImportError, AttributeError, TypeError, SafetensorError,
)  # fmt: skip


def can_see(name: str, revision: str | None = None) -> bool:
    """Return True where the configuration is a vision-language model's; raises as `configured`."""
    from transformers import AutoModelForImageTextToText

    return type(_load_config(name, revision)) in AutoModelForImageTextToText._model_mapping


def load_processor(name: str, revision: str | None = None) -> Any:
    """Return the processor of a vision-language model, with the model's own chat template.

    Raises:
        InputError: nothing loadable under `name`, no image processor, or no chat template.
    """
    from transformers import AutoProcessor, ProcessorMixin

    if not can_see(name, revision):
        raise InputError(
            f"{name!r} is a {_load_config(name, revision).model_type!r} model, not a vision-language model, and takes "
            "no images. Give a model of the Hub's task image-text-to-text."
        )
    processor = _load(AutoProcessor, name, revision)
    if not isinstance(processor, ProcessorMixin) or not hasattr(processor, "image_processor"):
        raise InputError(f"{name!r} has no image processor; save the processor beside the model.")
    if processor.chat_template is None:  # older checkpoints keep it with the tokenizer
        processor.chat_template = processor.tokenizer.chat_template
    _check_chat_template(name, processor)
    return processor


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """Return the tokenizer of a language model, with the model's own chat template.

    Raises:
        InputError: no loadable tokenizer under `name`, or no chat template.
    """
    from transformers import AutoTokenizer

    tokenizer = _load(AutoTokenizer, name, revision)
    _check_chat_template(name, tokenizer)
    return tokenizer


def configured(name: str, key: str, revision: str | None = None) -> Any:
    """Return a value that this package keeps in a model's configuration; None where there is none.

    Args:
        key: `credentialed.KEY` or `formats.STANDIN_KEY`.

    Raises:
        InputError: no loadable configuration under `name`.
    """
    return getattr(_load_config(name, revision), key, None)


def _load_config(name: str, revision: str | None) -> Any:
    from transformers import AutoConfig
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    config = _load(AutoConfig, name, revision)
    parts = [config, *(getattr(config, part, None) for part in config.sub_configs)]
    if named := [kind for part in parts if "/" in (kind := str(getattr(part, "_attn_implementation", None)))]:
        raise InputError(
            f"The model {name!r} cannot be loaded: its configuration asks for the Hub's code {named[0]!r}, which is "
            "not run. Remove attn_implementation from its config.json."
        )
    for part in parts:  # transformers would leave an unknown method out
        method = (getattr(part, "quantization_config", None) or {}).get("quant_method", "bitsandbytes")
        if method not in {*AUTO_QUANTIZATION_CONFIG_MAPPING, "bitsandbytes"}:
            raise InputError(
                f"The model {name!r} cannot be loaded: transformers does not know the quantisation {str(method)!r} of "
                "its config.json. Update transformers, or use another form of the model."
            )
    return config


def _load(kind: Any, name: str, revision: str | None) -> Any:
    if not name.strip():
        raise InputError("The name of the model is empty. Give a folder or a Hub id.")
    try:
        return kind.from_pretrained(name, revision=revision, **trust.only_data())
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:  # of wrong configurations
        if base := base_of(name, revision):
            raise InputError(
                f"{name!r} is an adapter, not a model. Give its base model, {base!r}, as the model, and the adapter "
                "itself by --adapter (of curate, evaluate and attention) or --adapter_name_or_path (of train)."
            ) from error
        reason, broken_off, _ = hub.why_unread(error, name).partition(" Check out the instructions")
        if broken_off and (library := re.search(r"requires the (\w+) library", reason)):
            reason += f" Install it: pip install {library[1].lower()}"
        raise InputError(f"The model {name!r} cannot be loaded: {reason}") from error


def _check_chat_template(name: str, owner: Any) -> None:
    if owner.chat_template is None:
        raise InputError(f"{name!r} has no chat template, and none is guessed; save the model's own with it.")
    check_template(name, lambda: render(owner, "?"))


def load_model(
    name: str, revision: str | None = None, dtype: str = "auto", attention: str | None = None, **options: Any
) -> Any:
    """Return the weights of a vision-language model, or else of a causal language model.

    Args:
        dtype, attention: of the weights ("auto" is the checkpoint's), and the attention implementation.
        options: further options of `from_pretrained`, such as `quantization_config`; None values are left out.

    Raises:
        InputError: its weights are missing, incomplete or torn, or it is neither kind of model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    if attention and "/" in attention:
        raise InputError(
            f"attn_implementation {attention!r}: it is the Hub's code, which is not run. Use sdpa or eager."
        )
    kind = AutoModelForImageTextToText if can_see(name, revision) else AutoModelForCausalLM
    try:
        given = {key: value for key, value in options.items() if value is not None}
        return whole(kind, name, revision=revision, dtype=dtype, attn_implementation=attention, **given)
    except InputError:
        raise
    except UNLOADABLE as error:
        raise InputError(f"The weights of {name!r} cannot be loaded: {hub.why_unread(error, name)}") from error


def whole(kind: Any, name: str, unused: tuple[str, ...] = (), pickled: bool = False, **options: Any) -> Any:
    """Return a model of the class `kind` with all its weights, which transformers would else draw at random.

    Args:
        unused: first parts of names of weights that may be missing.
        pickled: also take weights that are no safetensors.

    Raises:
        InputError: the checkpoint lacks weights of the model.
        UNLOADABLE: as `from_pretrained`.
    """
    model, found = kind.from_pretrained(
        name, use_safetensors=None if pickled else True, output_loading_info=True, **trust.only_data(), **options
    )
    if missing := sorted(key for key in found["missing_keys"] if not key.startswith(unused)):
        raise InputError(
            f"The weights of {name!r} are incomplete: {number_of(len(missing), 'tensors')} of {type(model).__name__} "
            f"missing ({missing[0]}{', ...' * (len(missing) > 1)}). Copy or download its files again."
        )
    if getattr(getattr(model, "hf_quantizer", None), "pre_quantized", False) and any(map(_is_raw, model.modules())):
        raise InputError(
            f"{name!r} is quantised by bitsandbytes according to its config.json, but its weights are not. Remove "
            "quantization_config from config.json, or copy the quantised weights again."
        )
    return model


def _is_raw(module: Any) -> bool:
    """Return True for a layer of bitsandbytes whose weight was not quantised."""
    import torch

    return type(module).__module__.startswith("bitsandbytes") and type(module.weight) is torch.nn.Parameter


class LanguageModel:
    """Model in this process that continues prompts, with or without vision, on the best device.

    Args:
        processor: processor of the model; of a model without vision its tokenizer.
        name, revision, dtype: as in `load_model`.
        weights: result of `load_model`, if another `LanguageModel` has it; shared, not copied.

    Attributes:
        revision: the commit on the Hub, or what was given.
        reader: `AnswerReader` of the generated tokens.
    """

    def __init__(
        self, processor: Any, name: str, revision: str | None = None, dtype: str = "auto", weights: Any = None
    ) -> None:
        self.name, self.processor, self.device = name, processor, best_device()
        self.tokenizer = getattr(processor, "tokenizer", processor)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model = load_model(name, revision, dtype) if weights is None else weights
        check_vocabulary(model, self.tokenizer, name)
        self.revision: str | None = getattr(model.config, "_commit_hash", None) or revision
        model.generation_config = generation_config(model, self.tokenizer)
        self.reader = AnswerReader(model, self.tokenizer)
        self.model = model.to(self.device).eval()

    @property
    def called(self) -> str:
        """The model's name in messages."""
        return self.name

    def generated(self, inputs: Any, max_new_tokens: int, **choice: Any) -> list[list[int]]:
        """Return the tokens after each prompt of a batch, maybe with padding behind; `choice` is of `generate`."""
        import torch

        finite = NumbersOnly(self.called)
        choice["logits_processor"] = [finite, *choice.get("logits_processor", ())]
        with torch.inference_mode():
            output = self.model.generate(**inputs.to(self.device), max_new_tokens=max_new_tokens, **choice)
        found: list[list[int]] = output[:, inputs["input_ids"].shape[1] :].tolist()
        return found


class VisionLanguageModel(LanguageModel):
    """Vision-language model that answers questions about images, with or without a LoRA adapter.

    Args:
        name: Hub id or folder of the base model.
        adapter: Hub id or folder of a PEFT adapter trained on it.
        revision, adapter_revision: branch, tag or commit on the Hub.
        dtype: of the weights; "auto" is the checkpoint's.
        weights: as in `LanguageModel`; an adapter would change them for both.

    Attributes:
        adapter_revision: the commit on the Hub, or what was given.
        adapter_sha256: `adapter_digest` of the adapter, None without one.
        adapter_checked_by: result of `check_base`, None without an adapter.
        fingerprint: of the base model's weights, None without safetensors files.

    Raises:
        InputError: model or adapter cannot be loaded, or they do not belong together.
    """

    def __init__(
        self, name: str, adapter: str | None = None, revision: str | None = None, dtype: str = "auto",
        adapter_revision: str | None = None, weights: Any = None,
    ) -> None:  # fmt: skip
        from mmedpo.models.prompts import Sharing

        self.adapter, processor = adapter, load_processor(name, revision)
        # Check before loading gigabytes.
        self.adapter_checked_by = adapter and check_base(adapter, name, adapter_revision, revision)
        super().__init__(processor, name, revision, dtype, weights)
        if adapter is not None:
            self.model = with_adapter(self.model, name, adapter, revision=adapter_revision).to(self.device).eval()
        self.fingerprint = fingerprint(name, self.revision)
        self.adapter_revision = adapter and (adapter_commit(adapter, adapter_revision) or adapter_revision)
        self.adapter_sha256 = adapter and adapter_digest(adapter, self.adapter_revision)
        self.generating, self.scoring = (Sharing(processor, self.called) for _ in range(2))
        self.tokenizing = Lock()  # a fast tokenizer pads for one thread at a time

    @property
    def called(self) -> str:
        """Name of the model, and of its adapter, for messages."""
        return self.name if self.adapter is None else f"{self.name} with {self.adapter}"

    def answer(self, questions: Sequence[tuple[Shown, str]], sampling: Sampling) -> list[list[str]]:
        """Return `sampling.samples` texts for each question about an image or a list; '' where there is no answer."""
        answers = self.generate(self.prompts(questions, sampling), sampling)
        return [[answer.said or "" for answer in those] for those in answers]

    def prompts(self, questions: Sequence[tuple[Shown, str]], sampling: Sampling) -> Prompts:
        """Return a batch of questions for `generate`, in the model's chat template; thread-safe.

        Raises:
            InputError: a text holds an image token, or the processor refuses an image (`refusals` finds both before).
        """
        return self._made(questions, partial(self.generating.ask, samples=sampling.samples))

    def encode(self, questions: Sequence[tuple[Shown, str]]) -> Any:
        """Return model inputs of a batch, left-padded, in the model's chat template; raises as `prompts`."""
        return self._made(questions, encode)

    def _made(self, questions: Sequence[tuple[Shown, str]], make: Callable[..., Any]) -> Any:
        own = getattr(self.processor, "image_token", None)
        for said in filter(None, (placeholders.fault(text, own) for _, text in questions)):
            raise InputError(f"A question cannot be asked: it {said}.")
        try:
            with self.tokenizing:
                return make(self.processor, questions)
        except InputError:
            raise
        except Exception as error:  # processors raise what they like
            raise InputError(f"A question cannot be asked: the processor refuses its image: {error}") from error

    def generate(self, prompts: Prompts, sampling: Sampling) -> list[list[Answer]]:
        """Return `sampling.samples` answers for each question of a batch made by `prompts` with the same `sampling`.

        Out-of-memory errors are raised to the caller, who chooses the batch size.
        """
        from mmedpo.models import prefill

        return next(prefill.answers(self, prompts, [(len(prompts.tokens), sampling)]))
