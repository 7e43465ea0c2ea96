"""When does clinical weighting help? The study of docs/study.md, on phantoms whose truth is known.

Run     python benchmarks/study.py --part main --output runs/study --workers 2
        python benchmarks/study.py --part factors --output runs/study --workers 2
        What OUTPUT holds is not made again, so that a run can be stopped at any moment and go on with the same command.
        --report-only reads what is there. Learning rates are chosen on worlds of their own before; nothing is read
        from those.
Writes  OUTPUT/starts/ (starting models), worlds/SEED/ (outcomes of each arm), PART.json (all numbers), PART.md,
        PART.html, dose_response.png.
Time    on two CPU cores: see docs/study.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # also in workers

from phantom_study import arms, page
from phantom_study.analysis import analyse, chosen_rate, missing
from phantom_study.trials import STARTS, Arm, run_world, start

Wanted = list[tuple[str, Arm, float]]


def tuning(part: str) -> Iterator[tuple[int, Wanted]]:
    """Yield the tries of learning rates, by world."""
    for seed in arms.TUNING_WORLDS:
        yield seed, [(name, arm, rate) for name, arm in arms.PARTS[part].items() for rate in arm.rates]


def trainings(folder: Path, part: str) -> Iterator[tuple[int, Wanted]]:
    """Yield the trainings of a part, by world."""
    rates = {name: chosen_rate(folder, name)[0] for name in arms.PARTS[part]}
    if untried := [name for name, rate in rates.items() if rate is None]:
        raise SystemExit(f"No learning rate was chosen for {', '.join(untried)}; run the same command again.")
    for seed in range(arms.SEEDS[part]):
        own = [(name, arm, rates[name] or 0.0) for name, arm in arms.PARTS[part].items()]
        again = [(name, arm, rates[arms.shared_rate(name)] or 0.0) for name, arm, _ in own]
        yield seed, own + [one for one in again if one not in own]


def quiet(work: Callable[..., None], *given: Any) -> None:
    """Do a work without the libraries' own messages."""
    import warnings

    from mmedpo.runs.terminal import silence_libraries

    warnings.filterwarnings("ignore")
    silence_libraries()
    work(*given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=[*arms.PARTS], default="main")
    parser.add_argument("--output", type=Path, default=Path("runs/study"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--record", type=Path, help="JSON file of the results, beside OUTPUT/PART.json")
    parser.add_argument("--report-only", action="store_true")
    options = parser.parse_args()
    from mmedpo.runs.provenance import versions

    options.output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began = time.monotonic()
    if not options.report_only:
        with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:

            def all_of(work: Callable[..., None], todo: Iterable[Any]) -> None:
                for future in as_completed([pool.submit(quiet, work, options.output, *given) for given in todo]):
                    future.result()

            all_of(start, ((number,) for number in range(STARTS)))
            all_of(run_world, tuning(options.part))
            all_of(run_world, trainings(options.output, options.part))
    found: dict[str, Any] = {
        "command": f"python benchmarks/study.py --part {options.part} --workers {options.workers}",
        "versions": versions(), "clock_s_of_this_sitting": round(time.monotonic() - began),
        **analyse(options.output, options.part),
    }  # fmt: skip
    if incomplete := missing(options.output, options.part):
        print(f"Not all worlds of {', '.join(incomplete)}.")
    for file in filter(None, (options.output / f"{options.part}.json", options.record)):
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    page.write(found, options.output, options.part)
    print((options.output / f"{options.part}.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
