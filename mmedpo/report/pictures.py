"""Images of the report page: pairs of the dataset, test images, attention pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmedpo.data import loading
from mmedpo.errors import Fault, InputError
from mmedpo.report.audit import distributions
from mmedpo.report.data_uri import picture
from mmedpo.runs import formats
from mmedpo.runs.json_files import read_json
from mmedpo.schema import message_text

PAIRS_SHOWN = 3  # pairs of each kind
THUMBNAIL_SIDE = 224
THUMBNAILS = 200  # most examples with a picture
ATTENTION_SIDE = 1024
ATTENTION_SHOWN = 40


def dataset_parts(path: str | None, pairs: bool = True) -> dict[str, Any]:
    """Return a few pairs of each kind (if `pairs`) and the weights by kind; empty without a dataset.

    Args:
        path: folder or Hub id of a preference dataset.
        pairs: show pairs.
    """
    if path is None:
        return {"pairs": {}, "weights": None}
    dataset = loading.load_pairs(path)
    kinds = dataset.features["dispreference"]
    places: dict[str, list[int]] = {name: [] for name in kinds.names}
    for place, kind in enumerate(dataset["dispreference"]):
        places[kinds.int2str(kind)].append(place)
    weights = dataset.select_columns("weight")["weight"][:]
    return {
        "pairs": {name: [_pair(dataset[place]) for place in _spread(found)] for name, found in places.items() if pairs},
        "weights": distributions({name: [weights[place] for place in found] for name, found in places.items()}),
    }


def _spread(places: Sequence[int]) -> list[int]:
    """Return up to PAIRS_SHOWN of `places`, evenly spaced, so that none is hand-picked."""
    step = max(1, len(places) // PAIRS_SHOWN)
    return list(places[step // 2 :: step][:PAIRS_SHOWN])


def _pair(row: Mapping[str, Any]) -> dict[str, Any]:
    made, images = row["provenance"], row["images"]
    boxes: list[list[Any]] = [[] for _ in images]
    for number, box in enumerate(made["boxes"] or []):
        boxes[made["box_images"][number] if made.get("box_images") else 0].append(box)
    return {
        **{side: message_text(row[side]) for side in ("prompt", "chosen", "rejected")},
        **{name: row[name] for name in ("id", "weight", "clinical_relevance")},
        "made": made,
        "pictures": [picture(_file(image), own) for image, own in zip(images, boxes, strict=True)],
        "hidden": [picture(_file(image)) for image in row["rejected_images"] or []],
    }


def _file(image: Mapping[str, Any]) -> bytes | Path:
    return image["bytes"] or Path(image["path"])


def thumbnails(examples: Sequence[Mapping[str, Any]], files: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """Return question id -> a `picture` of each of its images, of the first THUMBNAILS examples.

    Args:
        examples: examples of a comparison.
        files: question id -> image files; empty for a page without images.

    Raises:
        InputError: there are files, but none for any example.
    """
    if files and examples and not any(example["id"] in files for example in examples):
        raise InputError("The source holds none of the compared questions. Give the folder that was evaluated.")
    found = {}
    for example in examples[:THUMBNAILS]:
        shown = [picture(file, side=THUMBNAIL_SIDE) for file in files.get(example["id"], ())]
        if any(shown):
            found[example["id"]] = [*filter(None, shown)]
    return found


def attention(folder: Path | None, evaluations: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any] | None:
    """Return the content of the page's attention section.

    Args:
        folder: folder with `attention.json` and its pictures.
        evaluations: records of the compared runs, with "adapter" and "adapter_sha256". The pictures must be of one of
            these adapters, by the name of its folder and, where both are recorded, by its weights.

    Returns:
        "samples": the first ATTENTION_SHOWN, with pictures as data URIs under "src"; "count": number of all samples;
        "measures": (name, {run: cell}) of each measure; "runs": runs of the measures. None without a folder.

    Raises:
        InputError: no such record, or one of another format or adapter; pictures that are missing, broken or outside
            the folder.
    """
    if folder is None:
        return None
    path = folder / "attention.json"
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != formats.ATTENTION:
        raise InputError(f"{path} is not in the format {formats.ATTENTION}. Give a folder of attention pictures.")
    own = Path(str(record.get("adapter") or "")).name
    compared = [(Path(run["adapter"]).name, run.get("adapter_sha256")) for run in evaluations if run.get("adapter")]
    names, digests = [name for name, _ in compared], [digest for name, digest in compared if name == own]
    if own and names and own not in names:
        raise InputError(
            f"{path} is of the adapter {own}, but the runs evaluated {', '.join(names)}. Give pictures of one of these."
        )
    if record.get("adapter_sha256") and digests and all(digests) and record["adapter_sha256"] not in digests:
        raise InputError(
            f"{path} is of other weights than the adapter {own} of the compared runs. Run `mmedpo attention` again."
        )
    faults: list[Fault] = []
    shown: list[dict[str, Any]] = []
    for number, sample in enumerate(record.get("samples") or []):
        file = folder / str(sample.get("picture"))
        found = picture(file, side=ATTENTION_SIDE) if file.resolve().is_relative_to(folder.resolve()) else None
        if found is None:
            faults.append(
                Fault(str(sample.get("id", number)), "picture", "cannot be shown", repr(sample.get("picture")))
            )
        elif len(shown) < ATTENTION_SHOWN:
            shown.append({"question": "", "in_box": {}, **sample, "src": found["src"]})
    if faults or not shown:
        raise InputError(f"{path} has no usable pictures:" if faults else f"{path} lists no samples.", faults)
    summary = record.get("summary") or {}
    measures = [(name, cells) for name, cells in summary.items() if isinstance(cells, dict)]
    runs = list(dict.fromkeys(run for _, cells in measures for run in cells))
    return {"samples": shown, "count": len(record["samples"]), "measures": measures, "runs": runs}
