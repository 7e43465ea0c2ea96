"""Words for the numbers of a comparison, shared by terminal, tables, page and cards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmedpo.data.text import number_of

TEXTS = ("examples",)  # keys of comparison.json with test questions, which are not published with a model
SIGNIFICANT = 0.05  # threshold of corrected p-values
RUN_NAMES = {"start": "the starting model", "adapter": "the adapter", "sft": "SFT", "dpo": "DPO", "mmedpo": "MMedPO"}
GROUPINGS = {"task": "task", "question_type": "kind of question", "organ": "organ", "modality": "modality"}


@dataclass(frozen=True)
class Label:
    """Display of a metric: its name, `share` (shown in percent), and the direction that is better."""

    text: str
    share: bool = True
    higher_is_better: bool = True


KINDS = {  # suffixes of the metrics of preference pairs
    "": "",
    "_hallucinated_response": " (hallucinated response)",
    "_lesion_noise": " (lesion noise)",
    "_image_noise": " (image noise)",
    "_reversed_noise": " (reversed noise)",
    **{f"_weight_{band}": f" (weight {band.replace('_', ' ')})" for band in ("below_0.9", "0.9_to_1.1", "above_1.1")},
}
CHANGED = {"lesion_noise": "lesion hidden", "blank": "blank image", "swapped": "another patient’s image"}
LOGPS = "Log-probability of the reference"
METRICS = {
    "overall_accuracy": Label("All questions: right"),
    "closed_accuracy": Label("Closed questions: right"),
    "unread": Label("Closed questions: answer could not be read", higher_is_better=False),
    "choice_accuracy": Label("Multiple choice: right"),
    "judged_accuracy": Label("All questions: judged correct"),
    "judged_closed_accuracy": Label("Closed questions: judged correct"),
    "judged_choice_accuracy": Label("Multiple choice: judged correct"),
    "judged_open_accuracy": Label("Open questions: judged correct"),
    "judged_partly": Label("All questions: judged partly right", higher_is_better=False),
    "choice_likelihood_accuracy": Label("Multiple choice: gold option likeliest"),
    "choice_likelihood_per_byte_accuracy": Label("Multiple choice: gold option likeliest per byte"),
    "open_exact_match": Label("Open questions: exact match"),
    "open_recall": Label("Open questions: recall of words"),
    "open_precision": Label("Open questions: precision of words"),
    "open_f1": Label("Open questions: F1 of words"),
    "question_set_accuracy": Label("Question sets: all right"),
    "bleu": Label("Reports: BLEU"),
    **{f"bleu_{n}": Label(f"Reports: BLEU-{n}") for n in range(1, 5)},
    **{f"rouge_{kind}": Label(f"Reports: ROUGE-{kind.upper()}") for kind in "12l"},
    "meteor": Label("Reports: METEOR"),
    "radgraph_f1": Label("Reports: RadGraph F1 (RG_ER)"),
    **{f"radgraph_{level}": Label(f"Reports: RadGraph F1, {level}") for level in ("simple", "complete")},
    **{
        f"chexbert_{mean}_f1_{count}": Label(f"Reports: CheXbert {mean}-F1, {count} labels")
        for count in (14, 5)
        for mean in ("micro", "macro")
    },
    "severity_score": Label("Reports: right findings by severity"),
    **{
        f"severity_{kind}_errors": Label(f"Reports: {kind} errors each", share=False, higher_is_better=False)
        for kind in ("urgent", "actionable", "minor", "omission", "invention")
    },
    **{f"preference_accuracy{end}": Label(f"Pairs: ranked right{kind}") for end, kind in KINDS.items()},
    **{f"preference_margin{end}": Label(f"Pairs: mean margin{kind}", share=False) for end, kind in KINDS.items()},
    # A fall measures reliance on the image, not quality.
    **{f"accuracy_drop_{key}": Label(f"Accuracy lost: {view}", True, False) for key, view in CHANGED.items()},
    **{f"logps_drop_{key}": Label(f"{LOGPS}, lost: {view}", False, False) for key, view in CHANGED.items()},
    "accuracy_original": Label("Accuracy: original image"),
    **{f"accuracy_{key}": Label(f"Accuracy: {view}", True, False) for key, view in CHANGED.items()},
    "logps_original": Label(f"{LOGPS}: original image", share=False),
    **{f"logps_{key}": Label(f"{LOGPS}: {view}", False, False) for key, view in CHANGED.items()},
    "on_image": Label("Attention on the image", higher_is_better=False),
    "in_box": Label("Share of it inside the lesion’s box", higher_is_better=False),
    "lift": Label("That share over the box’s share of the area (1: even)", share=False, higher_is_better=False),
}


def label(name: str) -> Label:
    """Return a metric's label; an unknown metric is a plain number without a better direction."""
    words = name.replace("_", " ")
    return METRICS.get(name, Label(words[:1].upper() + words[1:], share=False, higher_is_better=False))


