"""What huggingface_hub makes of a Hub that refuses, loses connections or is slow: publishing relies on it."""

from __future__ import annotations

from typing import Any

import pytest
from hub.server import Hub

UPLOAD = """
from huggingface_hub import CommitOperationAdd
def upload(number):
    content = bytes(100_000) + str(number).encode()
    try:
        adds = [CommitOperationAdd("large.bin", content), CommitOperationAdd("small.txt", content[-1:])]
        api.create_commit("user/x", adds, commit_message="both")
        return "done"
    except Exception as error:
        cause = error.__cause__ if type(error) is RuntimeError else error
        response = getattr(cause, "response", None)
        return [type(error).__name__, type(cause).__name__, response and response.status_code]
"""


def statuses(hub: Hub, part: str) -> list[int | None]:
    return [request.status for request in hub.requests if part in str(request)]


def test_a_refused_commit_is_an_error_at_once_and_nothing_of_it_is_there(hub: Hub) -> None:
    hub.put("user/x", {})
    refusals = [401, 403, 404, 409, 412, 413, 429, 500, 507]
    for status in refusals:
        hub.fail("/commit/", status=status, headers={"Retry-After": "1"})
    told = hub.ask(UPLOAD + f"say([upload(number) for number in range({len(refusals)})])")
    assert told == [["HfHubHTTPError", "HfHubHTTPError", status] for status in refusals]
    assert statuses(hub, "/commit/") == refusals and hub.files("user/x") == {}


@pytest.mark.parametrize(
    ("fault", "outcome", "tries"),
    [
        ({"status": 429, "headers": {"Retry-After": "0"}}, "done", [429, 200]),
        ({"status": 500}, "done", [500, 200]),
        ({"cut": 5000}, "done", [None, 200]),
        ({"status": 403}, ["RuntimeError", "HfHubHTTPError", 403], [403]),
        ({"status": 413}, ["RuntimeError", "HfHubHTTPError", 413], [413]),
        ({"status": 507}, ["RuntimeError", "HfHubHTTPError", 507], [507]),
    ],
    ids=str,
)
def test_the_upload_of_a_large_file_is_tried_again_only_where_that_may_help(
    hub: Hub, fault: dict[str, Any], outcome: object, tries: list[int | None]
) -> None:
    hub.put("user/x", {})
    hub.fail("PUT /lfs", **fault)
    assert hub.ask(UPLOAD + "say(upload(0))") == outcome
    assert statuses(hub, "PUT /lfs") == tries and bool(hub.files("user/x")) == (outcome == "done")
    if "cut" in fault:
        assert [request.body for request in hub.requests if request.method == "PUT"] == [5000, 100_001]


def test_a_commit_whose_answer_is_lost_is_there_and_not_made_twice(hub: Hub) -> None:
    hub.put("user/x", {})
    hub.fail("/commit/", lost=True)
    hub.fail("/commit/", cut=10)
    told = hub.ask(UPLOAD + "say([upload(0), upload(0), upload(1), upload(1)])")
    assert told == [["ReadError", "ReadError", None], "done", ["ReadError", "ReadError", None], "done"]
    assert [commit.title for commit in hub.repo("user/x").head.history] == ["both", "both", "put", "initial commit"]


def test_a_slow_hub_is_waited_for_or_done_without(hub: Hub) -> None:
    hub.put("user/x", {"a.txt": b"one"})
    hub.fail("HEAD .*/a.txt", delay=1.0, skip=1)
    told = hub.ask("""
        from pathlib import Path
        from huggingface_hub import hf_hub_download
        say([Path(hf_hub_download("user/x", "a.txt", etag_timeout=0.2)).read_text() for _ in range(2)])
    """)
    assert told == ["one", "one"] and len(statuses(hub, "HEAD")) == 2


def test_a_hub_that_is_gone(hub: Hub) -> None:
    hub.put("user/x", {})
    hub.stop()
    told = hub.ask("""
        try:
            api.repo_info("user/x")
        except Exception as error:
            say([type(error).__name__, isinstance(error, OSError)])
    """)
    assert told == ["ConnectError", False]
