"""The arms of the study by part, their controls, and the comparisons of the primary family (docs/study.md)."""

from __future__ import annotations

from dataclasses import replace

from phantom_study.judges import JUDGES
from phantom_study.trials import STEPS, Arm

TUNING_WORLDS = (900, 901)  # for learning rates; no result is read from them
SEEDS = {"main": 10, "factors": 5}
LONGER = 3 * STEPS // 2
SLOW = (2e-4, 5e-4, 1e-3)  # rates tried without the NLL, with which the quickstart's rates destroy answers

MAIN = {
    "none": Arm(),
    **{f"rescale {judge}": Arm(weights="rescale", judge=judge) for judge in JUDGES},
    **{f"strong {judge}": Arm(weights="strong", judge=judge) for judge in JUDGES if judge not in ("rules", "reversed")},
    "supervised": Arm(losses="sft"),
    "both none": Arm(pairs="both"),
    "both rescale oracle": Arm(pairs="both", weights="rescale"),
    "both missed": Arm(pairs="both", detector="missed"),
}
_BOTH, _DPO, _FREE, _WARM = Arm(pairs="both"), Arm(losses="dpo", rates=SLOW), Arm(style="free"), Arm(warm=50)
FACTORS = {
    "strong importance": Arm(weights="strong", judge="importance"),
    "literal oracle": Arm(weights="literal"),
    "raw oracle": Arm(weights="raw"),
    "wide oracle": Arm(weights="wide"),
    "filter oracle": Arm(weights="filter"),
    "filter rank .6": Arm(weights="filter", judge="rank .6"),
    "filter shuffled": Arm(weights="filter", judge="shuffled"),
    "both merged oracle": Arm(pairs="both", weights="rescale", over="merged"),
    "visual none": Arm(pairs="visual"),
    "both hit": replace(_BOTH, detector="hit"),
    "both whole": replace(_BOTH, detector="whole"),
    "both step 500": replace(_BOTH, step=500),
    "both step 1000": replace(_BOTH, step=1000),
    "both grid 16": replace(_BOTH, grid=16),  # noise in cells of 5 pixels
    "both balance": replace(_BOTH, also="balance"),
    "both symmetric": replace(_BOTH, also="symmetric"),
    "none longer": Arm(steps=LONGER),
    "both longer": replace(_BOTH, steps=LONGER),  # as many text pairs as "none" sees
    "free gold": _FREE,
    "free corrected": replace(_FREE, chosen="corrected"),
    "dpo none": _DPO,
    "dpo rescale oracle": replace(_DPO, weights="rescale"),
    "dpo strong oracle": replace(_DPO, weights="strong"),
    "warm none": _WARM,
    "warm strong oracle": replace(_WARM, weights="strong"),
}
ARMS = {**MAIN, **FACTORS}
REPEATED = ("none", "both none", "supervised", "rescale oracle", "strong oracle")  # the first two are controls
PARTS = {"main": MAIN, "factors": {**{name: MAIN[name] for name in REPEATED}, **FACTORS}}
CONTROLS = {  # of the others: "none"
    "none": "start",
    **{name: "both none" for name in {**MAIN, **FACTORS} if name.startswith("both ") and name != "both none"},
    "both longer": "none longer", "free corrected": "free gold", "dpo rescale oracle": "dpo none",
    "dpo strong oracle": "dpo none", "warm strong oracle": "warm none",
}  # fmt: skip
PRIMARY = (  # arm, control
    ("rescale oracle", "none"), ("rescale rank .6", "none"), ("strong oracle", "none"), ("strong rank .6", "none"),
    ("rescale oracle", "rescale shuffled"), ("strong oracle", "strong shuffled"),
    ("both none", "none"), ("none", "supervised"),
)  # fmt: skip


def shared_rate(name: str) -> str:
    """Return the name of the arm at whose learning rate an arm is trained once more."""
    return "dpo none" if ARMS[name].rates == SLOW else "none"


def control(name: str) -> str:
    """Return the name of an arm's control; that of "none" itself is "start"."""
    return CONTROLS.get(name, "none")
