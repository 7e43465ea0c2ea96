"""The clinical scores' own part: absence in words, the statistics of labels, and the tokenizer method they miss.

The packages' models are not loaded here: they are the Hub's, and no test of this project has run them.
"""

import sys
import types

import numpy as np
import pytest
from transformers import BertTokenizer

from mmedpo.errors import InputError
from mmedpo.evaluation.metrics import report_generation as rg
from mmedpo.evaluation.metrics.reports import clinical


@pytest.fixture(autouse=True)
def nothing_kept():
    clinical._model.cache_clear()
    yield
    clinical._model.cache_clear()


@pytest.mark.parametrize(("name", "package"), [("radgraph_f1", "radgraph"), ("chexbert_f1", "f1chexbert")])
def test_a_missing_package_is_one_sentence_with_its_remedy(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install 'mmedpo\[clinical\]'") as refused:
        rg.compute(["a"], ["a"], meteor_variant="nltk_exact_stem", clinical=[name])
    assert name in str(refused.value) and "\n" not in str(refused.value)


def test_missing_weights_are_one_sentence_with_their_remedy(monkeypatch):
    def offline(**_):
        raise FileNotFoundError("chexbert.pth")

    monkeypatch.setitem(sys.modules, "f1chexbert", types.SimpleNamespace(F1CheXbert=offline))
    with pytest.raises(InputError, match="run it once with network"):
        clinical.scores("chexbert_f1", ["a"], ["a"])


def test_labels_become_micro_f1(monkeypatch, caplog):
    # A stand-in that reads labels off the text: what is under test is the counting.
    class Digits:
        def get_label(self, text):
            return [int(digit) for digit in text]

    monkeypatch.setitem(sys.modules, "f1chexbert", types.SimpleNamespace(F1CheXbert=Digits))
    found = clinical.scores("chexbert_f1", ["1100 ", "0000"], ["1010", "0001"])
    assert found == [{"chexbert_counts": [1, 1, 1]}, {"chexbert_counts": [0, 0, 1]}]
    clinical.scores("chexbert_f1", ["1100"], ["1010"])
    assert [line.getMessage() for line in caplog.records] == [clinical.PICKLES.format(package="f1chexbert")]  # once
    value = clinical.micro_f1(np.sum([sample["chexbert_counts"] for sample in found], axis=0).astype(float))
    assert value == pytest.approx(2 * 1 / (2 * 1 + 1 + 2))
    assert clinical.micro_f1(np.zeros(3)) == 0.0
    assert "chexbert_f1" not in rg.compute([], [], clinical=["chexbert_f1"])


def test_the_missing_tokenizer_method_reads_texts_and_tokens(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "effusion"]))
    tokenizer = BertTokenizer.from_pretrained(tmp_path)
    assert clinical._encode_plus(tokenizer, ["no", "effusion"])["input_ids"] == [2, 5, 6, 3]
    assert clinical._encode_plus(tokenizer, "no effusion", truncation=True)["input_ids"] == [2, 5, 6, 3]
