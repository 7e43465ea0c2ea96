"""Scores of generated reports: BLEU, ROUGE-L and METEOR by published definitions, and clinical ones by their packages.

Some are functions of sums over the corpus and no means, so `score` keeps each report's summands and `metrics` says how
sums become values, for the corpus as for a bootstrap resample of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from mmedpo.errors import InputError
from mmedpo.evaluation import answers_in, by_group, group_faults, require_known, require_lists, require_texts
from mmedpo.evaluation.metrics.base import Metric, Scores, values
from mmedpo.evaluation.metrics.reports import Text, coco, huggingface, meteor, paper
from mmedpo.evaluation.metrics.reports import clinical as clinical_scores
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

_PROTOCOLS = {"coco": coco.PROTOCOL, "paper": paper.PROTOCOL, "huggingface": huggingface.PROTOCOL}
PROTOCOLS = tuple(_PROTOCOLS)
METEOR_VARIANTS = meteor.VARIANTS


def score(
    prediction: str,
    reference: str,
    protocol: str = "coco",
    meteor_variant: str | None = None,
    clinical: Sequence[str] = (),
) -> dict[str, Any]:
    """`score_all` of one report."""
    return score_all([prediction], [reference], protocol, meteor_variant, clinical)[0]


def score_all(
    predictions: Sequence[str],
    references: Sequence[str],
    protocol: str = "coco",
    meteor_variant: str | None = None,
    clinical: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """JSON-able summands of each of n reports; the arguments are those of `compute`.

    Returns:
        What the protocol's `score` returns (`reports.coco`, `reports.paper`, `reports.huggingface`), joined with
        "meteor" or "meteor_statistics", or "meteor_absent" in all of them (`reports.meteor.scores`), and with the
        clinical scores asked for (`reports.clinical.scores`).

    Raises:
        InputError: as `compute`.
    """
    _require_names(protocol, meteor_variant, clinical)
    chosen = _PROTOCOLS[protocol]
    words = cache(chosen.words)
    require_texts(predictions, references, lambda text: reference_words(text, protocol))
    predictions = answers_in(predictions)
    said, gold = ([Text(text, words(text)) for text in texts] for texts in (predictions, references))
    parts = [
        [chosen.score(*pair) for pair in zip(said, gold, strict=True)],
        meteor.scores([t.words for t in said], [t.words for t in gold], meteor_variant or chosen.meteor_variant),
        *(clinical_scores.scores(name, predictions, references) for name in clinical),
    ]
    return [{key: value for part in row for key, value in part.items()} for row in zip(*parts, strict=True)]


def reference_words(text: str, protocol: str = "coco") -> list[str]:
    """What a protocol compares with: none for a reference that cannot be scored."""
    # Punctuation is a word to some protocols, but no reference.
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
    """Scores of n reports; an empty prediction scores 0.

    Args:
        predictions: n reports of the model, as it wrote them: thoughts are taken off, and each protocol cleans or
            splits them by its own rules.
        references: n gold reports, one a prediction, each with words.
        protocol: "coco", "paper" or "huggingface" (eval/report_generation/README.md has the formulas).
        meteor_variant: "meteor_1.5" (Java), "nltk_wordnet" (WordNet data) or "nltk_exact_stem" (no data); by default
            the protocol's own: "meteor_1.5" for coco, "nltk_wordnet" for the others.
        groups: n names (an organ, a modality); adds "by_group".
        clinical: any of "radgraph_f1", "chexbert_f1", which load models from the Hub.
        return_scores: whether each report's summands are returned too.

    Returns:
        What `aggregate` says; "by_group": what it says of each group, by name, if `groups` are given; "scores": the
        `score_all` results if asked for.

    Raises:
        InputError: an unknown protocol, variant or clinical score; one string instead of a list; columns of different
            length; texts that are no strings, references without words (all are named); a clinical score whose package
            or weights are missing.

    Example:
        >>> found = compute(["No effusion."], ["No pleural effusion."], meteor_variant="nltk_exact_stem")
        >>> found["report_generation_definition"], round(found["rouge_l"], 3), found["meteor_variant"]
        ('coco@1', 0.772, 'nltk_exact_stem')
    """
    if groups is not None:
        _require_groups(groups, predictions)
    scores = score_all(predictions, references, protocol, meteor_variant, clinical)
    found = aggregate(scores, meteor_variant, protocol)
    if groups is not None:
        found["by_group"] = by_group(groups, scores, lambda own: aggregate(own, meteor_variant, protocol))
    return found | ({"scores": scores} if return_scores else {})


def metrics(protocol: str = "coco") -> tuple[Metric, ...]:
    """The metrics of `score` results, higher is better; "meteor" is there twice, once for each kind of its summands."""
    require_known("protocol", protocol, PROTOCOLS)
    return (*_PROTOCOLS[protocol].metrics, *meteor.METRICS, *clinical_scores.METRICS)


def aggregate(scores: Sequence[Scores], meteor_variant: str | None = None, protocol: str = "coco") -> dict[str, Any]:
    """Values of `score` results; higher is better.

    Returns:
        {"n_report": 0} alone for no report, since what was not measured has no definition; else
        bleu_1 to bleu_4, rouge_l, meteor, and by protocol bleu (`paper`), rouge_1 and rouge_2 (`huggingface`), each in
        [0, 1] but for `paper`'s BLEU in [0, 4/3]; radgraph_f1 and chexbert_f1 in [0, 1] where they were asked for;
        n_report, meteor_variant and report_generation_definition, the protocol with the number of its definition
        ("coco@1"); where METEOR could not be computed, meteor_absent: why, and what to do.
    """
    if not scores:
        return {"n_report": 0}
    found: dict[str, Any] = values(metrics(protocol), scores)
    absent = next((sample["meteor_absent"] for sample in scores if "meteor_absent" in sample), None)
    if absent is not None:
        found.pop("meteor", None)
        found["meteor_absent"] = absent
    return found | {
        "n_report": len(scores),
        "meteor_variant": meteor_variant or _PROTOCOLS[protocol].meteor_variant,
        "report_generation_definition": _PROTOCOLS[protocol].definition,
    }


def _require_names(protocol: str, meteor_variant: str | None, clinical: Sequence[str]) -> None:
    require_known("protocol", protocol, PROTOCOLS)
    if meteor_variant is not None:
        require_known("meteor_variant", meteor_variant, METEOR_VARIANTS)
    if isinstance(clinical, str):
        raise InputError(f"clinical is one string ({clinical!r}); give a list of names: [{clinical!r}].")
    for name in clinical:
        require_known("clinical score", name, tuple(clinical_scores.SCORES))


def _require_groups(groups: Sequence[str], predictions: Sequence[str]) -> None:
    require_lists({"predictions": predictions, "groups": groups})
    if faults := group_faults(groups):
        raise InputError(f"{len(faults)} of the groups have no name:", faults)
