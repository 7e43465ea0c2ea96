"""What the tests of report metrics share: generated reports, and WordNet where the system has it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

WORDNET = Path("/usr/share/wordnet")  # Debian's package wordnet-base
# Debian leaves out the list of lexicographer files (WordNet's manual page lexnames(5WN)), which NLTK's reader wants.
LEXICOGRAPHER_FILES = {
    3: ["adj.all", "adj.pert"],
    4: ["adv.all"],
    1: [f"noun.{name}" for name in (
        "Tops act animal artifact attribute body cognition communication event feeling food group location motive object "
        "person phenomenon plant possession process quantity relation shape state substance time").split()],
    2: [f"verb.{name}" for name in (
        "body change cognition communication competition consumption contact creation emotion motion perception "
        "possession social stative weather").split()],
}  # fmt: skip

WORDS = (
    "the heart is normal in size and lungs are clear no pleural effusion effusions or pneumothorax seen there evidence of "
    "acute disease mild mildly moderate severe cardiomegaly enlarged large big small left right lower lobe opacity "
    "opacities consolidation edema oedema nodule nodules nodular x-ray T2-weighted 3.5 cm 1,000 mm two none doctor "
    "physician doesnt isn't Größe 正常 naïve β-blocker émigré — № a an"
).split()
ENDINGS = (" ", " ", " ", " ", " ", " ", ", ", ". ", ". ", ".\n", "! ", ": ", " (", ") ", "/", " ||| ", "... ", ",", ".")


@pytest.fixture(scope="session")
def reports() -> tuple[list[str], list[str]]:
    """1,200 generated predictions and references: empty and one-word ones, repeated words, Unicode, marks, a few long."""
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
    names = [(name, part) for part, names in LEXICOGRAPHER_FILES.items() for name in names] + [("adj.ppl", 3)]
    lines = [f"{number:02}\t{name}\t{part}\n" for number, (name, part) in enumerate(names)]
    (folder / "lexnames").write_text("".join(lines), encoding="utf-8")


def _text(rng: random.Random, length: int) -> str:
    # A first word with letters, so that every reference has words in every protocol.
    words = [*(["lungs"] if length else []), *rng.choices(WORDS, k=max(0, length - 1))]
    return "".join(word + rng.choice(ENDINGS) for word in words)


def _edited(rng: random.Random, text: str) -> str:
    words = [word for word in text.split(" ") if rng.random() > 0.15]
    for _ in range(len(words) // 6):
        words.insert(rng.randrange(len(words) + 1), rng.choice(WORDS))
    return " ".join(words)
