"""Words, yes/no polarity and containment of short answers."""

from __future__ import annotations

import unicodedata

import pytest

from mmedpo.data.text import carries, clauses, folded, number_of, plain, polarity, unit_interval, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Right lower lobe.", ["right", "lower", "lobe"]),
        ("T2-weighted, 3.5 cm", ["t2-weighted", "3.5", "cm"]),
        ("Crohn's / Crohn’s", ["crohn's", "crohn's"]),
        ("- the 'left' lung -", ["the", "left", "lung"]),
        ("ŒDÈME  Straße", ["œdème", "strasse"]),
        ("a\u2028b", ["a", "b"]),
        ("No.The L4.5 lung", ["no", "the", "l4.5", "lung"]),  # a point joins digits only
        ("__No__, _yes_ _ ___ a_b", ["no", "yes", "a_b"]),  # emphasis, and what was blacked out
        ("?!", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Not left, right.", [["not", "left"], ["right"]]),
        ("not left but right", [["not", "left"], ["but", "right"]]),
        ("'No' - **3.5** cm\nT2-weighted", [["no"], ["3.5", "cm"], ["t2-weighted"]]),
        ("yes/no", [["yes"], ["no"]]),
        ("_No_.The **left_ 3.5", [["no"], ["the", "left", "3.5"]]),
        ("...", []),
        ("", []),
    ],
)
def test_clauses(text: str, expected: list[list[str]]) -> None:
    assert clauses(text) == expected
    assert [word for clause in clauses(text) for word in clause] == words(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"),
        (" NO.", "no"),
        ("No, the lung is clear", "no"),
        ("Yes, there is no effusion", "yes"),  # the opening counts
        ("__No__.The lung is clear, yes", "no"),
        ("There is no effusion", "no"),
        ("I say yes and yes", "yes"),
        ("It is yes or no", None),
        ("nodule, not known", None),  # whole words only
        ("yesterday", None),
        ("", None),
    ],
)
def test_polarity(text: str, expected: str | None) -> None:
    assert polarity(text) == expected


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("A large LEFT effusion.", "left effusion", True),
        ("effusion", "effusion", True),
        ("Seen on the left.The _effusion_ is small", "effusion", True),
        ("On the left.The heart", "left", True),
        ("effusions on the left", "effusion", False),
        ("effusion, left", "left effusion", False),
        ("the left and an effusion", "left effusion", False),
        ("anything", "", False),
        ("anything", "?", False),
        ("", "effusion", False),
    ],
)
def test_carries_whole_words_in_order(text: str, answer: str, expected: bool) -> None:
    assert carries(text, answer) is expected


def test_accents_written_in_two_ways_are_one_word() -> None:
    assert words(unicodedata.normalize("NFD", "œdème")) == words("œdème")
    assert carries(unicodedata.normalize("NFD", "un œdème pulmonaire"), "œdème")


FORMS = [  # as typed or copied from somewhere, and its plain form
    ("T₂-weighted", "T2-weighted"),
    ("3 cm²", "3 cm2"),
    *((f"T2{hyphen}weighted", "T2-weighted") for hyphen in "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"),
    ("pneumo\u00adthorax", "pneumothorax"),
    *((f"left{space}lung", "left lung") for space in "\u00a0\u2007\u202f\u2009\u3000"),
    *((f"left{nothing} lung{nothing}", "left lung") for nothing in "\u200b\u200c\u200d\u2060\ufeff\u200e"),
    *((f"le{nothing}ft{nothing}", "left") for nothing in "\ufe0f\u034f\u115f\u1160\u3164\uffa0\ufe00\U000e0100"),
    ("10⁻³ and 10₋₃", "10-3 and 10-3"),
    ("½ or 3½ or 1⁄2", "1/2 or 3 1/2 or 1/2"),
    ("3–5 cm, non–specific", "3-5 cm, non-specific"),
    ("Ｙｅｓ，１．５", "Yes,1.5"),
    ("ﬂuid in stage Ⅱ", "fluid in stage II"),
    ("it isn’t", "it isn't"),
    ("œde\u0300me", "œdème"),
]


@pytest.mark.parametrize(("text", "expected"), FORMS)
def test_plain_form_is_the_one_every_comparison_sees(text: str, expected: str) -> None:
    assert plain(text) == expected
    assert folded(text) == folded(f" {expected.upper()}\n")
    assert words(text) == words(expected) and clauses(text) == clauses(expected)
    assert carries(f"the {text} here", expected) and carries(f"the {expected} here", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\u200bＮｏ\u00a0", "no"),
        ("y\u00ades", "yes"),
        ("№ 5", None),
        ("nº 5", None),
        ("no\u2014it is clear", "no"),
        ("Yes\u2013there is no effusion", "yes"),
        ("It is not, no\u2013none", "no"),
        ("no\u20135", None),
        ("NO\u2013SHOW", "no"),
        ("a non\u2013specific sign", None),
    ],
)
def test_polarity_of_other_forms(text: str, expected: str | None) -> None:
    assert polarity(text) == expected


def test_a_dash_behind_yes_or_no_parts_words() -> None:
    assert words("Yes\u2013there is") == ["yes", "there", "is"]
    assert clauses("No\u2013it is clear") == [["no"], ["it", "is", "clear"]]


def test_unit_interval_depends_on_its_key_alone() -> None:
    # the first 8 bytes of the SHA-256 of b"split\x1f0\x1fa", as a fraction of 2^64
    assert unit_interval("split", 0, "a") == pytest.approx(int("49d8f7b40bc1b803", 16) / 2**64)
    assert 0 <= unit_interval("x") < 1
    assert unit_interval("ab", "c") != unit_interval("a", "bc")


def test_number_of() -> None:
    said = [
        number_of(*one)
        for one in ((0, "rows"), (1, "rows"), (2, "rows"), (1204, "images"), (1, "entries"), (2, "entries"))
    ]
    assert said == ["0 rows", "1 row", "2 rows", "1,204 images", "1 entry", "2 entries"]
