"""RadGraph and CheXbert F1: forward passes with tiny random weights, held to RadEval's, and the arithmetic by hand.

The published weights are not here: what the scores say about real reports is not tested.
"""

import json
import pickle
from pathlib import Path

import clinical_weights
import numpy as np
import pytest
import torch
from huggingface_hub import constants

from mmedpo.data.images import png
from mmedpo.errors import InputError
from mmedpo.evaluation.metrics import report_generation as rg
from mmedpo.evaluation.metrics.base import values
from mmedpo.evaluation.metrics.reports import chexbert, clinical, radgraph
from mmedpo.evaluation.metrics.reports.radgraph import Entity

RADEVAL = json.loads(Path(__file__).with_name("radeval.json").read_text())  # found by RadEval 2.2.1, same weights
REPORTS = [one["text"] for one in RADEVAL["reports"]]
HALF = len(REPORTS) // 2


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    return folder, clinical_weights.write(folder)


@pytest.fixture
def weights(cache, monkeypatch):
    """The folder of the tiny weights, in a Hub cache from which nothing is loaded yet."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache[0]))
    _forget()
    yield cache[1]
    _forget()


def _forget():
    for module in (radgraph, chexbert):
        module.load.cache_clear()
        module.definition.cache_clear()


def test_tiny_random_weights_find_what_radeval_finds(weights):
    parser, found = radgraph.load(), radgraph.scores(REPORTS[:HALF], REPORTS[HALF:])
    for report in RADEVAL["reports"]:
        entities = [Entity(tokens, label, [*map(tuple, more)]) for tokens, label, more in report["entities"]]
        assert parser.entities(report["text"]) == entities
    assert [[*one.values()] for one in found] == [pytest.approx(pair) for pair in RADEVAL["pairs"]]
    assert chexbert.load().labels(REPORTS) == [one["labels"] for one in RADEVAL["reports"]]


def test_a_report_against_itself_has_the_maximum_and_a_wordless_one_0(weights):
    names = ["radgraph", "chexbert"]
    related = [one["text"] for one in RADEVAL["reports"] if one["entities"]]
    found = rg.compute(related, related, meteor_variant="nltk_exact_stem", clinical=names)
    assert [found[f"radgraph_{name}"] for name in ("f1", "simple", "complete")] == [1, 1, 1]
    assert found["chexbert_micro_f1_14"] == found["chexbert_micro_f1_5"] == 1
    assert found["radgraph_definition"].startswith("radgraph@1 (radgraph-xl.tar.gz ")
    assert found["chexbert_definition"].startswith("chexbert@1 (chexbert.pth ")
    assert radgraph.scores(["\n"], related[:1]) == [dict.fromkeys(clinical.KEYS["radgraph"], 0.0)]
    groups = rg.compute(related, related, meteor_variant="nltk_exact_stem", clinical=names, groups=["a"] * len(related))
    assert groups["by_group"]["a"]["radgraph_f1"] == 1


def test_chexbert_f1_is_micro_and_macro_over_14_and_5_labels():
    lines = [
        {chexbert.KEY: {"prediction": ["Edema", "Cardiomegaly"], "reference": ["Edema", "Pneumonia"]}},
        {chexbert.KEY: {"prediction": [], "reference": ["Cardiomegaly"]}},
    ]
    assert values(chexbert.METRICS, lines) == {
        "chexbert_micro_f1_14": pytest.approx(2 * 1 / (2 * 1 + 1 + 2)),
        "chexbert_macro_f1_14": pytest.approx(1 / 14),  # Edema's is 1, the others' 0
        "chexbert_micro_f1_5": pytest.approx(2 * 1 / (2 * 1 + 1 + 1)),  # Pneumonia is none of the five
        "chexbert_macro_f1_5": pytest.approx(1 / 5),
    }
    assert values(chexbert.METRICS, [{chexbert.KEY: {"prediction": [], "reference": []}}]) == dict.fromkeys(
        (metric.name for metric in chexbert.METRICS), 0.0
    )


@pytest.mark.parametrize(
    ("relations", "f1"),
    [
        ([("modify", "Small")], (1, 1, 1)),
        ([("located_at", "small")], (1, 1, 1 / 2)),  # another relation
        ([], (1, 1 / 2, 1 / 2)),  # none
        ([("modify", "small"), ("located_at", "small")], (1, 1, 2 * 2 / 5)),
    ],
)
def test_radgraph_f1_compares_entities_whether_related_and_how(relations, f1):
    small = Entity("small", "present")
    gold = [Entity("Effusion", "present", [("modify", "small")]), small]
    assert [*radgraph.f1([Entity("Effusion", "present", relations), small], gold).values()] == [*map(pytest.approx, f1)]
    assert [*radgraph.f1([], gold).values()] == [*radgraph.f1([], []).values()] == [0, 0, 0]
    assert radgraph.f1([Entity("Effusion", "absent", relations), small], gold)["radgraph_simple"] == 1 / 2


@pytest.mark.parametrize(("name", "file"), [("radgraph", "radgraph-xl.tar.gz"), ("chexbert", "chexbert.pth")])
def test_missing_weights_are_one_sentence_that_says_what_to_fetch(name, file, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    _forget()
    with pytest.raises(InputError, match=f"`hf download StanfordAIMI/RRG_scorers {file}`") as refused:
        rg.compute(["a"], ["a"], meteor_variant="nltk_exact_stem", clinical=[name])
    assert name in str(refused.value) and "\n" not in str(refused.value)


def test_a_missing_encoder_is_named(weights, monkeypatch):
    monkeypatch.setattr(chexbert, "MODEL", "google-bert/bert-absent")
    with pytest.raises(InputError, match="`hf download google-bert/bert-absent config"):
        chexbert.load()


class Code:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model_state_dict": {"a": Code()}}, "could run code"),
        ({"weights": {}}, "no tensors under model_state_dict"),
        ({"model_state_dict": {"bert.a": torch.zeros(1)}}, "not of this score's architecture"),
        (b"torn", "cannot be read"),
    ],
)
def test_weights_that_are_not_the_published_ones_are_refused(content, said, cache, tmp_path, monkeypatch, capsys):
    file = tmp_path / "chexbert.pth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file, pickle_module=pickle)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache[0]))
    monkeypatch.setattr("mmedpo.evaluation.metrics.reports.weights.fetch", lambda name, wanted: file)
    _forget()
    with pytest.raises(InputError, match=said):
        chexbert.load()
    assert "run" not in capsys.readouterr().out.split()


def test_names_are_known_ones(weights):
    assert clinical.names_in(["radgraph, chexbert", "radgraph"]) == ("radgraph", "chexbert")
    for wrong, said in ((["f1"], "radgraph, chexbert, severity"), ("radgraph", "one string")):
        with pytest.raises(InputError, match=said):
            rg.compute(["a"], ["a"], clinical=wrong)
    with pytest.raises(InputError, match="--judges"):
        rg.compute(["a"], ["a"], meteor_variant="nltk_exact_stem", clinical=["severity"])


def test_commands_add_keep_and_compare_both_scores(weights, make_source, run, tmp_path):
    row = {"question": "Describe.", "answer": REPORTS[1], "task": "report"}
    rows = [{"id": str(i), "image": f"{i}.png", **row} for i in range(12)]
    draw = np.random.RandomState(0).randint
    images = {one["image"]: png(draw(0, 255, (32, 32, 3)).astype(np.uint8), "drawn")["bytes"] for one in rows}
    source = make_source(rows, images=images)
    for name, said in (("right", REPORTS[1]), ("wrong", REPORTS[2])):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"id": one["id"], "prediction": said}) + "\n" for one in rows))
        words = ("--meteor-variant", "nltk_exact_stem", "--output", name)
        assert run("score", "--predictions", file, "--source", source, *words)[0] == 0
    assert run("score", "right", "--clinical", "chexbert", "--output", "labelled")[0] == 0
    both = ("--clinical", "radgraph,chexbert")
    assert run("compare", "labelled", "wrong", *both, "--output", "compared")[0] == 0
    comparison = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    for name in ("radgraph_f1", "radgraph_complete", "chexbert_micro_f1_14", "chexbert_macro_f1_5"):
        right, wrong = (comparison["metrics"][name][one] for one in ("labelled", "wrong"))
        assert right["value"] > wrong["value"] and right["low"] <= right["value"] <= right["high"]
        assert wrong["difference_high"] < 0 and wrong["p"] < 0.05
    assert comparison["definitions"]["radgraph_definition"].startswith("radgraph@1 (radgraph-xl.tar.gz ")
    assert run("compare", "labelled", "wrong", "--output", "refused")[0] == 2
