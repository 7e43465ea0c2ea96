"""WordNet for NLTK out of Debian's package wordnet-base, which needs no download by NLTK."""

from __future__ import annotations

import shutil
from pathlib import Path

WORDNET = Path("/usr/share/wordnet")
# Debian leaves out the list of lexicographer files (WordNet's manual page lexnames(5WN)), which NLTK's reader wants.
LEXICOGRAPHER_FILES = """
adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body noun.cognition
noun.communication noun.event noun.feeling noun.food noun.group noun.location noun.motive noun.object noun.person
noun.phenomenon noun.plant noun.possession noun.process noun.quantity noun.relation noun.shape noun.state noun.substance
noun.time verb.body verb.change verb.cognition verb.communication verb.competition verb.consumption verb.contact
verb.creation verb.emotion verb.motion verb.perception verb.possession verb.social verb.stative verb.weather adj.ppl
"""
PARTS_OF_SPEECH = {"noun": 1, "verb": 2, "adj": 3, "adv": 4}


def find_wordnet(folder: Path) -> bool:
    """Make NLTK find WordNet: what it finds anyway, or Debian's files, copied into `folder`. False without both."""
    import nltk
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        if not WORDNET.is_dir():
            return False
        _copy_wordnet(folder / "corpora" / "wordnet")
        nltk.data.path.insert(0, str(folder))
        wordnet.ensure_loaded()
    return True


def _copy_wordnet(folder: Path) -> None:
    folder.mkdir(parents=True)
    for file in WORDNET.iterdir():
        if file.is_file():
            shutil.copyfile(file, folder / file.name)  # NLTK refuses links that lead out of its folder
    (folder / "index.sense").touch()  # package wordnet-sense-index; maps versions of WordNet, and no METEOR reads it
    names = LEXICOGRAPHER_FILES.split()
    lines = [f"{i:02}\t{name}\t{PARTS_OF_SPEECH[name.split('.')[0]]}\n" for i, name in enumerate(names)]
    (folder / "lexnames").write_text("".join(lines), encoding="utf-8")
