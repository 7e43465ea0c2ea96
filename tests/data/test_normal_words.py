"""Normal forms of words: what is one word to a reader has one form, and what is not has two."""

from __future__ import annotations

import pytest

from mmedpo.data.laterality import is_conflict, sides
from mmedpo.data.normal_words import content_words, normal_words, singular

PLURALS = {
    "-s": "lungs:lung ribs:rib kidneys:kidney valves:valve hernias:hernia sizes:size diseases:disease bases:base",
    "-es": "masses:mass abscesses:abscess approaches:approach rashes:rash reflexes:reflex headaches:headache",
    "-uses": "sinuses:sinus viruses:virus causes:cause foci:focus focuses:focus uteruses:uterus pulses:pulse",
    "-ies": "opacities:opacity biopsies:biopsy arteries:artery",
    "Greek": "metastases:metastasis diagnoses:diagnosis stenoses:stenosis prostheses:prosthesis analyses:analysis "
             "doses:dose crises:crisis carcinomata:carcinoma arthritides:arthritis criteria:criterion",
    "Latin": "vertebrae:vertebra bullae:bulla bronchi:bronchus thrombi:thrombus gyri:gyrus nuclei:nucleus hila:hilum "
             "apices:apex cortices:cortex pneumothoraces:pneumothorax foramina:foramen diverticula:diverticulum",
}  # fmt: skip
UNCHANGED = (
    "pelvis pancreas uterus atelectasis thrombus apex gas mass abscess lens pons bias series ascites diabetes biceps "
    "psoas sinus virus axis basis diagnosis mri trachea fistula medulla pleura his"
)


@pytest.mark.parametrize("kind", PLURALS)
def test_singular_joins_the_numbers_of_a_noun(kind):
    pairs = [pair.split(":") for pair in PLURALS[kind].split()]
    assert {plural: singular(plural) for plural, _ in pairs} == dict(pairs)
    assert [singular(single) for _, single in pairs] == [single for _, single in pairs]


def test_singular_leaves_singulars_and_keeps_words_apart():
    assert [singular(word) for word in UNCHANGED.split()] == UNCHANGED.split()
    apart = normal_words("pelvis pelvic apex apnea thrombus thrombosis base bass gas gash axis ax lens len ilium ileum")
    assert len(set(apart)) == len(apart)


@pytest.mark.parametrize(
    "spellings",
    [
        ("2", "two", "Two"), ("21", "twenty-one", "twenty one"), ("3rd ventricle", "third ventricle"), ("0", "zero"),
        ("5mm", "5 mm", "5-mm", "five mm"), ("T2-weighted", "T2 weighted", "T₂‑weighted", "T2w"), ("L4-L5", "L4/L5"),
        ("x-ray", "xray", "x ray", "X-Rays"), ("non-contrast CT", "noncontrast CT", "non contrast CT"),
        ("5%", "five percent"), ("both lungs", "bilateral lungs"),
        ("intra-axial", "intraaxial", "intra axial"),
        ("costo-phrenic", "costophrenic"), ("gastro-oesophageal", "gastroesophageal"),
        ("oedema", "edema"), ("haemorrhages", "hemorrhage"), ("tumour", "tumors"), ("ischaemia", "ischemia"),
        ("coloured", "colored"), ("visualised", "visualized"), ("centre", "center"),
        ("Crohn's disease", "Crohns disease"),
        ("R lung", "Rt. lung", "right lung"), ("CT w/o contrast", "CT without contrast"), ("CT w/ dye", "CT with dye"),
    ],
)  # fmt: skip
def test_spellings_of_one_thing_have_one_normal_form(spellings):
    assert len({tuple(normal_words(text)) for text in spellings}) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no effusion", ["no", "not:effusion"]),
        ("It isn't the heart, it is the lung", ["it", "isn't", "not:heart", "it", "is", "lung"]),
        ("the head of the pancreas", ["head", "pancreas"]),
        ("left-sided", ["left"]),
        ("hepatitis A", ["hepatitis", "a"]),
        ("a mass in the", ["mass"]),
        ("l spine", ["l", "spine"]),
        ("in the", []),
    ],
)
def test_content_words_and_denied_words(text, expected):
    assert [word for word in content_words(normal_words(text)) if word != "not:it"] == expected


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("left", "left"), ("in the left-sided lung", "left"), ("L lung", "left"), ("not left", ""), ("lung", ""),
        ("It is not the right, but the left.", "left"), ("right-to-left shunt", "left right"),
        ("both lungs", "both"), ("bilaterally", "both"), ("left and right", "both"),
        ("right or the left lung", "both"), ("right lung or left lung", "both"), ("left/right", "both"),
        ("both the heart and the liver", ""),
        ("The left lung is clear; the right is not.", "left right"), ("on the left side of the image", ""),
        ("right above the diaphragm", ""), ("at the image's left", ""),
    ],
)  # fmt: skip
def test_sides_are_those_stated(answer, named):
    assert " ".join(sorted(sides(answer))) == named


@pytest.mark.parametrize(
    ("answer", "gold", "conflict"),
    [
        ("left lung", "right lung", True),
        ("both lungs", "right lung", True),
        ("left or right lung", "right lung", True),
        ("The right lung is affected, the left is clear.", "right lung", False),
        ("not the right lung", "right lung", False),
        ("lung", "right lung", False),
        ("left lung", "lung", False),
        ("left lung", "both lungs", False),
        ("left lung", "left and right lung", False),
        ("upper lobe", "lower lobe", False),
    ],
)
def test_conflict_needs_a_gold_side_and_another_in_the_answer(answer, gold, conflict):
    assert is_conflict(answer, gold) is conflict
