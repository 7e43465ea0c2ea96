"""BLEU, ROUGE-L and METEOR against NLTK and rouge_score where the definitions agree, and by hand where they do not."""

import math
import random

import nltk
import numpy as np
import pytest
from nltk.translate.bleu_score import corpus_bleu
from rouge_score.rouge_scorer import RougeScorer

from mmedpo.errors import InputError
from mmedpo.evaluation import report_generation as rg

VOCABULARY = ["the", "heart", "lungs", "are", "clear", "normal", "no", "pleural", "effusion", "seen", "small", "left"]


def random_reports(count, shortest, longest, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(VOCABULARY, k=rng.randint(shortest, longest))) for _ in range(count)]


def test_bleu_agrees_with_nltk_where_every_order_matches():
    references, predictions = random_reports(40, 15, 30, seed=1), random_reports(40, 8, 30, seed=2)
    # A shared opening, so that every order has matches and NLTK needs no smoothing.
    references = ["the heart is normal " + text for text in references]
    predictions = ["the heart is normal " + text for text in predictions]
    found = rg.compute(predictions, references)
    for n in rg.ORDERS:
        expected = corpus_bleu([[text.split()] for text in references], [t.split() for t in predictions], [1 / n] * n)
        assert found[f"bleu_{n}"] == pytest.approx(expected, abs=1e-8)


def test_brevity_penalty_by_hand():
    found = rg.compute(["no pleural effusion"], ["no pleural effusion is seen here"])
    # 3 of 6 words, all matching: BP = exp(1 - 6/3).
    assert found["bleu_1"] == pytest.approx(math.exp(-1), abs=1e-8)
    assert rg.compute(["no effusion seen seen"], ["no effusion"])["bleu_1"] == pytest.approx(2 / 4, abs=1e-8)


def test_predictions_shorter_than_n_keep_the_constants_of_pycocoevalcap():
    found = rg.compute(["no effusion"], ["no effusion"])
    precisions = [(2 + 1e-15) / (2 + 1e-9), (1 + 1e-15) / (1 + 1e-9), 1e-15 / 1e-9, 1e-15 / 1e-9]
    brevity = math.exp(1 - (2 + 1e-9) / (2 + 1e-15))
    for n in rg.ORDERS:
        assert found[f"bleu_{n}"] == pytest.approx(brevity * math.prod(precisions[:n]) ** (1 / n), rel=1e-12)


def test_bleu_of_sums_is_vectorised():
    samples = [rg.score(p, r) for p, r in zip(random_reports(6, 5, 9, 3), random_reports(6, 5, 9, 4), strict=True)]
    sums = np.array([rg.bleu_statistics(sample) for sample in samples])
    together = rg.bleu(sums.reshape(2, 3, 10))
    assert together.shape == (2, 3, 4)
    for i, row in enumerate(sums):
        np.testing.assert_allclose(together[i // 3, i % 3], rg.bleu(row), rtol=1e-12)


def test_rouge_l_agrees_with_the_common_subsequence_of_rouge_score():
    scorer = RougeScorer(["rougeL"])
    for prediction, reference in zip(random_reports(30, 1, 20, 5), random_reports(30, 1, 20, 6), strict=True):
        parts = scorer.score(reference, prediction)["rougeL"]
        p, r = parts.precision, parts.recall
        # rouge_score's F has beta 1; the same P and R with beta 1.2:
        expected = (1 + 1.44) * p * r / (r + 1.44 * p) if p and r else 0.0
        assert rg.score(prediction, reference)["rouge_l"] == pytest.approx(expected, abs=1e-12)


def test_meteor_by_hand():
    # Words: "the heart" matches as one chunk, "effusion(s)" by stem as another; 3 matches of 4 and 5 words.
    precision, recall, chunks, matches = 3 / 4, 3 / 5, 2, 3
    f = precision * recall / (0.9 * precision + 0.1 * recall)
    expected = f * (1 - 0.5 * (chunks / matches) ** 3)
    assert rg.score("the heart with effusions", "the heart has an effusion")["meteor"] == pytest.approx(expected)


def test_meteor_reads_no_synonyms_and_no_data(monkeypatch):
    monkeypatch.setattr(nltk.data, "find", lambda *_, **__: pytest.fail("METEOR looked for NLTK data"))
    assert rg.compute(["physician"], ["doctor"])["meteor"] == 0.0


def test_wordnet_that_is_missing_is_an_error_with_its_remedy(monkeypatch):
    monkeypatch.setattr("nltk.corpus.wordnet", type("Missing", (), {"ensure_loaded": staticmethod(missing)}))
    rg._synonyms.cache_clear()
    with pytest.raises(InputError, match=r"nltk\.downloader wordnet"):
        rg.compute(["a"], ["a"], meteor_variant="nltk_wordnet")


def missing():
    raise LookupError("Resource wordnet not found.")


@pytest.mark.parametrize("empty", ["", ".", " \n ", "--- ..."])
def test_empty_predictions_score_zero(empty):
    found = rg.compute([empty], ["no effusion"])
    assert [found[name] for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor")] == [0.0] * 6


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
    ("arguments", "named"),
    [
        ((["a"], ["a"], "paper"), "choose one of: coco"),
        ((["a"], ["a"], "coco", "meteor-1.5"), "choose one of: nltk_exact_stem, nltk_wordnet"),
        ((["a"], []), "1 predictions, 0 references"),
        ((["a"], ["..."]), "index 0 [references]: is '...', which has no words"),
        (([None], ["a"]), "index 0 [predictions]: is None"),
    ],
)
def test_bad_input_is_refused_by_name(arguments, named):
    with pytest.raises(InputError) as refused:
        rg.compute(*arguments)
    assert named in str(refused.value)
