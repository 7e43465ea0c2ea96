"""`evaluate` module of BLEU, ROUGE and METEOR for radiology reports; the arithmetic is in `mmedpo`."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from mmedpo.evaluation.metrics import report_generation
from mmedpo.evaluation.metrics.space import CITATION

_DESCRIPTION = """\
BLEU-1 to BLEU-4, ROUGE-L and METEOR of generated radiology reports, one reference a report, by published
definitions: the captioning toolkit's, R2Gen's, the MMedPO paper's and the Hub metrics'; on request clinical scores
(RadGraph, CheXbert). Higher is better.
"""

_CITATION = (
    CITATION
    + """\
@inproceedings{chen2020r2gen,
  title={Generating Radiology Reports via Memory-driven Transformer},
  author={Chen, Zhihong and Song, Yan and Chang, Tsung-Hui and Wan, Xiang},
  booktitle={Conference on Empirical Methods in Natural Language Processing},
  year={2020}
}
@inproceedings{denkowski2014meteor,
  title={Meteor Universal: Language Specific Translation Evaluation for Any Target Language},
  author={Denkowski, Michael and Lavie, Alon},
  booktitle={Workshop on Statistical Machine Translation},
  year={2014}
}
"""
)

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of str): the generated reports, as the model wrote them; "" where there is none, which scores 0.
    references (list of str): the gold reports; each has at least one word.
    protocol (str): "coco" (default); "r2gen" or "r2gen_mimic" (tables of R2Gen's line, IU X-Ray or MIMIC-CXR); "paper";
        or "huggingface".
    meteor_variant (str, optional): "meteor_1.5" (default; needs `pip install 'mmedpo[reports]'`), "nltk_wordnet"
        (default of paper and huggingface; needs NLTK's WordNet data) or "nltk_exact_stem" (needs no data).
    groups (list of str, optional): a name a report (its organ, say); adds "by_group".
    clinical (list of str, optional): "radgraph", "chexbert"; their weights are loaded from the Hub.
    return_scores (bool): add "scores", the summands of each report.

Returns (for no report n_report alone; all in [0, 1], but paper's BLEU in [0, 4/3]):
    bleu_1, bleu_2, bleu_3, bleu_4: of the corpus; paper: means over reports, and bleu, their mean.
    rouge_l (huggingface: rouge_1, rouge_2 too): means over the reports.
    meteor: meteor_1.5: of the corpus; nltk variants: mean over the reports.
    meteor_absent: instead of meteor, why it cannot be computed here, and what to do.
    meteor_variant: which METEOR it is; values of different variants cannot be compared.
    report_generation_definition: the protocol and the number of its definition; compare equal ones only.
    n_distinct, most_frequent_share: number of distinct reports, and the share of the most frequent one;
        n_distinct_references, most_frequent_reference_share: the same of the references.
    n_report: number of reports.

Examples:
    >>> import evaluate, mmedpo
    >>> metric = evaluate.load(mmedpo.metric("report_generation"))
    >>> reports = {
    ...     "predictions": ["The heart is normal. No effusion."],
    ...     "references": ["The heart is normal. No pleural effusion."],
    ... }
    >>> scores = metric.compute(**reports, meteor_variant="nltk_exact_stem")
    >>> {name: round(scores[name], 4) for name in ("bleu_1", "bleu_4", "rouge_l", "meteor")}
    {'bleu_1': 0.8465, 'bleu_4': 0.6732, 'rouge_l': 0.9104, 'meteor': 0.8535}
    >>> scores["meteor_variant"], scores["report_generation_definition"], scores["n_report"]
    ('nltk_exact_stem', 'coco@1', 1)
    >>> scores = metric.compute(**reports, protocol="huggingface", meteor_variant="nltk_exact_stem")
    >>> {name: round(scores[name], 4) for name in ("bleu_4", "rouge_1", "rouge_2", "rouge_l", "meteor")}
    {'bleu_4': 0.6753, 'rouge_1': 0.9231, 'rouge_2': 0.7273, 'rouge_l': 0.9231, 'meteor': 0.8919}
"""


class ReportGeneration(evaluate.Metric):
    """Reports in, values out; see `_KWARGS_DESCRIPTION`.

    `evaluate` looks at the columns first: nulls, numbers, missing or unequally long columns raise its ValueError
    or TypeError. All else that is wrong (references without words, options) raises `mmedpo.errors.InputError`.
    """

    def _info(self) -> evaluate.MetricInfo:
        columns = ("predictions", "references")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({column: datasets.Value("string") for column in columns}),
        )

    def _compute(self, predictions: list[str], references: list[str], **options: Any) -> dict[str, Any]:
        return report_generation.compute(predictions, references, **options)
