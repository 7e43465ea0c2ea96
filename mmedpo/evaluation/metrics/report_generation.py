"""Scores of generated reports: BLEU, ROUGE-L and METEOR by published definitions, and clinical ones.

Some are functions of sums over the corpus, not means. `score` therefore keeps each report's summands, and `metrics`
turns sums into values, of the corpus or of a bootstrap resample.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from mmedpo.evaluation import answers_in, by_group, require_groups, require_known, require_texts
from mmedpo.evaluation.metrics.base import Metric, Scores, Text, values
from mmedpo.evaluation.metrics.reports import clinical as clinical_scores
from mmedpo.evaluation.metrics.reports import coco, huggingface, meteor, paper, r2gen, variety
from mmedpo.evaluation.metrics.reports.coco import clean

__all__ = [
    "METEOR_VARIANTS",
    "PROTOCOLS",
    "aggregate",
    "clean",
    "compute",
    "metrics",
    "reference_words",
    "score",
    "score_all",
]

_PROTOCOLS = {
    "coco": coco.PROTOCOL,
    "r2gen": r2gen.PROTOCOL,
    "r2gen_mimic": r2gen.MIMIC_PROTOCOL,
    "paper": paper.PROTOCOL,
    "huggingface": huggingface.PROTOCOL,
}
PROTOCOLS = tuple(_PROTOCOLS)
METEOR_VARIANTS = meteor.VARIANTS


def score(
    prediction: str,
    reference: str,
    protocol: str = "coco",
    meteor_variant: str | None = None,
) -> dict[str, Any]:
    """Return `score_all` of one report."""
    return score_all([prediction], [reference], protocol, meteor_variant)[0]


def score_all(
    predictions: Sequence[str],
    references: Sequence[str],
    protocol: str = "coco",
    meteor_variant: str | None = None,
) -> list[dict[str, Any]]:
    """Return the summands of each of n reports, fit for JSON; arguments as in `compute`.

    Returns:
        Results of the protocol's `score` (`reports.coco`, `reports.paper`, `reports.huggingface`), with "meteor" or
        "meteor_statistics", or "meteor_absent" in all of them (`reports.meteor.scores`), "prediction_key" and
        "reference_key" (`reports.variety.keys`).

    Raises:
        InputError: as `compute`.
    """
    _require_names(protocol, meteor_variant)
    chosen = _PROTOCOLS[protocol]
    words, cleaned = cache(chosen.words), cache(clean)
    require_texts(predictions, references, lambda text: words(text) if cleaned(text) else [])
    predictions = answers_in(predictions)
    said = [Text(text, words(text)) for text in predictions]
    gold = [Text(text, words(text)[: chosen.reference_words]) for text in references]
    parts = [
        [chosen.score(*pair) for pair in zip(said, gold, strict=True)],
        [variety.keys(cleaned(a), cleaned(b)) for a, b in zip(predictions, references, strict=True)],
        meteor.scores([t.words for t in said], [t.words for t in gold], meteor_variant or chosen.meteor_variant),
    ]
    return [{key: value for part in row for key, value in part.items()} for row in zip(*parts, strict=True)]


def reference_words(text: str, protocol: str = "coco") -> list[str]:
    """Return the words of a reference by a protocol; empty for one that cannot be scored."""
    # Some protocols count punctuation as words; a reference needs more.
    return _PROTOCOLS[protocol].words(text) if clean(text) else []


def compute(
    predictions: Sequence[str],
    references: Sequence[str],
    protocol: str = "coco",
    meteor_variant: str | None = None,
    groups: Sequence[str] | None = None,
    clinical: Sequence[str] = (),
    return_scores: bool = False,
) -> dict[str, Any]:
    """Return the metrics of n reports; an empty prediction scores 0.

    Args:
        predictions: n raw reports of the model; thoughts are removed, and each protocol cleans and splits texts by its
            own rules.
        references: n gold reports, one a prediction, each with words.
        protocol: one of `PROTOCOLS` (eval/report_generation/README.md has the formulas).
        meteor_variant: "meteor_1.5" (Java), "nltk_wordnet" (WordNet data) or "nltk_exact_stem" (no data); by default
            the protocol's own: "nltk_wordnet" for paper and huggingface, "meteor_1.5" for the others.
        groups: n names (an organ, a modality); adds "by_group".
        clinical: any of "radgraph", "chexbert", whose weights come from the Hub (`reports.clinical`).
        return_scores: add "scores", the n `score_all` results.

    Returns:
        `aggregate` of all reports; with `groups` also "by_group", `aggregate` of each group by name.

    Raises:
        InputError: an unknown protocol, variant or clinical score; one string instead of a list; columns of different
            length; texts that are not strings, references without words (all are listed); a clinical score whose
            weights are missing.

    Example:
        >>> found = compute(["No effusion."], ["No pleural effusion."], meteor_variant="nltk_exact_stem")
        >>> found["report_generation_definition"], round(found["rouge_l"], 3), found["meteor_variant"]
        ('coco@1', 0.772, 'nltk_exact_stem')
    """
    if groups is not None:
        require_groups(groups, predictions)
    names = clinical_scores.names_in(clinical)
    scores = score_all(predictions, references, protocol, meteor_variant)
    added = clinical_scores.of_reports(names, answers_in(predictions), references)
    scores = [own | more for own, more in zip(scores, added.lines, strict=True)]
    found = aggregate(scores, meteor_variant, protocol) | added.definitions
    if groups is not None:
        found["by_group"] = by_group(groups, scores, lambda own: aggregate(own, meteor_variant, protocol))
    return found | ({"scores": scores} if return_scores else {})


def metrics(protocol: str = "coco") -> tuple[Metric, ...]:
    """Return the metrics of `score` results; "meteor" occurs once for each kind of its summands."""
    require_known("protocol", protocol, PROTOCOLS)
    return (*_PROTOCOLS[protocol].metrics, *meteor.METRICS, *clinical_scores.METRICS)


def aggregate(scores: Sequence[Scores], meteor_variant: str | None = None, protocol: str = "coco") -> dict[str, Any]:
    """Return the values of `score` results; higher is better, but for errors, and counts of distinct reports.

    Returns:
        bleu_1 to bleu_4, rouge_l, meteor, and by protocol bleu (`paper`), rouge_1 and rouge_2 (`huggingface`), each in
        [0, 1] except `paper`'s BLEU in [0, 4/3]; clinical scores where requested; `variety.counts`; n_report,
        meteor_variant and report_generation_definition ("coco@1"). Where METEOR cannot be computed, meteor_absent holds
        the reason and a remedy. Without reports only {"n_report": 0}.
    """
    if not scores:
        return {"n_report": 0}
    found: dict[str, Any] = values(metrics(protocol), scores)
    absent = next((sample["meteor_absent"] for sample in scores if "meteor_absent" in sample), None)
    if absent is not None:
        found.pop("meteor", None)
        found["meteor_absent"] = absent
    return {
        **found,
        **variety.counts(scores),
        "n_report": len(scores),
        "meteor_variant": meteor_variant or _PROTOCOLS[protocol].meteor_variant,
        "report_generation_definition": _PROTOCOLS[protocol].definition,
    }


def _require_names(protocol: str, meteor_variant: str | None) -> None:
    require_known("protocol", protocol, PROTOCOLS)
    if meteor_variant is not None:
        require_known("meteor_variant", meteor_variant, METEOR_VARIANTS)
