"""What data can do to a terminal: nothing, wherever its text is printed."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, ChatServer
from rich.console import Console
from standins import WORDS
from tqdm import tqdm

from mmedpo import cli
from mmedpo.cli.shared import print_table
from mmedpo.runs.terminal import Plain, Screen, plain, say

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


PRINTERS = {
    "print": "print(TEXT, file=sys.stderr)",
    "lines": "sys.stderr.writelines([TEXT])",
    "a logger without a handler": "logging.getLogger('mmedpo.any').warning('%s', TEXT)",
    "a handler of before": "logging.getLogger('before').warning(TEXT)",
    "a handler of after": "logging.getLogger('after').addHandler(logging.StreamHandler())\n"
    "logging.getLogger('after').warning(TEXT)",
    "a logged error": "try:\n    raise ValueError(TEXT)\nexcept ValueError: logging.getLogger('any').exception('no')",
    "a warning": "warnings.warn(TEXT)",
    "a warning beside a bar": "with Live(console=Console(force_terminal=True, stderr=True)): warnings.warn(TEXT)",
    "a bar": "tqdm(range(2), desc=TEXT, leave=False).close()",
    "a traceback": "raise ValueError(TEXT)",
    "standard output": "sys.stdout.write(TEXT)",
}


@pytest.mark.parametrize("printer", PRINTERS)
def test_nothing_that_the_command_prints_holds_escapes_of_data(printer: str) -> None:
    code = f"""
import logging, sys, warnings
from rich.console import Console
from rich.live import Live
from tqdm import tqdm
from mmedpo.runs.terminal import guard
logging.getLogger("before").addHandler(logging.StreamHandler())
guard()
TEXT = {HOSTILE!r}
{PRINTERS[printer]}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    printed = re.sub(r"\x1b\[(\?25[lh]|2K|1A|0?m)|\r", "", done.stdout + done.stderr)  # of rich's and tqdm's own
    assert "a[/b] [red]x[/red]" in printed and "owned" in printed
    assert plain(printed) == printed


def test_rich_and_tqdm_keep_what_they_write_themselves() -> None:
    stream = io.StringIO()
    guarded = Plain(stream)
    Console(file=guarded, force_terminal=True).print("red", style="red")  # type: ignore[arg-type]
    tqdm.write("a\rb", file=guarded)
    guarded.write("\rbar\r50%\x1b[2K")
    guarded.write("\x1b[A\x1b[A")
    assert stream.getvalue() == "\x1b[31mred\x1b[0m\na b\n\rbar 50%[2K\x1b[A\x1b[A"
    assert guarded.isatty() is False


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