def variant(name: str, comparison: Mapping[str, Any]) -> str:
    """Return a metric's variant, such as " (nltk_wordnet)" of METEOR; "" for most metrics."""
    found = comparison.get("definitions", {}).get(f"{name}_variant")
    return f" ({found})" if found else ""


def titled(name: str, comparison: Mapping[str, Any]) -> str:
    """Return a metric's label with its variant."""
    return label(name).text + variant(name, comparison)


def definitions(comparison: Mapping[str, Any]) -> str:
    """Return the metric definitions: "med_vqa strict@3, report_generation coco@1, meteor nltk_wordnet"."""
    known = comparison.get("definitions", {})
    return ", ".join(
        f"{name.removesuffix('_definition').removesuffix('_variant')} {value}"
        for name, value in known.items()
        if f"{name}_definition" not in known  # the definition includes the protocol
    )


def ordered(metrics: Mapping[str, Any]) -> list[str]:
    """Return the names of the metrics, those of METRICS first."""
    order = [*METRICS, *metrics]
    return sorted(metrics, key=order.index)


def percent(value: float | None) -> str:
    """Return a share in percent: 0.7412 -> "74.1 %"."""
    return "not measured" if value is None else f"{_number(100 * value, 1)} %"


def points(value: float) -> str:
    """Return a difference of shares in points with its sign: 0.051 -> "+5.1"."""
    return _number(100 * value, 1, "+")


def amount(name: str, value: float | None) -> str:
    """Return a metric's value: "74.1 %" for a share, else three decimals."""
    if label(name).share or value is None:
        return percent(value)
    return _number(value, 3)


def change(name: str, value: float) -> str:
    """Return a difference with its sign: "+5.1" points for a share, else three decimals."""
    if label(name).share:
        return points(value)
    return _number(value, 3, "+")


def _number(value: float, digits: int, sign: str = "") -> str:
    """Return a number with a typographic minus sign; zero after rounding has no sign."""
    rounded = round(value, digits) or 0.0
    return f"{rounded:{sign if rounded else ''}.{digits}f}".replace("-", "−")


def span(name: str, cell: Mapping[str, Any]) -> str:
    """Return the interval of a cell's value: "71.1 to 77.1"; "" without one."""
    low, high = cell.get("low"), cell.get("high")
    return (
        "" if low is None or high is None else " to ".join(amount(name, end).removesuffix(" %") for end in (low, high))
    )


def interval(name: str, cell: Mapping[str, Any]) -> str:
    """Return the interval of a cell's difference: "[+3.0, +7.2]"."""
    return f"[{change(name, cell['difference_low'])}, {change(name, cell['difference_high'])}]"


def p_text(p: float) -> str:
    """Return a p-value as text: 0.0004 -> "p < 0.001", 0.0312 -> "p = 0.031"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def outcome(cell: Mapping[str, Any]) -> str | None:
    """Return "higher" or "lower" for a corrected p below 0.05, else "open"; None without a test."""
    if cell.get("difference") is None or cell.get("p_adjusted") is None:
        return None
    if cell["p_adjusted"] >= SIGNIFICANT:
        return "open"
    return "higher" if cell["difference"] > 0 else "lower"


def verdict(name: str, cell: Mapping[str, Any]) -> str:
    """Return the result of a test in words: "▲ better (p = 0.001)"; "" without a test."""
    found = outcome(cell)
    if found is None:
        return ""
    judged = label(name).higher_is_better
    words = {
        "higher": "▲ better" if judged else "▲ higher",
        "lower": "▼ worse" if judged else "▼ lower",
        "open": "○ no difference shown",
    }
    return f"{words[found]} ({p_text(cell['p_adjusted'])})"


def counted(size: Mapping[str, int]) -> str:
    """Return counts in words: {"questions": 1204, "images": 1} -> "1,204 questions, 1 image"."""
    return ", ".join(number_of(n, what) for what, n in size.items())


def run_name(name: str) -> str:
    """Return a run's name for the middle of a sentence."""
    return RUN_NAMES.get(name, name)


def heading(name: str) -> str:
    """Return a run's name for the start of a sentence or column; names that users gave are unchanged."""
    return RUN_NAMES[name][:1].upper() + RUN_NAMES[name][1:] if name in RUN_NAMES else name


def main_run(comparison: Mapping[str, Any]) -> str | None:
    """Return the last run, the subject of a comparison; None where there is only the baseline."""
    others = [name for name in comparison["runs"] if name != comparison["baseline"]]
    return others[-1] if others else None


def seen(comparison: Mapping[str, Any]) -> str:
    """Return a sentence on the test images and patients in the training data."""
    found = comparison.get("seen_in_training")
    if not found:
        return (
            "The number of test images seen in training is not known, since no training data was given. Name the "
            "preference dataset with --dataset to count them."
        )
    if found["images"] is None:
        return (
            f"Whether the training data “{found['dataset']}” holds test images is not known: the evaluations record no "
            "image digests, and no row of the data comes from their source."
        )
    how = (
        "by pixels and by id"
        if None not in (found["by_pixels"], found["by_id"])
        else ("by pixels" if found["by_id"] is None else "by id")
    )
    sentence = (
        f"The training data “{found['dataset']}” holds {found['images']:,} of {found['of']:,} test images ({how})"
    )
    if found["patients"] is not None:
        sentence += f", and {found['patients']:,} of {found['of_patients']:,} test patients"
    return sentence + "."


