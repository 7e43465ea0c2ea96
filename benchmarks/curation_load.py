"""CPU time and memory of a whole curation as the source grows: both kinds of pairs, offline stand-ins for all models.

Run      python benchmarks/curation_load.py --rows 1000 10000 --output benchmarks/results/curation_load.json
         --chat server: a loopback server (--delay seconds an answer), in a process of its own, writes and judges in
         place of the offline stand-ins; what their calls cost is in curation_calls.py
         --tasks 2: ask and write in processes of their own; the largest memory and the CPU seconds of a task are
         `tasks`, by phase
Source   made on the spot: `few`: 8 small pictures for all questions; `third`: a picture for every three questions. Half
         of the answers are all different, a quarter are reports, and nine in ten questions have a box
Reads    a phase: CPU seconds (user and system, also of threads: a busy machine changes them little) and the largest
         resident memory while it lasted. `growth`: both against the next smaller source; time that is linear grows as
         the rows do. `audit` and `card` end every `mmedpo curate`
Needs    Linux: /proc says and resets the largest memory
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmedpo.runs.json_files import write_json
from mmedpo.runs.provenance import versions
from mmedpo.runs.run_folder import JOBS

SIDE = 48
FINDINGS = ("nodule", "mass", "cyst", "abscess", "fracture")
IMAGES: dict[str, Callable[[int], int]] = {"few": lambda rows: 8, "third": lambda rows: rows // 3}
CONCURRENCY = 16
SERVER = """
import asyncio
import json
from aiohttp import web

DELAY = 0.0

async def answer(request):
    await request.json()
    await asyncio.sleep(DELAY)
    text = {"answer": "a wrong answer", "kind": "invented", "choice": 0, "score": 0.5, "wrong": True, "rationale": "r"}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": json.dumps(text)}}
    return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 200, "completion_tokens": 20}})

async def main():
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
JUDGES = ("standin:strict", "standin:lenient", "standin:lexical")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--images", nargs="+", choices=IMAGES, default=list(IMAGES))
    parser.add_argument("--chat", choices=("standin", "server"), default="standin")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds of the server for each answer")
    parser.add_argument("--tasks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--of", type=Path, help=argparse.SUPPRESS)  # a child's source
    options = parser.parse_args()
    if options.of:
        print(json.dumps(curate(options.of, options.chat, options.delay, options.tasks)))
        return
    results = []
    for images in options.images:
        smaller = None
        for rows in sorted(options.rows):
            found = measure(rows, images, options)
            results.append(
                {"images": images, "rows": rows, "chat": options.chat, **found, **growth(rows, found, smaller)}
            )
            smaller = {"rows": rows, **found}
            print(json.dumps(results[-1]), flush=True)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        record = {"command": " ".join(sys.argv), "seed": options.seed, "versions": versions(), "results": results}
        write_json(options.output, record)


