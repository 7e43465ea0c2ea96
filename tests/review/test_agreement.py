"""Agreement of reviewers, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from invented import row

from mmedpo.data import shards
from mmedpo.review.agreement import CHANGED, UNKNOWN, reviewed, summary
from mmedpo.review.pairs import Pairs, digest
from mmedpo.review.verdicts import Verdict, Verdicts

SCORES = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 0.5]


def judged(number: int, score: float, other: float | None = None) -> dict[str, Any]:
    made = row(number, clinical_relevance=score, weight=0.75 + number / 100)
    made["provenance"]["judgements"] = [
        {"round": 1, "judge": judge, "score": value, "rationale": ""}
        for judge, value in (("a", score), ("b", other)) if value is not None
    ]  # fmt: skip
    return made


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    rows = [judged(number, score, score if number % 2 else None) for number, score in enumerate(SCORES)]
    shards.save(rows, tmp_path / "pairs")
    return Pairs(tmp_path / "pairs")


def say(pairs: Pairs, file: Verdicts, place: int, reviewer: str, decision: str = "accept", **more: Any) -> None:
    read = pairs.read(place)
    said = {"id": f"{len(file.all())}", "row": read["id"], "digest": digest(read), "reviewer": reviewer, "time": "t",
            "decision": decision}  # fmt: skip
    file.append([Verdict(**said | more)])


def test_alpha_and_kappa_of_two_reviewers(pairs: Pairs, tmp_path: Path) -> None:
    file = Verdicts(tmp_path / "v.jsonl")
    # A and B: 3 accepted by both, 2 rejected by both, 1 apart; one row unsure, one seen by A alone.
    for place, (one, other) in enumerate(["aa", "aa", "aa", "rr", "rr", "ar", "ua"]):
        words = {"a": "accept", "r": "reject", "u": "unsure"}
        say(pairs, file, place, "A", words[one], reason="wrong side" if one == "r" else "")
        say(pairs, file, place, "B", words[other])
    say(pairs, file, 7, "A", seconds=4.0)
    found = summary(pairs, reviewed(pairs, file))
    assert (found["seen"], found["seen_by_several"]) == (8, 7)
    # Krippendorff, nominal: 12 values, 7 accepted, 5 rejected; observed 2/12, expected 2*7*5/(12*11).
    assert found["agreement"]["decisions"]["alpha"] == pytest.approx(1 - (2 / 12) / (70 / 132), abs=1e-4)
    assert found["agreement"]["decisions"]["units"] == 6
    # Cohen: observed 5/6, expected (4*3 + 2*3) / 36 = 1/2.
    assert found["agreement"]["kappa"] == [
        {"reviewers": ["A", "B"], "rows": 6, "kappa": pytest.approx(2 / 3, abs=1e-4)}
    ]
    assert [one["row"] for one in found["disagreements"]] == ["invented/s5/text"]
    assert found["reasons"] == {"(no reason given)": 3, "wrong side": 2}
    assert found["reviewers"]["A"]["seconds"] == 4.0 and found["reviewers"]["B"]["seconds"] is None
    assert found["by_kind"] == {"hallucinated_response": {"accept": 9, "reject": 5, "unsure": 1}}
    assert found["blind"] is None and found["judges"] == []


def test_judges_are_compared_with_reviewers(pairs: Pairs, tmp_path: Path) -> None:
    file = Verdicts(tmp_path / "v.jsonl")
    for place, score in enumerate(SCORES):
        say(pairs, file, place, "A", relevance=round(1 - score, 1))
        say(pairs, file, place, "B", relevance=round(1 - score, 1))
    found = {one["judge"]: one for one in summary(pairs, reviewed(pairs, file))["judges"]}
    assert [*found] == ["dataset", "a", "b"]
    assert found["a"]["spearman"] == -1 and found["a"]["interval"] == [-1, -1] and found["a"]["rows"] == 12
    assert found["a"]["difference"] == 0 and found["b"]["spearman"] is None and "fewer than" in found["b"]["reason"]
    assert summary(pairs, reviewed(pairs, file))["agreement"]["relevance"]["alpha"] == 1


def test_blind_verdicts_have_a_share_and_an_interval(pairs: Pairs, tmp_path: Path) -> None:
    file = Verdicts(tmp_path / "v.jsonl")
    for place in range(10):
        say(pairs, file, place, "A", "accept" if place < 8 else "reject", better="chosen" if place < 8 else "rejected")
    blind = summary(pairs, reviewed(pairs, file))["blind"]
    assert (blind["share"], blind["chosen"], blind["rejected"]) == (0.8, 8, 2)
    assert blind["interval"] == pytest.approx([0.4902, 0.9433], abs=1e-4)  # Wilson (1927)


def test_verdicts_on_other_rows_are_left_out_and_counted(pairs: Pairs, tmp_path: Path) -> None:
    file = Verdicts(tmp_path / "v.jsonl")
    say(pairs, file, 0, "A", digest="of another version")
    say(pairs, file, 1, "A", row="gone")
    say(pairs, file, 2, "A")
    given = reviewed(pairs, file)
    assert given.left_out == {UNKNOWN: 1, CHANGED: 1} and [*given.by_row] == ["invented/s2/text"]


def test_the_page_is_written_without_texts_of_the_dataset(pairs: Pairs, tmp_path: Path, run: Any) -> None:
    file = Verdicts(pairs.folder.with_name("pairs.verdicts.jsonl"))
    for place in range(12):
        say(pairs, file, place, "<b>A", "reject" if place % 3 else "accept", relevance=place / 20, reason="<i>why")
    assert run("review", pairs.folder, "--report", tmp_path / "page")[0] == 0
    page = (tmp_path / "page" / "review.html").read_text()
    assert "&lt;b&gt;A" in page and "<b>A" not in page and "heart is too large" not in page and "<script" not in page
    assert json.loads((tmp_path / "page" / "review.json").read_text())["seen"] == 12
    code, said = run("review", pairs.folder, "--report", tmp_path / "page")
    assert code == 2 and "exists" in said
