"""A new version of a dataset by its reviewers' verdicts: rejects, edits, their relevance, weights anew."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from mmedpo import schema
from mmedpo.curation.localize import Region
from mmedpo.curation.noise import Noise
from mmedpo.curation.noiser import Noiser
from mmedpo.curation.weights import Normalization, normalize
from mmedpo.data import loading, origin, shards
from mmedpo.data.samples import Box
from mmedpo.errors import InputError
from mmedpo.hub import cards
from mmedpo.report import audit
from mmedpo.review import edits, shown
from mmedpo.review.agreement import Reviewed, relevances, summary
from mmedpo.review.edits import PLACE, SIDES
from mmedpo.review.pairs import Pairs
from mmedpo.review.verdicts import ACCEPT, REJECT, Verdict, Verdicts
from mmedpo.runs.json_files import sha256, write_json
from mmedpo.runs.run_folder import short_folder

REJECTED, DIFFERENT = "rejected in review", "reviewers changed it differently"
NO_BOX = "reviewers deleted the lesion's box"
NO_PAIR = "no pair with the reviewers' edits"  # of several reviewers together, or of a file that others wrote
EDITED = "; edited in review"  # after the name of what made a side


@dataclass(frozen=True)
class Outcome:
    """What the verdicts on a row come to.

    Attributes:
        reject: reason why the row is left out, or None.
        after: fields that change (`verdicts.EDITED`).
        relevance: mean of the reviewers', or None.
    """

    reject: str | None = None
    detail: str = ""
    after: Mapping[str, Any] = field(default_factory=dict)
    relevance: float | None = None
    said: Sequence[Verdict] = ()


def outcome(said: Sequence[Verdict], kind: str) -> Outcome:
    """Return what verdicts on a row of a kind come to.

    A row is left out where as many reviewers reject as accept it, or more, and where those who accept it changed a
    field differently. "Not sure" does not count.
    """
    rejecting = [one for one in said if one.decision == REJECT]
    accepting = [one for one in said if one.decision == ACCEPT]
    if rejecting and len(rejecting) >= len(accepting):
        return Outcome(REJECTED, "; ".join(filter(None, (one.reason.strip() for one in rejecting))), said=said)
    after: dict[str, Any] = {}
    for one in accepting:
        for name, value in one.after.items():
            if after.setdefault(name, value) != value:
                return Outcome(DIFFERENT, name, said=said)
    if kind == "lesion_noise" and after.get("boxes") == []:
        return Outcome(NO_BOX, said=said)
    found = relevances(accepting)
    return Outcome(None, "", after, fmean(found) if found else None, said)


def apply(pairs: Pairs, given: Reviewed, verdicts: Verdicts, output: Path, command: str) -> dict[str, Any]:
    """Write the reviewed version of a dataset: rows, manifest, audit, card, `changes.jsonl` and the verdicts.

    Rows without a verdict stay as they are, but for their weights, which are normalised anew over all rows.

    Args:
        verdicts: of the file that `given` was read from; what came later is not copied.

    Returns:
        The manifest.

    Raises:
        InputError: the dataset has no manifest or several splits, no row is left, or the output exists.
    """
    manifest = origin.dataset_manifest(str(pairs.folder), None)
    if origin.credentialed_source(pairs.folder) and "source" in manifest:  # the file that marks it may stay behind
        manifest["source"]["credentialed"] = True
    if not manifest.get("settings"):
        raise InputError(f"{pairs.folder} has no manifest.json with its settings; curate it again.")
    if len({loading.split_of(file) for file in loading.shards(str(pairs.folder))}) > 1:
        raise InputError(f"{pairs.folder} has several splits; a review changes datasets of one.")
    outcomes = {id: _usable(pairs, id, outcome(said, pairs.rows[pairs.place_of[id]].kind))
                for id, said in given.by_row.items()}  # fmt: skip
    kept = [place for place, row in enumerate(pairs.rows) if not outcomes.get(row.name, Outcome()).reject]
    if not kept:
        raise InputError(f"Every pair of {pairs.folder} was rejected in review; no dataset is left.")
    scores = [_relevance(pairs, place, outcomes) for place in kept]
    settings, kinds = manifest["settings"], [pairs.rows[place].kind for place in kept]
    weights, normalization = normalize(scores, settings["weights"], kinds, settings.get("weights_over", "kind"))
    with short_folder(output) as folder:
        changed = _Changed(manifest)
        rows = (
            changed.row(pairs.read(place), outcomes.get(pairs.rows[place].name), float(weight), score)
            for place, weight, score in zip(kept, weights, scores, strict=True)
        )
        shards.save(rows, folder, shard_size=settings.get("shard_size", shards.SHARD_SIZE))
        left = {id: one for id, one in outcomes.items() if one.reject}
        _write_rejects(pairs, folder, left)
        (folder / "changes.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in changed.made), "utf-8")
        verdicts.copy(folder / "verdicts.jsonl")
        made = _manifest(manifest, pairs, given, outcomes, normalization, changed) | {"command": command}
        made["review"]["verdicts_sha256"] = sha256(folder / "verdicts.jsonl")
        write_json(folder / "manifest.json", made)
        write_json(folder / "audit.json", audit.audit(str(folder), name=output.name))
        cards.write_dataset_card(folder)
    return made


class _Changed:
    """Rows of the new version; `made` records what changed in them, and `coverage` what noise covers."""

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self.made: list[dict[str, Any]] = []
        self.coverage: list[float] = []
        self._seed = int(manifest["settings"].get("seed", 0))
        self._noise = manifest.get("noise") or {}
        self._fields = dict.fromkeys(schema.FEATURES["provenance"])  # rows of earlier versions have fewer

    def row(self, row: dict[str, Any], found: Outcome | None, weight: float, relevance: float | None) -> dict[str, Any]:
        before = {**shown.texts(row), "boxes": shown.boxes(row)}
        row |= {"weight": weight, "clinical_relevance": relevance}
        made = row["provenance"] = {**self._fields, **row["provenance"]}
        if found is not None:
            row |= edits.edited(row, found.after)
            # Without `chosen_by` a row says who made its rejected side alone.
            makers = {
                f"{name}_by" if made.get(f"{name}_by") else "rejected_by" for name in SIDES if name in found.after
            }
            for maker in makers:
                made[maker] = f"{made[maker] or 'unknown'}{EDITED}"
            if "boxes" in found.after:
                self._noised_again(row, found.after["boxes"])
            made["judgements"] = [
                *(made["judgements"] or []),
                *_judgements(made["judgements"] or [], found.said),
            ] or None
            self._record(row["id"], before, found)
        if made["mask_coverage"] is not None:
            self.coverage.append(made["mask_coverage"])
        return row

    def _noised_again(self, row: dict[str, Any], boxes: Sequence[Mapping[str, Any]]) -> None:
        """Set the boxes of a row; of a lesion pair, noise its images anew, except those whose boxes are the same."""
        made, before = row["provenance"], shown.boxes(row)
        made["boxes"] = [{name: value for name, value in box.items() if name != PLACE} for box in boxes]
        made["localizer"] = f"{made['localizer'] or 'none'}{EDITED}"
        if "box_images" in made:
            made["box_images"] = [box.get(PLACE, 0) for box in boxes]
        if row["dispreference"] != "lesion_noise":  # noise does not follow the boxes
            return
        known = Noise(**{name: self._noise[name] for name in Noise.__dataclass_fields__ if name in self._noise})
        marked = [_on_image(boxes, place) for place in range(len(row["images"]))]
        noised = known.noised([bool(own) for own in marked])
        pictures, shares = list(row["rejected_images"]), []
        for place, (image, own) in enumerate(zip(row["images"], marked, strict=True)):
            if not noised[place]:
                pictures[place] = image
                continue
            noiser = Noiser(known, self._seed, partial(_given, image))
            name = row["id"] + (f"/{place}" if place else "") if known.per == "row" else ""
            picture, share = noiser.noised(Path(image["path"] or "image"), Region(own), name)
            shares.append(share)
            if own != _on_image(before, place):
                pictures[place] = picture
        made["mask_rule"], made["mask_coverage"], row["rejected_images"] = None, fmean(shares), pictures

    def _record(self, id: str, before: Mapping[str, Any], found: Outcome) -> None:
        if found.after or found.relevance is not None:
            self.made.append({
                "id": id, "reviewers": [one.reviewer for one in found.said], "relevance": found.relevance,
                "before": {name: before[name] for name in found.after}, "after": dict(found.after),
            })  # fmt: skip


def _usable(pairs: Pairs, id: str, found: Outcome) -> Outcome:
    """Return an outcome, without the row where its edits make no pair."""
    fault = edits.fault(pairs.read(pairs.place_of[id]), found.after) if found.after else None
    return replace(found, reject=NO_PAIR, detail=fault) if fault else found


def _given(image: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    return image


def _on_image(boxes: Sequence[Mapping[str, Any]], place: int) -> tuple[Box, ...]:
    """Return the boxes on one of a row's images."""
    own = (box for box in boxes if box.get(PLACE, 0) == place)
    return tuple(Box(**{name: _stored(value) for name, value in box.items() if name != PLACE}) for box in own)


