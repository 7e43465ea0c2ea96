"""Requests that no page of ours sends, and faults beside the server: refused in words, and no verdict is lost."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from invented import row
from pyarrow import parquet

from mmedpo.data import shards
from mmedpo.errors import InputError
from mmedpo.review.edits import BOTH_NOISED
from mmedpo.review.pairs import Pairs, digest
from mmedpo.review.server import Review, Site
from mmedpo.review.verdicts import Verdicts

BOX = {"label": "l", "x": 1, "y": 1, "width": 3, "height": 3}
TEXT, VISUAL, CHOICE, REVERSED = range(4)


@pytest.fixture
def review(tmp_path: Path) -> Review:
    rows = [row(TEXT), row(VISUAL, visual=True), row(CHOICE, task="choice_vqa"), row(REVERSED)]
    noised = rows[REVERSED]
    noised |= {"dispreference": "reversed_noise", "chosen": noised["rejected"], "rejected": noised["chosen"]}
    noised["provenance"] |= {"boxes": [BOX | {"confidence": 1.0}], "mask_coverage": 0.01}
    for number, one in enumerate(rows):
        one["options"] = ["a nodule", "the heart is too large", "a mass"] if number == CHOICE else None
    shards.save(rows, tmp_path / "pairs")
    pairs = Pairs(tmp_path / "pairs")
    return Review(pairs, [*range(len(pairs))], Verdicts(tmp_path / "v.jsonl"))


def asked(review: Review, ask: Callable[[Any], Awaitable[Any]], password: str | None = None) -> tuple[int, Any]:
    """Return status and JSON of the answer to a request of a test client."""

    async def run() -> tuple[int, Any]:
        async with TestClient(TestServer(Site(review, "127.0.0.1", password).application())) as client:
            answer = await ask(client)
            return answer.status, await answer.json()

    return asyncio.run(run())


def sent(review: Review, position: int = TEXT, **more: Any) -> tuple[int, Any]:
    own = digest(review.pairs.read(position))
    body = {"id": "v", "position": position, "digest": own, "decision": "accept", **more}
    text = json.dumps(body).replace('"HUGE"', "9" * 400)
    headers = {"X-Reviewer": "A", "Content-Type": "application/json"}
    return asked(review, lambda client: client.post("/api/verdicts", data=text, headers=headers))


@pytest.mark.parametrize(
    ("position", "more", "said"),
    [
        (TEXT, {"chosen": "a \ud800"}, "lone surrogate"),
        (TEXT, {"reason": "a \ud800"}, "lone surrogate"),
        (TEXT, {"boxes": [BOX | {"label": "\ud800"}]}, "lone surrogate"),
        (TEXT, {"chosen": "the <image> shows it"}, "placeholder"),
        (TEXT, {"chosen": "the heart is too large"}, "equal"),
        (TEXT, {"chosen": 5}, "chosen text has 1 to"),
        (TEXT, {"chosen": None}, "chosen text has 1 to"),
        (TEXT, {"reason": "x" * 30_000}, "20,000"),
        (TEXT, {"relevance": "HUGE"}, "[0, 1]"),
        (TEXT, {"boxes": [BOX | {"more": 1}]}, "a box has"),
        (TEXT, {"boxes": [BOX | {"confidence": "high"}]}, "confidence"),
        (VISUAL, {"boxes": [BOX | {"x": 64}]}, "outside of its image of 64 x 64"),
        (VISUAL, {"boxes": [BOX | {"image": 1}]}, "on image 2 of 1"),
        (VISUAL, {"boxes": [BOX | {"width": 1e300}]}, "1,000,000 pixels"),
        (CHOICE, {"chosen": "an effusion"}, "does not hold the gold answer"),
        (CHOICE, {"rejected": "an effusion"}, "none of the options"),
        (REVERSED, {"boxes": []}, BOTH_NOISED),
        (REVERSED, {"rejected": "the heart is too large"}, "equal"),
    ],
)  # fmt: skip
def test_edits_that_make_no_pair_are_refused_when_sent(review: Review, position: int, more: Any, said: str) -> None:
    status, answer = sent(review, position, **more)
    assert status == 409 and said in answer["error"] and review.verdicts.all() == []


@pytest.mark.parametrize(
    ("position", "more"),
    [
        (TEXT, {"chosen": "a small nodule – 肺"}),
        (CHOICE, {"rejected": "a mass"}),
        (VISUAL, {"chosen": "a mass", "rejected": "a mass"}),
        (VISUAL, {"boxes": [BOX | {"x": -1, "confidence": 0.5}]}),
        (REVERSED, {"chosen": "a mass"}),
    ],
)
def test_edits_that_make_a_pair_are_written(review: Review, position: int, more: Any) -> None:
    assert sent(review, position, **more) == (200, {})
    (verdict,) = review.verdicts.all()
    assert verdict.after == more


@pytest.mark.parametrize("text", ["[" * 10**5, "[]", "{", '{"position": Infinity}', '{"position": 1e999}', '"x"'])
def test_what_no_page_sends_is_a_bad_request(review: Review, text: str) -> None:
    status, answer = asked(review, lambda client: client.post("/api/verdicts", data=text))
    assert status == 400 and "not of this page" in answer["error"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost"}, 200),  # --port 80
        ({"Host": "localhost:9000"}, 200),  # a tunnel's other end
        ({"Host": "[::1]:80"}, 200),
        ({"Host": "attacker.example"}, 403),
        ({"Host": "localhost.attacker.example:8765"}, 403),
        ({"Host": "localhost", "Origin": "http://attacker.example"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
        ({"Host": "localhost", "Origin": "http://localhost"}, 200),
    ],
)
def test_pages_of_other_sites_are_refused(review: Review, headers: dict[str, str], status: int) -> None:
    assert asked(review, lambda client: client.get("/api/start", headers=headers))[0] == status


@pytest.mark.parametrize("path", ["/api/start", "/api/pairs/0", "/api/images/0/first/0"])
@pytest.mark.parametrize("cookie", ["", "mmedpo-review=x", "mmedpo-review=\udcff"])
def test_nothing_is_shown_without_the_password(review: Review, path: str, cookie: str) -> None:
    status, _ = asked(review, lambda client: client.get(path, headers={"Cookie": cookie}), "open – sesame")
    assert status == 401


def test_a_page_of_another_kind_of_review_is_refused(review: Review) -> None:
    """Its sides may be the other way round."""
    status, answer = sent(review, blind=True, chosen="the heart is too large", rejected="a nodule", better="first")
    assert status == 409 and "Load the page again" in answer["error"] and review.verdicts.all() == []


def test_a_dataset_that_was_written_anew_is_said(review: Review, tmp_path: Path) -> None:
    own = digest(review.pairs.read(TEXT))
    shards.save([row(TEXT, chosen=[{"role": "assistant", "content": "another"}])], tmp_path / "pairs")
    body = {"id": "v", "position": TEXT, "digest": own, "decision": "accept"}
    status, answer = asked(review, lambda client: client.post("/api/verdicts", json=body, headers={"X-Reviewer": "A"}))
    assert status == 409 and "written anew" in answer["error"] and review.verdicts.all() == []


def test_a_full_disk_is_said_and_costs_no_other_verdict(review: Review, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sent(review, id="v0")[0] == 200

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        status, answer = sent(review, id="v1")
        assert status == 507 and os.strerror(errno.ENOSPC) in answer["error"]
    assert sent(review, id="v2")[0] == 200
    assert {"v0", "v2"} <= {one.id for one in Verdicts(review.verdicts.file).all()}


def test_an_empty_dataset_is_said(tmp_path: Path) -> None:
    shards.save([row(0)], tmp_path / "pairs")
    file = next((tmp_path / "pairs" / "data").iterdir())
    parquet.write_table(parquet.read_table(file).slice(0, 0), file)
    with pytest.raises(InputError, match="no rows"):
        Pairs(tmp_path / "pairs").chosen("dataset")
