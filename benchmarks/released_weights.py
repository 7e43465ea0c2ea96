"""What the weights of the authors' released pairs sit on: flawed rows, length, style.

Run      python benchmarks/released_weights.py FOLDER [--output benchmarks/results/released_weights.json]
Source   FOLDER with `*_dpo_weighted.json`, as released with the paper; no image is needed.
Prints   JSON. Of each file and normaliser (`curation.weights`, all pairs of one kind):
         `mass_on_flaws`: share of the sum of weights that sits on rows which `mmedpo audit` counts as flawed, beside
         `rows_with_flaws`, their share of the rows; `ratio` is their mean weight over that of the others, with a 95 %
         bootstrap interval over images.
         Of each file: Spearman's correlation of the released score with the words of both sides, their difference, and
         with how surely form alone tells the rejected text (log odds, out of fold; `report.audit.style`), with
         bootstrap intervals over images. All normalisers but `none` keep the order of scores up to clipping.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from mmedpo.curation.weights import METHODS, normalize
from mmedpo.data.text import words
from mmedpo.report.audit.measure import flaws_of
from mmedpo.report.audit.read import Row, open_splits
from mmedpo.report.audit.style import FOLDS, form
from mmedpo.runs.provenance import portable

FLAWS = ("identical_pairs", "gold_in_rejected", "same_polarity", "gold_repeats_question", "gold_declines")
RESAMPLES, SEED = 1000, 0
Statistic = Callable[[np.ndarray], float]  # of the places of rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    files = sorted(arguments.folder.glob("*_dpo_weighted.json"))
    found = {
        "files": {file.stem.removesuffix("_dpo_weighted"): measured(file) for file in files},
        "command": "python " + " ".join(map(portable, sys.argv)), "seed": SEED,
        "versions": {name: version(name) for name in ("mmedpo", "numpy", "scikit-learn", "scipy")},
    }  # fmt: skip
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


def measured(file: Path) -> dict[str, Any]:
    rows = [row for _, row in open_splits(str(file))["train"] if row.weight is not None]
    scores = np.array([row.weight for row in rows])
    images = np.unique([str(row.images) for row in rows], return_inverse=True)[1]
    kinds = [[flaw for flaw in flaws_of(row) if flaw in FLAWS] for row in rows]
    flawed = np.array([bool(found) for found in kinds])
    chosen, rejected = (np.array([len(words(getattr(row, side))) for row in rows]) for side in ("chosen", "rejected"))
    follows = {
        "words of the chosen side": chosen,
        "words of the rejected side": rejected,
        "rejected minus chosen": rejected - chosen,
        "how surely form tells the rejected side": style(rows, images),
    }
    return {
        "rows": len(rows), "images": int(images.max()) + 1,
        "flaws": dict(Counter(flaw for found in kinds for flaw in found)),
        "rows_with_flaws": round(float(flawed.mean()), 4),
        "scores": {"mean": round(float(scores.mean()), 4), "sd": round(float(scores.std()), 4)},
        "normalisers": {method: on_flaws(normalize(scores.tolist(), method)[0], flawed, images) for method in METHODS},
        "spearman": {
            name: interval(lambda places, values=values: spearman(scores[places], values[places]), images)  # type: ignore[misc]
            for name, values in follows.items()
        },
    }  # fmt: skip


def on_flaws(weights: np.ndarray, flawed: np.ndarray, images: np.ndarray) -> dict[str, Any]:
    def ratio(places: np.ndarray) -> float:
        own, bad = weights[places], flawed[places]
        return float(own[bad].mean() / own[~bad].mean()) if bad.any() else float("nan")  # a resample without any

    mass = round(float(weights[flawed].sum() / weights.sum()), 4)
    return {"mass_on_flaws": mass, "ratio": interval(ratio, images) if flawed.any() else None}


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def interval(statistic: Statistic, images: np.ndarray) -> dict[str, Any]:
    """Return the statistic of all rows and its percentile interval over resampled images."""
    rng, order = np.random.default_rng(SEED), np.argsort(images, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(images))[:-1])
    draws = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(len(groups), size=len(groups))
        draws.append(statistic(np.concatenate([groups[number] for number in drawn])))
    ends = np.nanpercentile(draws, [2.5, 97.5])
    return {"value": round(statistic(order), 4), "interval": [round(float(end), 4) for end in ends]}


def style(rows: Sequence[Row], images: np.ndarray) -> np.ndarray:
    """Return by how much the out-of-fold log odds of "rejected" by form are higher for the rejected text."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    seen = np.array([list(form(text).values()) for row in rows for text in (row.chosen, row.rejected)])
    model = make_pipeline(FunctionTransformer(np.log1p), StandardScaler(), LogisticRegression(max_iter=1000))
    cut = GroupKFold(FOLDS, shuffle=True, random_state=0)
    odds = cross_val_predict(
        model, seen, np.tile([0, 1], len(rows)), groups=np.repeat(images, 2), cv=cut, method="decision_function"
    )
    margin: np.ndarray = odds[1::2] - odds[0::2]
    return margin


if __name__ == "__main__":
    main()
