"""Text normalisation of the VQA-v2 evaluation, quirks included, as used by LLaVA-Med's and the paper's scores."""

from __future__ import annotations

import re

# Each mark is deleted if it stands beside a space anywhere in the text, else it becomes a space.
MARKS = ';/[]"{}()=+\\_-><@`,?!'
FULL_STOPS = 32  # the published code passes a flag (32) as the count of `re.sub`
ARTICLES = frozenset(("a", "an", "the"))
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""

_DIGITS_AND_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")


def _lacking_one_apostrophe(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = {lacking: word for word in CONTRACTED.split() for lacking in _lacking_one_apostrophe(word)}
CONTRACTIONS["somebody'd"] = "somebodyd"  # reversed in the published table


def normalize(text: str) -> str:
    """Return the text normalised as in VQA-v2, words separated by one space.

    - Lower case.
    - A mark of `MARKS` that stands beside a space anywhere in the text is deleted everywhere; all marks are, where a
      comma stands between two digits. Other marks become spaces. Apostrophes and colons are kept.
    - The first 32 full stops not before a digit are deleted, which joins the words around them.
    - "none" and "zero" to "ten" become digits, "a", "an" and "the" are dropped, "dont" becomes "don't".

    Example:
        >>> normalize("The x-ray shows none."), normalize("An x-ray - of two lobes"), normalize("1,000 mm/h")
        ('x ray shows 0', 'xray of 2 lobes', '1000 mmh')
    """
    commas = _DIGITS_AND_COMMA.search(text)
    out = text
    for mark in MARKS:
        if mark in text:
            deleted = commas or f"{mark} " in text or f" {mark}" in text
            out = out.replace(mark, "" if deleted else " ")
    words = (NUMBERS.get(word, word) for word in _FULL_STOP.sub("", out, count=FULL_STOPS).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
