"""Audit as a table for a terminal and as a self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmedpo.data.burnt_text import said
from mmedpo.data.text import number_of
from mmedpo.report.audit.burnt_text import Texts
from mmedpo.report.audit.read import REPORT_WORDS
from mmedpo.report.audit.side_by_side import scores

FLAWS = {  # key of the audit: (label, definition)
    "identical_pairs": (
        "identical pairs",
        "Both sides see the same images, and their texts are equal but for case and outer spaces.",
    ),
    "gold_in_rejected": (
        "gold answer inside the rejected text",
        "The words of the chosen text occur in the rejected one, whole and in order, so that it is hardly wrong. "
        "Counted over open rows: no report, not identical, and the chosen text says neither yes nor no.",
    ),
    "same_polarity": (
        "same yes or no on both sides",
        "Both texts say yes, or both say no. Counted over closed rows: no report, not identical, and the chosen "
        "text says yes or no.",
    ),
    "zero_weights": ("zero weights", "The row's loss is multiplied by zero: nothing is learned from it."),
    "gold_repeats_question": (
        "gold answers that repeat the question",
        "All words of the question occur in the gold answer, in order: it is the question itself, or holds a prompt.",
    ),
    "gold_declines": (
        "gold answers that decline to answer",
        "The gold answer gives no answer (“not sure”, “cannot be determined”), or a program declines in it.",
    ),
    "repeated_questions": (
        "repeated questions",
        "An earlier row has the same images, the same words in its question and the same kind of dispreference.",
    ),
    "repeated_rows": (
        "repeated rows",
        "An earlier row has the same images, question, texts and kind of dispreference.",
    ),
}
BY_LETTERS = {
    "gold_in_rejected": (
        "  by string comparison",
        "The chosen text as a string occurs anywhere in the rejected one, also inside a longer "
        "word (“lung” in “lungs”), identical pairs included.",
    ),
    "same_polarity": (
        "  by the first word",
        "The chosen text is “yes” or “no” alone and the rejected one opens with it, identical pairs included.",
    ),
}
REPORTS = f"A row that names no task counts as a report if its chosen text has more than {REPORT_WORDS} words."
AGREEMENT = (
    "Krippendorff’s alpha, interval level: 1 is full agreement, 0 is chance. In a sequential panel "
    "every judge but the first saw the score before its own: alpha then measures adoption as well as agreement, most "
    "of all in the last round."
)
VERDICTS = (  # (upper limit of AUC, meaning)
    (0.55, "Length and form hardly tell the two sides apart."),
    (0.65, "Length and form tell the two sides apart a little better than chance."),
    (0.8, "Length and form often tell the two sides apart: a model can learn style instead of medicine."),
    (
        1.01,
        "Length and form alone identify the rejected text of most pairs: a model can rank them without reading them.",
    ),
)


def verdict(auc: float) -> str:
    """Return the meaning of a style-shortcut AUC in a sentence."""
    return next(sentence for limit, sentence in VERDICTS if auc < limit)


def rows(audit: Mapping[str, Any]) -> list[list[str]]:
    """Return the audit as a table of two columns, name and value, for a terminal."""
    table = [["rows", f"{audit['rows']:,}"]]
    table += [["made or scored by a stand-in", said] for said in stood_in(audit)]
    table += [[f"  {what}: {label}", f"{n:,}"] for what, by in audit["counts"].items() for label, n in by.items()]
    table.append(["faults", f"{len(audit['faults']):,}"])
    table.append(["images or patients in several splits", f"{len(audit['shared_groups']):,}"])
    if found := audit["near_duplicates"]:
        table.append(["groups of near-duplicate images", near_duplicates(found)])
        table += [["  look alike", ", ".join(names)] for names in found["examples"]]
    if found := audit.get("burnt_text"):
        table.append(["images with burnt-in text", f"{found['with_text']:,} of {found['images']:,}"])
        table += [[f"  boxes, likely {kind}", f"{count:,}"] for kind, count in found["kinds"].items()]
        table.append(["  visual pairs with noise over text", f"{found['noised_text']:,} of {found['visual_pairs']:,}"])
        table += [["  warning", found["warning"]]] if found["warning"] else []
    if audit["rejects"] is not None:
        table.append(["rejected while curating", f"{sum(audit['rejects'].values()):,}"])
        table += [[f"  {reason}", f"{n:,}"] for reason, n in audit["rejects"].items()]
    if found := audit.get("preferred"):
        sides = f"yes {found['yes']:,}, no {found['no']:,}"
        table.append(["visual pairs about closed questions prefer", sides])
        table += [["  warning", found["warning"]]] if found["warning"] else []
    table += [[label, count] for label, count, _ in flaws(audit)]
    if audit["unscored"]:
        table.append(["rows without clinical relevance", f"{audit['unscored']:,} (not scored; weight 1)"])
    for name in ("weights", "relevance"):
        if audit[name]:
            table.append([f"{name}: mean ± sd, range", _spread(audit[name])])
            table += [[f"  {kind}", _spread(part)] for kind, part in audit[name]["by_dispreference"].items()]
        if name == "weights":
            table += [["  note", note] for note in audit["weight_notes"]]
    if audit["mask_coverage"]:
        mean, most = (100 * audit["mask_coverage"][key] for key in ("mean", "max"))
        table.append(["image covered by noise", f"mean {mean:.1f} %, most {most:.1f} %"])
    return table + _style_rows(audit) + _side_by_side(audit) + _judge_rows(audit["judges"])


def stood_in(audit: Mapping[str, Any]) -> list[str]:
    """Return each stand-in with its number of rows, which is unknown where only the manifest names it."""
    return [
        f"{name} ({'named in the manifest' if rows is None else number_of(rows, 'rows')}): no medical knowledge"
        for name, rows in audit["standins"].items()
    ]


def near_duplicates(found: Mapping[str, Any]) -> str:
    """Return a sentence on groups of images that look alike."""
    apart = f", {found['in_several_splits']:,} in several splits" if found["in_several_splits"] else ""
    return f"{found['groups']:,} among {number_of(found['images'], 'images')}{apart}"


def flaws(audit: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return label, count and definition of each flaw; two flaws are also counted by comparing strings."""
    words = {"gold_in_rejected": "open", "same_polarity": "closed"}
    found = []
    for key, (label, definition) in FLAWS.items():
        of = f" of {audit['checked'][words[key]]:,} {words[key]} rows" if key in words else ""
        found.append((label, f"{audit[key]:,}{of}", definition))
        if key in words:
            (label, definition), literal = BY_LETTERS[key], audit["by_letters"]
            found.append((label, f"{literal[key]:,} of {literal[words[key]]:,} {words[key]} rows", definition))
    return found


