"""Calls a second of the ask phase of a curation, against the chat client alone on the same requests.

Run     python benchmarks/curation_calls.py --questions 5000 --delay 0 0.05 --repeats 3 --before ../before --output
        benchmarks/results/curation_calls.json
        --before: another checkout (`git worktree add ../before COMMIT`), measured in turns with this one
Source  as curation_load.py makes it; text pairs alone. A loopback server writes and judges after --delay seconds, in a
        process of its own. Each measurement has a process of its own, which first curates 512 questions
Client  `EndpointChat.complete` with all requests of the phase, of one model after the other: one stream, no cache, no
        journal. It runs with the rare garbage collection of today's ask phase
Reads   of the steps that ask, without opening and checking models (`start_s`): milliseconds a call by the clock and of
        CPU time (user and system; a busy machine changes them little), their ratios client / ask phase (wanted: 0.95),
        and the largest resident memory
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from curation_load import CONCURRENCY, peak, served, write_source

from mmedpo.curation import ask as asking
from mmedpo.curation.run import prepare
from mmedpo.curation.settings import Settings
from mmedpo.models.chat import ChatReply, ChatRequest
from mmedpo.models.chat.endpoint import EndpointChat
from mmedpo.models.chat.limits import Limits
from mmedpo.runs.checkout import commit
from mmedpo.runs.json_files import write_json
from mmedpo.runs.provenance import versions

HERE = Path(__file__).parent.parent
WARM_UP = 512  # questions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=5000)
    parser.add_argument("--delay", type=float, nargs="+", default=[0.0, 0.05], help="seconds of the server an answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--before", type=Path, help="checkout to compare with")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # measurement in a process of its own
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.questions, options.delay[0])))
        return
    trees = {"before": options.before, "now": HERE} if options.before else {"now": HERE}
    results = []
    for delay in options.delay:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
        for _ in range(options.repeats):
            for name, tree in trees.items():
                runs[name].append(in_process(tree, options.questions, delay))
                print(name, delay, json.dumps(runs[name][-1]), flush=True)
        for name, found in runs.items():
            ratios = {what: round(median(one[what]["ratio"] for one in found), 3) for what in ("clock", "cpu")}
            about = {"delay": delay, "tree": name, "commit": commit(trees[name]), "ratio": ratios}
            results.append({**about, "runs": found})
            print(json.dumps(about), flush=True)
    if options.output:
        typed = " ".join(sys.argv).replace(str(options.before), "../before")
        write_json(options.output, {"command": f"python {typed}", "versions": versions(), "results": results})


def in_process(tree: Path, questions: int, delay: float) -> dict[str, Any]:
    typed = [sys.executable, __file__, "--one", "--questions", str(questions), "--delay", str(delay)]
    environment = {**os.environ, "PYTHONPATH": str(tree.absolute())}
    done = subprocess.run(typed, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(questions: int, delay: float) -> dict[str, Any]:
    logging.disable(logging.CRITICAL)
    with served(delay) as url, tempfile.TemporaryDirectory() as folder:
        curate(url, Path(folder, "first"), WARM_UP)
        return curate(url, Path(folder, "second"), questions)


def curate(url: str, folder: Path, questions: int) -> dict[str, Any]:
    """Run the ask phase, then the client alone on its requests."""
    source = folder / "source"
    folder.mkdir()
    write_source(source, questions, questions // 3, seed=0)
    settings = Settings(source=source, chat=f"{url}#writer", judges=[f"{url}#judge"], localizer="none")
    (folder / "pairs").mkdir()
    limits = Limits(concurrency=CONCURRENCY)
    curation = prepare(settings, folder / "pairs", limits=limits, judges_below_bar="go")
    asked: list[tuple[str, ChatRequest]] = []
    complete = EndpointChat.complete

    def noting(client: EndpointChat, requests: Iterable[ChatRequest], on_replies: Any = None) -> list[ChatReply]:
        def noted() -> Iterator[ChatRequest]:
            for request in requests:
                asked.append((client.name, request))
                yield request

        takes_all = isinstance(requests, list)  # before requests came one by one
        return complete(client, list(noted()) if takes_all else noted(), on_replies)

    EndpointChat.complete = noting  # type: ignore[method-assign, assignment]
    in_phase: dict[str, float] = {}
    run_steps = asking.run_steps

    def measured(*given: Any) -> None:
        asked.clear()
        in_phase.update(seconds(lambda: run_steps(*given)))

    asking.run_steps = measured  # type: ignore[assignment]
    Path("/proc/self/clear_refs").write_text("5")  # the largest memory so far is forgotten
    whole = seconds(lambda: asking.ask(curation))["clock"]
    largest = peak()
    asking.run_steps = run_steps
    EndpointChat.complete = complete  # type: ignore[method-assign]
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    alone = {"clock": 0.0, "cpu": 0.0}
    for name in dict.fromkeys(name for name, _ in asked):
        client = EndpointChat(name, base_url=url, concurrency=CONCURRENCY)
        own = [request for model, request in asked if model == name]
        taken = seconds(lambda client=client, own=own: client.complete(own))  # type: ignore[misc]
        alone = {what: alone[what] + taken[what] for what in alone}
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    found: dict[str, Any] = {"calls": len(asked), "peak_mb": largest, "start_s": round(whole - in_phase["clock"], 2)}
    for what, spent in in_phase.items():
        each = {"ms": round(1000 * spent / len(asked), 3), "client_alone_ms": round(1000 * alone[what] / len(asked), 3)}
        found[what] = {**each, "ratio": round(alone[what] / spent, 3)}
    return found


def seconds(work: Callable[[], object]) -> dict[str, float]:
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return {"clock": time.perf_counter() - clock, "cpu": time.process_time() - cpu}


if __name__ == "__main__":
    main()
