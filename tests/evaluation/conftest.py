"""What the tests of report metrics share: generated reports, and WordNet where the system has it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

WORDNET = Path("/usr/share/wordnet")  # Debian's package wordnet-base
# Debian leaves out the list of lexicographer files (WordNet's manual page lexnames(5WN)), which NLTK's reader wants.
LEXICOGRAPHER_FILES = """
adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body noun.cognition
noun.communication noun.event noun.feeling noun.food noun.group noun.location noun.motive noun.object noun.person
noun.phenomenon noun.plant noun.possession noun.process noun.quantity noun.relation noun.shape noun.state noun.substance
noun.time verb.body verb.change verb.cognition verb.communication verb.competition verb.consumption verb.contact
verb.creation verb.emotion verb.motion verb.perception verb.possession verb.social verb.stative verb.weather adj.ppl
"""
PARTS_OF_SPEECH = {"noun": 1, "verb": 2, "adj": 3, "adv": 4}

WORDS = """
the heart is normal in size and lungs are clear no pleural effusion effusions or pneumothorax seen there evidence acute
disease mild mildly moderate severe cardiomegaly enlarged large big small left right lower lobe opacity opacities edema
consolidation oedema nodule nodules nodular x-ray T2-weighted 3.5 cm 1,000 mm two none doctor physician doesnt Größe
isn't of 正常 naïve β-blocker émigré — № a an
"""
ENDINGS = (*[" "] * 6, ", ", ". ", ". ", ".\n", "! ", ": ", " (", ") ", "/", " ||| ", "... ", ",", ".")


@pytest.fixture(scope="session")
def reports() -> tuple[list[str], list[str]]:
    """1,200 generated predictions and references: empty, of one word, of repeated words, with marks, Unicode, long."""
    rng = random.Random(0)
    lengths = [0, 0, 1, 1, 2, 3, 4, 5, 8, 13, 21, 34]
    references = [_text(rng, max(1, rng.choice(lengths))) for _ in range(1196)] + [_text(rng, 500) for _ in range(4)]
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
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """NLTK finds WordNet: what it finds anyway, or else Debian's files."""
    import nltk
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        if not WORDNET.is_dir():
            pytest.skip("WordNet is not here: neither NLTK's data nor Debian's package wordnet-base")
        data = tmp_path_factory.mktemp("nltk_data")
        _copy_wordnet(data / "corpora" / "wordnet")
        nltk.data.path.insert(0, str(data))
        wordnet.ensure_loaded()
    yield


def _copy_wordnet(folder: Path) -> None:
    folder.mkdir(parents=True)
    for file in WORDNET.iterdir():
        if file.is_file():
            shutil.copyfile(file, folder / file.name)  # NLTK refuses links that lead out of its folder
    (folder / "index.sense").touch()  # package wordnet-sense-index; maps versions of WordNet, and no METEOR reads it
    names = LEXICOGRAPHER_FILES.split()
    lines = [f"{i:02}\t{name}\t{PARTS_OF_SPEECH[name.split('.')[0]]}\n" for i, name in enumerate(names)]
    (folder / "lexnames").write_text("".join(lines), encoding="utf-8")


def _text(rng: random.Random, length: int) -> str:
    # A first word with letters, so that every reference has words in every protocol.
    words = [*(["lungs"] if length else []), *rng.choices(WORDS.split(), k=max(0, length - 1))]
    return "".join(word + rng.choice(ENDINGS) for word in words)


def _edited(rng: random.Random, text: str) -> str:
    words = [word for word in text.split(" ") if rng.random() > 0.15]
    for _ in range(len(words) // 6):
        words.insert(rng.randrange(len(words) + 1), rng.choice(WORDS.split()))
    return " ".join(words)
