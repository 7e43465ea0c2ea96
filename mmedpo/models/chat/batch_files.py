"""Batch files of a folder: rounds of requests for a provider's batch API, and the results that come back.

`round-01/MODEL.jsonl` has requests as OpenAI's batch API takes them, `round-01/results/` the files that it gives back,
under any names, and `round-01/round.json` who asked in which forms. One run at a time uses a folder.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from mmedpo.data.text import number_of
from mmedpo.errors import InputError, Stopped
from mmedpo.models.chat import AGAIN
from mmedpo.runs import bounded_json
from mmedpo.runs.json_files import read_object, write_json

if TYPE_CHECKING:
    from mmedpo.models.chat.batch_upload import Provider

log = logging.getLogger(__name__)
MOST_REQUESTS, MOST_BYTES = 50_000, 200_000_000  # of a file, as providers limit it
LONGEST_LINE = 2_000_000  # bytes of a result
URL = "/v1/chat/completions"
RESULTS, ABOUT = "results", "round.json"
REQUEST = re.compile(rb'\{"custom_id": "([\w-]+)"')  # beginning of a line
SHOWN = 3
SHOWN_TEXT = 300  # characters of a provider's message

Forms = Mapping[str, int]  # of parameters, as `parameters.Parameters` has them


class Result(NamedTuple):
    """Line of a results file: its round, file, place in bytes, and whether it is an answer."""

    round: int
    file: Path
    start: int
    good: bool


class Batches:
    """Requests and results of all rounds in a folder.

    Args:
        uploads: True where the files of `providers` are uploaded, and their results fetched.

    Attributes:
        providers: batch APIs by model.
        results: the answer to a request, or its last error.
        tries: rounds that ended without an answer to a request.
        waiting: requests that have no result yet.
        forms: by round and model, of the parameters that were sent.
        refusals: by round and model, messages of requests that were refused (HTTP 400 and 422).
    """

    def __init__(self, folder: Path, uploads: bool = False) -> None:
        self.folder, self.uploads = folder, uploads
        self.providers: dict[str, Provider] = {}
        self.results: dict[str, Result] = {}
        self.tries: Counter[str] = Counter()
        self.waiting: dict[str, Path] = {}  # with the file of the request
        self.forms: dict[int, dict[str, Forms]] = defaultdict(dict)
        self.refusals: dict[tuple[int, str], set[str]] = defaultdict(set)
        self._asked: dict[Path, set[str]] = defaultdict(set)  # in this start, by file
        self._open: dict[str, BinaryIO] = {}  # files of the new round by model
        self._about: dict[str, dict[str, Any]] = {}  # of the new round, by file name
        self._states: dict[Path, str] = {}  # of files that are uploaded
        self._last, self._is_read = 0, False

    def read(self) -> None:
        """Read all rounds, once; results that providers have are fetched before."""
        if self._is_read:
            return
        self._is_read, said, folder = True, "", self.folder
        numbered = ((re.fullmatch(r"round-(\d+)", entry.name), entry) for entry in folder.glob("round-*"))
        for number, entry in sorted((int(found[1]), entry) for found, entry in numbered if found):
            self._last = number
            self._fetch(entry)
            said = self._read(number, entry) or said
        if said:
            log.warning(said)

    def line(self, result: Result) -> dict[str, Any]:
        """Return the content of a result."""
        with result.file.open("rb") as file:
            file.seek(result.start)
            found: dict[str, Any] = bounded_json.loads(file.readline(LONGEST_LINE))
        return found

    def ask(self, id: str, model: str, forms: Forms, body: Mapping[str, Any]) -> None:
        """Let a request wait: for the results of its file, or else in the new round."""
        if id not in self.waiting:
            line = json.dumps({"custom_id": id, "method": "POST", "url": URL, "body": body}).encode() + b"\n"
            self.waiting[id] = self._write(model, forms, line)
        self._asked[self.waiting[id]].add(id)

    def settle(self) -> None:
        """Finish the new round. Raises Stopped if requests wait for results."""
        if not self._asked:
            return
        if self._about:
            for opened in self._open.values():
                opened.close()
            write_json(self._partial / ABOUT, self._about)
            (self._partial / RESULTS).mkdir()
            self._partial.replace(self._next)
        for file in sorted(self._asked):
            self._upload(file)
        by_hand = (
            f"Upload each file below to the batch API of its provider (endpoint {URL}), once, and put all result and "
            f"error files that it gives back into the folder {RESULTS} beside it, under any names. "
        ) * any(file not in self._states for file in self._asked)
        listed = "".join(
            f"\n  {file}: {number_of(len(ids), 'requests')}, "
            + self._states.get(file, "new" if file.parent == self._next else "no results yet")
            for file, ids in sorted(self._asked.items())
        )
        waiting = number_of(sum(map(len, self._asked.values())), "requests")
        raise Stopped(f"{waiting} wait for batches. {by_hand}Once they have ended, {AGAIN}.{listed}")

    def _upload(self, file: Path) -> None:
        """Start the batch of a file that is to be uploaded and has none."""
        files = read_object(file.parent / ABOUT)
        about = files[file.name]
        provider = self.providers.get(about["model"])
        if provider and about.get("batch") == "":
            about["batch"] = provider.start(file)
            write_json(file.parent / ABOUT, files)
            self._states[file] = f"batch {about['batch']}: started"

    def _fetch(self, folder: Path) -> None:
        """Fetch the results of a round's batches that have ended."""
        files = read_object(folder / ABOUT)
        for name, about in files.items():
            provider, batch = self.providers.get(about["model"]), about.get("batch")
            if not batch or about.get("ended"):
                continue
            self._states[folder / name] = f"batch {batch}: fetched with --batch-upload"
            if provider:
                requests = list(_requests(folder / name))
                self._states[folder / name], about["ended"] = provider.fetch(
                    batch, requests, folder / RESULTS, Path(name).stem
                )
                write_json(folder / ABOUT, files)

    @property
    def _next(self) -> Path:
        return self.folder / f"round-{self._last + 1:02d}"

    @property
    def _partial(self) -> Path:
        return self._next.with_name(f"{self._next.name}.partial")

    def _write(self, model: str, forms: Forms, line: bytes) -> Path:
        """Append a request to the file of its model; return where it will be."""
        if not self._about:
            shutil.rmtree(self._partial, ignore_errors=True)  # of a killed run, which nobody was told of
            self._partial.mkdir(parents=True)
        file = self._open.get(model)
        about = self._about[Path(file.name).name] if file else {"requests": MOST_REQUESTS}
        if file is None or about["requests"] >= MOST_REQUESTS or file.tell() + len(line) > MOST_BYTES:
            if file is not None:
                file.close()
            name = re.sub(r"[^\w.-]", "_", model)
            part = next(
                part for part in range(1, len(self._about) + 2) if f"{name}-{part:02d}.jsonl" not in self._about
            )
            file = self._open[model] = (self._partial / f"{name}-{part:02d}.jsonl").open("wb")  # closed by `settle`
            about = self._about[Path(file.name).name] = {"model": model, "forms": dict(forms), "requests": 0}
            about |= {"batch": ""} if model in self.providers else {}
        file.write(line)
        about["requests"] += 1
        return self._next / Path(file.name).name

    def _read(self, number: int, folder: Path) -> str:
        """Read which requests of a round are answered; return a sentence about its results."""
        files = read_object(folder / ABOUT)
        requests = {name: list(_requests(folder / name)) for name in files}
        model_of = {id: files[name]["model"] for name, ids in requests.items() for id in ids}
        for about in files.values():
            self.forms[number][about["model"]] = about["forms"]
        found: dict[str, bool] = {}  # requests with results: True for an answer
        errors, damaged, others = Counter[str](), [], 0
        for file, start, value in _results(folder / RESULTS):
            if not isinstance(value, dict):
                damaged.append(f"{file.name}, byte {start}")
            elif value.get("custom_id") not in model_of:
                others += 1
            elif not found.get(id := value["custom_id"]):
                status, said = failure(value)
                found[id] = good = not said
                if not (id in self.results and self.results[id].good):
                    self.results[id] = Result(number, file, start, good)
                errors[f"HTTP {status}" if status else said] += not good
                if status in (400, 422):
                    self.refusals[number, model_of[id]].add(said)
        missing = 0
        for name, ids in requests.items():
            done = not found.keys().isdisjoint(ids)
            for id in ids:
                if not done:
                    self.waiting[id] = folder / name
                elif not found.get(id):
                    self.tries[id] += 1
                    missing += id not in found
        if found or damaged or others:
            return _report(folder, sum(found.values()), +errors, missing, damaged, others)
        return ""


