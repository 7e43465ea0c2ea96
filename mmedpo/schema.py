"""Preference dataset: columns and rules for rows.

The columns are TRL's conversational vision-preference format plus MMedPO's own, so a plain `trl.DPOTrainer` can
load the dataset too. See docs/files.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmedpo.data import options, placeholders
from mmedpo.data.images import fault as image_fault
from mmedpo.data.text import carries, folded, polarity
from mmedpo.errors import Fault

if TYPE_CHECKING:
    from datasets import Dataset, Features

DISPREFERENCES = (
    "hallucinated_response",  # same image, rejected response
    "lesion_noise",  # same answer, image with its lesion noised
    "image_noise",  # same answer, whole image noised or cropped
    "reversed_noise",  # noised image, where the rejected response is preferred to the gold answer
)
REVERSED = ("reversed_noise", DISPREFERENCES.index("reversed_noise"))  # by name and by number
CONTROL = "/healthy_noise"  # ends the id of a control: a text pair about an image with noise on a healthy place
TASKS = ("closed_vqa", "open_vqa", "report", "choice_vqa")  # new ones at the end: stored rows have numbers
ROLES = ("system", "user", "assistant")  # of messages
MOST_WEIGHT = 1000.0  # normalised weights have the mean 1
NOT_WRONG = "not wrong: "  # begins the rationale of a judge who found the rejected response right
DIGEST = "row_digest"  # column of the published form of restricted data only
STRIPPED = (
    "this is the published form of restricted data, without texts and images: `mmedpo rejoin` rebuilds the pairs on "
    "a machine that has the data"
)
OPTIONAL = ("options",)  # columns of datasets with multiple choice alone
CHOSEN = {  # of the provenance, in datasets alone whose text pairs may have another chosen side than the gold answer
    "gold": "string",  # the gold answer
    "chosen_by": "string",  # "gold", or the model that wrote the chosen side
    "chosen_prompt_version": "string",  # begins with "correct@" or "ranked@"
    "chosen_changes": "int32",  # words of the model's own answer that a correction changes
    "chosen_score": "float32",  # by the metric that ranked the samples
    "rejected_score": "float32",
}
SEVERAL = ("box_images",)  # of the provenance, where questions have several images: each box's image, from 0
ROWS_AT_ONCE = 32  # rows in a Parquet row group, and in memory while one is written or read


def _features() -> Features:
    from datasets import ClassLabel, Features, Image, List, Value

    messages = List({"role": Value("string"), "content": Value("string")})
    box = {
        "label": Value("string"),
        **{side: Value("float32") for side in ("x", "y", "width", "height")},  # pixels, origin top left
        "confidence": Value("float32"),  # [0, 1]; 1 for boxes drawn by a person
    }
    judgement = {
        "round": Value("int32"),
        "judge": Value("string"),
        "score": Value("float32"),  # null: unreadable, or the response was found not wrong
        "rationale": Value("string"),  # begins with `NOT_WRONG` where the response was found not wrong
    }
    return Features(
        {
            "id": Value("string"),
            "images": List(Image()),
            "rejected_images": List(Image()),  # null: the same as `images`
            "prompt": messages,
            "chosen": messages,
            "rejected": messages,
            "weight": Value("float32"),
            "clinical_relevance": Value("float32"),  # null: not scored, so the weight is 1
            "dispreference": ClassLabel(names=list(DISPREFERENCES)),
            "task": ClassLabel(names=list(TASKS)),
            "source": Value("string"),
            "license": Value("string"),
            "provenance": {
                "sample_id": Value("string"),
                "image_id": Value("string"),
                "patient_id": Value("string"),
                "rejected_by": Value("string"),  # model that wrote the rejected response, or name of the noise
                "revision": Value("string"),
                "prompt_version": Value("string"),
                "seed": Value("int64"),
                "candidates": List(Value("string")),  # answers sampled from the target model
                "judgements": List(judgement),
                "agreed": Value("bool"),  # null: no panel
                "localizer": Value("string"),
                "query": Value("string"),
                "boxes": List(box),
                "mask_rule": Value("string"),  # rule that made a heat map a mask
                "noise": Value("string"),  # method
                "noise_step": Value("int32"),
                "noise_edge": Value("int32"),  # pixels
                "noise_pixels": Value("int32"),  # longer side of the image as the model sees it
                "noise_per": Value("string"),  # "image": rows about one image and region share the noised image
                "mask_coverage": Value("float32"),  # share of the image's pixels, [0, 1]
            },
        }
    )


def __getattr__(name: str) -> Any:
    # Lazy: `datasets` takes a second to import, and the row rules do not need it.
    if name == "FEATURES":
        return _features()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def features_of(row: Mapping[str, Any]) -> Features:
    """Return `FEATURES`, with the `OPTIONAL` columns and the fields of `CHOSEN` and `SEVERAL` that a row has."""
    from datasets import Features, List, Value

    further = {"options": List(Value("string"))}  # null: not multiple choice
    found = {**_features(), **{name: kind for name, kind in further.items() if name in row}}
    made = row.get("provenance")
    if isinstance(made, Mapping):
        found["provenance"] |= {name: Value(kind) for name, kind in CHOSEN.items() if name in made}
        found["provenance"] |= {name: List(Value("int32")) for name in SEVERAL if name in made}
    return Features(found)


def message_text(messages: list[dict[str, str]]) -> str:
    """Return the text of a conversation's last message, "" where it has none."""
    return (messages[-1]["content"] or "") if messages else ""


