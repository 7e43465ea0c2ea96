"""Checks of a training's pairs: columns, weights, images, texts and their lengths."""

from __future__ import annotations

import functools
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, IterableDataset

from mmedpo import schema
from mmedpo.data import placeholders
from mmedpo.data.images import fault as image_fault
from mmedpo.data.images import file_digest
from mmedpo.data.images import size as image_size
from mmedpo.data.text import number_of
from mmedpo.errors import Fault
from mmedpo.models.refusals import Size, Sizes
from mmedpo.training.collator import PreferenceCollator
from mmedpo.training.config import MMedPOConfig
from mmedpo.training.preflight.image_tokens import image_tokens

DECODED = 100  # rows whose images are read in full; of all others only the header
STREAMED = 1000  # rows checked of a streamed dataset
ROWS_AT_ONCE = 32  # rows in memory
WORDS = 10_000  # words in the cache of `_token_finder`
NAMED = 3  # rows named in a fault
IMAGES, TEXTS = ("images", "rejected_images"), ("prompt", "chosen", "rejected")
KINDS = ("task", "dispreference", *schema.OPTIONAL)


@dataclass
class Findings:
    """Results of the checks: faults, warnings, trained parts."""

    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    trained: dict[str, dict[str, int]] = field(default_factory=dict)  # `parts.trained_parts`

    def setting(self, name: str, sentence: str) -> None:
        self.faults.append(Fault("(settings)", name, sentence))

    def rows(self, pairs: Dataset, faulty: Iterable[tuple[int, str, str]]) -> None:
        """Add faults (row number, column, sentence), merging rows with the same fault into one."""
        groups: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number, column, sentence in faulty:
            if number not in groups[column, sentence][-1:]:
                groups[column, sentence].append(number)
        self.faults += [Fault(_names(pairs, rows), *fault) for fault, rows in groups.items()]


def check_pairs(
    dataset: Dataset | IterableDataset, processor: Any, config: MMedPOConfig, architecture: Any, found: Findings
) -> int:
    """Check a dataset and return its number of rows, 0 where it is streamed."""
    streamed = isinstance(dataset, IterableDataset)
    if isinstance(dataset, IterableDataset):
        found.warnings.append(f"The dataset is streamed: only its first {STREAMED} rows were checked.")
        dataset = Dataset.from_list(list(schema.undecoded(dataset).take(STREAMED)), features=dataset.features)
    wrong = schema.column_faults(dataset.features)
    if config.loss_type == ["sft"]:  # takes the chosen sides alone, also gold answers of a source
        wrong = [fault for fault in wrong if fault.column != "dispreference"]
    found.faults += wrong
    columns = set(dataset.column_names) - {fault.column for fault in wrong}
    if "id" in columns:
        found.faults += schema.repeated_ids(Counter(dataset["id"]))
    if "weight" in columns:
        _weights(dataset, config, found)
    images = _images(dataset, config.seed, found) if columns >= set(IMAGES) else None
    broken = _rules(dataset, [*filter(columns.__contains__, (*TEXTS, *KINDS, "weight"))], images, found)
    if columns >= set(TEXTS):
        context = getattr(architecture.get_text_config(), "max_position_embeddings", None)
        tokens, prompts = _texts(dataset, processor, images, broken, found)
        if images:
            _lengths(dataset, processor, images, tokens, prompts, config.max_length, context, found)
    return 0 if streamed else len(dataset)


def _names(pairs: Dataset, numbers: list[int]) -> str:
    names = [f"number {i}" for i in numbers[:NAMED]]
    if "id" in pairs.column_names:
        names = [str(name) for name in pairs.select_columns("id").select(numbers[:NAMED])["id"]]
    more = ", ..." if len(numbers) > NAMED else ""
    return f"{len(numbers)} of {number_of(len(pairs), 'rows')} ({', '.join(names)}{more})"


