"""Plain form, words and polarity of short medical texts, and pseudo-random numbers from a text."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache
from typing import Literal

Polarity = Literal["yes", "no"]
Said = Literal["yes", "no", "both", "neither"]

# Applied before NFKC, which would turn "№" into "No" and "nº" into "no", and leaves most of the others as they are.
_PLAIN = str.maketrans({**dict.fromkeys("‐‑‒–−", "-"), **dict.fromkeys("‘’ʼ", "'"), "№": "#", "º": "°", "\u2044": "/"})
_INVISIBLE = "Cf"  # Unicode category of soft hyphens, zero-width spaces, joiners and direction marks
_IGNORABLE = re.compile(  # Unicode's default-ignorable characters of other categories: selectors, fillers, joiners
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_ANSWER_DASH = re.compile(r"\b(yes|no)–(?=[^\W\d_])", re.IGNORECASE)  # a clause follows, not the rest of a word
_MIXED_FRACTION = re.compile(r"(?<=\d)(?=[¼½¾⅐-⅞])")

# "_" is a word character to `re`, but emphasis at the edge of a word. A point between letters ends a sentence.
_WORD_PATTERN = r"[^\W_]+(?:(?:['’_-]|(?<=\d)\.(?=\d))[^\W_]+)*"
_WORD = re.compile(_WORD_PATTERN)
# A word or a separator of clauses: a new line, or punctuation other than quotation marks and emphasis.
_PIECE = re.compile(rf"{_WORD_PATTERN}|[^\w\s'‘’\"“”*]|\n")

NEGATIONS = frozenset(("not", "cannot", "never", "without", "neither", "nor", "nothing"))  # besides words in -n't
# After "no" these words begin a new clause ("no it is not"); before others "no" is a determiner ("no fracture").
CLAUSE_STARTS = frozenset((
    "a", "an", "the", "this", "that", "these", "those", "there", "here", "it", "its", "he", "she", "they", "we", "you",
    "i", "my", "our", "your", "his", "her", "their", "both", "all", "each", "every", "some", "only", "neither", "none",
    "is", "are", "was", "were", "because", "since", "as", "if", "although", "though", "while", "and", "or", "but", "so",
    "not", "no", "yes",
))  # fmt: skip
_EITHER = re.compile(r"\b(yes|no)[\"'*]*\s*(?:/|\bor\b)\s*[\"'*]*(yes|no)\b", re.IGNORECASE)
# Headings after a verdict ("No Explanation: ...") begin a clause too.
_HEADING = re.compile(r"(?=(?:explanation|rationale|reasoning|justification)[*_ ]*:)", re.IGNORECASE)


def number_of(number: int, nouns: str) -> str:
    """Return a number with its noun: (1204, "images") -> "1,204 images", (1, "entries") -> "1 entry"."""
    return f"{number:,} {nouns if number != 1 else re.sub('ies$', 'ys', nouns).removesuffix('s')}"


def words(text: str) -> list[str]:
    """Return the lower-case words of the `plain` form of `text`.

    Inner apostrophes, hyphens, "_" and decimal points stay ("t2-weighted", "3.5").
    """
    return list(_words(text))


@lru_cache(maxsize=64)  # checks of one answer ask for the same words again and again
def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(plain(text).casefold()))


def clauses(text: str) -> list[list[str]]:
    """Return the `words` of each clause of `text`, split at punctuation, at new lines and before "but".

    Example:
        >>> clauses("It is not the left but the right. Yes!")
        [['it', 'is', 'not', 'the', 'left'], ['but', 'the', 'right'], ['yes']]
    """
    found: list[list[str]] = [[]]
    for piece in _PIECE.findall(plain(text).casefold()):
        is_word = piece[0].isalnum()
        if found[-1] and (not is_word or piece == "but"):
            found.append([])
        if is_word:
            found[-1].append(piece)
    return found if found[-1] else found[:-1]


def plain(text: str) -> str:
    """Return `text` with one spelling of each character, for comparisons only; nothing is stored in this form.

    Unicode NFKC (accents, full-width letters, no-break spaces, subscripts: "T₂" is "T2"). Hyphens, en dashes and minus
    signs become "-", curly apostrophes "'", fraction bars "/". Soft hyphens and other invisible characters are removed.
    An en dash between "yes" or "no" and a letter becomes an em dash, which separates words.

    Example:
        >>> plain("T₂‑weighted"), plain("pneumo\u00adthorax"), plain("3\u00a0−\u00a05 cm")
        ('T2-weighted', 'pneumothorax', '3 - 5 cm')
    """
    if text.isascii():
        return text
    text = text.translate({ord(character): None for character in set(text) if _is_invisible(character)})
    text = _MIXED_FRACTION.sub(" ", _ANSWER_DASH.sub(r"\1—", text))
    return unicodedata.normalize("NFKC", text.translate(_PLAIN)).translate(_PLAIN)  # NFKC creates minus signs


@lru_cache(maxsize=4096)
def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) == _INVISIBLE or _IGNORABLE.match(character) is not None


def folded(text: str) -> str:
    """Return the `plain` form in lower case with single spaces, equal for texts that look the same to a reader."""
    return " ".join(plain(text).casefold().split())


def polarity(text: str) -> Polarity | None:
    """Return "yes" or "no" if the answer opens with it, or if only one of them occurs as a whole word; else None."""
    found = [word for word in words(text) if word in ("yes", "no")]
    if not found:
        return None
    first = words(text)[0]
    if first in ("yes", "no") or len(set(found)) == 1:
        return "yes" if found[0] == "yes" else "no"
    return None


@lru_cache(maxsize=64)
def said(text: str) -> Said:
    """Return the plain "yes" or "no" of an answer, "both" or "neither".

    Only whole words count. A "no" before a noun does not: "there is no abnormality" is a yes to "Is this normal?".
    Words after a negation in the same clause do not count either: "not yes". "A yes or no answer" is both.

    Example:
        >>> said("Yes, there is no fracture."), said("No, this is not abnormal"), said("There is no fracture.")
        ('yes', 'no', 'neither')
        >>> said("There is no reason to doubt it: yes"), said("yes or no"), said("I do not know")
        ('yes', 'both', 'neither')
    """
    if "yes" not in (plainly := plain(text).casefold()) and "no" not in plainly:
        return "neither"
    text = _EITHER.sub(r"\1 \2\n", text)  # one clause, and no determiner: "a yes or no answer"
    found = {word for word, stated in stated_words(text) if stated and word in ("yes", "no")}
    if len(found) == 1:
        return "yes" if "yes" in found else "no"
    return "both" if found else "neither"


def stated_words(text: str, determiners: bool = False) -> list[tuple[str, bool]]:
    """Return (word, stated) for each word; a stated word has no negation before it in its clause.

    A determiner "no" ("no fracture") negates the words after it, and is stated only with `determiners`.
    """
    found = []
    for clause in clauses(_HEADING.sub("\n", plain(text))):
        negated = False
        for word, following in zip(clause, [*clause[1:], None], strict=True):
            determiner = word == "no" and following is not None and following not in CLAUSE_STARTS
            found.append((word, not negated and (determiners or not determiner)))
            negated = negated or determiner or word in NEGATIONS or word.endswith("n't")
    return found


def carries(text: str, answer: str) -> bool:
    """Return True if the words of `answer` occur in `text`, whole and in order ("effusion" is not in "effusions")."""
    needle, hay = words(answer), words(text)
    return bool(needle) and f" {' '.join(needle)} " in f" {' '.join(hay)} "  # words hold no spaces


def unit_interval(*key: object) -> float:
    """Return a number in [0, 1) that depends only on `key`, the same on every machine and Python."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
