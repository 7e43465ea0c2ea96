"""Analysis of the study: paired differences over worlds, Holm's correction, break-even of the judge's quality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from mmedpo.evaluation.statistics import holm, tail
from phantom_study.arms import ARMS, PARTS, PRIMARY, SEEDS, TUNING_WORLDS, control, shared_rate
from phantom_study.judges import JUDGES
from phantom_study.trials import STARTS, result

PRIMARY_OUTCOME = "weighted_accuracy"
OUTCOMES = {  # by name: heading, factor, better is higher
    "weighted_accuracy": ("importance-weighted accuracy", 100), "accuracy": ("accuracy", 100),
    "accuracy_critical": ("on critical questions", 100), "accuracy_moderate": ("on moderate ones", 100),
    "accuracy_cosmetic": ("on cosmetic ones", 100), "closed_accuracy": ("closed", 100), "open_accuracy": ("open", 100),
    "bleu_1": ("BLEU-1 of reports", 100), "rouge_l": ("ROUGE-L of reports", 100),
    "visual_reliance": ("visual reliance", 100), "preferred": ("gold preferred", 100), "brier": ("Brier score", 1),
    "style_auc": ("style AUC of answers", 1), "free_style": ("answers in the free style", 100),
}  # fmt: skip
METHODS = ("rescale", "strong")
DOSE = {"shuffled": 0.0, "rank .3": 0.3, "rank .6": 0.6, "rank .9": 0.9, "oracle": 1.0}
RESAMPLES = 10_000
Runs = dict[str, dict[int, dict[str, Any]]]  # outcomes by arm and world


def chosen_rate(folder: Path, name: str) -> tuple[float | None, dict[str, float]]:
    """Return the learning rate of an arm with the best mean primary outcome on the tuning worlds, and all tries.

    None where a try is missing.
    """
    tries: dict[str, float] = {}
    for rate in ARMS[name].rates:
        found = [result(folder, seed, name, rate) for seed in TUNING_WORLDS]
        if any(one is None for one in found):
            return None, tries
        tries[f"{rate:g}"] = fmean(one[PRIMARY_OUTCOME] for one in found if one)
    return float(max(tries, key=lambda rate: tries[rate])), tries


def difference(values: Sequence[float]) -> dict[str, float]:
    """Return mean, 95 % limits and p of paired differences over worlds, by Student's t."""
    from scipy.stats import t

    mean, count = fmean(values), len(values)
    error = stdev(values) / math.sqrt(count) if count > 1 else math.nan
    half = t.ppf(0.975, count - 1) * error
    p = 2 * t.sf(abs(mean) / error, count - 1) if error else math.nan
    return {"mean": mean, "low": mean - half, "high": mean + half, "p": float(p), "worlds": count}


def read(folder: Path, part: str, one_rate: bool = False) -> Runs:
    """Return the outcomes of a part by arm and world; the starting models are the arm "start".

    With `one_rate` all arms have the learning rate that was chosen for "none" ("dpo none" without the NLL), else each
    its own.
    """
    found: Runs = {}
    worlds = range(SEEDS[part])
    for name in ("start", *PARTS[part]):
        rate = None if name == "start" else chosen_rate(folder, shared_rate(name) if one_rate else name)[0]
        if name != "start" and rate is None:
            continue
        own = {seed: one for seed in worlds if (one := result(folder, seed, name, rate)) is not None}
        if own:
            found[name] = own
    return found


def compared(runs: Runs, name: str, other: str, outcome: str) -> dict[str, float] | None:
    """Return `difference` of an arm to another over the worlds that both have; None without two."""
    both = sorted(runs.get(name, {}).keys() & runs.get(other, {}).keys())
    if len(both) < 2:
        return None
    pairs = [(runs[name][seed][outcome], runs[other][seed][outcome]) for seed in both]
    return None if any(None in pair for pair in pairs) else difference([own - before for own, before in pairs])