def _stored(value: Any) -> Any:
    """Return a value of a box as a dataset stores it, so that `rejoin` finds the same mask by it."""
    return value if isinstance(value, str) else float(np.float32(value))


def _judgements(known: Sequence[Mapping[str, Any]], said: Sequence[Verdict]) -> Iterator[dict[str, Any]]:
    """Yield the relevance by reviewers who accept, of which the row's is the mean, as judgements of a further round."""
    round = max((one["round"] for one in known), default=0) + 1
    for one in said:
        if one.relevance is not None and one.decision == ACCEPT:
            judge = f"reviewer {one.reviewer}"
            yield {"round": round, "judge": judge, "score": one.relevance, "rationale": one.reason}


def _relevance(pairs: Pairs, place: int, outcomes: Mapping[str, Outcome]) -> float | None:
    row = pairs.rows[place]
    found = outcomes.get(row.name)
    return row.relevance if found is None or found.relevance is None else found.relevance


def _write_rejects(pairs: Pairs, folder: Path, left: Mapping[str, Outcome]) -> None:
    """Write the rejects of the curation, and those of the review."""
    before = pairs.folder / "rejects.jsonl"
    if before.exists():
        shutil.copyfile(before, folder / "rejects.jsonl")
    with (folder / "rejects.jsonl").open("a", encoding="utf-8") as lines:
        for id, found in left.items():
            row = pairs.rows[pairs.place_of[id]]
            line = {"id": id, "dispreference": row.kind, "reason": found.reject, "detail": found.detail,
                    "task": row.task, "step": "review"}  # fmt: skip
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")


def _manifest(
    before: Mapping[str, Any], pairs: Pairs, given: Reviewed, outcomes: Mapping[str, Outcome],
    normalization: Normalization, changed: _Changed,
) -> dict[str, Any]:  # fmt: skip
    found = summary(pairs, given)
    left = Counter(one.reject for one in outcomes.values() if one.reject)
    counts = Counter(row.kind for row in pairs.rows if not outcomes.get(row.name, Outcome()).reject)
    covered = before.get("mask_coverage")
    return {
        **before,
        "counts": dict(counts), "rejects": {**before["rejects"], **left},
        "weights": normalization.record(),
        "mask_coverage": covered and {**covered, "mean": fmean(changed.coverage), "max": max(changed.coverage)}
        if changed.coverage else None,
        "review": {
            "rows": found["rows"], "seen": found["seen"], "reviewers": len(found["reviewers"]),
            "left_out": found["left_out"], "rejected": sum(left.values()),
            "edited": sum(bool(one["after"]) for one in changed.made),
            "relevance": sum(one["relevance"] is not None for one in changed.made),
            "alpha": found["agreement"]["decisions"]["alpha"], "blind": found["blind"],
        },
    }  # fmt: skip
