"""Choices, bad input, groups and absence in all protocols; the parts of coco by hand."""

import doctest
import math
import random

import numpy as np
import pytest

from mmedpo.errors import InputError
from mmedpo.evaluation.metrics import report_generation as rg
from mmedpo.evaluation.metrics.reports import coco, huggingface, meteor, meteor15, paper, r2gen, variety
from mmedpo.evaluation.score import Scoring

EXACT_STEM = "nltk_exact_stem"
VALUES = {
    "coco": {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor"},
    "paper": {"bleu", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor"},
    "huggingface": {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_1", "rouge_2", "rouge_l", "meteor"},
}
VALUES["r2gen"] = VALUES["r2gen_mimic"] = VALUES["coco"]
COUNTS = {"n_distinct", "most_frequent_share", "n_distinct_references", "most_frequent_reference_share"}
NAMES = COUNTS | {"n_report", "meteor_variant", "report_generation_definition"}
PREDICTIONS = ["The heart is normal. No effusion.", "", "no no no", "Two nodules."]
REFERENCES = [
    "The heart is normal. No pleural effusion.",
    "Clear.",
    "no effusion",
    "There are 2 nodules in the left lung.",
]


@pytest.fixture(params=rg.PROTOCOLS)
def protocol(request):
    return request.param


def coco_bleu(prediction, reference):
    return coco.bleu(np.array(coco.bleu_statistics(rg.score(prediction, reference, "coco", EXACT_STEM))))


def test_brevity_penalty_by_hand():
    # 3 of 6 words, all matching: BP = exp(1 - 6/3).
    found = coco_bleu("no pleural effusion", "no pleural effusion is seen here")
    assert found[0] == pytest.approx(math.exp(-1), abs=1e-8)
    longer = coco_bleu("no effusion seen seen", "no effusion")
    assert longer[0] == pytest.approx(2 / 4, abs=1e-8)


def test_predictions_shorter_than_n_keep_the_constants_of_pycocoevalcap():
    found = coco_bleu("no effusion", "no effusion")
    precisions = [(2 + 1e-15) / (2 + 1e-9), (1 + 1e-15) / (1 + 1e-9), 1e-15 / 1e-9, 1e-15 / 1e-9]
    brevity = math.exp(1 - (2 + 1e-9) / (2 + 1e-15))
    for n in coco.ORDERS:
        assert found[n - 1] == pytest.approx(brevity * math.prod(precisions[:n]) ** (1 / n), rel=1e-12)


@pytest.mark.parametrize(
    "bleu", [coco.bleu, *(lambda sums, n=n: huggingface.bleu(n, sums) for n in coco.ORDERS)], ids=["coco", *"1234"]
)
def test_bleu_of_sums_is_vectorised(bleu):
    sums = np.random.default_rng(0).integers(0, 4, (2, 3, 10)).astype(float)
    sums[..., 4:8] += sums[..., :4]  # no fewer n-grams than matches; some totals and lengths stay 0
    together = bleu(sums)
    for place in np.ndindex(2, 3):
        np.testing.assert_allclose(together[place], bleu(sums[place]), rtol=1e-12)
    assert np.isfinite(together).all()


def test_thelongest_common_subsequence_is_that_of_the_table():
    rng = random.Random(0)
    for _ in range(200):
        a, b = (rng.choices("abcde", k=rng.randint(0, 90)) for _ in range(2))
        table = np.zeros((len(a) + 1, len(b) + 1), int)
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
        assert coco.longest_common(a, b) == table[-1, -1]


def test_rouge_of_a_thousand_words_needs_no_deeper_recursion_than_python_grants():
    text = " ".join(f"word{i}" for i in range(700))
    assert paper.rouge_l(text, text) == pytest.approx(1.0)


@pytest.mark.parametrize("module", [coco, huggingface, r2gen])
def test_examples_in_docstrings_hold(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Heart SIZE: normal.", ["heart", "size", "normal"]),
        ("1. Clear lungs.\n2. T2-weighted", ["clear", "lungs", "t2-weighted"]),
        ("L1. fracture, 7. rib", ["l1", "fracture", "7", "rib"]),
        ("3.5 cm and/or ___ - mass", ["35", "cm", "andor", "mass"]),
        ("Größe “normal”", ["größe", "normal"]),
    ],
)
def test_cleaning(text, words):
    assert rg.clean(text) == words


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The LUNGS are clear. No effusion.", "the lungs are clear . no effusion ."),
        ("No stop at the end", "no stop at the end ."),
        ("the lungs are clear . no effusion .", "the lungs are clear . no effusion ."),  # tokens stay as they are
        ("the lungs are clear . no", "the lungs are clear . no"),  # cut
        ("The lungs are clear. No", "the lungs are clear . no ."),
        ("Clear.. Normal... Stable.", "clear . normal . stable ."),
        ("Clear. . Stable.", "clear . . stable ."),
        ("1. Clear. 2. Stable. 3. Old. 4. New. 5. Last. 6. More", "clear . stable . old . new . last . 6 . more ."),
        ("Clear 2. stable", "clear . stable ."),
        ("Fracture of T11. Stable.", "fracture of t1stable ."),
        ("3.5 cm, and/or T2-weighted: \"XXXX\" (old); 5% <unk> [a] {b} f_1 a\\b x@y=z",
         "35 cm andor t2-weighted xxxx old 5 unk a b f1 ab xyz ."),
        ("a#b $5 ~c |d `e – №", "a#b $5 ~c |d `e – № ."),
        ("Clear.\nStable.\n\n2. Old.\tNew.", "clear . stable . old new ."),
        ("Größe NORMAL. Ödem.", "größe normal . ödem ."),
        (" . ", ""), ("1. ", ""), ("", ""),
    ],
)  # fmt: skip
def test_tokens_of_r2gen(text, tokens):
    assert " ".join(r2gen.words(text)) == tokens
    assert r2gen.words(tokens) == tokens.split()