def measure(rows: int, images: str, options: argparse.Namespace) -> dict[str, Any]:
    """Curate a source in a child process, whose memory is its own."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "source")
        write_source(source, rows, IMAGES[images](rows), options.seed)
        typed = [sys.executable, __file__, "--of", str(source), "--chat", options.chat, "--delay", str(options.delay)]
        typed += ["--tasks", str(options.tasks)]
        done = subprocess.run(typed, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The curation of {rows} questions ended with {done.returncode}.")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])  # progress bars come first
    return found


def growth(rows: int, found: dict[str, Any], smaller: dict[str, Any] | None) -> dict[str, Any]:
    """How much more than for the next smaller source, in one process: rows, CPU seconds without the imports, memory."""
    if smaller is None or "tasks" in found:
        return {}
    whole = ("open_source", "write_blocks", "ask", "weigh", "write", "audit", "card")  # without the steps inside of ask
    work = [sum(one["phases"][name]["cpu_s"] for name in whole) for one in (smaller, found)]
    ratios = {"rows": rows / smaller["rows"], "cpu": work[1] / work[0], "peak": found["peak_mb"] / smaller["peak_mb"]}
    return {"growth": {name: round(ratio, 2) for name, ratio in ratios.items()}}


def curate(source: Path, chat: str, delay: float, tasks: int) -> dict[str, Any]:
    """Run the command in this process, each phase measured."""
    from mmedpo import cli
    from mmedpo.curation import ask as asking
    from mmedpo.curation import run as whole
    from mmedpo.hub import build

    phases: dict[str, Any] = {}

    def measured(module: Any, name: str, phase: str | None = None) -> None:
        work = getattr(module, name)

        def run(*given: Any, **named: Any) -> Any:
            phases.setdefault("start", {"cpu_s": round(time.process_time(), 2), "peak_mb": peak()})
            if phase:
                Path("/proc/self/clear_refs").write_text("5")  # the largest memory so far is forgotten
            began, clock = time.process_time(), time.perf_counter()
            done = work(*given, **named)
            spent = {"cpu_s": round(time.process_time() - began, 2), "s": round(time.perf_counter() - clock, 2)}
            label = phase or given[0].step
            earlier = phases.get(label, {}) if phase is None else {}  # a step is done block by block
            added = {name: round(earlier.get(name, 0) + seconds, 2) for name, seconds in spent.items()}
            phases[label] = {**added, "peak_mb": max(peak(), earlier.get("peak_mb", 0))}
            return done

        setattr(module, name, run)

    for name in ("open_source", "write_blocks", "weigh", *(("ask", "write") if tasks == 1 else ())):
        measured(whole, name, name)
    measured(asking, "run_step")
    measured(build.audit, "audit", "audit")
    measured(build.cards, "write_dataset_card", "card")
    output = source.with_name("pairs")
    files: Counter[str] = Counter()
    taken: dict[str, dict[str, int]] = {}
    finish = whole.finish

    def counted(curation: Any) -> Any:
        files.update(
            file.relative_to(curation.folder).parts[0] for file in curation.folder.rglob("*") if file.is_file()
        )
        for log in curation.folder.glob(f"{JOBS}/*-{tasks}/logs/*"):
            last = log.read_text().splitlines()[-1].replace(",", "")
            found = zip(("cpu_s", "peak_mb"), map(int, re.findall(r"\d+", last)), strict=True)
            most = taken.setdefault(log.parts[-3].rpartition("-")[0], {})
            most.update({what: max(most.get(what, 0), number) for what, number in found})
        return finish(curation)

    whole.finish = counted
    with served(delay) if chat == "server" else nullcontext("") as url:
        models = ["--chat", f"{url}#writer", "--judges", f"{url}#judge", "--judges-below-bar", "go"]
        standins = ["--chat", "standin:rules", "--judges", *JUDGES]
        typed = ["curate", "--source", str(source), "--output", str(output), "--concurrency", str(CONCURRENCY)]
        typed += ["--tasks", str(tasks)]
        try:
            cli.main([*typed, *(models if url else standins)])
        except SystemExit as ended:
            if ended.code:
                raise
        manifest = json.loads((output / "manifest.json").read_text())
    return {
        "pairs": sum(manifest["counts"].values()), "cpu_s": round(time.process_time(), 2),
        "peak_mb": max(phase["peak_mb"] for phase in phases.values()), "phases": phases, "files": dict(files),
        **({"tasks": taken} if tasks > 1 else {}),
    }  # fmt: skip


@contextmanager
def served(delay: float) -> Iterator[str]:
    """Serve a chat model of one answer, which writes and judges, in a process of its own; yield its URL."""
    server = SERVER.replace("DELAY = 0.0", f"DELAY = {delay}")
    process = subprocess.Popen([sys.executable, "-c", server], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
    finally:
        process.kill()
        process.wait()


def peak() -> float:
    """Largest resident memory in MB since it was last forgotten."""
    said = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(said["VmHWM"].split()[0]) / 1024, 1)


def write_source(folder: Path, rows: int, images: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for number in range(images):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)).save(folder / f"{number}.png")
    with (folder / "samples.jsonl").open("w") as table:
        for number in range(rows):
            row = {"id": number, "image": f"{number % images}.png", "question": f"Question {number}?"}
            row |= gold(number)
            if number % 10:
                row["boxes"] = [{"label": "lesion", "x": number % 20, "y": number % 17, "w": 12, "h": 15}]
            table.write(json.dumps(row) + "\n")


def gold(number: int) -> dict[str, str]:
    finding = FINDINGS[number % len(FINDINGS)]
    report = f"The {finding} measures {number % 97} mm. There is no effusion. Study {number}. The heart is normal."
    return [
        {"answer": "yes"},
        {"answer": f"{finding} in the left lung"},
        {"answer": f"gallstone {number} of {number % 89} mm"},  # no rule of the stand-in knows a word of it
        {"answer": report, "task": "report"},
    ][number % 4]


if __name__ == "__main__":
    main()
