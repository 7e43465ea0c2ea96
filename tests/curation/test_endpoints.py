"""A whole curation by thinking models behind a gateway that refuses parameters: no draft is read, all is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, ChatServer, Received, o_series
from knowing_judge import known

from mmedpo.curation.run import curate_folder
from mmedpo.curation.settings import Settings
from mmedpo.curation.weigh import NothingMade
from mmedpo.data import loading

CUT = "no score: the judge did not answer (cut off at 2800 tokens)"


def thinking(received: Received) -> Answer:
    """Drafts in a thought that the template opened; the score of one question is cut off."""
    draft = '{"score": 0.1, "answer": "the draft", "kind": "other"}'
    judging = "Now judge this case" in received.text
    if judging and "Where is the" not in received.text:
        return Answer(known(received.text), usage=(100, 50))
    answer = '{"score": 0.7, "rationale": "wrong side"}' if judging else '{"answer": "left lung", "kind": "place"}'
    cut = judging and "Where is the second?" in received.text
    return Answer(f"{draft}\n</think>\n{answer}", finish="length" if cut else "stop", usage=(100, 50))


def test_curation_by_thinking_models_behind_a_gateway(
    chat_server: ChatServer, make_source: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chat_server.answer = lambda received: o_series(received) or thinking(received)
    rows = [{"id": name, "image": "a.png", "question": f"Where is the {name}?", "answer": "right lung"}
            for name in ("first", "second")]  # fmt: skip
    settings = Settings(
        source=make_source(rows), localizer="none", chat=f"{chat_server.url}#writer",
        judges=[f"{chat_server.url}#judge"], max_reply_tokens=700,
    )  # fmt: skip
    chat_server.models = {"data": [{"id": "writer"}, {"id": "med-70b"}]}
    manifest = curate_folder(settings, tmp_path)
    assert manifest and manifest["listed_by_endpoint"] == {name: ["writer", "med-70b"] for name in ("writer", "judge")}
    assert len(chat_server.lists) == 1
    assert [r.message for r in caplog.records if "lists no model 'judge', but writer, med-70b." in r.message]
    (row,) = loading.load(str(tmp_path))
    assert row["rejected"][0]["content"] == "left lung"
    assert row["clinical_relevance"] == pytest.approx(0.7)
    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["id"], line["reason"], line["detail"]) for line in lines] == [
        ("second", "no judge gave a readable score", CUT)
    ]
    sent: dict[str, Any] = {"max_completion_tokens": 700, "response_format": "json_schema"}
    tokens = {"prompt_tokens": 100, "completion_tokens": 50}
    assert manifest["calls"] == {
        "judge": {"calls": 41, **{name: 41 * count for name, count in tokens.items()}, "sent": [sent]},
        "writer": {"calls": 2, **{name: 2 * count for name, count in tokens.items()}, "sent": [sent]},
    }
    assert manifest["settings"]["max_reply_tokens"] == 700


def test_judges_that_never_score_are_named_with_what_went_wrong(
    chat_server: ChatServer, make_source: Callable[..., Path], tmp_path: Path
) -> None:
    chat_server.answer = lambda received: o_series(received) or thinking(received)
    rows = [{"id": name, "image": "a.png", "question": "Where is the second?", "answer": f"right {name}"}
            for name in ("lung", "lobe")]  # fmt: skip
    settings = Settings(
        source=make_source(rows), localizer="none", chat=f"{chat_server.url}#writer",
        judges=[f"{chat_server.url}#judge"], max_reply_tokens=700,
    )  # fmt: skip
    with pytest.raises(NothingMade) as raised:
        curate_folder(settings, tmp_path)
    assert str(raised.value) == (
        "Every pair of source was rejected: judging relevance lost 2 (no judge gave a readable score: 2). "
        f"Examples: lung: {CUT}; lobe: {CUT}. All are in {tmp_path / 'rejects.jsonl'}; correct what they list."
    )
