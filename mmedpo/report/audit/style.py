"""Style-shortcut score: how well length and form alone separate chosen from rejected texts.

Pairs that differ in form teach a model to be short, or to end with a full stop, instead of being correct. The score is
the cross-validated AUC of a logistic regression on the form of ONE text. Reversed pairs (the wrong text chosen on the
noised image) have their sides swapped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

from mmedpo.data.text import folded, number_of, words
from mmedpo.report.audit.read import Row

FOLDS = 5
MOST_PAIRS = 20_000  # a larger dataset is measured on so many, chosen by a fixed seed: the AUC's error is below 0.003
FEWEST_PAIRS = 20
STRONGEST = 3
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


def lengths(found: Sequence[Row]) -> dict[str, float] | None:
    """Return mean words of both sides and the shares of pairs with a longer rejected text and within two words."""
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
    """Return the AUC (0.5: form is uninformative; 1: it separates all pairs) with mean and sd over folds.

    All pairs of one image are in one fold ("groups" of the unit "group"; without images each pair is a group). Of more
    than `MOST_PAIRS` pairs, a seeded sample is measured and "of" is their number. "auc" is None, with a "reason", for
    too few pairs or images. "strongest" lists the most different features with their own AUC; above 0.5 the rejected
    texts have more of it.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    pairs = [row for row in _text_pairs(found) if folded(row.gold) != folded(row.wrong)]
    sampled = {}
    if len(pairs) > MOST_PAIRS:
        sampled = {"of": len(pairs)}
        chosen = np.random.default_rng(0).choice(len(pairs), MOST_PAIRS, replace=False)
        pairs = [pairs[place] for place in sorted(chosen)]
    places: dict[Any, int] = {}
    groups = [places.setdefault(row.images or number, len(places)) for number, row in enumerate(pairs)]
    unit = "image" if all(row.images for row in pairs) else "pair"
    result: dict[str, Any] = {"auc": None, "reason": None, "pairs": len(pairs), "groups": len(places), "group": unit}
    result |= sampled
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
    """Return the rows with both texts, except pairs that differ in their images only."""
    return [row for row in found if row.gold and row.wrong and (row.same_images or row.gold != row.wrong)]
