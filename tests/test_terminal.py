"""What data can do to a terminal: nothing, wherever its text is printed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, ChatServer
from standins import WORDS

from mmedpo import cli
from mmedpo.cli.shared import print_table
from mmedpo.terminal import Screen, plain, say

HOSTILE = "a[/b] [red]x[/red] :smile: \x1b[2J\x1b]0;owned\x07 \x9b31m \u202e\u2066txt.exe\u200f \x08\x00"
HARMLESS = "a[/b] [red]x[/red] :smile: [2J]0;owned 31m txt.exe "


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (HOSTILE, HARMLESS),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("Ödem, 4 µm, 肺, a\u00a0space", "Ödem, 4 µm, 肺, a space"),
        ("all\rwritten over\x0b\x85\u2028", "all written over   "),
        ("half \udc9b a letter", "half  a letter"),
    ],
)
def test_plain(text: str, shown: str) -> None:
    assert plain(text) == shown


PRINTED: dict[str, Callable[[str], Any]] = {
    "line": lambda text: Screen(width=300).print(text),
    "line as it comes": say,
    "cell": lambda text: print_table([["id", "value"], [text, "1"]]),
    "heading": lambda text: print_table([[text, "value"], ["id", "1"]]),
}


@pytest.mark.parametrize("where", PRINTED)
def test_data_is_printed_as_it_is_without_escapes(
    where: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    PRINTED[where](HOSTILE)
    printed = capsys.readouterr().out
    assert HARMLESS.strip() in printed and plain(printed) == printed


def test_warnings_and_tracebacks_hold_no_escapes() -> None:
    code = f"""
import logging
from mmedpo.terminal import guard
guard()
logging.getLogger("mmedpo.any").warning("%s", {HOSTILE!r})
raise ValueError({HOSTILE!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count(HARMLESS) == 2
    assert plain(done.stderr) == done.stderr


def test_what_a_server_and_a_file_name_say_reaches_the_terminal_as_text(
    corpus: Path, chat_server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["mmedpo"])
    chat_server.answer = lambda received: Answer(HOSTILE, 401)
    output = tmp_path / "out \x1b[2J[/b]"
    words = ["--source", corpus, "--split", "preference", "--limit", 4, "--output", output]
    for chat, said in [(f"{chat_server.url}#m \x1b[2J[/b]", "a[/b] [red]x[/red]"), ("standin:rules", "out [2J[/b]")]:
        with suppress(SystemExit):
            cli.main([*map(str, ["curate", *WORDS, *words, "--chat", chat])])
        printed = "".join(capsys.readouterr())
        assert "".join(said.split()) in "".join(printed.split()) and "\x1b" not in printed and "\x07" not in printed


def test_help_shows_a_recipes_values_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["mmedpo"])
    (tmp_path / "recipe.yaml").write_text(f"source_name: {json.dumps(HOSTILE)}\n")
    with suppress(SystemExit):
        cli.main(["curate", "--config", str(tmp_path / "recipe.yaml"), "--help"])
    printed = capsys.readouterr().out
    assert "[red]x[/red]" in printed and plain(printed) == printed