def _style_rows(audit: Mapping[str, Any]) -> list[list[str]]:
    table = []
    if style := audit["style"]:
        means = (style["chosen_words_mean"], style["rejected_words_mean"])
        table.append(["words, chosen / rejected", "{:.1f} / {:.1f}".format(*means)])
        table.append(["rejected is longer", f"{100 * style['rejected_longer_share']:.1f} %"])
        table.append(["lengths within two words", f"{100 * style['within_two_words_share']:.1f} %"])
    found = audit["style_shortcut"]
    if found["auc"] is None:
        return [*table, ["style shortcut", f"not measured: {found['reason']}"]]
    pairs = f"{found['pairs']:,}{' of {:,}'.format(found['of']) if 'of' in found else ''} pairs"
    auc = f"AUC {found['auc']:.3f} ± {found['sd']:.3f} over {len(found['folds'])} folds of {pairs}"
    table += [["style shortcut (0.5 is clean)", auc], ["  meaning", verdict(found["auc"])]]
    table += [[f"  {one['feature']}", strength(one)] for one in found["strongest"]]
    return table


def _side_by_side(audit: Mapping[str, Any]) -> list[list[str]]:
    found = [[f"  {label}", score] for label, score in scores(audit)]
    return [["style shortcut by chosen side, or beside", ""], *found] if found else []


def strength(one: Mapping[str, Any]) -> str:
    """Return one feature of the style score in words, with its amount on both sides."""
    sides = f"{one['chosen_mean']:.2f} chosen, {one['rejected_mean']:.2f} rejected"
    return f"{sides}; alone AUC {max(one['auc'], 1 - one['auc']):.3f}"


def _judge_rows(judges: Mapping[str, Any]) -> list[list[str]]:
    if not judges["rows"]:
        return []
    agreed = judges["agreed_share"]
    return [
        ["rows scored by judges", f"{judges['rows']:,}"],
        ["  judges agreed", "unknown" if agreed is None else f"{100 * agreed:.1f} %"],
        ["  answers that could not be read", f"{judges['unreadable']:,} of {judges['judgements']:,}"],
        ["  answers that said not wrong", f"{judges['not_wrong']:,}"],
        ["  alpha of the first round", alpha(judges["first_round"])],
        ["  alpha of the last round", alpha(judges["last_round"])],
        ["  note", "in a sequential panel, judges saw the score before theirs"],
    ]


def alpha(found: Mapping[str, Any]) -> str:
    """Return Krippendorff's alpha of one round with its number of rows, or the reason for its absence."""
    if found["alpha"] is None:
        return f"not measured: {found['reason']}"
    return f"{found['alpha']:.3f} ({number_of(found['units'], 'rows')}, {number_of(found['judges'], 'judges')})"


def grouped(faults: Sequence[Mapping[str, str]]) -> list[tuple[str, str, list[str]]]:
    """Return faults as (column, sentence, rows), the most frequent first."""
    found: dict[tuple[str, str], list[str]] = {}
    for fault in faults:
        found.setdefault((fault["column"], fault["sentence"]), []).append(fault["row"])
    return sorted(((*key, names) for key, names in found.items()), key=lambda group: -len(group[2]))


def _spread(part: Mapping[str, Any]) -> str:
    return f"{part['mean']:.3f} ± {part['sd']:.3f}, {part['min']:.3f} to {part['max']:.3f}"


def render(audit: Mapping[str, Any], texts: Texts | None = None) -> str:
    """Return the audit as one self-contained HTML page, with pictures of the text that was found in images."""
    return page(
        "audit.html.jinja",
        **{tool.__name__: tool for tool in (alpha, flaws, near_duplicates, grouped, said, stood_in, strength, verdict)},
        audit=audit,
        side_by_side=scores(audit),
        texts=texts,
        notes={"reports": REPORTS, "agreement": AGREEMENT},
    )


def page(template: str, **context: Any) -> str:
    """Fill a template of `mmedpo/report/templates`; all values are escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parents[1] / "templates")
    env = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return env.get_template(template).render(**context)