def failure(value: Mapping[str, Any]) -> tuple[int, str]:
    """Return HTTP status (0: unknown) and message of a result without an answer; an empty message for an answer."""
    response, error = value.get("response"), value.get("error")
    response = response if isinstance(response, dict) else {}
    status = response.get("status_code")
    if not error and status == 200 and isinstance(response.get("body"), dict):
        return 200, ""
    if not error:
        error = response.get("body") or "no response"
    said, named = error, ""
    for field in ("error", "message", "detail", "code"):
        if isinstance(said, dict):
            named, said = said.get("param") or named, said.get(field) or said
    text = " ".join((said if isinstance(said, str) else json.dumps(said)).split())[:SHOWN_TEXT]
    param = f" (param {named})" if isinstance(named, str) and named and named not in text else ""
    return (status if isinstance(status, int) else 0), f"{text}{param}"


def _requests(file: Path) -> Iterator[str]:
    """Yield the ids of a file of requests."""
    with file.open("rb") as lines:
        for line in lines:
            found = REQUEST.match(line)
            if found is None:
                raise InputError(f"{file} was changed since it was written. Restore it, or choose another --batch-api.")
            yield found[1].decode()


def _results(folder: Path) -> Iterator[tuple[Path, int, Any]]:
    """Yield file, place in bytes and value of each result; the value of a line that is no JSON or too long is None."""
    for file in sorted(folder.glob("[!.]*")) if folder.is_dir() else ():
        with file.open("rb") as lines:
            start, begins = 0, True
            while line := lines.readline(LONGEST_LINE):
                if begins and line.strip():
                    try:
                        value = bounded_json.loads(line)
                    except ValueError:
                        value = None
                    yield file, start, value
                start, begins = start + len(line), line.endswith(b"\n")


def _report(folder: Path, answers: int, errors: Counter[str], missing: int, damaged: Sequence[str], others: int) -> str:
    """Return what the results of a round hold, as a sentence."""
    found = [number_of(answers, "answers")]
    if errors:
        shown = ", ".join(f"{said}: {count}" for said, count in errors.most_common(SHOWN))
        found.append(f"{number_of(errors.total(), 'errors')} ({shown})")
    if missing:
        found.append(f"{number_of(missing, 'requests')} without a result")
    if damaged:
        found.append(f"{number_of(len(damaged), 'damaged lines')} ({', '.join(damaged[:SHOWN])})")
    if others:
        found.append(f"{number_of(others, 'results')} of no request of this round")
    return f"{folder}: {'; '.join(found)}."
