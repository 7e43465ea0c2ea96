"""The preference dataset: its columns, the rules every row keeps, and how it is read and written.

The columns are TRL's conversational vision-preference format plus what MMedPO adds, so that the dataset also
loads in a plain `trl.DPOTrainer`. See docs/architecture.md.
"""

from __future__ import annotations

import io
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedpo.errors import Fault, InputError
from mmedpo.text import carries, polarity

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features

DISPREFERENCES = ("hallucinated_response", "lesion_noise")
TASKS = ("closed_vqa", "open_vqa", "report")


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
        "score": Value("float32"),  # null: the answer could not be read
        "rationale": Value("string"),
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
            "clinical_relevance": Value("float32"),
            "dispreference": ClassLabel(names=list(DISPREFERENCES)),
            "task": ClassLabel(names=list(TASKS)),
            "source": Value("string"),
            "license": Value("string"),
            "provenance": {
                "sample_id": Value("string"),
                "image_id": Value("string"),
                "patient_id": Value("string"),
                "rejected_by": Value("string"),  # model that made the rejected side, or the noise's name
                "revision": Value("string"),
                "prompt_version": Value("string"),
                "seed": Value("int64"),
                "candidates": List(Value("string")),  # what the target model sampled
                "judgements": List(judgement),
                "agreed": Value("bool"),  # null: no panel was asked
                "localizer": Value("string"),
                "query": Value("string"),
                "boxes": List(box),
                "noise_step": Value("int32"),
                "mask_coverage": Value("float32"),  # share of the image's pixels, [0, 1]
            },
        }
    )


def __getattr__(name: str) -> Any:
    # `datasets` takes a second to import, and most users of this module's rules do not need it.
    if name == "FEATURES":
        return _features()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def message_text(messages: list[dict[str, str]]) -> str:
    """The text of a conversation's last message ("" when there is none)."""
    return (messages[-1]["content"] or "") if messages else ""


def text_fault(chosen: str, rejected: str, task: str) -> str | None:
    """Why a rejected text cannot be set against `chosen` on the same image, or None if it can."""
    if not rejected.strip():
        return "the rejected answer is empty; write one or drop the row"
    if rejected.strip().casefold() == chosen.strip().casefold():
        return "chosen and rejected are equal on equal images; nothing can be learned from it"
    if task != "report" and polarity(chosen) is not None and polarity(chosen) == polarity(rejected):
        return f"both sides say {polarity(chosen)!r}; the rejected answer is not wrong"
    if task != "report" and polarity(chosen) is None and carries(rejected, chosen):
        return "the rejected answer contains the gold answer; it is not wrong"
    return None


def image_fault(image: Any) -> str | None:
    """Why an undecoded image ({"bytes", "path"}) cannot be used, or None if it decodes to the end."""
    from PIL import Image, UnidentifiedImageError

    try:
        data = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
    except UnidentifiedImageError:
        return "the image is in no known format; replace the file or drop the row"
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        return f"the image cannot be decoded ({error}); replace the file or drop the row"
    return None


def _number_fault(value: Any, low: float, high: float) -> str | None:
    if value is None or math.isnan(value):
        return f"is {'missing' if value is None else 'not a number'}; every row needs one"
    if not low <= value <= high or math.isinf(value):
        return f"is {value:g}, outside [{low:g}, {high:g}]"
    return None


def row_faults(row: Mapping[str, Any]) -> list[Fault]:
    """All faults of one row whose images are undecoded ({"bytes", "path"} dicts)."""
    name = row["id"] or "(no id)"
    faults = []

    def add(column: str, sentence: str | None) -> None:
        if sentence:
            faults.append(Fault(name, column, sentence))

    add("id", None if row["id"] else "is empty; every row needs a stable, unique id")
    for column in ("prompt", "chosen", "rejected"):
        add(column, None if message_text(row[column] or []).strip() else "has no text")
    add("images", None if row["images"] else "is empty; every row needs an image")
    for column in ("images", "rejected_images"):
        for image in row[column] or []:
            add(column, image_fault(image))
    add("weight", _number_fault(row["weight"], 0.0, math.inf))
    add("clinical_relevance", _number_fault(row["clinical_relevance"], 0.0, 1.0))
    for column in ("task", "dispreference", "provenance"):
        add(column, "is missing; every row needs one" if row[column] is None else None)
    add("rejected_images", "is an empty list; null means the same images" if row["rejected_images"] == [] else None)
    chosen, rejected = message_text(row["chosen"] or []), message_text(row["rejected"] or [])
    if row["rejected_images"] and row["rejected_images"] == row["images"] and chosen == rejected:
        add("rejected_images", "both sides are equal, images and texts; nothing can be learned from it")
    if row["rejected_images"] is None and chosen and rejected and row["task"] is not None:
        task = row["task"] if isinstance(row["task"], str) else TASKS[row["task"]]
        add("rejected", text_fault(chosen, rejected, task))
    return faults


