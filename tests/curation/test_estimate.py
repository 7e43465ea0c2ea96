"""Cost told before a curation, against the calls of the whole curation that follows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, ChatServer, Received
from knowing_judge import FINDINGS, written_or_judged

from mmedpo.curation import estimate
from mmedpo.curation.metering import CHECK, JUDGE, REJECT, SAMPLE
from mmedpo.curation.settings import Run, Settings

Command = Callable[..., tuple[int, str]]


def answering(received: Received) -> Answer:
    answer = written_or_judged(received, scores=3)
    return Answer(answer, usage=(len(received.text) // 3, len(answer) // 3), delay=0.002)


def questions(count: int) -> list[dict[str, Any]]:
    """Questions of different lengths, of which every third is asked again about another image."""
    rows = []
    for number in range(count):
        which = number - 1 if number % 3 == 2 else number
        text = f"What is at place {which}{' of the picture' * (which % 7)}?"
        box = {"label": "nodule", "x": 4 + number % 9, "y": 5, "w": 8, "h": 9}
        row = {"id": f"q{number}", "image": "ab"[number % 2] + ".png", "question": text, "boxes": [box]}
        rows.append({**row, "answer": f"left lower {FINDINGS[which % 5]}"})
    return rows


def named(server: ChatServer) -> list[object]:
    judges = [f"{server.url}#judge-a", f"{server.url}#judge-b"]
    return ["--chat", f"{server.url}#writer", "--judges", *judges, "--rounds", 3, "--judges-below-bar", "go"]


def body(received: Received) -> str:
    return json.dumps(received.body, sort_keys=True)


def test_estimate_holds_what_the_whole_curation_costs(
    run: Command, chat_server: ChatServer, make_source: Callable[..., Path], tmp_path: Path
) -> None:
    chat_server.answer = answering
    source, output = make_source(questions(60)), tmp_path / "out" / "pairs"
    output.parent.mkdir()
    settings = Settings(
        source=source, chat=f"{chat_server.url}#writer", rounds=3,
        judges=[f"{chat_server.url}#judge-a", f"{chat_server.url}#judge-b"],
    )  # fmt: skip
    options = Run(output=output, judges_below_bar="go", price=["judge-a=2/6", "writer=0.5/1.5"], concurrency=4)
    (tmp_path / "scratch").mkdir()
    found = estimate.estimate(settings, options, tmp_path / "scratch")
    assert (found.questions, found.distinct, found.asked) == (60, 40, 20)
    asked = {body(received) for received in chat_server.received}
    assert found.new_calls == len(chat_server.received) == len(asked)
    assert [path.name for path in output.parent.iterdir()] == ["calls.sqlite"]

    code, said = run("curate", "--source", source, "--output", output, *named(chat_server))
    assert code == 0, said
    assert len({body(received) for received in chat_server.received}) == len(chat_server.received), "paid twice"
    manifest = json.loads((output / "manifest.json").read_text())
    for model, spent in manifest["calls"].items():
        lines = [counts for (_, name), counts in found.lines.items() if name == model]
        for count in ("calls", "prompt_tokens", "completion_tokens"):
            low, high = (sum(counts[count][end] for counts in lines) for end in (1, 2))
            assert low <= spent[count] <= high, (model, count)
            assert high < 2 * spent[count]
    assert found.lines[REJECT, "writer"]["calls"] == (40, 40, 40)
    assert found.lines[CHECK, "judge-a"]["calls"] == (40, 40, 40)
    seconds = sum(counts["seconds"][0] for line, counts in found.lines.items() if line != estimate.ALL)
    assert 0 < seconds == pytest.approx(found.lines[estimate.ALL]["seconds"][0])
    assert "money" not in found.lines[JUDGE, "judge-b"]
    priced = [found.lines[step, "judge-a"] for step in (CHECK, JUDGE)]
    money = sum(2 * one["prompt_tokens"][0] + 6 * one["completion_tokens"][0] for one in priced) / 1e6
    writer = found.lines[REJECT, "writer"]
    money += (0.5 * writer["prompt_tokens"][0] + 1.5 * writer["completion_tokens"][0]) / 1e6
    assert found.lines[estimate.ALL]["money"][0] == pytest.approx(money)
    rows = sum(manifest["counts"].values())
    size = sum(file.stat().st_size for file in (output / "data").iterdir())
    assert found.rows == rows and 0.5 * size < found.size < 2 * size


def test_estimate_of_all_questions_is_exact_and_a_second_one_is_free(
    run: Command, chat_server: ChatServer, make_source: Callable[..., Path], tmp_path: Path
) -> None:
    chat_server.answer = answering
    typed = ["--source", make_source(questions(6)), "--output", tmp_path / "pairs", *named(chat_server)]
    for _ in range(2):
        code, said = run("build", "folder", *typed, "--license", "mit", "--estimate", "--price", "judge-a=2/6")
        assert code == 0, said
        assert "no price" in said and "judge check" in said and not (tmp_path / "pairs").exists()
        whole = len(chat_server.received)
        assert f"│ {whole} " in said
    assert "with 0 new calls" in said
    assert run("build", "folder", *typed, "--license", "mit")[0] == 0
    assert len(chat_server.received) == whole


def test_estimate_without_questions_asks_nothing(
    run: Command, chat_server: ChatServer, make_source: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    chat_server.answer = answering
    source = make_source(questions(9))
    typed = ["--source", source, "--output", tmp_path / "pairs", *named(chat_server), "--model", tiny_model]
    code, said = run("curate", *typed, "--estimate", "--estimate-questions", 0, "--show-images")
    assert code == 0 and "No model was asked" in said and not chat_server.received
    settings = Settings(source=source, chat="http://host/v1#big", judges=["hub:org/a@p", "cache:b"], rounds=3)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    found = estimate.estimate(settings, Run(output=tmp_path / "pairs", estimate_questions=0), scratch)
    counts = {line: found.lines[line]["calls"][1:] for line in ((REJECT, "big"), (JUDGE, "org/a"), (JUDGE, "b"))}
    assert list(counts.values()) == [(6, 12), (6, 18), (6, 18)]
    assert all(math.isnan(one["seconds"][0]) for one in found.lines.values())
    least, most = found.lines[JUDGE, "b"]["prompt_tokens"][1:]
    prompt = (Path(estimate.__file__).parent / "prompts" / "judge@2.jinja").read_text()
    assert 6 * len(prompt) / 8 < least < 6 * len(prompt) / 4 < most < 4 * least


def test_estimate_of_stand_ins_and_a_local_target_has_no_calls(
    make_source: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    settings = Settings(
        source=make_source(questions(9)), model=str(tiny_model), chat="standin:rules", judges=["standin:strict"]
    )
    found = estimate.estimate(settings, Run(output=tmp_path / "pairs", estimate_questions=3), tmp_path)
    assert list(found.lines) == [estimate.ALL] and found.lines[estimate.ALL]["calls"] == (0, 0, 0)
    assert found.local[SAMPLE] > 0 and found.rows >= 9


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--price", "judge-a=2"], "--price judge-a=2: not MODEL=IN/OUT"),
        (["--price", "judge-a=-1/2"], "--price judge-a=-1/2: not MODEL=IN/OUT"),
        (["--price", "judge=1/2"], "Name one of writer, judge-a, judge-b."),
        (["--estimate-questions", -1], "estimate_questions is -1"),
        (["--credentialed", "--judges", "https://example.org/v1#far"], "third-parties"),
    ],
)
def test_estimate_refused_before_any_call(
    run: Command, chat_server: ChatServer, make_source: Callable[..., Path], more: list[object], said: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    typed = ["--source", make_source(questions(3)), "--output", tmp_path / "pairs", *named(chat_server), "--estimate"]
    code, told = run("curate", *typed, *more)
    assert code == 2 and said in told and not chat_server.received