def text_fault(chosen: str, rejected: str, task: str, offered: Sequence[str] | None = None) -> str | None:
    """Return why `rejected` is no rejected response to `chosen` on the same image, or None.

    Of `offered` options, both must be one.
    """
    if not folded(rejected):
        return "the rejected answer is empty; write one or drop the row"
    if folded(rejected) == folded(chosen):
        return "chosen and rejected are equal on equal images; nothing can be learned from it"
    if offered:
        return None if folded(rejected) in map(folded, offered) else "the rejected answer is none of the options"
    if task != "report" and polarity(chosen) is not None and polarity(chosen) == polarity(rejected):
        return "both sides say the same, yes or no; the rejected answer is not wrong"
    if task != "report" and polarity(chosen) is None and carries(rejected, chosen):
        return "the rejected answer contains the gold answer; it is not wrong"
    return None


def number_fault(value: Any, low: float, high: float) -> str | None:
    """Return the fault of a number that is missing, NaN or outside of its range, or None."""
    if value is None:
        return "is missing; every row needs one"
    if not isinstance(value, (int, float)) or math.isnan(value):
        return "is not a number; every row needs one"
    return None if low <= value <= high else f"is {value:g}, outside [{low:g}, {high:g}]"


def _text_fault(messages: Any) -> str | None:
    text = message_text(messages or [])
    return placeholders.fault(text) if folded(text) else "has no text"


def _relevance_fault(relevance: Any, weight: Any) -> str | None:
    if relevance is not None:
        return number_fault(relevance, 0.0, 1.0)
    return None if weight == 1 else "is missing; a row without it has the weight 1, which is plain DPO"


def _count_fault(rejected_images: Any, images: Any) -> str | None:
    if rejected_images and len(rejected_images) != len(images or []):
        return "has more or fewer images than `images`, but the prompt is the same"
    return None


def _equality_fault(rejected_images: Any, images: Any, chosen: Any, rejected: Any) -> str | None:
    same = rejected_images and rejected_images == images
    if same and folded(message_text(chosen or [])) == folded(message_text(rejected or [])):
        return "both sides are equal, images and texts; nothing can be learned from it"
    return None


def _options_fault(offered: Any, chosen: Any, rejected: Any, task: Any, dispreference: Any) -> str | None:
    named = label(task, TASKS)
    if offered is None:
        return "is missing; a question of this task needs options" if named == "choice_vqa" else None
    gold = message_text((rejected if dispreference in REVERSED else chosen) or [])
    if sentence := options.fault([one or "" for one in offered]) or (named and options.task_fault(named, offered)):
        return sentence
    return None if folded(gold) in map(folded, offered) else "does not hold the gold answer"


def _preference_fault(
    rejected: Any, chosen: Any, rejected_images: Any, task: Any, dispreference: Any, offered: Any = None
) -> str | None:
    gold, wrong, named = message_text(chosen or []), message_text(rejected or []), label(task, TASKS)
    if rejected_images is not None or not folded(gold) or not folded(wrong) or named is None:
        return None
    return text_fault(*((wrong, gold) if dispreference in REVERSED else (gold, wrong)), named, offered)