def validate(dataset: Dataset) -> list[Fault]:
    """Check a preference dataset against the schema and the row rules; every fault of every row is listed.

    A wrong or missing column is reported alone, since no row rule can be checked then.
    """
    expected = _features()
    faults = [
        Fault(
            "(all rows)",
            name,
            f"is missing; expected {kind}"
            if name not in dataset.features
            else f"has type {dataset.features[name]}; expected {kind}",
        )
        for name, kind in expected.items()
        if dataset.features.get(name) != kind
    ]
    if faults:
        return faults
    counts: Counter[str] = Counter()
    for row in undecoded(dataset):
        counts[row["id"]] += 1
        faults.extend(row_faults(row))
    faults += [Fault(name, "id", f"occurs {n} times; ids must be unique") for name, n in counts.items() if n > 1]
    return faults


def shared_groups(splits: Mapping[str, Dataset]) -> list[Fault]:
    """Images and patients that occur in more than one split (a split never separates one image or patient)."""
    faults = []
    for key in ("image_id", "patient_id"):
        home: dict[str, str] = {}
        for split, dataset in splits.items():
            for value in {entry[key] for entry in dataset["provenance"] if entry[key] is not None}:
                if home.setdefault(value, split) != split:
                    faults.append(Fault(value, key, f"occurs in the splits {home[value]!r} and {split!r}"))
    return faults


def save(rows: Iterable[dict[str, Any]], folder: Path, split: str = "train") -> None:
    """Write rows as `folder/data/SPLIT-00000-of-00001.parquet`, with the schema and the images inside.

    Rows are streamed: images are {"bytes", "path"} dicts. Raises InputError with all faults if a row breaks a rule.
    """
    from datasets import Dataset

    scratch = folder / ".arrow"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        dataset = Dataset.from_generator(
            lambda: iter(rows), features=_features(), cache_dir=str(scratch), fingerprint=f"mmedpo-{split}"
        )
        faults = validate(dataset)
        if faults:
            raise InputError(f"{len(faults)} faults in the rows to be written:", faults)
        target = folder / "data" / f"{split}-00000-of-00001.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        dataset.to_parquet(str(target))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def load_splits(path: str) -> DatasetDict:
    """All splits of a dataset folder or Hub id, no rule checked.

    Raises:
        InputError: nothing there, or nothing that `datasets` can read.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    # Named files: where a folder's card lists `configs`, `datasets` would cache it by the folder's name alone.
    files: dict[str, list[str]] = {}
    for file in sorted(Path(path).glob("data/*.parquet")):
        files.setdefault(file.name.split("-")[0], []).append(str(file))
    try:
        return load_dataset("parquet", data_files=files) if files else load_dataset(path)
    except (OSError, ValueError, DatasetsError) as error:
        raise InputError(
            f"{path!r} cannot be loaded as a dataset: {error}. "
            "Give a folder written by `mmedpo curate` or a Hub dataset id."
        ) from error


def undecoded(dataset: Dataset) -> Dataset:
    """The dataset with its images as {"bytes", "path"} instead of pictures."""
    from datasets import Image, List

    for column, feature in dataset.features.items():
        if feature == List(Image()):
            dataset = dataset.cast_column(column, List(Image(decode=False)))
        elif feature == Image():
            dataset = dataset.cast_column(column, Image(decode=False))
    return dataset


def load(path: str, split: str = "train") -> Dataset:
    """Load one split of a preference dataset from a folder or a Hub id, and check it.

    Raises:
        InputError: no such dataset or split, or rows that break the schema; all faults are reported together.
    """
    splits = load_splits(path)
    if split not in splits:
        raise InputError(f"{path} has no split {split!r}; it has {', '.join(splits)}.")
    dataset = splits[split]
    faults = validate(dataset)
    if faults:
        raise InputError(f"{path} (split {split!r}) breaks the preference schema:", faults)
    return dataset