def _rows(pairs: Dataset, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows with undecoded images."""
    for table in pairs.select_columns(list(columns)).with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
        yield from table.to_pylist()


def _weights(pairs: Dataset, config: MMedPOConfig, found: Findings) -> None:
    """Check all weights together; `_rules` checks each."""
    if len(set(pairs["weight"])) > 1:
        return
    weight = pairs["weight"][0]
    if weight == 0:
        found.rows(pairs, [(i, "weight", "is 0 in all rows, so nothing would be learned") for i in range(len(pairs))])
    elif config.weighted and config.loss_type != ["sft"] and weight is not None and weight > 0:
        found.warnings.append(f"All weights are {weight:g}: clinical weighting has no effect.")


@dataclass
class _Images:
    """Distinct images of a dataset by number, and the numbers that each side of a row shows."""

    sides: list[tuple[tuple[int, ...], tuple[int, ...] | None]] = field(default_factory=list)
    size: list[Size | None] = field(default_factory=list)
    unusable: set[int] = field(default_factory=set)  # rows

    def sizes(self, row: int) -> tuple[Sizes, Sizes]:
        """Return the sizes of the images on the chosen and the rejected side of a usable row."""
        first, second = (tuple(filter(None, (self.size[n] for n in side or ()))) for side in self.sides[row])
        return first, second or first


def _images(pairs: Dataset, seed: int, found: Findings) -> _Images:
    """Read each distinct image once: its header, and in full where the header is faulty or the row is sampled."""
    sample = set(random.Random(seed).sample(range(len(pairs)), min(DECODED, len(pairs))))
    images = _Images()
    numbers: dict[str, int] = {}
    faults: dict[int, str | None] = {}
    for i, pair in enumerate(_rows(pairs, IMAGES)):
        sides = []
        for column in IMAGES:
            shown = []
            for image in pair[column] or []:
                name = file_digest(image) if image and image["bytes"] else repr(image)
                number = numbers.setdefault(name, len(numbers))
                shown.append(number)
                if number == len(images.size):
                    images.size.append(image_size(image))
                if number not in faults and (i in sample or images.size[number] is None):
                    faults[number] = image_fault(image)
            sides.append(None if pair[column] is None else tuple(shown))
        images.sides.append((sides[0] or (), sides[1]))
    faulty = []
    for i, (chosen, rejected) in enumerate(images.sides):
        seen = [("images", n) for n in chosen] + [("rejected_images", n) for n in rejected or ()]
        wrong = [(i, column, sentence) for column, n in seen if (sentence := faults.get(n))]
        if wrong or not chosen or (rejected and len(rejected) != len(chosen)):
            images.unusable.add(i)
        faulty += wrong
    found.rows(pairs, faulty)
    return images


def _rules(
    pairs: Dataset, columns: Sequence[str], images: _Images | None, found: Findings
) -> set[tuple[int, str]]:  # fmt: skip
    """Check `schema.RULES`, with numbers in place of images; return row number and column of each fault."""
    faulty: list[tuple[int, str, str]] = []
    for i, row in enumerate(_rows(pairs, columns) if columns else ()):
        if images:
            first, second = images.sides[i]
            row |= {"images": list(first), "rejected_images": None if second is None else list(second)}
        faulty += [(i, *fault) for fault in schema.broken_rules(row)]
    found.rows(pairs, faulty)
    return {(i, column) for i, column, _ in faulty}


def _texts(
    pairs: Dataset, processor: Any, images: _Images | None, broken: Collection[tuple[int, str]], found: Findings
) -> tuple[dict[int, tuple[int, int]], dict[int, str]]:
    """Count the tokens of each pair with usable images and faultless texts.

    Returns:
        tokens of the prompt with each answer, without images, by row; a rendered prompt for each number of images.
    """
    collator, own = PreferenceCollator(processor), getattr(processor, "image_token", None)
    leaves_token = _token_finder(processor.tokenizer)
    tokens: dict[int, tuple[int, int]] = {}
    prompts: dict[int, str] = {}
    faulty: list[tuple[int, str, str]] = []
    rows = enumerate(_rows(pairs, TEXTS))
    while block := list(itertools.islice(rows, ROWS_AT_ONCE)):
        texts: dict[int, tuple[str, str, str]] = {}
        for i, pair in block:
            sound = [column for column in TEXTS if (i, column) not in broken]
            wrong = list(_text_faults({column: pair[column] for column in sound}, own, leaves_token))
            if not wrong and len(sound) == len(TEXTS) and images and i not in images.unusable:
                count = len(images.sides[i][0])
                try:
                    texts[i] = collator.texts({**pair, "images": [None] * count})
                    prompts.setdefault(count, texts[i][0])
                except Exception as error:  # chat templates raise errors of any type
                    wrong = [("prompt", f"cannot be rendered by the model's chat template: {error}")]
            faulty += [(i, *fault) for fault in wrong]
        counts = map(len, _tokens(processor.tokenizer, [text for three in texts.values() for text in three]))
        for i, prompt, chosen, rejected in zip(texts, *[iter(counts)] * 3, strict=True):
            tokens[i] = prompt + chosen, prompt + rejected
    found.rows(pairs, faulty)
    return tokens, prompts


def _text_faults(
    texts: dict[str, Any], own: str | None, leaves_token: Callable[[str], bool]
) -> Iterator[tuple[str, str]]:
    """Yield the faults that a processor finds in texts beside `schema.RULES`."""
    for column, messages in texts.items():
        text = schema.message_text(messages)
        if held := placeholders.fault(text, own):
            yield column, held
        elif not any(map(leaves_token, text.split())):
            yield column, "has no text, or only text without tokens; write one or drop the row"


def _token_finder(tokenizer: Any) -> Callable[[str], bool]:
    """Return a cached test of whether a word yields a text token."""
    silent = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return functools.lru_cache(WORDS)(lambda word: not silent.issuperset(_tokens(tokenizer, [word])[0]))


def _lengths(
    pairs: Dataset, processor: Any, images: _Images, tokens: dict[int, tuple[int, int]], prompts: dict[int, str],
    longest: int | None, context: int | None, found: Findings,
) -> None:  # fmt: skip
    """Compare the longer side of each pair with `max_length` and with the model's context."""
    shown = {sizes for i in tokens for sizes in images.sizes(i)}
    added, refused = image_tokens(processor, shown, prompts)
    faulty = [(i, {*images.sizes(i)} & refused.keys()) for i in tokens] if refused else []
    found.rows(pairs, [(i, "images", refused[sizes]) for i, wrong in faulty for sizes in wrong])
    lengths = {
        i: max(count + added[sizes] for count, sizes in zip(counts, images.sizes(i), strict=True))
        for i, counts in tokens.items()
    }
    most = max(lengths.values(), default=0)
    if longest is not None:
        sentence = (
            f"is less than the row's tokens, image tokens included, which cannot be cut; set {most} or leave it out"
        )
        found.rows(pairs, [(i, f"max_length {longest}", sentence) for i in lengths if lengths[i] > longest])
    if context is not None and most > context:
        beyond = _names(pairs, [i for i in lengths if lengths[i] > context])
        found.warnings.append(f"{beyond} have up to {most} tokens; the model's context is {context}.")


def _tokens(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
