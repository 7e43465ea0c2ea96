"""Pairs ranked among the target model's own samples: score, gap, length band, and what is no pair."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from standins import JUDGES

from mmedpo import schema
from mmedpo.curation import ranked
from mmedpo.curation.estimate import estimate
from mmedpo.curation.ranked import Ranker
from mmedpo.curation.relevance import NO_SCORE, Panel
from mmedpo.curation.settings import Run, Settings
from mmedpo.curation.text_pairs import NO_ANSWER, Chosen, Hallucination, Item, Rejection
from mmedpo.data import loading
from mmedpo.errors import InputError
from mmedpo.models.chat import ChatReply, ChatRequest
from tests.chat_server import Answer, ChatServer, Received, curated_in_budgets
from tests.conftest import MakeSource
from tests.conftest import Run as Command

PLACE = "Where is the nodule?"
GOLD = "left lower lobe"
REPORT = "The heart is normal. There is a left effusion."


def one(
    samples: Sequence[str], metric: str = "rouge_l", task: str = "open_vqa", gold: str = GOLD, **options: Any
) -> Any:
    (made,) = Ranker(metric, **options).choose([Item(PLACE, gold, task, samples)])
    return made


def test_widest_gap_makes_the_pair() -> None:
    # ROUGE-L, beta 1.2, against "left lower lobe": 1; LCS 2 of 3 and 3: 2/3; LCS 1: 1/3
    found = one(["right upper lobe", " Left lower lobe\n", "left upper lobe"])
    chosen = Chosen(
        "Left lower lobe", "target model", "ranked@1:rouge_l:coco@1", score=1.0, rejected_score=pytest.approx(1 / 3),
        is_gold=True,
    )  # fmt: skip
    assert found == Hallucination("right upper lobe", "target model", "ranked@1", chosen=chosen)
    found = one(["right upper lobe", "left upper lobe"])  # the best of wrong ones is what it is
    assert (found.chosen.text, found.chosen.is_gold) == ("left upper lobe", False)
    assert found.chosen.score == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("metric", "score", "low"),
    [("bleu_1", 2 / 3, 1 / 3), ("f1", 2 / 3, 0.0)],  # f1: "right" conflicts with "left"
)
def test_metrics(metric: str, score: float, low: float) -> None:
    found = one(["right upper lobe", "left upper lobe"], metric)
    assert found.chosen.score == pytest.approx(score) and found.chosen.rejected_score == pytest.approx(low, abs=1e-6)


@pytest.mark.parametrize(
    ("samples", "options", "reason", "detail"),
    [
        ([], {}, ranked.FEW, "0 samples"),
        (["left lobe"], {}, ranked.FEW, "1 samples"),
        (["left lobe", " Left lobe", "", " \n"], {}, ranked.FEW, "4 samples"),
        (["left upper lobe", "left middle lobe"], {}, ranked.CLOSE, "the widest gap is 0"),
        (["left upper lobe", "right upper lobe"], {"min_gap": 0.34}, ranked.CLOSE, "0.333"),
        (["left upper lobe", "right upper lobe"], {"min_gap": 1 / 3}, None, ""),
        (["left lobe", "the right lung is clear today"], {}, ranked.UNEQUAL, "2 words and 6 words"),
        (["left lobe", "the right lung is clear"], {"length_ratio": 2.5}, None, ""),
        (["left lobe", "the right lung is clear"], {}, ranked.UNEQUAL, "2 words and 5 words"),
        (["left lobe", "right lung is clear"], {"length_ratio": 1.0}, None, ""),  # two words more, whatever the ratio
        (["lower lobe", "in lower lobe there"], {}, ranked.UNFIT, "contains the gold answer"),
        (["left lobe <image>", "right lung"], {}, ranked.UNFIT, "<image>"),
    ],
)  # fmt: skip
def test_doors(samples: list[str], options: dict[str, Any], reason: str | None, detail: str) -> None:
    found = one(samples, **options)
    assert getattr(found, "reason", None) == reason
    assert detail in getattr(found, "detail", "")


def test_of_equal_gaps_the_first_drawn() -> None:
    found = one(["left upper lobe", "right upper lobe", "left middle lobe", "right middle lobe"])
    assert (found.chosen.text, found.text) == ("left upper lobe", "right upper lobe")


def test_narrower_pair_where_the_widest_is_no_pair() -> None:
    found = one([GOLD, "there is one nodule in here on the upper right", "left upper lobe"], length_ratio=1.5)
    assert (found.chosen.text, found.text) == (GOLD, "left upper lobe")


def test_gold_without_words_and_metric_without_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    for metric in ("rouge_l", "f1"):
        assert one(["left lobe", "right lung"], metric, gold="-").reason == ranked.UNSCORED
    scores = iter([math.nan, 0.2, 0.9])
    monkeypatch.setattr(ranked, "_by_metric", lambda _, cases: ([next(scores) for _ in cases], "any"))
    found = one(["unknown", "low", "high"])
    assert (found.chosen.text, found.text) == ("high", "low")
    monkeypatch.setattr(ranked, "_by_metric", lambda _, cases: ([math.nan, 0.2], "any"))
    assert one(["unknown", "low"]) == Rejection(ranked.UNSCORED, "1 of 2")


def test_tasks_and_failed_samples() -> None:
    items = [
        Item("Is it?", "yes", "closed_vqa", ["yes", "no"]),
        Item("Which?", "CT", "choice_vqa", ["CT", "MRI"], options=["CT", "MRI"]),
        Item("", REPORT, "report", ["The heart is normal.", "The heart is large. There is no effusion."]),
        Item(PLACE, GOLD, "open_vqa", [], failed=NO_ANSWER),
    ]
    closed, choice, report, failed = Ranker("rouge_l").choose(items)
    assert closed.reason == choice.reason == ranked.OTHER_TASK and failed == Rejection(NO_ANSWER, "")
    assert isinstance(report, Hallucination) and report.chosen is not None
    assert report.chosen.text == "The heart is large. There is no effusion."  # 8 of 9 words: ROUGE-L is no clinician
    assert one(["a", "b"], "radgraph_f1").reason == ranked.ONLY_REPORTS


class Verdicts:
    """Judge that gives a text's score, "right" for not wrong, or no answer (None)."""

    name, revision = "judge", None

    def __init__(self, **scores: Any) -> None:
        self.scores, self.asked = scores, list[str]()

    def complete(self, requests: Iterable[ChatRequest]) -> list[ChatReply]:
        new = [request.variables["rejected"] for request in requests]
        self.asked += new
        return [self.reply(self.scores[text]) for text in new]

    def reply(self, score: Any) -> ChatReply:
        if score is None:
            return ChatReply(failure="down")
        found = {"rationale": "so", "wrong": score != "right", "score": 0 if score == "right" else score}
        return ChatReply(json.dumps(found))


