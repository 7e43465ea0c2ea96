"""Options of a command as fields of a dataclass: help texts, and checks of types and ranges."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, fields
from typing import Any, get_args, get_type_hints

from mmedpo.errors import InputError

BARE = ' (YAML takes no, off, yes and on for truth values: write the text in quotes, such as "none")'
FLAG = "--send-credentialed-data-to-third-parties"
FLAG_HELP = (
    "Send texts and images of restricted data (PhysioNet: credentialed) to the endpoints and repositories that this "
    "command names, and show them in its report page. Their terms forbid that unless all recipients have agreed to the "
    "terms too; you are responsible for that."
)
INT32 = 2**31 - 1  # largest value of an int32 column such as `noise_edge`
SEEDS = (0, 2**32 - 1)  # NumPy's range, the smallest of those that use the seed
MOST = 2**53  # larger integers are no exact floats
LENGTHS = (1, 2**20)  # tokens of an answer; above the context of any model
COUNTS = (1, 10_000)  # of samples, rounds and batches; each costs a step of a model
RANGES: dict[str, tuple[float, float]] = {  # of options by name, ends included
    **dict.fromkeys(("samples", "batch_size", "rounds", "gradient_accumulation_steps", "lora_r", "lora_alpha"), COUNTS),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "pairs_per_image"), COUNTS),
    **dict.fromkeys(("max_new_tokens", "max_new_tokens_report", "max_reply_tokens", "max_length"), LENGTHS),
    **dict.fromkeys(("seed", "data_seed"), SEEDS),
    **dict.fromkeys(("tolerance", "threshold", "max_coverage", "min_relevance", "lora_dropout", "ld_alpha"), (0, 1)),
    "min_gap": (0, 1), "max_changed": (0, 1), "length_ratio": (1, 100),
    "limit": (1, INT32), "estimate_questions": (0, INT32),
    "temperature": (0, 100),  # at 100 all tokens are about equally likely
    "noise_step": (1, 1000), "noise_edge": (0, INT32),
    "noise_pixels": (32, INT32),  # at 16, two cells cover a lesion of 5 % of the side and leave half of it
    "num_train_epochs": (0, COUNTS[1]), "max_steps": (-1, INT32), "learning_rate": (0, 100), "beta": (0, 1000),
}  # fmt: skip


def option(default: Any, help: str) -> Any:
    """Return a dataclass field with a default and a help text."""
    return field(default=default, metadata={"help": help})


def check_types(options: Any) -> None:
    """Raise InputError if a field has another type or a number too large, since TRL does not check a recipe's values.

    A text in a field of type list[str] becomes a list of one.
    """
    wrong = _not_finite(options)
    for name, kind in get_type_hints(type(options)).items():
        value = getattr(options, name)
        if kind == list[str]:
            value = [value] if isinstance(value, str) else value
            setattr(options, name, value)
            fits = isinstance(value, list) and all(isinstance(entry, str) for entry in value)
        else:
            fits = isinstance(value, kind | int if float in (kind, *get_args(kind)) else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            sentence = f"{name} is {value!r}; it must be of type {getattr(kind, '__name__', kind)}"
            text = str in (kind, *get_args(kind))
            wrong.append(sentence + BARE * (text and isinstance(value, bool)))
    refuse(wrong)


def unfit(options: Any) -> list[str]:
    """Return a sentence for each number that is not finite, too large, or less than both 0 and its default."""
    wrong = _not_finite(options)
    for one, number in _numbers(options):
        low = min(0, one.default) if _is_number(one.default) else 0
        if number < low and math.isfinite(number):
            wrong.append(f"{one.name} is {number}; it must be at least {low}")
    return wrong


def _not_finite(options: Any) -> list[str]:
    """Return a sentence for each number that is NaN, infinite or larger than `MOST`."""
    return [
        f"{one.name} is {number}; it must be " + (f"at most {most}" if math.isfinite(number) else "a finite number")
        for one, number in _numbers(options)
        for most in [SEEDS[1] if one.name == "seed" else MOST]
        if not number <= MOST or not math.isfinite(number)
    ]


def _numbers(options: Any) -> Iterator[tuple[Any, float]]:
    """Yield (field, number) for each number in the fields and in their lists."""
    for one in fields(options):
        value = getattr(options, one.name, None)
        for number in filter(_is_number, value if isinstance(value, list) else [value]):
            yield one, number


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def unknown(options: Any, names: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a sentence for each field whose value is not among its names in `names`."""
    return [
        f"{name} is {value!r}; use one of {', '.join(known)}"
        for name, known in names.items()
        if (value := getattr(options, name)) not in known
    ]


def outside(options: Any) -> list[str]:
    """Return a sentence for each field whose number is outside its range in `RANGES`; None is always inside."""
    return [
        f"{name} is {value}; it must be at least {low} and at most {high}"
        for name, (low, high) in RANGES.items()
        if (value := getattr(options, name, None)) is not None and not low <= value <= high
    ]


def refuse(wrong: Sequence[str]) -> None:
    """Raise InputError with these sentences, if any."""
    if wrong:
        raise InputError("Invalid settings: " + "; ".join(wrong) + ".")
