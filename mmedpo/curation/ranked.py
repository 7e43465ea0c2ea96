"""Ranked text pairs: the best and the worst of the target model's answers, by their scores against the gold answer.

As in CheXalign (Hein et al. 2025, arXiv 2410.07025), which takes the best and the worst of four sampled reports. It
found that a metric alone is exploited by length, so here both sides are of similar length. The gold answer only scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, permutations
from typing import ClassVar

from mmedpo.curation.answer_checks import answer_fault
from mmedpo.curation.relevance import JUDGE, NO_SCORE, NOT_WRONG, ROUNDING, Item, Panel
from mmedpo.curation.text_pairs import TARGET_MODEL, Choice, Chosen, Hallucination, Rejection
from mmedpo.curation.text_pairs import Item as Question
from mmedpo.data import placeholders
from mmedpo.data.samples import Sample
from mmedpo.data.text import folded, words
from mmedpo.schema import text_fault

RANKED, JUDGES = "ranked@1", "judges"
CLINICAL = {"radgraph_f1": "radgraph", "chexbert_micro_f1_14": "chexbert"}  # of reports alone
METRICS = ("rouge_l", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "f1", *CLINICAL, JUDGES)
TASKS = ("report", "open_vqa")
LEEWAY = 2  # words by which lengths may differ whatever their ratio is
OTHER_TASK = "only reports and open questions have ranked pairs"
ONLY_REPORTS = "the metric of ranked pairs is of reports alone"
FEW = "fewer than two different samples to rank"
UNSCORED = "fewer than two samples have a score"
CLOSE = "no two samples differ by --min-gap in score"
UNEQUAL = "no two samples with that gap are within --length-ratio"
UNFIT = "no two samples with that gap and ratio make a pair"


@dataclass(frozen=True)
class Ranker:
    """Maker of ranked pairs.

    Attributes:
        metric: one of `METRICS`.
        min_gap: least difference of the scores, in [0, 1]; equal scores never make a pair.
        length_ratio: most words of the longer side, as a multiple of the shorter's; `LEEWAY` more are always allowed.
        panel: judges, which the metric "judges" needs.
    """

    metric: str
    min_gap: float = 0.0
    length_ratio: float = 2.0
    panel: Panel | None = None
    chat: ClassVar[None] = None
    show_images: ClassVar[bool] = False

    def wants(self, sample: Sample) -> bool:
        """Return True where candidates of the target model are needed."""
        return sample.task in (TASKS[:1] if self.metric in CLINICAL else TASKS)

    def choose(self, items: Sequence[Question]) -> list[Choice]:
        """Return the pair with the widest gap of every item, in order, or why there is none.

        Of equal gaps the samples that were drawn first make the pair.

        Raises:
            InputError: a judge cannot work, or the weights of a clinical metric are missing.
        """
        found = {i: self._samples(item) for i, item in enumerate(items)}
        texts = {i: those for i, those in found.items() if not isinstance(those, Rejection)}
        cases = [Item(items[i].question, items[i].gold, text) for i, those in texts.items() for text in those]
        scores, definition = self._scores(cases)
        scored = iter(zip((case.rejected for case in cases), scores, strict=True))
        pairs: dict[int, Choice] = {i: those for i, those in found.items() if isinstance(those, Rejection)}
        pairs |= {i: self._pair(items[i], [*islice(scored, len(those))], definition) for i, those in texts.items()}
        return [pairs[i] for i in range(len(items))]

    def _samples(self, item: Question) -> list[str] | Rejection:
        """Return the different samples in the order drawn, at least two."""
        if item.task not in TASKS:
            return Rejection(OTHER_TASK, "")
        if self.metric in CLINICAL and item.task != "report":
            return Rejection(ONLY_REPORTS, self.metric)
        if item.failed:
            return Rejection(item.failed, "")
        found: dict[str, str] = {}
        for text in map(str.strip, item.candidates):
            found.setdefault(folded(text), text)
        found.pop("", None)
        return [*found.values()] if len(found) > 1 else Rejection(FEW, f"{len(item.candidates)} samples")

    def _scores(self, cases: Sequence[Item]) -> tuple[Sequence[float | None], str]:
        """Return a score of each case, NaN for none, or None where judges are to be asked again; and a definition."""
        if self.metric != JUDGES:
            return _by_metric(self.metric, cases)
        assert self.panel is not None  # checked by the settings
        asked = [case for case in cases if folded(case.rejected) != folded(case.gold)]
        found = iter(self.panel.score(asked))
        scores: list[float | None] = []
        for case in cases:
            judged = next(found) if folded(case.rejected) != folded(case.gold) else None
            if judged is None or judged.reason == NOT_WRONG:
                scores.append(1.0)
            elif judged.score is None:
                scores.append(None)
            else:
                scores.append(1 - judged.score if judged.score > 0 else math.nan)  # 0: absurd, neither best nor worst
        return scores, JUDGE

    def _pair(self, item: Question, scored: Sequence[tuple[str, float | None]], definition: str) -> Choice:
        if any(score is None for _, score in scored):
            return Rejection(NO_SCORE, "")
        known = [(text, score) for text, score in scored if score is not None and not math.isnan(score)]
        if len(known) < 2:
            return Rejection(UNSCORED, f"{len(known)} of {len(scored)}")
        pairs = sorted(permutations(known, 2), key=lambda pair: pair[1][1] - pair[0][1])  # stable: first drawn first
        apart = [pair for pair in pairs if _gap(pair) > ROUNDING and _gap(pair) >= self.min_gap - ROUNDING]
        alike = [pair for pair in apart if self._of_similar_length(pair[0][0], pair[1][0])]
        if not apart:
            return Rejection(CLOSE, f"the widest gap is {_gap(pairs[0]):.3g}")
        if not alike:
            return Rejection(UNEQUAL, " and ".join(f"{len(words(text))} words" for text, _ in apart[0]))
        faults = []
        for (best, score), (worst, low) in alike:
            fault = _fault(item, best, worst)
            if fault is None:
                version = f"{RANKED}:{self.metric}:{definition}"
                chosen = Chosen(
                    best, TARGET_MODEL, version, score=score, rejected_score=low,
                    is_gold=folded(best) == folded(item.gold),
                )  # fmt: skip
                return Hallucination(worst, TARGET_MODEL, RANKED, chosen=chosen)
            faults.append(fault)
        return Rejection(UNFIT, faults[0])

    def _of_similar_length(self, one: str, other: str) -> bool:
        short, long = sorted((len(words(one)), len(words(other))))
        return long <= max(short + LEEWAY, self.length_ratio * short)


def _gap(pair: tuple[tuple[str, float], tuple[str, float]]) -> float:
    return pair[0][1] - pair[1][1]


def _fault(item: Question, best: str, worst: str) -> str | None:
    """Return why two samples are no pair: one cannot be stored, or words show that the worse one is not wrong."""
    held = placeholders.fault(best)
    return (
        (f"the chosen answer {held}" if held else None)
        or text_fault(best, worst, item.task)
        or answer_fault(item.question, item.gold, worst, item.task, "free")
    )


def _by_metric(metric: str, cases: Sequence[Item]) -> tuple[Sequence[float], str]:
    """Return the value of a metric of `mmedpo.evaluation` for each case, NaN where the gold answer has no words."""
    from mmedpo.evaluation.metrics import med_vqa, open_answers
    from mmedpo.evaluation.metrics.base import Text, values
    from mmedpo.evaluation.metrics.reports import clinical, coco

    if metric == "f1":
        overlaps = [
            open_answers.normal_overlap(case.rejected, case.gold, case.question)["f1"] if words(case.gold) else math.nan
            for case in cases
        ]
        return overlaps, med_vqa.DEFINITIONS["strict"]
    if name := CLINICAL.get(metric):
        found = clinical.of_reports([name], [case.rejected for case in cases], [case.gold for case in cases])
        by_line = (values(clinical.METRICS, [line]) for line in found.lines)
        return [one.get(metric, math.nan) for one in by_line], found.definitions.get(f"{name}_definition", "")
    texts = [[Text(text, coco.clean(text)) for text in (case.rejected, case.gold)] for case in cases]
    return [
        values(coco.PROTOCOL.metrics, [coco.score(said, gold)])[metric] if gold.words else math.nan
        for said, gold in texts
    ], coco.PROTOCOL.definition  # fmt: skip
