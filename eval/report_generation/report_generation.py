"""`evaluate` module of BLEU, ROUGE-L and METEOR for radiology reports; the arithmetic is in `mmedpo`."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from mmedpo.evaluation import report_generation

_DESCRIPTION = """\
BLEU-1 to BLEU-4 of the corpus, ROUGE-L and METEOR of generated radiology reports, on cleaned text as in the R2Gen
lineage, with one reference a report and no data to download. All values lie in [0, 1]; higher is better.
"""

_CITATION = """\
@inproceedings{chen2020r2gen,
  title={Generating Radiology Reports via Memory-driven Transformer},
  author={Chen, Zhihong and Song, Yan and Chang, Tsung-Hui and Wan, Xiang},
  booktitle={Conference on Empirical Methods in Natural Language Processing},
  year={2020}
}
@article{chen2015coco,
  title={Microsoft {COCO} Captions: Data Collection and Evaluation Server},
  author={Chen, Xinlei and Fang, Hao and Lin, Tsung-Yi and Vedantam, Ramakrishna and Gupta, Saurabh
          and Doll{\\'a}r, Piotr and Zitnick, C. Lawrence},
  journal={arXiv:1504.00325},
  year={2015}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of str): the generated reports; "" where there is none, which scores 0.
    references (list of str): the gold reports; each has at least one word.
    protocol (str): "coco", the only one.
    meteor_variant (str): "nltk_exact_stem" (default, needs no data) or "nltk_wordnet" (also matches synonyms; needs
        NLTK's WordNet data).

Returns (values in [0, 1], absent where there is no report):
    bleu_1, bleu_2, bleu_3, bleu_4: cumulative BLEU of the corpus.
    rouge_l, meteor: means over the reports.
    meteor_variant: which METEOR it is; values of different variants cannot be compared.
    n_report: number of reports.

Examples:
    >>> import evaluate
    >>> metric = evaluate.load("eval/report_generation")
    >>> scores = metric.compute(
    ...     predictions=["The heart is normal. No effusion."],
    ...     references=["The heart is normal. No pleural effusion."],
    ... )
    >>> {name: round(scores[name], 4) for name in ("bleu_1", "bleu_4", "rouge_l", "meteor")}
    {'bleu_1': 0.8465, 'bleu_4': 0.6732, 'rouge_l': 0.9104, 'meteor': 0.8535}
    >>> scores["meteor_variant"], scores["n_report"]
    ('nltk_exact_stem', 1)
"""


class ReportGeneration(evaluate.Metric):
    """Reports in, values out; see `_KWARGS_DESCRIPTION`. Bad input raises `mmedpo.errors.InputError`."""

    def _info(self) -> evaluate.MetricInfo:
        columns = ("predictions", "references")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({column: datasets.Value("string") for column in columns}),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str],
        protocol: str = "coco",
        meteor_variant: str = "nltk_exact_stem",
    ) -> dict[str, Any]:
        return report_generation.compute(predictions, references, protocol, meteor_variant)
