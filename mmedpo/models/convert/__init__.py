"""Conversion of checkpoints in the original LLaVA layout to transformers' `LlavaForConditionalGeneration`.

Layouts follow the published code: microsoft/LLaVA-Med (`llava_mistral`), haotian-liu/LLaVA and UCSC-VLAA/MedTrinity-25M
(`llava_llama`, once `llava`), FreedomIntelligence/HuatuoGPT-Vision (`llava_qwen2`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mmedpo.data import trust
from mmedpo.errors import Fault, InputError
from mmedpo.models.convert.read import Place, readable
from mmedpo.models.convert.templates import IMAGE, STYLES, chat_template, usual_style
from mmedpo.models.convert.weights import check, expected_tensors, find_shards, save_weights
from mmedpo.models.fingerprint import model_contents
from mmedpo.runs.json_files import read_json, write_json
from mmedpo.runs.provenance import portable
from mmedpo.runs.recorded import record_contents
from mmedpo.runs.run_folder import output_folder

__all__ = ["STYLES", "Conversion", "convert"]

LANGUAGE_MODELS = {"llava_mistral": "mistral", "llava_llama": "llama", "llava": "llama", "llava_qwen2": "qwen2"}
# Values of the original config.json that `LlavaForConditionalGeneration` can compute; an absent field is None.
REPRESENTABLE: dict[str, tuple[Any, ...]] = {
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_feature": (None, "patch", "cls_patch"),
    "mm_patch_merge_type": (None, "flat"),
    "mm_resampler_type": (None,),
    "mm_use_im_start_end": (None, False),
    "image_aspect_ratio": (None, "square", "pad"),
    "s2": (None, False),
}


@dataclass(frozen=True)
class Conversion:
    """Facts of a conversion, as in the output's `conversion.json`.

    Attributes:
        ignored: names of tensors left out, each with its reason.
        image_token_id: id of `<image>`, which stands for each patch of an image.
        rows_added: new vocabulary rows for `<image>`.
        pad_to_square: True pads images with CLIP's mean colour, False crops them to a square.
    """

    source: str
    model_type: str
    vision_tower: str
    template: str
    tensors: int
    ignored: dict[str, str]
    image_token_id: int
    rows_added: int
    pad_to_square: bool


def convert(
    source: str,
    output: Path,
    template: str | None = None,
    vision_tower: str | None = None,
    revision: str | None = None,
    resume: bool = False,
) -> Conversion:
    """Write the checkpoint `source` as a transformers model with processor and chat template.

    Every tensor is used exactly once and keeps dtype and values; one weights file is in memory at a time. Where the
    vocabulary has no spare row for `<image>`, embedding and head get one, the mean of their rows. The embedding row is
    never read; the head row takes at most 1 / (V + 1) of the probability over V tokens (Jensen).

    Args:
        source: folder or Hub id of a checkpoint with a model type of `LANGUAGE_MODELS`.
        output: folder to write; it must not exist.
        template: name in `STYLES`; by default that of the published models of this type.
        vision_tower: folder or Hub id of the CLIP model, where config.json's `mm_vision_tower` is out of reach. Its
            weights are read only if the checkpoint holds none of a tower.
        revision: of `source` on the Hub.
        resume: restart an interrupted conversion in its folder.

    Raises:
        InputError: files are missing or unreadable; the configuration needs what transformers' LLaVA does not compute;
            tensors are missing, surplus, doubled or misshaped (all are named).
    """
    settings = {"source": source, "template": template, "vision_tower": vision_tower, "revision": revision}
    contents = _contents(source, vision_tower) if resume else None  # else after all was checked
    with output_folder(output, settings, resume, contents=contents) as folder:
        place = Place(source, revision=revision)
        original = _read_config(place)
        tower = _find_tower(place, original, vision_tower)
        config = model_config(original, tower)
        expected = expected_tensors(config)
        shards = find_shards(place, original, tower, chosen=vision_tower is not None)
        ignored = check(place, shards, expected, tied=config.tie_word_embeddings)
        tokenizer = _tokenizer(place)
        record_contents(folder, settings, contents or _contents(source, vision_tower))
        style = template or usual_style(original["model_type"], tokenizer)
        pad = original.get("image_aspect_ratio") == "pad"
        _save_processor(folder, config, tower, pad, tokenizer, chat_template(style, tokenizer))
        image_id = tokenizer.convert_tokens_to_ids(IMAGE)
        rows = max(0, image_id + 1 - config.text_config.vocab_size)
        config.image_token_index, config.text_config.vocab_size = image_id, config.text_config.vocab_size + rows
        config.save_pretrained(folder)
        _save_generation_config(folder, place, config, tokenizer)
        save_weights(folder, shards, expected, rows)
        done = Conversion(
            source=portable(source), model_type=original["model_type"], vision_tower=portable(str(tower)),
            template=style, tensors=len(expected), ignored=ignored, image_token_id=image_id, rows_added=rows,
            pad_to_square=pad,
        )  # fmt: skip
        write_json(folder / "conversion.json", {"format": "mmedpo.conversion/1", **asdict(done)})
    return done


def _contents(source: str, vision_tower: str | None) -> dict[str, str | None]:
    """Digests of the checkpoint and of the tower that was named, where they are folders."""
    given = {"source": source, "vision_tower": vision_tower}
    return {
        role: model_contents(name, also=["pytorch_model*.bin"]) if name and Path(name).is_dir() else None
        for role, name in given.items()
    }


def _read_config(place: Place) -> dict[str, Any]:
    path = place.file("config.json")
    if path is None:
        raise InputError(
            f"{place} has no config.json, or cannot be reached; give the folder or Hub id of a checkpoint."
        )
    config: dict[str, Any] = read_json(path)
    kind = config.get("model_type")
    if "text_config" in config:
        raise InputError(f"{place} is in transformers' own layout already; use it as it is.")
    if kind not in LANGUAGE_MODELS:
        raise InputError(f"{place} is a {kind!r} checkpoint; only {', '.join(LANGUAGE_MODELS)} can be converted.")
    faults = [
        Fault("config.json", name, f"is {config.get(name)!r}; use one of {', '.join(map(repr, allowed))}.")
        for name, allowed in REPRESENTABLE.items()
        if config.get(name) not in allowed
    ]
    if faults:
        raise InputError(f"{place} has settings that transformers' LLaVA does not support:", faults)
    return config


def _find_tower(source: Place, original: dict[str, Any], chosen: str | None) -> Place:
    """Return the place of the CLIP model: `chosen`, else `mm_vision_tower` inside the checkpoint or by its own name."""
    if chosen is not None:
        return Place(chosen)
    named = original.get("mm_vision_tower")
    if not named:
        raise InputError(f"{source}'s config.json names no mm_vision_tower; give --vision-tower.")
    inside = str(PurePosixPath(named))
    if not PurePosixPath(named).is_absolute() and source.file(f"{inside}/config.json"):
        return Place(source.name, inside, source.revision)
    tower = Place(named)
    elsewhere = PurePosixPath(named).is_absolute() and not Path(named).is_dir()  # a path of the training machine
    if elsewhere or tower.file("config.json") is None:
        raise InputError(f"The vision tower {named!r} cannot be found; give its folder or Hub id as --vision-tower.")
    return tower


def model_config(original: dict[str, Any], tower: Place) -> Any:
    """Return the `LlavaConfig` of the original model, before the vocabulary grows."""
    from transformers import AutoConfig, LlavaConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    vision: Any = tower.load(AutoConfig, **trust.only_data())
    vision = getattr(vision, "vision_config", vision)
    if vision.model_type != "clip_vision_model":
        raise InputError(f"The vision tower {tower} is a {vision.model_type!r} model; only CLIP can be converted.")
    kind = CONFIG_MAPPING[LANGUAGE_MODELS[original["model_type"]]]
    fields = kind().to_dict().keys() - {"model_type", "architectures", "transformers_version", "_name_or_path"}
    fields |= {"rope_theta", "rope_scaling", "torch_dtype"}  # top-level in older configurations
    with_class_token = original.get("mm_vision_select_feature") == "cls_patch"
    with readable("The checkpoint's config.json"):
        text = kind.from_dict({name: value for name, value in original.items() if name in fields})
        return LlavaConfig(
            text_config=text,
            vision_config=vision,
            vision_feature_layer=original.get("mm_vision_select_layer", -2),
            vision_feature_select_strategy="full" if with_class_token else "default",
            image_seq_length=(vision.image_size // vision.patch_size) ** 2 + with_class_token,
            projector_hidden_act="gelu",
            architectures=["LlavaForConditionalGeneration"],
            dtype=text.dtype,
        )


def _tokenizer(source: Place) -> Any:
    """Return the checkpoint's tokenizer with `<image>`, as a plain fast tokenizer.

    `LlamaTokenizer` does not save `legacy`, which decides how text after special tokens is split, so that a reloaded
    one would give other ids. The plain class stores all in its file.
    """
    from transformers import AddedToken, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast
    from transformers.utils import is_protobuf_available, is_sentencepiece_available

    sentencepiece = source.file("tokenizer.json") is None and source.file("tokenizer.model") is not None
    if sentencepiece and not (is_sentencepiece_available() and is_protobuf_available()):
        raise InputError(
            f"The tokenizer of {source} is only a SentencePiece model, which needs two more packages: "
            "pip install sentencepiece protobuf."
        )
    # An empty configuration, so that the tokenizer's own file names its class.
    own = source.load(AutoTokenizer, config=PreTrainedConfig(), **trust.only_data())
    special = [*own.extra_special_tokens, AddedToken(IMAGE, normalized=False, special=True)]
    own.add_special_tokens({"extra_special_tokens": special})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=own.backend_tokenizer,
        extra_special_tokens=own.extra_special_tokens,
        model_max_length=own.model_max_length,
        **own.special_tokens_map,
    )
    if tokenizer.pad_token is None:  # <unk> as in LLaVA's training; HuatuoGPT-Vision has none
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def _save_processor(folder: Path, config: Any, tower: Place, pad: bool, tokenizer: Any, template: str) -> None:
    from transformers import LlavaImageProcessorPil, LlavaProcessor

    image_processor = tower.load(LlavaImageProcessorPil, do_pad=pad)
    crop, seen = image_processor.crop_size["height"], config.vision_config.image_size
    if crop != seen:
        raise InputError(f"{tower}'s preprocessor_config.json crops to {crop} pixels, but its model takes {seen}.")
    LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,  # CLIP's class token
        chat_template=template,
    ).save_pretrained(folder)


def _save_generation_config(folder: Path, source: Place, config: Any, tokenizer: Any) -> None:
    """Save begin, end and padding tokens only, since LLaVA's own sampling settings contradict themselves."""
    from transformers import GenerationConfig

    path = source.file("generation_config.json")
    tokens = {"bos_token_id": config.text_config.bos_token_id, "eos_token_id": config.text_config.eos_token_id}
    tokens |= {name: value for name, value in (read_json(path) if path else {}).items() if name in tokens}
    GenerationConfig(**tokens, pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)
