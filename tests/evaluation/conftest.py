"""Fixtures of report metrics: generated reports, and WordNet where the system has it."""

from __future__ import annotations

import random

import pytest
from debian_wordnet import find_wordnet

WORDS = """
the heart is normal in size and lungs are clear no pleural effusion effusions or pneumothorax seen there evidence acute
disease mild mildly moderate severe cardiomegaly enlarged large big small left right lower lobe opacity opacities edema
consolidation oedema nodule nodules nodular x-ray T2-weighted 3.5 cm 1,000 mm two none doctor physician doesnt Größe
isn't of 正常 naïve β-blocker émigré — № a an
"""
ENDINGS = (*[" "] * 6, ", ", ". ", ". ", ".\n", "! ", ": ", " (", ") ", "/", " ||| ", "... ", ",", ".")


@pytest.fixture(scope="session")
def reports() -> tuple[list[str], list[str]]:
    """400 generated predictions and references: empty, of one word, of repeated words, with marks, Unicode, long."""
    rng = random.Random(0)
    lengths = [0, 0, 1, 1, 2, 3, 4, 5, 8, 13, 21, 34]
    references = [_text(rng, max(1, rng.choice(lengths))) for _ in range(396)] + [_text(rng, 500) for _ in range(4)]
    predictions = []
    for reference in references:
        kind = rng.random()
        if kind < 0.1:
            predictions.append(reference)
        elif kind < 0.6:
            predictions.append(_edited(rng, reference))
        elif kind < 0.7:
            predictions.append(" ".join([rng.choice(reference.split() or ["no"])] * rng.randint(1, 12)))
        else:
            predictions.append(_text(rng, rng.choice(lengths)))
    return predictions, references


@pytest.fixture(scope="session")
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> None:
    """NLTK finds WordNet."""
    if not find_wordnet(tmp_path_factory.mktemp("nltk_data")):
        pytest.skip("WordNet is not here: neither NLTK's data nor Debian's package wordnet-base")


def _text(rng: random.Random, length: int) -> str:
    # A first word with letters, so that every reference has words in every protocol.
    words = [*(["lungs"] if length else []), *rng.choices(WORDS.split(), k=max(0, length - 1))]
    return "".join(word + rng.choice(ENDINGS) for word in words)


def _edited(rng: random.Random, text: str) -> str:
    words = [word for word in text.split(" ") if rng.random() > 0.15]
    for _ in range(len(words) // 6):
        words.insert(rng.randrange(len(words) + 1), rng.choice(WORDS.split()))
    return " ".join(words)
