"""Coverage of the 95 % intervals over seeds and images, in simulations with known variances.

Run     python benchmarks/seed_coverage.py --output benchmarks/results/seed_coverage.json
Writes  how often an interval of a method's mean over r runs holds the truth, and its mean width: that of `compare`
        (mmedpo), of a bootstrap over images of the same mean (images), and of the percentiles of a bootstrap that
        resamples seeds and images together (two_way); and how often the test of two equal methods has p <= 0.05.

A value is the sum of parts of the run, of the image and of the run on the image, with the standard deviations of a
case. "share" is right or wrong: whether that sum is above 0. "difference" is between two methods of r runs each,
"to_one" to a baseline of one run without a part of its own (a starting model).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from mmedpo.evaluation.metrics.base import mean
from mmedpo.evaluation.statistics import (
    Interval,
    Mean,
    bootstrap,
    exchanges,
    interval,
    over_seeds,
    p_over_seeds,
    spread,
    tail,
)
from mmedpo.runs.provenance import versions

Case = tuple[str, float, float, float]  # kind, sd of the run, of the image, of the run on the image
CASES: dict[str, Case] = {
    "no seed part": ("mean", 0.0, 0.3, 0.3),
    "small seed part": ("mean", 0.03, 0.3, 0.3),
    "large seed part": ("mean", 0.1, 0.3, 0.3),
    "share": ("share", 0.2, 1.0, 1.0),
    "difference, no seed part": ("difference", 0.0, 0.3, 0.3),
    "difference": ("difference", 0.05, 0.3, 0.3),
    "difference to one run": ("to_one", 0.05, 0.3, 0.3),
}


def simulate(kind: str, sds: tuple[float, float, float], runs: int, images: int, rng: np.random.Generator) -> list:
    """Return the values [r, images] of each method, the baseline first where there are two."""
    own, image, both = sds
    of_image = rng.normal(0, image, images)

    def method(count: int, own: float) -> np.ndarray:
        return rng.normal(0, own, count)[:, None] + of_image + rng.normal(0, both, (count, images))

    if kind == "difference":
        return [method(runs, own), method(runs, own)]
    if kind == "to_one":
        return [method(1, 0.0), method(runs, own)]
    values = method(runs, own)
    return [(values > 0).astype(float) if kind == "share" else values]


def covered(case: str, runs: int, images: int, sets: int, resamples: int, seed: int) -> dict[str, Any]:
    kind, of_run, of_image, of_both = CASES[case]
    rng, truth, cut = np.random.default_rng(seed), 0.5 if kind == "share" else 0.0, tail(range(images))
    hits, widths, false = np.zeros(3), np.zeros(3), 0
    for _ in range(sets):
        methods = simulate(kind, (of_run, of_image, of_both), runs, images, rng)
        values = np.concatenate(methods)
        stacked = np.stack([values, np.ones_like(values)], axis=-1)
        draws = np.split(
            mean(bootstrap(stacked, range(images), int(rng.integers(2**31)), resamples)), [len(methods[0])]
        )
        means = [over_seeds(one) for one in draws if len(one)]
        found = means[1] - means[0] if len(means) > 1 else means[0]
        ends = [spread(found, cut), spread(Mean(found.draws), cut)]
        ends += [two_way([one for one in draws if len(one)], rng)]
        for place, end in enumerate(ends):
            hits[place] += end.low <= truth <= end.high
            widths[place] += end.high - end.low
        if len(means) > 1:
            false += level(stacked, len(methods[0]), found, int(rng.integers(2**31)), resamples)
    shown = {
        name: {"coverage": round(hit / sets, 4), "width": round(width / sets, 4)}
        for name, hit, width in zip(("mmedpo", "images", "two_way"), hits, widths, strict=True)
    }
    return {"case": case, "seeds": runs, **shown, **({"p_at_most_0.05": false / sets} if len(means) > 1 else {})}


def two_way(draws: list[np.ndarray], rng: np.random.Generator) -> Interval:
    """Return the percentile interval of a bootstrap of seeds and images together."""
    total = np.zeros(1)
    for sign, one in zip((1, -1)[: len(draws)][::-1], draws, strict=True):
        shares = rng.multinomial(len(one), np.full(len(one), 1 / len(one)), size=one.shape[1] - 1) / len(one)
        resampled = (one[:, 1:].T * shares).sum(axis=1)
        total = total + sign * np.concatenate([[one[:, 0].mean()], resampled])
    return interval(total, 0.025)


def level(stacked: np.ndarray, baseline: int, found: Mean, seed: int, resamples: int) -> bool:
    rest, images = stacked[baseline:], range(stacked.shape[1])
    pairs: list[np.ndarray] = []
    for place in range(baseline):
        own, other = exchanges(np.concatenate([stacked[[place]], rest]), images, seed, resamples)
        pairs.extend(mean(own) - mean(other))
    return p_over_seeds(found, np.mean(pairs, axis=0)) <= 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 5, 10])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--sets", type=int, default=1000, help="simulated evaluations of each case")
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    settings = {key: value for key, value in vars(arguments).items() if key != "output"}
    found = []
    for case in CASES:
        for runs in arguments.seeds:
            found.append(covered(case, runs, arguments.images, arguments.sets, arguments.resamples, arguments.seed))
            print(json.dumps(found[-1]), flush=True)
    record = {"command": "python benchmarks/seed_coverage.py", **settings, "cases": CASES, "versions": versions()}
    arguments.output.write_text(json.dumps({**record, "results": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
