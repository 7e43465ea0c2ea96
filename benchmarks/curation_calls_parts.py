"""CPU time of the parts of a call in the ask phase of a curation: what is added to the client alone.

Run     python benchmarks/curation_calls_parts.py --questions 5000 --output benchmarks/results/curation_calls_parts.json
Source  as curation_calls.py, with a server that answers at once
Reads   microseconds of CPU time (user and system) a call, the clock's own included; parts do not overlap
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from curation_calls import WARM_UP, curate
from curation_load import served

from mmedpo.curation import ask, hallucinate, relevance, text_pairs
from mmedpo.curation.blocks import Curation
from mmedpo.models.chat import cache
from mmedpo.runs.journal import Journal
from mmedpo.runs.json_files import write_json
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.provenance import versions

PARTS: tuple[tuple[Any, str, str], ...] = (
    (hallucinate, "_injection", "make the request"), (relevance._Discussion, "request", "make the request"),
    (cache.CacheKeys, "of", "key of the cache"), (Ledger, "select", "look up"), (Ledger, "update", "store"),
    (hallucinate, "_read", "read the reply"), (hallucinate, "has_answer", "read the reply"),
    (relevance._Discussion, "_verdict", "read the reply"),
    (hallucinate, "in_style", "check the answer"), (hallucinate, "fault_of", "check the answer"),
    (Curation, "samples", "read blocks"), (Curation, "begin", "read blocks"),
    (Journal, "update", "record results and calls"), (text_pairs, "record", "record results and calls"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=5000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    spent: dict[str, float] = defaultdict(float)
    within: list[str] = []
    for owner, name, part in PARTS:
        setattr(owner, name, timed(getattr(owner, name), part, spent, within))
    run_steps = ask.run_steps

    def from_here(*given: Any) -> None:
        spent.clear()  # what was spent on preparing the curation
        run_steps(*given)

    ask.run_steps = from_here  # type: ignore[assignment]
    with served(0.0) as url, tempfile.TemporaryDirectory() as folder:
        curate(url, Path(folder, "first"), WARM_UP)
        found = curate(url, Path(folder, "second"), options.questions)
    parts = {part: round(1e6 * seconds / found["calls"], 1) for part, seconds in spent.items()}
    record = {**found, "us_a_call": parts}
    print(json.dumps(record, indent=2))
    if options.output:
        write_json(options.output, {"command": f"python {' '.join(sys.argv)}", "versions": versions(), **record})


def timed(work: Any, part: str, spent: dict[str, float], within: list[str]) -> Any:
    def run(*given: Any, **named: Any) -> Any:
        if within:  # a part of another part
            return work(*given, **named)
        within.append(part)
        began = time.process_time()
        try:
            return work(*given, **named)
        finally:
            spent[part] += time.process_time() - began
            within.clear()

    return run


if __name__ == "__main__":
    main()
