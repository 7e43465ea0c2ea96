"""The measurements of gpu_suite.py: each returns the numbers of one part, which that file's header explains."""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from train_throughput import CASES, PRESETS, model_and_processor, train

FLEX, FLASH = "flex_attention", "flash_attention_2"


class Size(NamedTuple):
    """How much of everything is measured."""

    case: str = "slake64"
    steps: int = 3
    small: str = "small"  # preset whose gradients and answers are compared
    cases: tuple[str, ...] = ("vqarad16", "slake16")  # of its gradients
    families: int | None = None
    rounds: int = 3
    questions: int = 48  # of mixed lengths
    matrix: int = 8192


SIZES = {"llava-7b": Size(), "toy": Size("slake16", 2, "toy", ("vqarad16",), 2, 1, 6, 256)}


class NotRunError(Exception):
    """A part cannot run here; the message says why."""


class Measurements:
    """All measurements, and the one model that they share."""

    def __init__(self, preset: str, seed: int, peak: float | None, scratch: Path) -> None:
        self.preset, self.seed, self.peak, self.scratch, self.size = preset, seed, peak, scratch, SIZES[preset]
        self.shared: Any = None
        self.processor: Any = None
        self.gflop: dict[str, float] = {}  # of an arm's step

    def run(self, name: str) -> dict[str, Any]:
        """Measure one part of `gpu_suite.PLAN`."""
        kind, *rest = name.split("/")
        found: dict[str, Any] = getattr(self, kind)(*rest)
        return found

    def machine(self) -> dict[str, Any]:
        import torch

        size, rest = self.size.matrix, {"dtype": torch.bfloat16, "device": _device()}
        one, two, copied = (torch.randn(size, size, **rest) for _ in range(3))
        product, copy = (_seconds(call, 10, 3) for call in (lambda: one @ two, lambda: copied.copy_(one)))
        moved = 2 * one.numel() * one.element_size()
        return {"matrix_tflops": 2 * size**3 / product / 1e12, "copy_gb_per_s": moved / copy / 1e9}

    def model(self) -> dict[str, Any]:
        words = ["Question", *map(str, range(self.size.questions))]
        self.shared, self.processor = model_and_processor(self.preset, self.seed, device=_device(), words=words)
        sizes = [(one.numel(), one.element_size()) for one in self.shared.parameters()]
        held = sum(count * size for count, size in sizes)
        return {"parameters": sum(count for count, _ in sizes), "mb": round(held / 2**20)}

    def train(self, attention: str, arm: str, checkpointed: str = "") -> dict[str, Any]:
        require(attention)
        _attend(self.shared, attention)
        size, before = self.size, _compiled()
        counted = attention == "sdpa" and not checkpointed
        found = train(
            self.shared, self.processor, arm, size.case, self.scratch / attention, PRESETS[self.preset].rank,
            size.steps, self.seed, bool(checkpointed), 3 if arm == "trees" else 1, 2 if counted else 0,
        )  # fmt: skip
        compiled, graphs = (now - then for now, then in zip(_compiled(), before, strict=True))
        if counted:
            self.gflop[arm] = found["gflop"]
        seconds, gflop = statistics.median(found["seconds"][1:]), self.gflop.get(arm)
        return {
            "seconds": seconds, "period": statistics.median(found["periods"]), "all_seconds": found["seconds"],
            "begin": found["begin_seconds"], "compile_s": compiled, "graphs": graphs,
            "pairs_per_s": CASES[size.case].step / seconds, "tokens": found["tokens"],
            "tokens_per_s": found["tokens"] / seconds, "gflop": gflop,
            "mfu": gflop / 1e3 / seconds / self.peak if gflop and self.peak else None,
            "peak_mb": found["peak_mb"], "losses": found["losses"],
        }  # fmt: skip

    def gradients(self, attention: str) -> dict[str, Any]:
        import torch

        require(attention)
        model, processor = model_and_processor(self.size.small, self.seed, device=_device())
        model.bfloat16()
        found: dict[str, Any] = {}
        for case in self.size.cases:
            arms = ["trl"] * (CASES[case].kinds == ("text",)) + ["compact", "first", "trees"]
            _attend(model.float(), "sdpa")
            expected = self._step(model, processor, arms[0], case)
            _attend(model, attention)
            for dtype in ("float32", "bfloat16"):
                model.to(getattr(torch, dtype))
                for arm in arms:
                    of = found.setdefault(case, {}).setdefault(dtype, {})
                    of[arm] = _differences(expected, self._step(model, processor, arm, case))
        return found

    def _step(self, model: Any, processor: Any, arm: str, case: str) -> tuple[float, dict[str, Any]]:
        """Return loss and gradients of one step, from the same drawn adapter for all."""
        import torch
        from transformers import TrainerCallback

        gradients: dict[str, Any] = {}

        class Drawn(TrainerCallback):
            def on_train_begin(self, *_: Any, **given: Any) -> None:
                chance = torch.Generator().manual_seed(0)
                for parameter in given["model"].parameters():
                    if parameter.requires_grad:
                        parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=chance))

            def on_pre_optimizer_step(self, *_: Any, **given: Any) -> None:
                for name, parameter in given["model"].named_parameters():
                    if parameter.grad is not None:
                        gradients[name] = parameter.grad.float().clone()

        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            rank = PRESETS[self.size.small].rank
            found = train(
                model, processor, arm, case, Path(folder), rank, 1, self.seed, counted=0, callbacks=[Drawn()],
                max_grad_norm=0,
            )  # fmt: skip
        return found["losses"][0], gradients

    def sharing(self, case: str) -> dict[str, Any]:
        import shared_prefill
        import torch

        if case != "small":
            with self._speaking() as speaker:
                return self._answers(speaker, case, self.size.rounds)
        model, processor = model_and_processor(self.size.small, self.seed, device=_device())
        speaker = shared_prefill.speaking(model, processor)
        found: dict[str, Any] = {}
        for dtype in ("float32", "bfloat16"):
            speaker.model.to(dtype=getattr(torch, dtype))
            found[dtype] = {case: self._answers(speaker, case) for case in ("train", "samples2")}
        return found

    def _answers(self, speaker: Any, case: str, rounds: int = 0) -> dict[str, Any]:
        """Return how many answers are equal both ways, and the seconds of so many rounds."""
        import numpy as np
        import shared_prefill

        sampling, counts = shared_prefill.CASES[case]
        asked = shared_prefill.questions(counts, np.random.default_rng(self.seed))
        ways = shared_prefill.arms(speaker, asked, sampling)
        plain, shared = ([text for said in way() for text in said] for way in ways)  # this is the warm-up, too
        equal = sum(one == two for one, two in zip(plain, shared, strict=True))
        found = {"equal": equal, "answers": len(plain), "distinct": len({*plain}), "shares": speaker.generating.share}
        if rounds:
            times = [[_seconds(way) for way in ways] for _ in range(rounds)]
            one, two = map(statistics.median, zip(*times, strict=True))
            found |= {"plain_s": one, "shared_s": two, "ratio": one / two, "answers_per_s": len(plain) / two}
        return found

    def mixed(self) -> dict[str, Any]:
        import generation

        with self._speaking() as speaker, tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            asked, lengths = generation.draw(self.size.questions, self.seed, Path(folder))
            found = generation.compare(speaker, asked, lengths, 16, repeats=1, one_by_one=False)
        return {**found, "tokens_per_s": {arm: sum(lengths) / times[0] for arm, times in found["seconds"].items()}}

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[Any]:
        """Yield the model as one that answers in words; afterwards its head is as it was."""
        import shared_prefill

        _attend(self.shared, "sdpa")
        head = self.shared.lm_head.weight
        kept = head.detach().clone()
        try:
            yield shared_prefill.speaking(self.shared, self.processor)
        finally:
            head.data.copy_(kept)

    def families(self) -> dict[str, Any]:
        import agreement

        found = {}
        for name in [*agreement.FAMILIES][: self.size.families]:
            drawn = agreement.questions()
            loss, gradient = agreement.differences(name, "LoRA", True, once=True, drawn=drawn, device=str(_device()))
            found[name] = {"loss": loss, "gradient": gradient}
        return found


