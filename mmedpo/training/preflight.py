"""What can be known before a training starts, so that nothing known surfaces hours later: every fault in one message.

No weight is loaded: the model is built without memory (PyTorch's meta device), and a few images are decoded to the end.
Lengths are those of training, since the collator's texts and the model's own processor make them; the processor is
asked once for each combination of image sizes, with blank images, because image tokens depend on nothing else.
"""

from __future__ import annotations

import importlib.util
import math
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import get_peft_model
from PIL import ExifTags, Image
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from transformers.modeling_utils import set_zero3_state
from trl import ModelConfig

from mmedpo import schema
from mmedpo.errors import Fault, InputError
from mmedpo.images import fault as image_fault
from mmedpo.images import open_image
from mmedpo.training.collator import PreferenceCollator
from mmedpo.training.config import MMedPOConfig

DECODED = 100  # rows whose images are read to the end; of all others the header is
STREAMED = 1000  # rows of a streamed dataset that are looked at
ROWS_AT_ONCE = 32  # held in memory
NAMED = 3  # rows that a fault names
ADAM = 8  # bytes of optimizer state a trained parameter
IMAGES, TEXTS = ("images", "rejected_images"), ("prompt", "chosen", "rejected")

Sizes = tuple[tuple[int, int], ...]  # width and height in pixels of each image that one side sees


def check(
    dataset: Dataset | IterableDataset,
    processor: Any,
    config: MMedPOConfig,
    model_args: ModelConfig,
    output: Path,
    adapter: Callable[[PreTrainedModel], Any],
) -> list[str]:
    """Look for everything that would stop or spoil a training; returns what is odd but may be meant.

    Checked are columns and their types; weights; images (all by their header, a seeded sample to the end); answers;
    prompt, image tokens and answer against `max_length`, row by row; what there is to train; quantisation; disk space.
    Where columns are wrong, the checks that need them are left out, and the others are done.

    Args:
        dataset: the pairs; of a streamed dataset the first `STREAMED` are taken.
        output: the folder that will be written; it need not exist.
        adapter: makes the run's PEFT configuration (None: full fine-tuning) of a model, which has no weights here.

    Raises:
        InputError: with all faults; rows that have the same fault are one fault.
    """
    found = _Findings()
    if isinstance(dataset, IterableDataset):
        found.warnings.append(f"The dataset is streamed: only its first {STREAMED} rows were checked.")
        dataset = Dataset.from_list(list(schema.undecoded(dataset).take(STREAMED)), features=dataset.features)
    wrong = schema.column_faults(dataset.features)
    found.faults += wrong
    columns = set(dataset.column_names) - {fault.column for fault in wrong}
    architecture: Any = AutoConfig.from_pretrained(
        model_args.model_name_or_path or "", revision=model_args.model_revision
    )
    if "weight" in columns:
        _weights(dataset, config, found)
    sizes = _images(dataset, config.seed, found) if columns >= set(IMAGES) else {}
    if columns >= set(TEXTS):
        usable = _texts(dataset, processor, sizes, found)
        context = getattr(architecture.get_text_config(), "max_position_embeddings", None)
        _lengths(dataset, processor, usable, config.max_length, context, found)
    _quantisation(config, model_args, found)
    _precision(architecture, config, model_args, found)
    _model(len(dataset), architecture, config, model_args, output, adapter, found)
    if found.faults:
        raise InputError("The training cannot start:", found.faults)
    return found.warnings


@dataclass
class _Findings:
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def setting(self, name: str, sentence: str) -> None:
        self.faults.append(Fault("(settings)", name, sentence))

    def rows(self, pairs: Dataset, faulty: Iterable[tuple[int, str, str]]) -> None:
        """Add (row number, column, sentence): one fault for all rows that have it, so that none crowds out another."""
        groups: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number, column, sentence in faulty:
            if number not in groups[column, sentence][-1:]:
                groups[column, sentence].append(number)
        self.faults += [Fault(_names(pairs, rows), *fault) for fault, rows in groups.items()]


