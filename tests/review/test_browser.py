"""The review page in a real browser: keys, kills, reloads, two reviewers, scripts in texts."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from invented import QUESTION, picture, row

from mmedpo.data import shards
from mmedpo.review.verdicts import Verdict, Verdicts

BROWSERS = ("chromium", "chromium-headless-shell", "google-chrome", "chrome")
Serve = Callable[..., tuple[str, subprocess.Popen[str]]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found)
        yield opened
        opened.close()


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    shards.save([row(number, visual=number % 2 == 1) for number in range(10)], tmp_path / "pairs")
    return tmp_path / "pairs"


@pytest.fixture
def serve(pairs: Path) -> Iterator[Serve]:
    started: list[subprocess.Popen[str]] = []

    def start(*words: str, port: str = "0", **environment: str) -> tuple[str, subprocess.Popen[str]]:
        command = [sys.executable, "-m", "mmedpo", "review", str(pairs), "--port", port, *words]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
        started.append(server)
        assert server.stdout is not None
        while line := server.stdout.readline():
            if found := re.search(r"http://\S+", line):
                return found[0], server
        raise AssertionError("the server printed no address")

    yield start
    for server in started:
        server.kill()
        server.wait()


def given(pairs: Path) -> list[Verdict]:
    return Verdicts(pairs.with_name("pairs.verdicts.jsonl")).all()


def opened(browser: Any, address: str, reviewer: str = "Dr. Ö") -> Any:
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda message: page.faults.append(message.text) if message.type == "error" else None)
    page.on("dialog", lambda dialog: page.faults.append(f"script ran: {dialog.message}"))
    page.on(
        "request", lambda sent: page.faults.append(sent.url) if not sent.url.startswith((address, "blob:")) else None
    )
    page.goto(address)
    page.fill("#ask[open] #answer", reviewer)
    page.keyboard.press("Enter")
    at(page, 1)
    return page


def at(page: Any, number: int) -> None:
    says(page, "#progress", f"Pair {number} of")


def says(page: Any, selector: str, text: str) -> None:
    page.locator(selector, has_text=text).wait_for()


def test_ten_pairs_are_reviewed_by_keys_over_a_kill_of_the_server(browser: Any, serve: Serve, pairs: Path) -> None:
    address, server = serve()
    page = opened(browser, address)
    assert page.text_content("#question") == QUESTION and page.text_content("mark") == "a nodule"
    page.keyboard.press("a")
    at(page, 2)  # a visual pair
    assert page.locator("figure").count() == 2 and page.locator("rect.box").count() == 2
    page.keyboard.press("7")
    page.keyboard.press("a")
    at(page, 3)
    page.keyboard.press("r")
    page.keyboard.type("not visible <b>")
    page.keyboard.press("Enter")
    at(page, 4)
    page.keyboard.press("u")
    at(page, 5)
    page.keyboard.press("e")
    page.keyboard.press("Control+a")
    page.keyboard.type("a small nodule")
    page.keyboard.press("Escape")
    page.keyboard.press("w")
    page.keyboard.press("End")
    page.keyboard.type(", left")

    server.send_signal(signal.SIGKILL)
    server.wait()
    page.keyboard.press("Escape")
    page.keyboard.press("a")
    says(page, "#notice", "Not saved yet")
    serve(port=address.rstrip("/").rpartition(":")[2])
    at(page, 6)
    page.keyboard.press("Delete")
    page.keyboard.press("d")
    place = page.locator("figure svg").first.bounding_box()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    page.mouse.down()
    page.mouse.move(place["x"] + place["width"] / 2 + 60, place["y"] + place["height"] / 2 + 30, steps=3)
    page.mouse.up()
    page.keyboard.press("a")
    at(page, 7)
    page.keyboard.press("s")
    page.keyboard.press("t")
    page.keyboard.press("a")
    for number in (8, 9, 10):
        at(page, number)
        page.keyboard.press("a")
    says(page, "#notice", "All pairs")

    said = given(pairs)
    assert [one.decision for one in said] == ["accept"] * 2 + ["reject", "unsure"] + ["accept"] * 6
    assert {one.reviewer for one in said} == {"Dr. Ö"} and all(one.seconds is not None for one in said)
    assert said[1].relevance == 0.7 and said[2].reason == "not visible <b>"
    assert said[4].after == {"chosen": "a small nodule", "rejected": "the heart is too large, left"}
    assert said[4].before == {"chosen": "a nodule", "rejected": "the heart is too large"}
    (box,) = said[5].after["boxes"]
    assert (box["label"], box["confidence"]) == ("nodule", 1) and abs(box["width"] - 2 * box["height"]) < 0.3
    assert abs(box["x"] - 32) < 0.3 and len(said[5].before["boxes"]) == 1
    assert said[6].after == said[6].before | {"chosen": "the heart is too large", "rejected": "a nodule"}
    assert said[6].relevance == 1.0
    assert [fault for fault in page.faults if "ERR_CONNECTION_REFUSED" not in fault] == []


def test_a_half_finished_edit_survives_a_reload(browser: Any, serve: Serve, pairs: Path) -> None:
    address, _ = serve()
    page = opened(browser, address)
    page.keyboard.press("e")
    page.keyboard.press("End")
    page.keyboard.type(" 肺")
    page.reload()
    at(page, 1)
    says(page, ".side.chosen p", "a nodule 肺")
    page.keyboard.press("a")
    at(page, 2)
    page.keyboard.press("Backspace")
    at(page, 1)
    assert "accepted" in page.text_content("#mine")
    assert [one.after for one in given(pairs)] == [{"chosen": "a nodule 肺"}]
    assert page.evaluate("Object.keys(localStorage).filter((name) => name.includes('draft'))") == []
    assert page.faults == []


def test_two_reviewers_lose_nothing_and_a_blind_one_sees_no_label(browser: Any, serve: Serve, pairs: Path) -> None:
    first, _ = serve()
    second, _ = serve("--blind", "--seed", "1")  # another server on the same file
    one, blind = opened(browser, first, "one"), opened(browser, second, "two")
    shown = []
    for number in range(1, 11):
        at(one, number)
        one.keyboard.press("a")
        at(blind, number)
        shown.append(blind.locator(".side p").first.text_content())
        assert "osen" not in blind.text_content("#read") and not blind.is_visible("#facts")
        blind.keyboard.press("1")
    says(blind, "#notice", "All pairs")
    said = {(one.reviewer, one.row): one for one in given(pairs)}
    assert len(said) == 20
    texts = [(shown[number], said["two", f"invented/s{number}/text"].better) for number in range(0, 10, 2)]
    assert all((text == "a nodule") == (better == "chosen") for text, better in texts)
    assert {better for _, better in texts} == {"chosen", "rejected"}  # both orders occur
    assert one.faults == blind.faults == []


def test_a_draft_of_a_blind_review_stays_there(browser: Any, serve: Serve, pairs: Path) -> None:
    """Its sides may be the other way round, so that it would swap the texts of an open review."""
    address, server = serve("--blind", "--seed", "1")
    port = address.rstrip("/").rpartition(":")[2]
    page = opened(browser, address)
    for number in range(1, 10, 2):  # pairs of texts, in both orders
        page.goto(f"{address}#{number - 1}")
        page.reload()
        at(page, number)
        page.keyboard.press("c")
        page.keyboard.type("blurred")
        page.keyboard.press("Enter")
    server.kill()
    server.wait()
    serve(port=port)
    page.keyboard.press("1")  # of the blind page
    says(page, "#notice", "Load the page again")
    page.goto(f"{address}#0")
    page.reload()
    for number in range(1, 11):
        at(page, number)
        page.keyboard.press("a")
    says(page, "#notice", "All pairs")
    assert [(one.after, one.better) for one in given(pairs)] == [({}, None)] * 10


def test_a_verdict_that_is_refused_later_is_said(browser: Any, serve: Serve, pairs: Path) -> None:
    address, server = serve()
    page = opened(browser, address)
    server.kill()
    server.wait()
    page.keyboard.press("a")
    says(page, "#notice", "Not saved yet")
    serve("--order", "random", port=address.rstrip("/").rpartition(":")[2])
    page.reload()
    says(page, "#notice", "An earlier verdict of yours was not saved")
    assert given(pairs) == [] and page.is_visible("#question")


def test_a_password_guards_the_page(browser: Any, serve: Serve) -> None:
    address, _ = serve(MMEDPO_REVIEW_PASSWORD="open – sesame")
    page = browser.new_context().new_page()
    page.goto(address)
    page.fill("#ask[open] #answer", "wrong")
    page.keyboard.press("Enter")
    says(page, "#asked", "This is not the password.")
    page.fill("#ask[open] #answer", "open – sesame")
    page.keyboard.press("Enter")
    says(page, "#asked", "Your name")
    page.fill("#ask[open] #answer", "one")
    page.keyboard.press("Enter")
    at(page, 1)


def test_several_images_are_shown_and_boxed_each(browser: Any, serve: Serve, pairs: Path) -> None:
    rows = [row(number, visual=True) for number in range(2)]
    for number, made in enumerate(rows):
        made["images"] = [picture(90, side=32), made["images"][0]]
        made["rejected_images"] = [made["images"][0], made["rejected_images"][0]]
        made["provenance"]["box_images"] = [1]
        made["provenance"]["image_id"] = f"i{number}"
    shutil.rmtree(pairs)
    shards.save(rows, pairs)
    address, _ = serve()
    page = opened(browser, address)
    assert page.locator("figcaption").all_text_contents() == ["Original 1", "Original 2", "Noised 1", "Noised 2"]
    assert [page.locator("figure").nth(place).locator("rect.box").count() for place in range(4)] == [0, 1, 0, 1]
    page.keyboard.press("d")
    place = page.locator("figure svg").first.bounding_box()
    page.mouse.move(place["x"] + place["width"] / 2 - 20, place["y"] + place["height"] / 2)
    page.mouse.down()
    page.mouse.move(place["x"] + place["width"] / 2 + 20, place["y"] + place["height"] / 2 + 20, steps=3)
    page.mouse.up()
    page.keyboard.press("b")
    seen = [page.locator("figure").nth(place).is_visible() for place in range(4)]
    assert seen in ([True, True, False, False], [False, False, True, True])
    page.keyboard.press("a")
    at(page, 2)
    (said,) = given(pairs)
    assert [box.get("image", 0) for box in said.after["boxes"]] == [1, 0] and page.faults == []