def require(attention: str) -> None:
    """Raise NotRunError where this attention has no gradients here."""
    if attention == FLEX and _device().type != "cuda":
        raise NotRunError("torch has the gradients of FlexAttention on GPUs only")
    if attention == FLASH:
        from transformers.utils import is_flash_attn_2_available

        if not is_flash_attn_2_available():
            raise NotRunError("flash-attn is not installed, or there is no GPU for it")


def _device() -> Any:
    from mmedpo.runs.device import best_device

    return best_device()


def _attend(model: Any, attention: str) -> None:
    model.set_attn_implementation({"text_config": attention, "vision_config": "sdpa"})


def _compiled() -> tuple[float, int]:
    """Return the seconds and graphs of torch.compile so far."""
    from torch._dynamo.utils import calculate_time_spent, counters

    return calculate_time_spent()["total_wall_time"], counters["stats"]["unique_graphs"]


def _seconds(call: Callable[[], Any], times: int = 1, warm: int = 0) -> float:
    """Return the mean seconds of a call, after some to warm up."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(warm):
        call()
    wait()
    began = time.perf_counter()
    for _ in range(times):
        call()
    wait()
    return (time.perf_counter() - began) / times


def _differences(expected: tuple[float, dict[str, Any]], found: tuple[float, dict[str, Any]]) -> dict[str, float]:
    """Return differences: of the loss; of all gradients, relative; and the largest of a tensor.

    A tensor's is relative to its norm, or to a thousandth of the largest norm where that is more.
    """
    (loss, gradients), (other, others) = expected, found
    norms = {name: value.norm().item() for name, value in gradients.items()}
    apart = {name: (value - others[name]).norm().item() for name, value in gradients.items()}
    least = 1e-3 * max(norms.values())
    return {
        "loss": abs(loss - other), "gradient": math.hypot(*apart.values()) / math.hypot(*norms.values()),
        "tensor": max(apart[name] / max(norms[name], least) for name in norms),
    }  # fmt: skip