@pytest.mark.parametrize(("name", "kept"), [("r2gen", 59), ("r2gen_mimic", 99)])
def test_references_are_cut_as_in_r2gen_and_predictions_are_not(name, kept):
    text = " ".join(f"w{i}" for i in range(200))
    found = rg.score(text, text, name, EXACT_STEM)
    assert (found["prediction_length"], found["reference_length"]) == (201, kept)
    assert found["ngram_matches"] == [kept, kept - 1, kept - 2, kept - 3]
    # A reference that was cut already has no full stop at its end, and keeps its length.
    again = rg.score(text, " ".join(text.split()[:kept]), name, EXACT_STEM)
    assert again | {"reference_key": found["reference_key"]} == found


def test_r2gen_counts_full_stops_as_words():
    found = rg.compute(["Clear. Stable."], ["normal. old."], "r2gen", EXACT_STEM)
    # 2 of 4 tokens are full stops in common, and no pair; the longest common subsequence is 2 of 4.
    assert found["bleu_1"] == pytest.approx(2 / 4, abs=1e-8) and found["rouge_l"] == pytest.approx(0.5)
    assert rg.compute(["Clear. Stable."], ["normal. old."], "coco", EXACT_STEM)["bleu_1"] < 1e-8


def test_a_protocol_names_its_values_its_definition_and_its_meteor(protocol):
    found = rg.compute(PREDICTIONS, REFERENCES, protocol, EXACT_STEM)
    assert found.keys() == VALUES[protocol] | NAMES
    assert (found["n_report"], found["meteor_variant"]) == (4, EXACT_STEM)
    assert found["report_generation_definition"] == f"{protocol}@1"
    default = "nltk_wordnet" if protocol in ("paper", "huggingface") else "meteor_1.5"
    scores = rg.score_all(PREDICTIONS, REFERENCES, protocol, EXACT_STEM)
    assert rg.aggregate(scores, protocol=protocol)["meteor_variant"] == default


def test_without_a_report_nothing_is_measured_started_or_loaded(protocol, monkeypatch):
    def started(*_):
        pytest.fail("METEOR was started for no report")

    monkeypatch.setattr(meteor15, "_ask", started)
    monkeypatch.setattr(meteor, "_synonyms", started)
    assert rg.compute([], [], protocol, groups=[]) == {"n_report": 0, "by_group": {}}
    answer = ({"task": "closed_vqa", "question": "Is it?", "reference": "yes"}, "Yes.")
    scoring = Scoring(report_protocol=protocol)
    found = scoring.metrics([{"task": "closed_vqa", **score} for score in scoring.score_all([answer])])
    assert found["n_report"] == 0 and not NAMES - {"n_report"} & found.keys()


@pytest.mark.parametrize("empty", ["", ".", " \n ", "---", "..."])
def test_empty_predictions_score_zero(protocol, empty):
    found = rg.compute([empty], ["no effusion"], protocol, EXACT_STEM)
    assert {found[name] for name in VALUES[protocol]} == {0.0}


