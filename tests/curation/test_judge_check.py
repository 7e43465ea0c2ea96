"""Judges on the built-in pairs of known severity: what is measured, and that a run stops below the bar."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, ChatServer, Received
from knowing_judge import SCORES, Judge, judgement, known

from mmedpo.curation.judge_check import SEVERITIES, check, pairs
from mmedpo.curation.prompts import render
from mmedpo.curation.relevance import JUDGE, Panel, notes
from mmedpo.curation.run import curate_folder
from mmedpo.curation.settings import Settings
from mmedpo.curation.standins import StandInJudge
from mmedpo.errors import InputError
from mmedpo.hub import cards
from mmedpo.report import audit

MakeSource = Callable[..., Path]
Run = Callable[..., tuple[int, str]]
ROWS = [{"id": f"q{number}", "image": "a.png", "question": f"Where is it, {number}?", "answer": "left lung"}
        for number in range(3)]  # fmt: skip


def test_the_pairs_are_forty_of_five_severities_and_differ_from_the_prompts_examples() -> None:
    assert Counter(severity for severity, _ in pairs()) == dict.fromkeys(SEVERITIES, 8)
    reports = Counter(severity for severity, one in pairs() if "report" in one.question)
    assert all(reports[severity] >= 2 for severity in SEVERITIES)
    assert len({(one.question, one.gold, one.rejected) for _, one in pairs()}) == 40
    prompt = render(JUDGE, {}, question="", gold="", rejected="", previous=None).text
    assert "Response: L2." in prompt and not [one for _, one in pairs() if f"Response: {one.rejected}\n" in prompt]


def constant(severity: str) -> str:
    return judgement("moderate")


def echoing(severity: str) -> str:
    return '{"rationale": "Say why in one sentence", "wrong": true, "score": 0.0}'


def reversed_order(severity: str) -> str:
    return json.dumps({"wrong": True, "score": 1 - SCORES.get(severity, 0.0)})  # two of five severities are tied


def mostly_silent(severity: str) -> str | None:
    return judgement(severity) if severity in ("critical", "absurd") else None


@pytest.mark.parametrize(
    ("answer", "spearman", "unreadable", "recognised", "passed"),
    [
        (judgement, 1.0, 0.0, 1.0, True),
        (constant, None, 0.0, 0.0, False),
        (echoing, None, 1.0, 0.0, False),
        (reversed_order, -0.9747, 0.0, 0.0, False),
        (mostly_silent, 1.0, 0.6, 0.0, False),  # more than half unreadable
    ],
)
def test_what_is_measured_of_a_judge(
    answer: Callable[[str], str | None], spearman: float | None, unreadable: float, recognised: float, passed: bool
) -> None:
    found = check(Panel([Judge(answer)]))
    assert found["passed"] is passed
    measured = {"spearman": spearman, "unreadable": unreadable, "not_wrong_recognised": recognised}
    tokens = 100.0 * (1 - (unreadable == 0.6) * 0.6)
    assert found["judges"] == {"a": {**measured, "calls_per_pair": 1.0, "tokens_per_pair": tokens}}
    assert found["panel"] == found["judges"]["a"]


def test_each_judge_is_measured_alone_and_the_panel_by_its_own_rules() -> None:
    good, bad = Judge(judgement, "good"), Judge(constant, "bad")
    found = check(Panel([good, bad], rounds=2))
    assert found["judges"]["good"]["spearman"] == 1.0 and found["judges"]["bad"]["spearman"] is None
    assert 0.5 < found["panel"]["spearman"] <= 1.0 and found["passed"]
    assert found["panel"]["calls_per_pair"] > 2 and found["panel"]["not_wrong_recognised"] == 1.0  # half are enough


def test_rules_that_only_compare_words_are_below_the_bar() -> None:
    found = check(Panel([StandInJudge("strict"), StandInJudge("lenient"), StandInJudge("lexical")]))
    reached = [part["spearman"] for part in (found["panel"], *found["judges"].values())]
    assert not found["passed"] and max(reached) < 0.4 and found["panel"]["tokens_per_pair"] is None


def answering(judge: Callable[[str], str]) -> Callable[[Received], Answer]:
    """A writer of "right lung", and a judge who gives 0.7 to whatever is not of the check."""

    def answer(received: Received) -> Answer:
        if "Now judge this case" not in received.text:
            return Answer('{"answer": "right lung", "kind": "place"}', usage=(9, 1))
        return Answer(
            judge(received.text) if "Where is it" not in received.text else judgement("moderate"), usage=(9, 1)
        )

    return answer


def options(server: ChatServer, source: Path) -> Settings:
    judges = [f"{server.url}#judge"]
    return Settings(source=source, localizer="none", chat=f"{server.url}#writer", judges=judges)


def test_a_run_below_the_bar_stops_before_the_writer_is_asked_and_goes_on_when_told(
    chat_server: ChatServer, make_source: MakeSource, tmp_path: Path
) -> None:
    chat_server.answer = answering(lambda text: judgement("moderate"))
    settings = options(chat_server, make_source(ROWS))
    with pytest.raises(InputError) as raised:
        curate_folder(settings, tmp_path)
    assert str(raised.value) == (
        "The judges are below the bar on 40 pairs of known severity: Spearman none, all are equal (bar 0.5), 0 % "
        'unreadable (at most 50 %), 0 % of the "not wrong" recognised. Their scores are no clinical relevance. Name '
        "other judges, go without (--judges none --weights none), or keep these with --judges-below-bar go."
    )
    assert {received.body["model"] for received in chat_server.received} == {"judge"}
    assert len(chat_server.received) == 40
    manifest = curate_folder(settings, tmp_path, judges_below_bar="go")
    assert manifest and len(chat_server.received) == 40 + 3 + 3  # the check is in the cache
    assert manifest["judge_check"]["passed"] is False
    assert [note for note in manifest["weights"]["notes"] if note.startswith("The judges are below the bar on 40")]
    assert audit.audit(str(tmp_path))["weight_notes"] == manifest["weights"]["notes"]
    assert "- The judges are below the bar on 40" in cards.dataset_card(tmp_path)


def test_a_judge_that_never_answers_readably_is_quoted(
    chat_server: ChatServer, make_source: MakeSource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chat_server.answer = answering(lambda text: "I cannot judge.")
    with pytest.raises(InputError) as raised:
        curate_folder(options(chat_server, make_source(ROWS)), tmp_path)
    assert "100 % unreadable" in str(raised.value)
    quoted = "judge, the first of 40 unreadable pairs: no score: no JSON object in 'I cannot judge.'"
    assert f"Judge check, {quoted}" in caplog.text


def test_the_check_is_recorded_and_in_the_card(
    chat_server: ChatServer, make_source: MakeSource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chat_server.answer = answering(known)
    manifest = curate_folder(options(chat_server, make_source(ROWS)), tmp_path)
    assert manifest
    part = {
        "spearman": 1.0,
        "unreadable": 0.0,
        "not_wrong_recognised": 1.0,
        "calls_per_pair": 1.0,
        "tokens_per_pair": 10.0,
    }
    assert manifest["judge_check"] == {
        "version": "judge_check@1", "pairs": 40, "bar": 0.5, "most_unreadable": 0.5, "passed": True,
        "panel": part, "judges": {"judge": part},
    }  # fmt: skip
    assert manifest["calls"]["judge"]["calls"] == 43
    assert not any("bar" in note for note in manifest["weights"]["notes"])
    line = '1.00; 0 % unreadable; 100 % of the "not wrong" recognised; 1.0 calls and 10 tokens a pair.'
    for name in ("panel", "judge"):
        assert f"Judge check on 40 pairs of known severity, {name}: Spearman {line}" in caplog.text
    card = cards.dataset_card(tmp_path)
    assert "the judges scored 40 pairs of known severity (`judge_check@1`" in card
    assert "| panel | 1.00 | 0.0 % | 100.0 % | 1.0 | 10 |\n| judge | 1.00 | 0.0 % | 100.0 % | 1.0 | 10 |\n" in card


def test_a_response_that_is_not_wrong_gives_no_pair_of_either_kind(
    chat_server: ChatServer, make_source: MakeSource, tmp_path: Path
) -> None:
    answer = answering(known)
    chat_server.answer = lambda received: (
        Answer(judgement("not wrong")) if "Where is it, 1?" in received.text and "judge this" in received.text
        else answer(received)
    )  # fmt: skip
    settings = options(chat_server, make_source(ROWS))
    settings.noise_region, settings.reversed = "image", True
    manifest = curate_folder(settings, tmp_path)
    assert manifest and manifest["counts"] == {"hallucinated_response": 2, "reversed_noise": 2}
    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [(line["id"], line["dispreference"], line["reason"], line["detail"]) for line in lines] == [
        ("q1", kind, "judged not wrong", "not wrong: not wrong") for kind in ("hallucinated_response", "reversed_noise")
    ]


def test_stand_ins_are_not_checked_and_the_run_says_so(
    make_source: MakeSource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = make_source([{"image": "a.png", "question": "Which side?", "answer": "left"}])
    settings = Settings(source=source, localizer="none", chat="standin:rules", judges=["standin:strict"])
    manifest = curate_folder(settings, tmp_path)
    assert manifest and "judge_check" not in manifest
    assert "The judges are stand-ins, which are not checked on pairs of known severity." in caplog.text
    assert "The judges were not checked on pairs of known severity." in cards.dataset_card(tmp_path)


def test_check_judges_needs_no_source_and_fills_the_cache_of_the_run(
    run: Run, chat_server: ChatServer, tmp_path: Path
) -> None:
    chat_server.answer = answering(known)
    named = ("--judges", f"{chat_server.url}#judge")
    beside = ("--output", tmp_path / "out")
    code, said = run("curate", "--check-judges", *named, *beside)
    assert code == 0 and "1.00" in said and "tokens" in said and len(chat_server.received) == 40
    assert [path.name for path in tmp_path.iterdir()] == ["calls.sqlite"]
    run("build", "folder", "--check-judges", *named, *beside)
    assert len(chat_server.received) == 40
    chat_server.answer = answering(lambda text: judgement("absurd"))
    code, said = run("curate", "--check-judges", *named)
    assert code == 2 and "below the bar" in said and len(chat_server.received) == 80
    code, said = run("curate", "--check-judges", *named, "--judges-below-bar", "go")
    assert code == 0
    code, said = run("curate", "--check-judges", "--judges", "standin:strict")
    assert code == 2 and "0.33" in said
    code, said = run("curate", "--check-judges")
    assert code == 2 and "Name those to check with --judges" in said
    code, said = run("curate", "--check-judges", *named, "--judges-below-bar", "maybe")
    assert code == 2 and "use one of stop, go" in said


def judged(name: str, score: float | None, rationale: str = "", number: int = 1) -> dict[str, Any]:
    return {"round": number, "judge": name, "score": score, "rationale": rationale}


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([[judged("a", 0.0)]] * 30, ["The judge a gave all 30 rows the same (0.0): it tells no pair apart."]),
        ([[judged("a", 0.0)]] * 29, []),
        ([[judged("a", 0.0)]] * 30 + [[judged("a", 0.1)]], []),
        ([[judged("a", None, "no score: HTTP 503")]] * 30,
         ["The judge a gave all 30 rows the same (no readable score): it tells no pair apart."]),
        ([[judged("a", None, "not wrong: so it is")]] * 30,
         ["The judge a gave all 30 rows the same (judged not wrong): it tells no pair apart."]),
        ([[judged("a", n % 2), judged("b", n % 2)] for n in range(30)],
         ["The judges agreed at once on all 30 rows: more than one of them added nothing."]),
        ([[judged("a", n % 2), judged("b", n % 2)] for n in range(29)], []),
        ([[judged("a", n % 2), judged("b", 1), judged("a", 1, "", 2), judged("b", n % 2, "", 2)] for n in range(30)],
         []),
    ],
)  # fmt: skip
def test_judges_that_tell_no_pairs_apart_are_noted(rows: list[list[dict[str, Any]]], found: list[str]) -> None:
    results = [{"judgements": row, "agreed": True} for row in rows]
    assert notes([*results, None, {"score": 0.5}]) == found
