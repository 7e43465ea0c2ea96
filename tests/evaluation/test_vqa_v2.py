"""The VQA-v2 normalisation and its habits, each derived from what its definition says."""

import pytest

from mmedpo.evaluation.metrics.vqa_v2 import CONTRACTIONS, normalize


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The LEFT lung, and a lobe", "left lung and lobe"),
        ("x-ray", "x ray"),
        ("x-ray -chest", "xray chest"),  # a hyphen after a space deletes all hyphens
        ("pa/ap view", "pa ap view"),
        ("1,000 m/s", "1000 ms"),  # a comma between digits deletes every mark
        ("left,right", "left right"),
        ("3.5 cm. Right.", "3.5 cm right"),
        ("end.Begin", "endbegin"),
        (".5", ".5"),
        ("one two ten none zero eleven", "1 2 10 0 0 eleven"),
        ("hes dont isnt", "he's don't isn't"),
        ("couldntve couldnt've couldn'tve", "couldntve couldn't've couldn't've"),
        ("somebody'd", "somebodyd"),
        ("Im Ive well its", "im ive well its"),
        ("girl's 2:50", "girl's 2:50"),
        ("**one**", "**one**"),
        ("t.he", ""),  # full stops are deleted before articles
        ("(a)", ""),
        ("\n a \t b ", "b"),
        ("", ""),
    ],
)
def test_normal_form(text, expected):
    assert normalize(text) == expected


def test_full_stops_after_the_32nd_stay():
    assert normalize("a. " * 32 + "b.") == "b."
    assert normalize("b." * 33) == "b" * 33 + "."


def test_contractions_are_keyed_by_forms_that_lack_an_apostrophe():
    for key, word in CONTRACTIONS.items():
        assert key == "somebody'd" or key.count("'") == word.count("'") - 1