def method(comparison: Mapping[str, Any], table: str = "table") -> str:
    """Return the method of intervals and p-values for a table's note; `table` is a grouping, or "table" (main)."""
    base, unit = run_name(comparison["baseline"]), comparison["unit"]
    tests = comparison.get("tests", {}).get(table, 0)
    return (
        f"Brackets are 95 % intervals of {comparison['resamples']:,} resamples of whole {unit}s; differences are to "
        f"{base}, over the same resamples. p is of a two-sided permutation test that exchanges whole {unit}s between "
        f"the two runs, corrected by Holm for the {tests:,} tests of this table; an interval is not corrected, and can "
        "exclude zero where the corrected p is above 0.05. Where all answers score alike, an interval has no width and "
        f"says nothing.{_seeds(comparison)}"
    )


def _seeds(comparison: Mapping[str, Any]) -> str:
    """Return sentences on the methods that are means over several seeds, and on those that are one run."""
    seeds = comparison.get("seeds")
    if not seeds:
        return ""
    means = ", ".join(f"{run_name(name)} ({number} runs)" for name, number in seeds.items())
    alone = ", ".join(run_name(name) for name in comparison["runs"] if name not in seeds)
    said = (
        f" Means over training seeds: {means}; ± is the standard deviation between their runs. Their intervals and p "
        "cover seeds and images: the variation between runs is drawn from Student's t."
    )
    return said + (f" One run, whose numbers do not cover its seed: {alone}." if alone else "")


def note(comparison: Mapping[str, Any], table: str = "table") -> str:
    """Return the note of a table: definitions, method, number of tests, differences of the runs, seen test images."""
    named = definitions(comparison)
    notes = [f"{said}." for said in comparison.get("notes", ())]
    return " ".join([*([f"Scored by {named}."] if named else []), method(comparison, table), *notes, seen(comparison)])


def summary(comparison: Mapping[str, Any]) -> list[str]:
    """Return the result in one sentence, and its uncertainty in another."""
    main, base = main_run(comparison), comparison["baseline"]
    for name in ordered(comparison["metrics"]) if main else ():
        cell = comparison["metrics"][name].get(main, {})
        before = comparison["metrics"][name].get(base, {}).get("value")
        found = outcome(cell)
        if main is None or found is None or before is None:
            continue
        what, n = next(iter(comparison.get("sizes", {}).get(name, {}).items()), ("questions", None))
        who, other, of = heading(main), run_name(base), f"{n:,} held-out {what}" if n else f"held-out {what}"
        did = f"reaches {amount(name, cell['value'])} in “{titled(name, comparison)}” on {of}"
        if name == "overall_accuracy":
            did = f"answers {percent(cell['value'])} of {of} right"
        unit = " points" if label(name).share else ""
        first = f"{who} {did}, {other} {amount(name, before)}: {change(name, cell['difference'])}{unit} "
        return [f"{first}{interval(name, cell)}.", _trust(found, who, other, label(name).higher_is_better, cell)]
    return ["Nothing here was measured on both a trained model and the model it is compared with."]


def _trust(found: str, who: str, other: str, judged: bool, cell: Mapping[str, Any]) -> str:
    corrected = f"{p_text(cell['p_adjusted'])} after correction for all tests of the table"
    if found == "open":
        return f"This test does not show that {who} and {other} differ ({corrected})."
    change, what = "gain" if judged else "difference", "choice of test images"
    what += " and seeds" if cell.get("sd") is not None else ""
    if found == "lower" and judged:
        return f"{who} does worse than {other}; the {what} alone is unlikely to explain it ({corrected})."
    return f"The {what} alone is unlikely to explain the {change} ({corrected})."


def shown(value: Any) -> str:
    """Return a recorded value in words, without local folders and with few digits."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        rest = [f"{key} {shown(part)}" for key, part in value.items() if key != "name" and part is not None]
        return ", ".join([shown(value["name"]), *rest] if value.get("name") else rest) or "none"
    if isinstance(value, (list, tuple)):
        return "; ".join(shown(part) for part in value) or "none"
    if isinstance(value, str) and (Path(value).is_absolute() or value.startswith(("./", "../", "~"))):
        return Path(value).name
    return "none" if value in (None, "") else str(value)


def without_texts(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Return a comparison without texts of test questions: without examples and example prompts."""
    evaluations = {run: _without_example(found) for run, found in comparison.get("evaluations", {}).items()}
    return {key: value for key, value in comparison.items() if key not in TEXTS} | {"evaluations": evaluations}


def _without_example(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return an evaluation's record without its example prompt; the digest of the template stays."""
    prompt = evaluation.get("prompt")
    return {**evaluation, "prompt": {**prompt, "example": None}} if prompt else dict(evaluation)