def test_a_group_has_the_values_of_its_reports_alone(protocol):
    groups = ["chest", "chest", "abdomen", "chest"]
    found = rg.compute(PREDICTIONS, REFERENCES, protocol, EXACT_STEM, groups=groups)
    assert list(found["by_group"]) == ["abdomen", "chest"]
    chest = [i for i, name in enumerate(groups) if name == "chest"]
    alone = rg.compute([PREDICTIONS[i] for i in chest], [REFERENCES[i] for i in chest], protocol, EXACT_STEM)
    assert found["by_group"]["chest"] == alone


def test_scores_are_those_of_each_report_alone_and_make_the_values(protocol):
    found = rg.compute(PREDICTIONS, REFERENCES, protocol, EXACT_STEM, return_scores=True)
    scores = found.pop("scores")
    alone = [rg.score(*pair, protocol, EXACT_STEM) for pair in zip(PREDICTIONS, REFERENCES, strict=True)]
    assert scores == alone
    assert rg.aggregate(scores, EXACT_STEM, protocol) == found


def test_distinct_reports_are_counted_after_cleaning(protocol):
    said = ["No effusion.", "no effusion", "NO effusion!", "Clear.", "", "..."]
    gold = ["Clear.", "clear", "Old.", "old scar", "New.", "Mass."]
    found = rg.compute(said, gold, protocol, EXACT_STEM, groups=[*"aabbbb"])
    assert {name: found[name] for name in COUNTS} == {
        "n_distinct": 3,
        "most_frequent_share": 1 / 2,
        "n_distinct_references": 5,
        "most_frequent_reference_share": 1 / 3,
    }
    assert [found["by_group"][name]["n_distinct"] for name in "ab"] == [1, 3]


@pytest.mark.parametrize(
    ("said", "gold", "few"),
    [
        ([1] * 20, [1] * 20, False),  # the references repeat themselves as much
        ([1] * 12 + [2] * 8, range(20), True),  # one report for 60 %
        ([1] * 10 + [2] * 10, range(20), False),
        ([1] * 12 + [2] * 8, [1] * 6 + [*range(14)], False),  # 35 % of the references are one report
        ([*range(4)] * 10, range(40), False),  # a tenth of the references
        ([*range(3)] * 14, [*range(31)] + [0] * 11, True),
        ([1] * 19, range(19), False),  # too few reports to say
        (range(100), range(100), False),
    ],
)
def test_few_reports_are_those_of_a_template(said, gold, few):
    found = rg.compute(*([f"report w{i}" for i in texts] for texts in (said, gold)), meteor_variant=EXACT_STEM)
    assert variety.are_few(found) is few
    assert ("templates" in variety.described(found)) is few
    assert f"{found['n_distinct']} distinct report" in variety.described(found)


def test_a_report_without_meteor_takes_the_value_away():
    scores = [rg.score("no effusion", "no effusion", meteor_variant=EXACT_STEM) for _ in range(2)]
    scores[1] = {key: value for key, value in scores[1].items() if key != "meteor"} | {"meteor_absent": "no Java"}
    found = rg.aggregate(scores)
    assert "meteor" not in found and found["meteor_absent"] == "no Java" and found["rouge_l"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"protocol": "bleu"}, "choose one of: coco, r2gen, r2gen_mimic, paper, huggingface"),
        ({"meteor_variant": "meteor-1.5"}, "choose one of: meteor_1.5, nltk_wordnet, nltk_exact_stem"),
        ({"clinical": ["green"]}, "choose one of: radgraph, chexbert, severity"),
        ({"clinical": "radgraph"}, "clinical is one string ('radgraph'); give a list"),
        ({"references": []}, "1 predictions, 0 references"),
        ({"groups": ["a", "b"]}, "1 predictions, 2 groups"),
        ({"groups": [None]}, "index 0 [groups]: is not a string"),
        ({"predictions": "no effusion"}, "predictions is one string"),
        ({"protocol": "paper", "references": ["The"]}, "index 0 [references]: has no words"),
    ],
)
def test_bad_input_is_refused_by_name(arguments, named):
    with pytest.raises(InputError) as refused:
        rg.compute(**{"predictions": ["a heart"], "references": ["a heart"], **arguments})
    assert named in str(refused.value)


def test_every_faulty_text_is_named(protocol):
    with pytest.raises(InputError) as refused:
        rg.compute([None, 3, "a", "b", "c"], ["x", "x", "", "...", None], protocol)
    assert [(fault.row, fault.column) for fault in refused.value.faults] == [
        ("index 0", "predictions"),
        ("index 1", "predictions"),
        ("index 4", "references"),
        ("index 2", "references"),
        ("index 3", "references"),
    ]
