"""The style shortcut: how far length and form alone tell the preferred text from the rejected one.

A pair that can be told apart without reading it teaches a model to be short, or to end with a full stop, instead of
being right. The score is the cross-validated AUC of a logistic regression that sees the form of ONE text. In a reversed
pair (on the noised image, the wrong text over the right one) the sides count the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

from mmedpo.data.text import folded, number_of, words
from mmedpo.report.audit.read import Row

FOLDS = 5
FEWEST_PAIRS = 20
STRONGEST = 3
MARK = re.compile(r"[^\w\s]")


def form(text: str) -> dict[str, float]:
    """Length and form of a text as non-negative numbers; the names are words for a reader."""
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


def lengths(found: Sequence[Row]) -> dict[str, float] | None:
    """Mean words of both sides, the share of pairs whose rejected text is longer, and of those within two words."""
    pairs = [(len(words(row.gold)), len(words(row.wrong))) for row in _text_pairs(found)]
    if not pairs:
        return None
    return {
        "chosen_words_mean": round(fmean(chosen for chosen, _ in pairs), 4),
        "rejected_words_mean": round(fmean(rejected for _, rejected in pairs), 4),
        "rejected_longer_share": round(fmean(r > c for c, r in pairs), 4),
        "within_two_words_share": round(fmean(abs(r - c) <= 2 for c, r in pairs), 4),
    }


def shortcut(found: Sequence[Row]) -> dict[str, Any]:
    """The AUC (0.5: form tells nothing; 1: it tells everything) with its mean and sd over the folds.

    All pairs of one image stay in one fold ("groups" of the unit "group"; without images each pair is its own).
    "auc" is None, with the "reason", where there are too few pairs or images. "strongest" lists what differs most,
    each with its AUC alone: above 0.5 the rejected texts have more of it.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    pairs = [row for row in _text_pairs(found) if folded(row.gold) != folded(row.wrong)]
    places: dict[Any, int] = {}
    groups = [places.setdefault(row.images or number, len(places)) for number, row in enumerate(pairs)]
    unit = "image" if all(row.images for row in pairs) else "pair"
    result: dict[str, Any] = {"auc": None, "reason": None, "pairs": len(pairs), "groups": len(places), "group": unit}
    if len(pairs) < FEWEST_PAIRS:
        return {**result, "reason": f"{len(pairs)} pairs differ in their texts; at least {FEWEST_PAIRS} are needed"}
    if len(places) < FOLDS:
        few = number_of(len(places), "images")
        return {**result, "reason": f"all pairs are about {few}; at least {FOLDS} are needed"}

    forms = [form(text) for row in pairs for text in (row.gold, row.wrong)]
    seen = np.array([list(one.values()) for one in forms], dtype=np.float64)  # 2 x pairs rows
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
        for name, column in zip(forms[0], seen.T, strict=True)
    ]
    strongest = sorted(alone, key=lambda one: -abs(one["auc"] - 0.5))[:STRONGEST]
    return {
        **result,
        "auc": round(fmean(folds), 4),
        "sd": round(pstdev(folds), 4),
        "folds": [round(float(auc), 4) for auc in folds],
        "strongest": [one for one in strongest if one["auc"] != 0.5],
    }


def _text_pairs(found: Sequence[Row]) -> list[Row]:
    """The rows that are not about their images alone."""
    return [row for row in found if row.gold and row.wrong and (row.same_images or row.gold != row.wrong)]
