"""Protocols `r2gen` and `r2gen_mimic`: the arithmetic of `coco` on the tokens of R2Gen's code line.

Tables of R2Gen, R2GenCMN, CvT2DistilGPT2 and their successors are made this way: full stops are words, and references
are cut. Read from R2Gen's modules/tokenizers.py and modules/datasets.py.
"""

from __future__ import annotations

import re
from dataclasses import replace

from mmedpo.evaluation.metrics.reports import coco

# max_seq_length of the code line's commands for IU X-Ray and MIMIC-CXR, less the start token.
IU_XRAY, MIMIC_CXR = 60 - 1, 100 - 1

_LIST_NUMBERS = (
    ("1. ", ""),
    *((f". {n}. ", ". ") for n in "2345"),
    *((f" {n}. ", ". ") for n in "2345"),
)
_SPACES, _STOPS = re.compile("[ \n]+"), re.compile(r"\.{2,}")
_DELETED = re.compile(r"""[][(){}<>"'.,:;?!*%^&_+=@/\\]""")
_WORD, _ATTACHED = re.compile(r"[^\W_]"), re.compile(r"\S\.")


def words(text: str) -> list[str]:
    r"""Return the tokens of a report: lower-case words, and "." after each sentence.

    In this order: line ends and repeated spaces become one space, repeated full stops one; list numbers "1. " to "5. "
    become the end of a sentence; lower-case; split sentences at ". "; delete the characters []{}()<>"'.,:;?!*%^&_+=@/\
    within them ("3.5" becomes "35"); split at white space; append ".", also where the report ends without one. As in
    the code line, "T11. " loses "1. ", and two full stops with a space between them are two tokens. A text whose full
    stops all stand alone is made of tokens already, perhaps cut: none is appended. A text without a letter or digit has
    no tokens.

    Example:
        >>> words("1. Heart size normal. 2. No T2-weighted change")
        ['heart', 'size', 'normal', '.', 'no', 't2-weighted', 'change', '.']
    """
    text = _STOPS.sub(".", _SPACES.sub(" ", text))
    for number, instead in _LIST_NUMBERS:
        text = text.replace(number, instead)
    if not _WORD.search(text):
        return []
    sentences = text.strip().lower().split(". ")
    tokens = [token for sentence in sentences for token in (*_DELETED.sub("", sentence).split(), ".")]
    is_cut = " . " in text and not _ATTACHED.search(text) and not text.rstrip().endswith(".")
    return tokens[:-1] if is_cut else tokens


PROTOCOL = replace(coco.PROTOCOL, definition="r2gen@1", words=words, reference_words=IU_XRAY)
MIMIC_PROTOCOL = replace(PROTOCOL, definition="r2gen_mimic@1", reference_words=MIMIC_CXR)
