"""Style-shortcut score: how well length and form alone separate chosen from rejected texts.

Pairs that differ in form teach a model to be short, or to end with a full stop, instead of being correct. The score is
the cross-validated AUC of a logistic regression on the form of ONE text. Reversed pairs (the wrong text chosen on the
noised image) have their sides swapped.
"""

from __future__ import annotations

import json
import re
import zlib
from array import array
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from statistics import fmean, pstdev
from typing import Any

from mmedpo.data import studies
from mmedpo.data.text import folded, number_of, words
from mmedpo.report.audit.read import Row

FOLDS = 5
MOST_PAIRS = 20_000  # a larger dataset is measured on so many, chosen by a fixed seed: the AUC's error is below 0.003
FEWEST_PAIRS = 20
STRONGEST = 3
TOGETHER = 100  # pairs compressed at once
MARK = re.compile(r"[^\w\s]")


def form(text: str) -> dict[str, float]:
    """Return length and form of a text as non-negative numbers, by names for a reader."""
    inner, letters = text.strip(), [letter for letter in text if letter.isalpha()]
    parts = inner.split()
    return {
        "words": len(parts),
        "characters": len(inner),
        "characters a word": len(inner) / len(parts) if parts else 0,
        "punctuation marks": len(MARK.findall(inner)),
        "full stops": inner.count("."),
        "commas": inner.count(","),
        "punctuation at the end": inner[-1:] in tuple(".!?:;,"),
        "capital at the start": inner[:1].isupper(),
        "capital letters": sum(letter.isupper() for letter in letters),
        "share of capital letters": sum(letter.isupper() for letter in letters) / max(len(letters), 1),
        "words all in capitals": sum(part.isupper() for part in parts),
        "line breaks": text.count("\n"),
        "space before the text": text[:1].isspace(),
        "space after the text": text[-1:].isspace(),
    }


def _differs(row: Row) -> bool:
    """Return True for both texts, except where a pair differs in its images only."""
    return bool(row.gold and row.wrong and (row.same_images or row.gold != row.wrong))


class Lengths:
    """Words of both sides, and pairs with a longer rejected text or a length within two words."""

    def __init__(self) -> None:
        self._pairs = self._chosen = self._rejected = self._longer = self._close = 0

    def add(self, row: Row) -> None:
        if _differs(row):
            chosen, rejected = len(words(row.gold)), len(words(row.wrong))
            self._pairs += 1
            self._chosen += chosen
            self._rejected += rejected
            self._longer += rejected > chosen
            self._close += abs(rejected - chosen) <= 2

    def result(self) -> dict[str, float] | None:
        """Return means and shares over the pairs; None without any."""
        totals = {
            "chosen_words_mean": self._chosen,
            "rejected_words_mean": self._rejected,
            "rejected_longer_share": self._longer,
            "within_two_words_share": self._close,
        }
        return {name: round(total / self._pairs, 4) for name, total in totals.items()} if self._pairs else None


class Shortcut:
    """Pairs of differing texts, compressed until it is known which of them are measured."""

    def __init__(self) -> None:
        self._packed: list[bytes] = []  # JSON of TOGETHER pairs each
        self._open: list[tuple[str, str]] = []
        self._groups = array("q")  # hash of each pair's first image; 0 without images
        self._joint: set[tuple[int, ...]] = set()  # hashes of several images of a pair

    def add(self, row: Row) -> None:
        if not _differs(row) or folded(row.gold) == folded(row.wrong):
            return
        names = tuple(map(hash, row.images))
        self._groups.append(names[0] if names else 0)
        if len(names) > 1:
            self._joint.add(names)
        self._open.append((row.gold, row.wrong))
        if len(self._open) == TOGETHER:
            self._packed.append(zlib.compress(json.dumps(self._open).encode(), 1))
            self._open = []

    def _texts(self, places: Collection[int]) -> Iterator[str]:
        """Yield the right and the wrong text of the pairs at these places, in order."""
        packed = chain.from_iterable(json.loads(zlib.decompress(block)) for block in self._packed)
        for place, pair in enumerate(chain(packed, self._open)):
            if place in places:
                yield from pair

    def result(self) -> dict[str, Any]:
        """Return the AUC (0.5: form is uninformative; 1: it separates all pairs) with mean and sd over folds.

        All pairs of one image are in one fold ("groups" of the unit "group"; without images each pair is a group). Of
        more than `MOST_PAIRS` pairs, a seeded sample is measured and "of" is their number. "auc" is None, with a
        "reason", for too few pairs or images. "strongest" lists the most different features with their own AUC; above
        0.5 the rejected texts have more of it.
        """
        import numpy as np
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score
        from sklearn.model_selection import GroupKFold, cross_val_score
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import FunctionTransformer, StandardScaler

        pairs: Sequence[int] = range(len(self._groups))
        sampled = {}
        if len(pairs) > MOST_PAIRS:
            sampled = {"of": len(pairs)}
            pairs = sorted(np.random.default_rng(0).choice(len(pairs), MOST_PAIRS, replace=False).tolist())
        joint = [*self._joint]
        linked = {name: group for names, group in zip(joint, studies.linked(joint), strict=True) for name in names}
        held = [linked.get(name, name) for name in (self._groups[place] for place in pairs)]
        images: dict[Any, int] = {}
        groups = [images.setdefault(group or ("pair", place), len(images)) for place, group in enumerate(held)]
        unit = "image" if all(held) else "pair"
        result: dict[str, Any] = {
            "auc": None,
            "reason": None,
            "pairs": len(pairs),
            "groups": len(images),
            "group": unit,
        }
        result |= sampled
        if len(pairs) < FEWEST_PAIRS:
            return {**result, "reason": f"{len(pairs)} pairs differ in their texts; at least {FEWEST_PAIRS} are needed"}
        if len(images) < FOLDS:
            few = number_of(len(images), "images")
            return {**result, "reason": f"all pairs are about {few}; at least {FOLDS} are needed"}

        seen = np.empty((2 * len(pairs), len(form(""))))  # float64
        for line, text in enumerate(self._texts(set(pairs))):
            seen[line] = list(form(text).values())
        is_rejected = np.tile([0, 1], len(pairs))
        model = make_pipeline(FunctionTransformer(np.log1p), StandardScaler(), LogisticRegression(max_iter=1000))
        cut = GroupKFold(FOLDS, shuffle=True, random_state=0)
        folds = cross_val_score(model, seen, is_rejected, groups=np.repeat(groups, 2), cv=cut, scoring="roc_auc")
        alone: list[dict[str, Any]] = [
            {
                "feature": name,
                "auc": round(float(roc_auc_score(is_rejected, column)), 4),
                "chosen_mean": round(float(column[0::2].mean()), 4),
                "rejected_mean": round(float(column[1::2].mean()), 4),
            }
            for name, column in zip(form(""), seen.T, strict=True)
        ]
        strongest = sorted(alone, key=lambda one: -abs(one["auc"] - 0.5))[:STRONGEST]
        return {
            **result,
            "auc": round(fmean(folds), 4),
            "sd": round(pstdev(folds), 4),
            "folds": [round(float(auc), 4) for auc in folds],
            "strongest": [one for one in strongest if one["auc"] != 0.5],
        }