# Rules of a row: the columns that a rule reads, the one of its fault first, and the function from their values to it.
# Images are compared only, so that digests or numbers can stand for them.
RULES: tuple[tuple[tuple[str, ...], Callable[..., str | None]], ...] = (
    (("id",), lambda id: None if id else "is empty; every row needs a stable, unique id"),
    *(((column,), _text_fault) for column in ("prompt", "chosen", "rejected")),
    (("prompt",), lambda messages: role_fault(messages, "user")),
    (("chosen",), lambda messages: role_fault(messages, "assistant")),
    (("rejected",), lambda messages: role_fault(messages, "assistant")),
    (("images",), lambda images: None if images else "is empty; every row needs an image"),
    (("weight",), lambda weight: number_fault(weight, 0.0, MOST_WEIGHT)),
    (("clinical_relevance", "weight"), _relevance_fault),
    (("provenance",), lambda made: "is missing; every row needs one" if made is None else None),
    (("task",), lambda value: label_fault(value, TASKS)),
    (("dispreference",), lambda value: label_fault(value, DISPREFERENCES)),
    (("rejected_images",), lambda images: "is an empty list; null means the same images" if images == [] else None),
    (("rejected_images", "images"), _count_fault),
    (("rejected_images", "images", "chosen", "rejected"), _equality_fault),
    (("options", "chosen", "rejected", "task", "dispreference"), _options_fault),
    (("rejected", "chosen", "rejected_images", "task", "dispreference", "options"), _preference_fault),
)


def broken_rules(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (column, sentence) of the rules that a row breaks, of those whose columns it has."""
    for columns, rule in RULES:
        if row.keys() >= {*columns} - {*OPTIONAL} and (sentence := rule(*(row.get(column) for column in columns))):
            yield columns[0], sentence


def row_faults(row: Mapping[str, Any], look: Callable[[Any], str | None] = image_fault) -> list[Fault]:
    """Return all faults of one row.

    Args:
        row: with undecoded images, {"bytes", "path"}.
        look: returns the fault of an image, or None.
    """
    shown = [(column, look(image)) for column in ("images", "rejected_images") for image in row[column] or []]
    found = [*broken_rules(row), *((column, sentence) for column, sentence in shown if sentence)]
    return [Fault(row["id"] or "(no id)", column, sentence) for column, sentence in found]


def label(value: str | int | None, names: tuple[str, ...]) -> str | None:
    """Return the name of a class label given by name or number; None where it has none."""
    if isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    return value if value in names else None


def label_fault(value: str | int | None, names: tuple[str, ...]) -> str | None:
    """Return the fault of a class label, or None."""
    if value is None:
        return "is missing; every row needs one"
    return None if label(value, names) else f"is none of {', '.join(names)} (numbers from 0)"


def role_fault(messages: Iterable[Mapping[str, Any]] | None, last: str) -> str | None:
    """Return the fault of a conversation whose roles a chat template would drop or misplace, or None."""
    roles = [message["role"] for message in messages or []]
    if not set(roles) <= {*ROLES}:
        return f"has another role than {', '.join(ROLES)}"
    return f"must end with a message of the role {last}" if roles and roles[-1] != last else None


def column_faults(features: Mapping[str, Any]) -> list[Fault]:
    """Return a fault for each column that is missing or differs in type from the schema.

    Datasets of earlier versions, with fewer class names or fields of the provenance, are accepted.
    """
    if DIGEST in features:
        return [Fault("(all rows)", DIGEST, STRIPPED)]
    return [
        Fault(
            "(all rows)",
            name,
            f"is missing; expected {kind}" if name not in features else f"has type {features[name]}; expected {kind}",
        )
        for name, kind in features_of(features).items()
        if not _is_of(kind, features.get(name))
    ]


def _is_of(kind: Any, given: Any) -> bool:
    """Return True for the type of a column, or the same with fewer class names, from the first, or fewer fields."""
    if isinstance(kind, Mapping) and isinstance(given, Mapping):
        return all(name in kind and kind[name] == value for name, value in given.items())
    names, own = getattr(given, "names", None), getattr(kind, "names", None)
    return given == kind or bool(own and names and type(given) is type(kind) and names == own[: len(names)])


def validate(dataset: Dataset) -> list[Fault]:
    """Return all faults of a preference dataset, by the schema and the row rules.

    Faults of columns are returned alone, since row rules need all columns.
    """
    faults = column_faults(dataset.features)
    if faults:
        return faults
    counts: Counter[str] = Counter()
    for row in undecoded(dataset):
        counts[row["id"]] += 1
        faults.extend(row_faults(row))
    return faults + repeated_ids(counts)


def undecoded(dataset: Dataset) -> Dataset:
    """Return the dataset with undecoded images, {"bytes", "path"}."""
    from datasets import Image, List

    for column, feature in dataset.features.items():
        if feature == List(Image()):
            dataset = dataset.cast_column(column, List(Image(decode=False)))
        elif feature == Image():
            dataset = dataset.cast_column(column, Image(decode=False))
    return dataset


def repeated_ids(counts: Mapping[str, int]) -> list[Fault]:
    """Return a fault for each id that occurs more than once."""
    return [Fault(name, "id", f"occurs {n} times; ids must be unique") for name, n in counts.items() if n > 1]