def _names(pairs: Dataset, numbers: list[int]) -> str:
    names = [f"number {i}" for i in numbers[:NAMED]]
    if "id" in pairs.column_names:
        names = [str(name) for name in pairs.select_columns("id").select(numbers[:NAMED])["id"]]
    more = ", ..." if len(numbers) > NAMED else ""
    return f"{len(numbers)} of {len(pairs)} rows ({', '.join(names)}{more})"


def _rows(pairs: Dataset, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The rows, their images undecoded."""
    for table in pairs.select_columns(list(columns)).with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
        yield from table.to_pylist()


def _weights(pairs: Dataset, config: MMedPOConfig, found: _Findings) -> None:
    weights = [math.nan if weight is None else weight for weight in pairs["weight"]]
    negative = "is negative: training would prefer the rejected side; give a weight of 0 or more"
    faulty = [(i, "weight", negative) for i, weight in enumerate(weights) if weight < 0]
    unusable = "is missing or no finite number; every row needs one"
    faulty += [(i, "weight", unusable) for i, weight in enumerate(weights) if not math.isfinite(weight)]
    if not any(weights):
        faulty += [(i, "weight", "is 0, as everywhere: nothing would be learned") for i in range(len(weights))]
    elif config.weighted and not faulty and len(set(weights)) == 1:
        found.warnings.append(f"All weights are {weights[0]:g}: the clinical weighting changes nothing.")
    found.rows(pairs, faulty)


def _images(pairs: Dataset, seed: int, found: _Findings) -> dict[int, tuple[Sizes, Sizes]]:
    """Sizes of the images that the chosen and the rejected side see, by row number; rows with faults are left out."""
    sample = set(random.Random(seed).sample(range(len(pairs)), min(DECODED, len(pairs))))
    sizes, faulty = {}, []
    for i, pair in enumerate(_rows(pairs, IMAGES)):
        chosen, rejected = (pair[column] or [] for column in IMAGES)
        read = {column: [_size(image) for image in pair[column] or []] for column in IMAGES}
        wrong = [
            (i, column, sentence)
            for column in IMAGES
            for image, size in zip(pair[column] or [], read[column], strict=True)
            if (i in sample or size is None) and (sentence := image_fault(image))
        ]
        if not chosen:
            wrong.append((i, "images", "is empty; every row needs an image"))
        if rejected and len(rejected) != len(chosen):
            wrong.append((i, "rejected_images", "has more or fewer images than `images`, but the prompt is the same"))
        if not wrong:
            sizes[i] = tuple(read["images"]), tuple(read["rejected_images"] or read["images"])
        faulty += wrong
    found.rows(pairs, faulty)
    return sizes


def _size(image: dict[str, Any]) -> Any:
    """Width and height of an undecoded image, upright, from its header; None if it has none that can be read."""
    try:
        data = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
        with open_image(data) as opened:
            # Asked for EXIF that is not there, Pillow would decode a PNG to its end.
            turned = "exif" in opened.info and opened.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return (opened.height, opened.width) if turned else opened.size
    except InputError:
        raise
    except Exception:  # decoders raise nearly every kind on damaged files
        return None


@dataclass
class _Pair:
    """What of a row decides its lengths; texts are as the chat template writes them."""

    prompt: str
    answers: list[str]  # chosen, rejected
    sizes: tuple[Sizes, Sizes]


def _texts(pairs: Dataset, processor: Any, sizes: dict[int, tuple[Sizes, Sizes]], found: _Findings) -> dict[int, _Pair]:
    """The pairs, by row number, that have images and nothing wrong with their texts."""
    collator = PreferenceCollator(processor)
    usable, faulty = {}, []
    for i, pair in enumerate(_rows(pairs, TEXTS)):
        wrong = list(_text_faults(pair, processor))
        if not wrong and i in sizes:
            pictured = {**pair, "images": [None] * len(sizes[i][0])}  # their number is all that the template needs
            try:
                (prompt, chosen), (_, rejected) = (collator.texts(pictured, side) for side in TEXTS[1:])
                usable[i] = _Pair(prompt, [chosen, rejected], sizes[i])
            except Exception as error:  # a chat template raises what it likes
                wrong = [("prompt", f"cannot be written by the model's chat template: {error}")]
        faulty += [(i, *fault) for fault in wrong]
    found.rows(pairs, faulty)
    return usable


def _text_faults(pair: dict[str, Any], processor: Any) -> Iterator[tuple[str, str]]:
    tokenizer, placeholder = processor.tokenizer, getattr(processor, "image_token", None)
    silent = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for column in TEXTS:
        text = schema.message_text(pair[column] or [])
        if placeholder and placeholder in text:
            yield column, f"holds {placeholder!r}, which the chat template writes for each image; remove it"
        elif not text.strip() or silent.issuperset(_tokens(tokenizer, [text])[0]):
            yield column, "has no text, or none that leaves a token; write one or drop the row"


def _lengths(
    pairs: Dataset, processor: Any, usable: dict[int, _Pair], longest: int | None, context: int | None, found: _Findings
) -> None:
    """Set the longer side of each pair against `max_length`, and against the positions that the model knows."""
    if not usable:
        return
    added = _image_tokens(pairs, processor, usable, found)
    prompts, chosen, rejected = (
        [len(ids) for ids in _tokens(processor.tokenizer, texts)]
        for texts in zip(*((pair.prompt, *pair.answers) for pair in usable.values()), strict=True)
    )
    lengths = {
        i: prompts[n] + max(added[pair.sizes[0]] + chosen[n], added[pair.sizes[1]] + rejected[n])
        for n, (i, pair) in enumerate(usable.items())
    }
    most = max(lengths.values())
    if longest is not None:
        sentence = (
            f"is less than the row's tokens, image tokens included, which cannot be cut; set {most} or leave it out"
        )
        found.rows(pairs, [(i, f"max_length {longest}", sentence) for i in usable if lengths[i] > longest])
    if context is not None and most > context:
        beyond = _names(pairs, [i for i in usable if lengths[i] > context])
        found.warnings.append(
            f"{beyond} have up to {most} tokens, more than the {context} that the model was made for."
        )


def _image_tokens(pairs: Dataset, processor: Any, usable: dict[int, _Pair], found: _Findings) -> dict[Sizes, int]:
    """Tokens that images of these sizes add to a prompt, beyond the placeholders that the template writes."""
    added: dict[Sizes, int] = {}
    refused: dict[Sizes, str] = {}
    for pair in usable.values():
        for sizes in {*pair.sizes} - added.keys():
            blank = [Image.new("RGB", size) for size in sizes]
            added[sizes] = -len(_tokens(processor.tokenizer, [pair.prompt])[0])
            try:
                made = processor(text=[pair.prompt], images=[blank], padding=False, add_special_tokens=False)
                added[sizes] += len(made["input_ids"][0])
            except Exception as error:  # processors raise what they like
                refused[sizes] = f"are refused by the model's processor: {error}"
    faulty = [(i, refused.keys() & set(pair.sizes)) for i, pair in usable.items()]
    found.rows(pairs, [(i, "images", refused[sizes]) for i, wrong in faulty for sizes in wrong])
    return added


def _tokens(tokenizer: Any, texts: Iterable[str]) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"]


def _quantisation(config: MMedPOConfig, model_args: ModelConfig, found: _Findings) -> None:
    name = "load_in_4bit" if model_args.load_in_4bit else "load_in_8bit"
    if not getattr(model_args, name):
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        found.setting(name, "needs bitsandbytes, which is not installed: pip install bitsandbytes")
    if not model_args.use_peft:
        found.setting(name, "freezes all weights, so that full fine-tuning has nothing to train; set use_peft to true")
    if config.deepspeed_plugin is not None and config.deepspeed_plugin.zero_stage == 3:
        found.setting(name, "cannot be split over processes by ZeRO-3; use ZeRO-1 or ZeRO-2, or leave it out")


def _precision(architecture: Any, config: MMedPOConfig, model_args: ModelConfig, found: _Findings) -> None:
    """With DeepSpeed mixed precision decides the weights' dtype, and with it to what LoRA's start is rounded."""
    if config.deepspeed_plugin is None:
        return
    asked = str(architecture.dtype if model_args.dtype == "auto" else model_args.dtype).removeprefix("torch.")
    held = "bfloat16" if config.bf16 else "float16" if config.fp16 else "float32"
    if held not in ("float32", asked):
        found.warnings.append(f"DeepSpeed holds the weights in {held} (mixed precision), not in {asked} (dtype).")
    elif asked != held and config.deepspeed_plugin.zero_stage == 3:
        found.setting("dtype", f"is {asked}, which ZeRO-3 makes float32 without mixed precision; set bf16 or fp16 too")


def _model(
    rows: int, architecture: Any, config: MMedPOConfig, model_args: ModelConfig, output: Path,
    adapter: Callable[[PreTrainedModel], Any], found: _Findings,
) -> None:  # fmt: skip
    """What there is to train, and whether the disk holds what it becomes."""
    dtype = architecture.dtype if model_args.dtype == "auto" else model_args.dtype
    try:
        # Else ZeRO-3 would split the model, for which all processes would have to be here.
        with torch.device("meta"), set_zero3_state():
            model = AutoModelForImageTextToText.from_config(architecture, dtype=dtype or torch.float32)
            peft_config = adapter(model)
            names = [name for name, _ in model.named_modules()]
            for wanted in getattr(peft_config, "modules_to_save", None) or []:
                if not any(name == wanted or name.endswith(f".{wanted}") for name in names):
                    found.setting("lora_modules_to_save", f"{wanted!r} is no module of the model; nothing would train")
            if peft_config is not None:
                model = get_peft_model(model, peft_config)
    except (ValueError, TypeError) as error:  # PEFT's own checks
        found.setting("lora_target_modules", str(error))
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        found.setting("use_peft", "leaves nothing to train")
    saved = sum(parameter.nbytes for parameter in (trained if peft_config is not None else model.parameters()))
    state = 0 if config.save_only_model else ADAM * sum(parameter.numel() for parameter in trained)
    _disk(output, saved, _checkpoints(rows, config) * (saved + state), found)


def _checkpoints(rows: int, config: MMedPOConfig) -> int:
    """Checkpoints that lie on the disk at once: those to be kept, and the one that is written before one is dropped."""
    epoch = math.ceil(rows / (config.train_batch_size * config.gradient_accumulation_steps * config.world_size)) or 1
    steps = config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * epoch)
    every = config.save_steps if config.save_steps >= 1 else max(1, math.ceil(config.save_steps * steps))
    count = math.ceil(steps / (epoch if config.save_strategy == "epoch" else every))
    most = math.inf if config.save_total_limit is None else config.save_total_limit + 1
    return 0 if config.save_strategy == "no" else int(min(count, most))


def _disk(output: Path, saved: int, checkpoints: int, found: _Findings) -> None:
    output = output.resolve()
    free = shutil.disk_usage(next(folder for folder in (output, *output.parents) if folder.exists())).free
    if saved + checkpoints > free:
        found.setting(
            "output",
            f"needs about {(saved + checkpoints) / 1e9:.1f} GB, {checkpoints / 1e9:.1f} of them for checkpoints, where "
            f"{free / 1e9:.1f} GB are free; set save_total_limit or save_only_model, or name another disk",
        )