def analyse(folder: Path, part: str) -> dict[str, Any]:
    """Return the tables of a part from what a folder holds."""
    runs, one_rate = read(folder, part), read(folder, part, one_rate=True)
    arms: dict[str, Any] = {}
    for name, worlds in runs.items():
        entry: dict[str, Any] = {"worlds": len(worlds)}
        if name != "start":
            entry["rate"], entry["tries"] = chosen_rate(folder, name)
            entry["control"] = control(name)
            agreement = [one["agreement"] for one in worlds.values() if one["agreement"]]
            entry["agreement"] = {kind: fmean(one[kind] for one in agreement) for kind in (agreement or [{}])[0]}
            entry["cpu_s"] = fmean(one["cpu_s"] for one in worlds.values())
            kinds = sorted({kind for one in worlds.values() for kind in one["mean_weights"]})
            entry["mean_weights"] = {
                kind: fmean(one["mean_weights"][kind] for one in worlds.values()) for kind in kinds
            }
        for outcome in OUTCOMES:
            values = [one[outcome] for one in worlds.values()]
            if None in values:  # too few answers for a style AUC
                continue
            entry[outcome] = {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None}
            if outcome == PRIMARY_OUTCOME:
                entry[outcome]["by_world"] = dict(zip(map(str, worlds), values, strict=True))
            if name != "start":
                others = {"to_control": control(name), "to_start": "start"}
                if control(name) not in ("none", "start"):
                    others["to_none"] = "none"
                for label, other in others.items():
                    if found := compared(runs, name, other, outcome):
                        entry[outcome][label] = found
                    again = compared(one_rate, name, other, outcome)
                    if again and other != "start" and name != shared_rate(name):
                        entry[outcome][f"{label}_at_one_rate"] = again
        arms[name] = entry
    peak = max((one["peak_mb"] for worlds in runs.values() for one in worlds.values() if "peak_mb" in one), default=0)
    tables: dict[str, Any] = {"peak_mb_of_a_worker": peak, "arms": arms}
    if part == "main":
        tables |= {
            "primary": primary(runs), "primary_at_one_rate": primary(one_rate),
            "dose": {method: dose(runs, method) for method in METHODS},
            "dose_at_one_rate": {method: dose(one_rate, method) for method in METHODS},
        }  # fmt: skip
    return tables


def primary(runs: Runs) -> list[dict[str, Any]]:
    """Return the comparisons of the primary family, with Holm's correction once all of them are there.

    "by_start" has the mean differences over the worlds of each starting model.
    """
    rows: list[dict[str, Any]] = []
    for arm, other in PRIMARY:
        if not (known := compared(runs, arm, other, PRIMARY_OUTCOME)):
            continue
        by_start: dict[str, list[float]] = {}
        for seed in sorted(runs[arm].keys() & runs[other].keys()):
            change = runs[arm][seed][PRIMARY_OUTCOME] - runs[other][seed][PRIMARY_OUTCOME]
            by_start.setdefault(str(seed % STARTS), []).append(change)
        means = {number: fmean(changes) for number, changes in by_start.items()}
        rows.append({"arm": arm, "control": other, **known, "by_start": means})
    if len(rows) == len(PRIMARY):
        for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p_holm"] = p
    return rows


def dose(runs: Runs, method: str) -> dict[str, Any]:
    """Return the gain over "none" by the judge's rank correlation, the line through it, and where it crosses 0.

    Each world has a line, by least squares through its gains at the qualities 0 (shuffled) to 1 (oracle). Slope and
    level are `difference` of these. The crossing is that of the mean line, with a bootstrap over worlds, and is read
    only where the slope's interval is above 0. "gains" are `compared` by judge, with its rank correlation, also of
    judges that are not on the line.
    """
    names = {judge: f"{method} {judge}" for judge in DOSE}
    worlds = sorted(set.intersection(*({*runs.get(name, {})} for name in ("none", *names.values()))))
    if len(worlds) < 2:
        return {}
    gains = np.array([
        [runs[name][seed][PRIMARY_OUTCOME] - runs["none"][seed][PRIMARY_OUTCOME] for name in names.values()]
        for seed in worlds
    ])  # fmt: skip
    lines = np.array([np.polyfit([*DOSE.values()], own, 1) for own in gains])
    found: dict[str, Any] = {"slope": difference(lines[:, 0].tolist()), "at_0": difference(lines[:, 1].tolist())}
    found["gains"] = {}
    for judge in JUDGES:
        if known := compared(runs, f"{method} {judge}", "none", PRIMARY_OUTCOME):
            agreement = fmean(one["agreement"]["text"] for one in runs[f"{method} {judge}"].values())
            found["gains"][judge] = {"agreement": agreement, **known}
    if found["slope"]["low"] > 0:
        drawn = np.random.default_rng(0).integers(len(worlds), size=(RESAMPLES, len(worlds)))
        means = lines[drawn].mean(axis=1)
        cut = tail(worlds)
        low, high = np.quantile(-means[:, 1] / means[:, 0], [cut, 1 - cut])
        found["break_even"] = {"mean": -found["at_0"]["mean"] / found["slope"]["mean"], "low": low, "high": high}
    return found


def missing(folder: Path, part: str) -> list[str]:
    """Return the arms of a part with fewer worlds than planned."""
    runs = read(folder, part)
    return [name for name in PARTS[part] if len(runs.get(name, {})) < SEEDS[part]]