@pytest.mark.parametrize(
    ("scores", "pair"),
    [
        ({"cyst": 0.9, "mass": 0.4, "clot": 0.2}, ("clot", "cyst", 0.8, 0.1)),
        ({"cyst": "right", "mass": 0.3}, ("cyst", "mass", 1.0, 0.7)),
        ({"cyst": 0.0, "mass": 0.9, "clot": 0.5}, ("clot", "mass", 0.5, 0.1)),  # an absurd one is neither
        ({"cyst": 0.0, "mass": 0.9}, ranked.UNSCORED),
        ({"cyst": 0.5, "mass": 0.5}, ranked.CLOSE),
        ({"cyst": 0.5, "mass": None}, NO_SCORE),  # asked again by a resumed run
    ],
)
def test_judges_rank(scores: dict[str, Any], pair: Any) -> None:
    judge = Verdicts(**scores)
    found = one([*scores], ranked.JUDGES, gold="abscess", panel=Panel([judge]))
    if isinstance(pair, str):
        assert found.reason == pair
    else:
        chosen = found.chosen
        assert (chosen.text, found.text, chosen.score, chosen.rejected_score) == pytest.approx(pair)
        assert chosen.prompt_version == "ranked@1:judges:judge@2"


def test_sample_equal_to_gold_is_right_without_a_judge() -> None:
    judge = Verdicts(cyst=0.7)
    found = one(["Abscess", "cyst"], ranked.JUDGES, gold="abscess", panel=Panel([judge]))
    assert (found.chosen.text, found.chosen.score, judge.asked) == ("Abscess", 1.0, ["cyst"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"pairs": "best"}, "pairs is 'best'; use hallucinated or ranked:METRIC"),
        ({"pairs": "ranked:green"}, "use ranked:rouge_l or ranked:bleu_1"),
        ({"pairs": "ranked"}, "pairs is 'ranked'; use ranked:rouge_l"),
        ({"pairs": "ranked:rouge_l", "chat": "standin:rules"}, "nothing to do for ranked pairs"),
        ({"pairs": "ranked:rouge_l", "samples": 1}, "at least 2 answers"),
        ({"pairs": "ranked:judges", "judges": ["none"], "weights": "none"}, "judges is none"),
        ({"min_gap": 0.1}, "min_gap is of ranked pairs"),
        ({"length_ratio": 1.5}, "length_ratio is of ranked pairs"),
        ({"pairs": "ranked:rouge_l", "min_gap": 1.5}, "min_gap is 1.5"),
        ({"pairs": "ranked:rouge_l", "length_ratio": 0.5}, "length_ratio is 0.5"),
    ],
)
def test_refused_settings(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Settings(source=Path(), **{"model": "m", "judges": JUDGES, **given})


@pytest.mark.parametrize(
    ("given", "said"), [({"judges": JUDGES}, "Name it with --model"), ({"model": "m"}, "--judges: required")]
)
def test_unnamed_models_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Settings(source=Path(), pairs="ranked:rouge_l", **given).refuse_unnamed()


def test_curate_ranked_pairs(run: Command, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    words = ["--source", corpus, "--split", "preference", "--model", tiny_model, "--judges", *JUDGES]
    words += ["--pairs", "ranked:f1", "--limit", 40]
    code, said = run("curate", *words, "--output", tmp_path / "pairs")
    assert code == 0, said
    assert "Ranked pairs: the best against the worst" in said and "by target model" in said
    made = json.loads((tmp_path / "pairs" / "manifest.json").read_text())
    rows = list(loading.load(str(tmp_path / "pairs")))
    texts = [row for row in rows if row["dispreference"] == 0]
    assert len(texts) == made["counts"]["hallucinated_response"] == made["chosen"]["made_by"]["target model"] > 0
    assert made["chat_model"] is None and "selected" not in made
    equal = 0
    for row in texts:
        about, (chosen, rejected) = row["provenance"], (row[side][0]["content"] for side in ("chosen", "rejected"))
        assert {chosen, rejected} <= {text.strip() for text in about["candidates"]}
        assert about["chosen_by"] == about["rejected_by"] == "tiny"
        assert about["chosen_score"] > about["rejected_score"] and about["gold"]
        equal += chosen.casefold() == about["gold"].casefold()
        assert row["task"] != 0
    assert equal == made["chosen"]["equal_to_gold"]
    for row in rows:
        if row["dispreference"]:  # visual pairs keep the gold answer
            assert row["chosen"] == row["rejected"] and row["provenance"]["chosen_by"] is None
    assert made["rejects"][ranked.OTHER_TASK] == made["rejects_by_task"]["closed_vqa"][ranked.OTHER_TASK]
    loaded = loading.load(str(tmp_path / "pairs"))
    assert loaded.features == schema.features_of({"provenance": schema.CHOSEN}) and schema.validate(loaded) == []
    assert "the same image, a chosen response against" in (tmp_path / "pairs" / "README.md").read_text()


QUESTIONS = [{"id": f"q{i}", "image": "a.png", "question": f"Where is nodule {i}?", "answer": GOLD} for i in range(12)]


def drawn(received: Received) -> Answer:
    if not received.has_image:  # a judge
        return Answer(
            json.dumps({"rationale": "Another place.", "wrong": True, "score": 0.1 * (1 + len(received.text) % 9)})
        )
    number = received.body["seed"] % 3
    said = ("left upper lobe", "right upper lobe", "left lower lobe")
    return Answer(said[number], more=(Answer(said[number - 1]), Answer(said[number - 2])))


def ranked_settings(make_source: MakeSource, server: ChatServer, golds: Sequence[str] = (GOLD,)) -> Settings:
    rows = [{**row, "answer": golds[i % len(golds)]} for i, row in enumerate(QUESTIONS)]
    return Settings(
        source=make_source(rows), localizer="none", model=f"{server.url}#med", samples=3, pairs="ranked:judges",
        judges=[f"{server.url}#judge"],
    )  # fmt: skip


def test_judged_ranking_resumed_repeats_no_call_and_gives_the_same_bytes(
    chat_server: ChatServer, make_source: MakeSource, tmp_path: Path
) -> None:
    chat_server.answer = drawn
    settings = ranked_settings(make_source, chat_server)
    runs = {"whole": [None], "stopped": [70, 5, None]}
    made = [curated_in_budgets(settings, tmp_path / name, chat_server, budgets) for name, budgets in runs.items()]
    assert made[0] == made[1]
    # 40 pairs of the check, 12 questions, and 3 of every question's samples but the gold one
    assert made[0][0] == 40 + 12 + 24


def test_estimate_counts_the_judges_of_samples(
    chat_server: ChatServer, make_source: MakeSource, tmp_path: Path
) -> None:
    chat_server.answer = drawn
    settings = ranked_settings(make_source, chat_server, [GOLD, "left upper lobe", "right upper lobe"])
    for asked in (0, 12):
        (folder := tmp_path / str(asked)).mkdir()
        run = Run(
            output=tmp_path / "none", estimate_questions=asked, judges_below_bar="go", cache=tmp_path / f"{asked}.c"
        )
        found = estimate(settings, run, folder)
        lines = {step: counts["calls"] for (step, _), counts in found.lines.items()}
        assert lines["sampling the target"][2] >= 12 and lines["relevance"][2] >= 12
    assert lines["relevance"] == (24, 24, 24) and lines["sampling the target"] == (12, 12, 12)
