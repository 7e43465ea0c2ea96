"""What one GPU does with a 7B model, in one command: training, answering, and agreement of the numbers, as one JSON.

Run     python benchmarks/gpu_suite.py --output benchmarks/results/gpu_suite.json          under 10 minutes, one GPU
        python benchmarks/gpu_suite.py --preset toy --device cpu                           the same parts, for tests
        After `pip install -e .`, from a checkout; flash-attn is used where it is installed. No network; weights are
        drawn on the device, in bfloat16.
Needs   Estimates by arithmetic, measured nowhere: 8 to 9 minutes on one H200 (140 GB). Memory: 15 GB of weights, 5 GB
        for LoRA r 128 and its optimizer, and 9 MB a token of a forward pass: 65 GB for TRL's 8 rows of 607 tokens, 95
        GB for the 8,200 tokens of `trees`, which fits into 80 GB with checkpointing alone.
Parts   In order of worth; PLAN has their estimated seconds on an H200, which grow as --peak-tflops falls. A part that
        no longer fits into --budget-s is "not run"; one that takes three times its estimate and a minute is "stopped";
        one that raises is "failed", with its message. The rest goes on. --output is written after every part.
        machine          rates of a bfloat16 matrix product and of a copy: ceilings to read the rest against
        model            the model, made on the device
        train/A/ARM      train_throughput.py's arms under attention A, steps of 64 pairs as SLAKE's; /checkpointed: with
                         gradient checkpointing. `first` fills the reference cache of `mmedpo`; `trees` has three
                         epochs, so that most of its steps find the cache filled anyway
        gradients/A      a small model in bfloat16 and float32: loss and LoRA gradients of a step against those of TRL
                         (text pairs) or `compact` (lesion pairs) in float32, from the same rounded weights
        sharing/small    the small model: answers of shared prefill equal to plain ones, in float32 and bfloat16
        sharing/CASE     shared_prefill.py's cases, greedy and samples: shared prefill against plain `generate`
        mixed            generation.py's mixed lengths: our batches against batches of the given order
        families         agreement.py's families with LoRA in float32: ours against every side alone
Reads   `seconds` of a step: median without the first; `period`: the same with reading its input; `begin`: checks and
        the reference's fingerprint, before the first step; `compile_s`, `graphs`: of torch.compile, inside `begin` and
        steps; `mfu`: matrix operations (`gflop`, counted in two forward passes under SDPA, without recomputation and
        TRL's Triton head) / seconds / peak; `peak_mb`: largest allocation. `speedups`: of a training over TRL's and
        `compact` under the same attention. `plain_s`, `shared_s`: medians of three rounds after a warm-up; `equal`: of
        so many `answers`.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import math
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gpu_parts import FLASH, FLEX, SIZES, Measurements, NotRunError

STARTED = time.monotonic()
H200 = 989.0  # dense bfloat16 TFLOP/s
PEAKS = {"NVL": None, "PCIe": None, "H200": H200, "H100": H200, "A100": 312.0}  # by a part of the device's name
PATIENCE = 3, 60.0  # times its estimate, and seconds, that a part may take
IMPORTED = ("peft", "trl.trainer.dpo_trainer", "mmedpo.training.trainer", "shared_prefill", "generation")
PLAN = {
    "machine": 3, "model": 10,
    "train/sdpa/trl": 45, "train/sdpa/compact": 42, "train/sdpa/first": 30, "train/sdpa/mmedpo": 26,
    "train/sdpa/trees": 22,
    "gradients/sdpa": 35, "sharing/small": 15,
    "sharing/samples8": 6, "sharing/train": 10, "sharing/test": 8, "sharing/samples2": 5, "sharing/samples1": 5,
    "mixed": 40,
    f"train/{FLEX}/trees": 45, f"train/{FLEX}/first": 50, f"train/{FLEX}/mmedpo": 30, f"gradients/{FLEX}": 40,
    f"train/{FLASH}/trl": 42, f"train/{FLASH}/compact": 40,
    "train/sdpa/trees/checkpointed": 18, "families": 20,
    f"train/{FLEX}/trl": 55, f"train/{FLEX}/compact": 50, "train/sdpa/trl/checkpointed": 50,
}  # fmt: skip


class OutOfTime(BaseException):
    """A part has taken too long; not an Exception, which libraries catch."""


def needed(name: str) -> str:
    """Return the part that must be done before a part, or ''."""
    kind, *rest = name.split("/")
    if kind == "train" and rest[1] == "mmedpo":
        return f"train/{rest[0]}/first"
    return "model" if kind in ("train", "mixed") or (kind == "sharing" and rest != ["small"]) else ""


def attempt(run: Callable[[], Any], estimate: float, left: float, limit: float = math.inf) -> dict[str, Any]:
    """Return what became of a part that has so many seconds, of those left; whatever it raises is recorded."""
    from mmedpo.runs.device import release

    if estimate > left:
        return {"status": "not run", "reason": f"no time left: takes about {estimate:.0f} s, {max(left, 0):.0f} s left"}
    began = time.monotonic()
    try:
        with _limited(min(left, limit)), contextlib.redirect_stdout(sys.stderr):
            found = {"status": "done", "result": _plain(run())}
    except NotRunError as reason:
        return {"status": "not run", "reason": str(reason)}
    except OutOfTime:
        found = {"status": "stopped", "reason": f"no time left: stopped after {time.monotonic() - began:.0f} s"}
    except Exception as error:
        where = traceback.format_exc().splitlines()[-40:]
        found = {"status": "failed", "reason": f"{type(error).__name__}: {error}"[:2000], "where": where}
    release()
    return {**found, "took_s": round(time.monotonic() - began, 2), "estimate_s": round(estimate, 1)}


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise OutOfTime inside the block once it has taken so long."""

    def over(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _plain(value: Any) -> Any:
    """Return a JSON value with numbers of four digits; infinity and NaN as text."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    return value


def speedups(parts: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return how many times as fast each training is as TRL's and its trimmed algorithm, under the same attention."""
    done = {name: part["result"] for name, part in parts.items() if part["status"] == "done"}
    found: dict[str, dict[str, float]] = {}
    for name, result in done.items():
        kind, *rest = name.split("/")
        for base in ("trl", "compact") if kind == "train" else ():
            other = done.get("/".join((kind, rest[0], base, *rest[2:])))
            if other:
                found.setdefault(name, {})[f"times_{base}"] = round(other["seconds"] / result["seconds"], 2)
    return found


def peak_of(device: str) -> float | None:
    """Return the dense bfloat16 TFLOP/s of a device by its name, None where it is unknown."""
    return next((peak for part, peak in PEAKS.items() if part in device), None)


def missing() -> dict[str, str]:
    """Import all that parts import, so that none is timed with it; return what cannot be imported, and why."""
    found = {}
    for name in IMPORTED:
        try:
            importlib.import_module(name)
        except Exception as error:  # the parts without it go on
            found[name] = f"{type(error).__name__}: {error}"
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=SIZES, default="llava-7b")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: the GPU where there is one")
    parser.add_argument("--budget-s", type=float, default=540, help="seconds for all, imports included")
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16; default: by name (H200, H100 SXM, A100)")
    parser.add_argument("--parts", nargs="+", default=[""], metavar="NAME", help="only those whose names begin so")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks
    import torch

    from mmedpo.runs.device import hardware
    from mmedpo.runs.json_files import write_json
    from mmedpo.runs.provenance import installed, versions
    from mmedpo.runs.terminal import silence_libraries

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU. Check the driver, or try --preset toy --device cpu.")
    silence_libraries()
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    with contextlib.redirect_stdout(sys.stderr):
        absent = missing()
    gc.freeze()  # what is imported is never garbage: each collection would search it for half a second
    toy, peak = options.preset == "toy", options.peak_tflops or peak_of(hardware())
    record: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]), "preset": options.preset, "seed": options.seed,
        "versions": versions() | installed(("triton", "flash-attn")), "cuda": torch.version.cuda,
        "device": hardware(), "peak_tflops": peak, "budget_s": options.budget_s, "missing": absent,
        "start_s": round(time.monotonic() - STARTED, 1), "parts": {},
    }  # fmt: skip
    parts = record["parts"]
    with tempfile.TemporaryDirectory() as scratch:
        measured = Measurements(options.preset, options.seed, peak, Path(scratch))
        for name, seconds in PLAN.items():
            if not name.startswith(("model", *options.parts)):
                continue
            estimate = 0.0 if toy else seconds * (H200 / peak if peak else 1)
            left = options.budget_s - (time.monotonic() - STARTED)
            before = needed(name)
            if before and parts.get(before, {}).get("status") != "done":
                parts[name] = {"status": "not run", "reason": f"needs {before}"}
            else:
                limit = math.inf if toy else PATIENCE[0] * estimate + PATIENCE[1]
                parts[name] = attempt(lambda name=name: measured.run(name), estimate, left, limit)  # type: ignore[misc]
            print(name, json.dumps(parts[name]), file=sys.stderr, flush=True)
            record |= {"speedups": speedups(parts), "seconds": round(time.monotonic() - STARTED, 1)}
            if options.output:
                options.output.parent.mkdir(parents=True, exist_ok=True)
                write_json(options.output, record)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
