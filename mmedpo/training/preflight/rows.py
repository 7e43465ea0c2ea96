"""What can be wrong with the pairs of a training: columns, weights, images, texts and their lengths."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, IterableDataset

from mmedpo import placeholders, schema
from mmedpo.errors import Fault, InputError
from mmedpo.images import fault as image_fault
from mmedpo.images import size as image_size
from mmedpo.refusals import Sizes, prompt_tokens
from mmedpo.training.collator import PreferenceCollator
from mmedpo.training.config import MMedPOConfig

DECODED = 100  # rows whose images are read to the end; of all others the header is
STREAMED = 1000  # rows of a streamed dataset that are looked at
ROWS_AT_ONCE = 32  # held in memory
NAMED = 3  # rows that a fault names
IMAGES, TEXTS, KINDS = ("images", "rejected_images"), ("prompt", "chosen", "rejected"), ("task", "dispreference")


@dataclass
class Findings:
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    trained: dict[str, dict[str, int]] = field(default_factory=dict)  # `parts.trained_parts`

    def setting(self, name: str, sentence: str) -> None:
        self.faults.append(Fault("(settings)", name, sentence))

    def rows(self, pairs: Dataset, faulty: Iterable[tuple[int, str, str]]) -> None:
        """Add (row number, column, sentence): one fault for all rows that have it, so that none crowds out another."""
        groups: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number, column, sentence in faulty:
            if number not in groups[column, sentence][-1:]:
                groups[column, sentence].append(number)
        self.faults += [Fault(_names(pairs, rows), *fault) for fault, rows in groups.items()]


def check_pairs(
    dataset: Dataset | IterableDataset, processor: Any, config: MMedPOConfig, architecture: Any, found: Findings
) -> int:
    """Look at a dataset; returns its number of rows, 0 where it is streamed."""
    streamed = isinstance(dataset, IterableDataset)
    if isinstance(dataset, IterableDataset):
        found.warnings.append(f"The dataset is streamed: only its first {STREAMED} rows were checked.")
        dataset = Dataset.from_list(list(schema.undecoded(dataset).take(STREAMED)), features=dataset.features)
    wrong = schema.column_faults(dataset.features)
    found.faults += wrong
    columns = set(dataset.column_names) - {fault.column for fault in wrong}
    if "weight" in columns:
        _weights(dataset, config, found)
    if columns >= {*IMAGES, *TEXTS, *KINDS}:
        _preferences(dataset, found)
    sizes = _images(dataset, config.seed, found) if columns >= set(IMAGES) else {}
    if columns >= set(TEXTS):
        usable = _texts(dataset, processor, sizes, found)
        context = getattr(architecture.get_text_config(), "max_position_embeddings", None)
        _lengths(dataset, processor, usable, config.max_length, context, found)
    return 0 if streamed else len(dataset)


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


def _weights(pairs: Dataset, config: MMedPOConfig, found: Findings) -> None:
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


def _preferences(pairs: Dataset, found: Findings) -> None:
    faulty = [(i, *schema.pair_fault(row)) for i, row in enumerate(_rows(pairs, (*IMAGES, *TEXTS, *KINDS)))]
    faults = [(i, column, sentence) for i, column, sentence in faulty if sentence]
    # What an empty side is, `_texts` says.
    found.rows(pairs, [fault for fault in faults if "is empty" not in fault[2]])


def _images(pairs: Dataset, seed: int, found: Findings) -> dict[int, tuple[Sizes, Sizes]]:
    """Sizes of the images that the chosen and the rejected side see, by row number; rows with faults are left out."""
    sample = set(random.Random(seed).sample(range(len(pairs)), min(DECODED, len(pairs))))
    sizes, faulty = {}, []
    for i, pair in enumerate(_rows(pairs, IMAGES)):
        chosen, rejected = (pair[column] or [] for column in IMAGES)
        read = {column: [image_size(image) for image in pair[column] or []] for column in IMAGES}
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
            first, second = (tuple(filter(None, read[column])) for column in IMAGES)
            sizes[i] = first, second or first
        faulty += wrong
    found.rows(pairs, faulty)
    return sizes


@dataclass
class _Pair:
    """What of a row decides its lengths; texts are as the chat template writes them."""

    prompt: str
    answers: list[str]  # chosen, rejected
    sizes: tuple[Sizes, Sizes]


def _texts(pairs: Dataset, processor: Any, sizes: dict[int, tuple[Sizes, Sizes]], found: Findings) -> dict[int, _Pair]:
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
    tokenizer, own = processor.tokenizer, getattr(processor, "image_token", None)
    silent = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for column in TEXTS:
        text = schema.message_text(pair[column] or [])
        if held := placeholders.fault(text, own):
            yield column, held
        elif not text.strip() or silent.issuperset(_tokens(tokenizer, [text])[0]):
            yield column, "has no text, or none that leaves a token; write one or drop the row"


def _lengths(
    pairs: Dataset, processor: Any, usable: dict[int, _Pair], longest: int | None, context: int | None, found: Findings
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


def _image_tokens(pairs: Dataset, processor: Any, usable: dict[int, _Pair], found: Findings) -> dict[Sizes, int]:
    """Tokens that images of these sizes, and the tokenizer's first token, add to a prompt as the template writes it."""
    added: dict[Sizes, int] = {}
    refused: dict[Sizes, str] = {}
    for pair in usable.values():
        for sizes in {*pair.sizes} - added.keys():
            added[sizes] = -len(_tokens(processor.tokenizer, [pair.prompt])[0])
            try:
                added[sizes] += prompt_tokens(processor, pair.prompt, sizes)
            except InputError as error:
                refused[sizes] = str(error)
    faulty = [(i, refused.keys() & set(pair.sizes)) for i, pair in usable.items()]
    found.rows(pairs, [(i, "images", refused[sizes]) for i, wrong in faulty for sizes in wrong])
    return added


def _tokens(tokenizer: Any, texts: Iterable[str]) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"]
