"""Time of the review page: opening 5,000 pairs, and from one pair to the next in a browser.

Run     python benchmarks/review_speed.py --images FOLDER [--output benchmarks/results/review_speed.json]
Needs   mmedpo[dev] and Chromium.
Prints  JSON. `open` is from the start of `mmedpo review` to the printed address, imports included, and `index` the part
        that reads the facts of all rows (goal: open below 3 s). `step` is from the key of a verdict to the next pair on
        the screen, images included, over 60 pairs of which half are visual (goal: below 200 ms). CPU seconds of the
        server are beside the clock, which other work on the machine slows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # where invented.py is

from invented import row

from mmedpo.data import images, shards
from mmedpo.review.pairs import Pairs
from mmedpo.runs.provenance import portable

QUESTIONS = 10  # about an image, each a text and a visual pair
STEPS = 60
BROWSERS = ("chromium", "chromium-headless-shell", "google-chrome", "chrome")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of images, which are used in turn")
    parser.add_argument("--pairs", type=int, default=5000)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "pairs"
        shards.save(rows(arguments.images, arguments.pairs), folder)
        size = sum(file.stat().st_size for file in folder.rglob("*.parquet"))
        begun = time.process_time()
        Pairs(folder)
        index = time.process_time() - begun
        found = {
            "pairs": arguments.pairs,
            "megabytes": round(size / 1e6),
            "index": {"cpu_s": round(index, 2)},
            **walk(folder),
        }
    words = [portable(word) for word in sys.argv]
    found |= {"command": "python " + " ".join(words), "cores": os.cpu_count(), "machine": platform.machine(),
              "versions": {name: version(name) for name in ("aiohttp", "playwright", "pyarrow")}}  # fmt: skip
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


def rows(folder: Path, count: int) -> Iterator[dict[str, Any]]:
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".png", ".jpg"))
    about = 2 * QUESTIONS
    for start in range(0, count, about):
        image = images.embedded(files[start // about % len(files)])
        noised = images.png(255 - images.pixels(image), "noised", images.STORED_LEVEL)
        for number in range(start, min(start + about, count)):
            visual = number % 2 == 1
            made = row(number, visual, images=[image], rejected_images=[noised] if visual else None, weight=1.0,
                       clinical_relevance=number % 11 / 10)  # fmt: skip
            made["provenance"]["image_id"] = f"i{start}"
            yield made


def walk(folder: Path) -> dict[str, Any]:
    """Return the time of the start, and of steps from pair to pair."""
    from playwright.sync_api import sync_playwright

    begun = time.perf_counter()
    command = [sys.executable, "-m", "mmedpo", "review", str(folder), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    found = next(filter(None, (re.search(r"http://\S+", line) for line in server.stdout)))
    opened = {"clock_s": round(time.perf_counter() - begun, 2), "cpu_s": round(cpu_seconds(server.pid), 2)}
    steps = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=next(filter(None, map(shutil.which, BROWSERS))))
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(found[0])
        page.fill("#ask[open] #answer", "A")
        page.keyboard.press("Enter")
        page.locator("#progress", has_text="Pair 1 of").wait_for()
        cpu = cpu_seconds(server.pid)
        for number in range(2, STEPS + 2):
            time.sleep(0.3)  # a reviewer looks; the next pair is loaded meanwhile
            begun = time.perf_counter()
            page.keyboard.press("a")
            page.locator("#progress", has_text=f"Pair {number} of").wait_for()
            steps.append(1000 * (time.perf_counter() - begun))
        cpu = cpu_seconds(server.pid) - cpu
        browser.close()
    server.kill()
    spread = statistics.quantiles(steps, n=20)
    return {
        "open": opened,
        "step": {"median_ms": round(statistics.median(steps)), "p95_ms": round(spread[-1]),
                 "worst_ms": round(max(steps)), "server_cpu_ms": round(1000 * cpu / STEPS)},
    }  # fmt: skip


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
