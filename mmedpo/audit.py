"""What a preference dataset holds and what is wrong with it, as numbers, as a table and as a page.

Only the dataset's own rows are read; images stay undecoded except where the schema's rules ask for them.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

from mmedpo import schema
from mmedpo.errors import Fault, InputError
from mmedpo.text import carries, polarity, words
from mmedpo.workdir import portable

if TYPE_CHECKING:
    from datasets import Dataset

WEIGHT_BINS = 20
RELEVANCE_EDGES = [round(-0.05 + 0.1 * i, 2) for i in range(12)]  # released scores are multiples of 0.1: one bin each


@dataclass(frozen=True)
class _Row:
    """One row as far as its columns allow: what is absent or of another type is None or empty."""

    kind: str
    task: str
    question: str
    chosen: str
    rejected: str
    images: tuple[str, ...]  # digests
    rejected_images: tuple[str, ...]
    weight: float | None
    relevance: float | None
    provenance: dict[str, Any]

    @property
    def same_images(self) -> bool:
        return not self.rejected_images or self.rejected_images == self.images


def audit(path: str, split: str = "train", name: str | None = None) -> dict[str, Any]:
    """Count, measure and check the rows of a preference dataset; the answer is JSON-able.

    A dataset that breaks the schema is audited too: its faults are listed, and every number is taken over the rows
    that have what it needs (a block with nothing to measure is None).

    Args:
        path: a folder written by `mmedpo curate`, or a Hub dataset id.
        split: the split whose rows are measured; images and patients are compared between all splits.
        name: what the audit calls the dataset; its Hub id or path within this folder by default.

    Raises:
        InputError: nothing to load at `path`, or no such split.
    """
    splits = schema.load_splits(path)
    if split not in splits:
        raise InputError(f"{path!r} has no split {split!r}; it has {', '.join(map(repr, splits))}.")
    faults = schema.validate(splits[split])
    found = [_read(row, splits[split]) for row in schema.undecoded(splits[split])]
    counts = {
        "dispreference": _counts([row.kind for row in found], schema.DISPREFERENCES),
        "task": _counts([row.task for row in found], schema.TASKS),
    }
    kinds = {kind: [row for row in found if row.kind == kind] for kind in counts["dispreference"]}
    return {
        "format": "mmedpo.audit/1",
        "dataset": name or portable(path),
        "split": split,
        "rows": len(found),
        "counts": counts,
        "faults": [asdict(fault) for fault in faults],
        "shared_groups": [asdict(fault) for fault in _shared(splits)],
        **_contradictions(found),
        "weights": distributions({k: [row.weight for row in rows] for k, rows in kinds.items()}),
        "relevance": distributions({k: [row.relevance for row in rows] for k, rows in kinds.items()}, RELEVANCE_EDGES),
        "mask_coverage": _coverage(found),
        "style": _style(kinds.get("hallucinated_response", [])),
        "judges": _judges(found),
    }


def _read(row: Mapping[str, Any], dataset: Dataset) -> _Row:
    provenance = row.get("provenance")
    return _Row(
        kind=_label(row.get("dispreference"), dataset.features.get("dispreference")),
        task=_label(row.get("task"), dataset.features.get("task")),
        question=_last_text(row.get("prompt")),
        chosen=_last_text(row.get("chosen")),
        rejected=_last_text(row.get("rejected")),
        images=_digests(row.get("images")),
        rejected_images=_digests(row.get("rejected_images")),
        weight=_number(row.get("weight")),
        relevance=_number(row.get("clinical_relevance")),
        provenance=provenance if isinstance(provenance, dict) else {},
    )


def _label(value: Any, feature: Any) -> str:
    if value is None:
        return "(none)"
    return str(feature.int2str(value)) if isinstance(value, int) and hasattr(feature, "int2str") else str(value)


def _last_text(messages: Any) -> str:
    last = messages[-1] if isinstance(messages, list) and messages else messages
    content = last.get("content") if isinstance(last, dict) else last
    return content if isinstance(content, str) else ""


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _digests(images: Any) -> tuple[str, ...]:
    def data(image: Any) -> bytes:
        inside = image.get("bytes") if isinstance(image, dict) else None
        return inside if isinstance(inside, bytes) else str(image).encode()

    listed = images if isinstance(images, list) else [images]
    return tuple(hashlib.blake2b(data(image), digest_size=16).hexdigest() for image in listed if image is not None)


def _counts(labels: Sequence[str], order: Sequence[str]) -> dict[str, int]:
    counts = Counter(labels)
    return {label: counts[label] for label in [*order, *sorted(counts.keys() - set(order))] if counts[label]}


def _shared(splits: Mapping[str, Dataset]) -> list[Fault]:
    known = schema.FEATURES["provenance"]
    if len(splits) < 2 or any(dataset.features.get("provenance") != known for dataset in splits.values()):
        return []
    return schema.shared_groups(splits)


def _contradictions(found: Sequence[_Row]) -> dict[str, int]:
    equal = [row for row in found if row.same_images and row.chosen and row.rejected]  # on equal images
    differing = [row for row in equal if row.chosen.strip().casefold() != row.rejected.strip().casefold()]
    free = [row for row in differing if row.task != "report" and polarity(row.chosen) is None]
    asked = Counter((row.images, tuple(words(row.question)), row.kind) for row in found if row.images and row.question)
    return {
        "identical_pairs": len(equal) - len(differing),
        "gold_in_rejected": sum(carries(row.rejected, row.chosen) for row in free),
        "same_polarity": sum(
            row.task != "report" and polarity(row.chosen) is not None and polarity(row.chosen) == polarity(row.rejected)
            for row in differing
        ),
        "zero_weights": sum(row.weight == 0 for row in found),
        "repeated_questions": sum(times - 1 for times in asked.values()),
    }


def distributions(
    by_kind: Mapping[str, Sequence[float | None]], edges: Sequence[float] | None = None
) -> dict[str, Any] | None:
    """Mean, population sd, min, max and histogram of all numbers, and the same by kind under "by_dispreference".

    Histograms share their edges (by default 20 bins from the least to the greatest number); numbers beyond the outer
    edges count in the outer bins. None values are left out; None is returned when no number is left.
    """
    numbers = {kind: [value for value in values if value is not None] for kind, values in by_kind.items()}
    everything = [value for values in numbers.values() for value in values]
    if not everything:
        return None
    if edges is None:
        low, high = min(everything), max(everything)
        low, high = (low, high) if low < high else (low - 0.5, high + 0.5)
        edges = [low + (high - low) * i / WEIGHT_BINS for i in range(WEIGHT_BINS + 1)]
    parts = {kind: _distribution(values, edges) for kind, values in numbers.items() if values}
    return {**_distribution(everything, edges), "by_dispreference": parts}


def _distribution(values: Sequence[float], edges: Sequence[float]) -> dict[str, Any]:
    counts = [0] * (len(edges) - 1)
    for value in values:
        counts[min(max(bisect_right(edges, value) - 1, 0), len(counts) - 1)] += 1
    return {
        "mean": round(fmean(values), 6),
        "sd": round(pstdev(values), 6),
        "min": round(min(values), 6),
        "max": round(max(values), 6),
        "histogram": {"edges": [round(edge, 6) for edge in edges], "counts": counts},
    }


def _coverage(found: Sequence[_Row]) -> dict[str, float] | None:
    known = [share for row in found if (share := _number(row.provenance.get("mask_coverage"))) is not None]
    return {"mean": round(fmean(known), 6), "max": round(max(known), 6)} if known else None


def _style(hallucinated: Sequence[_Row]) -> dict[str, float] | None:
    lengths = [
        (len(words(row.chosen)), len(words(row.rejected))) for row in hallucinated if row.chosen and row.rejected
    ]
    if not lengths:
        return None
    return {
        "chosen_words_mean": round(fmean(chosen for chosen, _ in lengths), 4),
        "rejected_words_mean": round(fmean(rejected for _, rejected in lengths), 4),
        "rejected_longer_share": round(fmean(r > c for c, r in lengths), 4),
        "within_two_words_share": round(fmean(abs(r - c) <= 2 for c, r in lengths), 4),
    }


def _judges(found: Sequence[_Row]) -> dict[str, Any]:
    judged = [row.provenance for row in found if row.provenance.get("judgements")]
    verdicts = [entry["agreed"] for entry in judged if entry.get("agreed") is not None]
    judgements = [one for entry in judged for one in entry["judgements"] if isinstance(one, dict)]
    return {
        "rows": len(judged),
        "agreed_share": round(fmean(verdicts), 4) if verdicts else None,
        "judgements": len(judgements),
        "unreadable": sum(one.get("score") is None for one in judgements),
    }


def rows(audit: Mapping[str, Any]) -> list[list[str]]:
    """The audit as a table of two columns, what and how much, for a terminal."""
    table = [["rows", f"{audit['rows']:,}"]]
    table += [[f"  {label}", f"{n:,}"] for counts in audit["counts"].values() for label, n in counts.items()]
    table.append(["faults", f"{len(audit['faults']):,}"])
    table.append(["images or patients in several splits", f"{len(audit['shared_groups']):,}"])
    for name in ("identical_pairs", "gold_in_rejected", "same_polarity", "zero_weights", "repeated_questions"):
        table.append([name.replace("_", " "), f"{audit[name]:,}"])
    for name in ("weights", "relevance"):
        if audit[name]:
            table.append([f"{name}: mean ± sd, range", _spread(audit[name])])
            table += [[f"  {kind}", _spread(part)] for kind, part in audit[name]["by_dispreference"].items()]
    if audit["mask_coverage"]:
        mean, most = (100 * audit["mask_coverage"][key] for key in ("mean", "max"))
        table.append(["image covered by noise", f"mean {mean:.1f} %, most {most:.1f} %"])
    if style := audit["style"]:
        means = (style["chosen_words_mean"], style["rejected_words_mean"])
        table.append(["words, preferred / rejected", "{:.1f} / {:.1f}".format(*means)])
        table.append(["rejected is longer", f"{100 * style['rejected_longer_share']:.1f} %"])
        table.append(["lengths within two words", f"{100 * style['within_two_words_share']:.1f} %"])
    if (judges := audit["judges"])["rows"]:
        table.append(["rows scored by judges", f"{judges['rows']:,}"])
        agreed = judges["agreed_share"]
        table.append(["  judges agreed", "unknown" if agreed is None else f"{100 * agreed:.1f} %"])
        table.append(["  answers that could not be read", f"{judges['unreadable']:,} of {judges['judgements']:,}"])
    return table


def _spread(part: Mapping[str, Any]) -> str:
    return f"{part['mean']:.3f} ± {part['sd']:.3f}, {part['min']:.3f} to {part['max']:.3f}"


def render(audit: Mapping[str, Any]) -> str:
    """The audit as one self-contained HTML page."""
    return page("audit.html.jinja", audit=audit, table=rows(audit))


def page(template: str, **context: Any) -> str:
    """Fill a template of `mmedpo/templates`; everything put in is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    env = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return env.get_template(template).render(**context)
