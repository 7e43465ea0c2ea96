"""Seconds a step and peak memory of training: TRL's DPOTrainer and ours, same model, rows and machine, alternating.

Run     python benchmarks/train_throughput.py --steps 4 --output benchmarks/results/train_throughput.json    35 min
        python benchmarks/train_throughput.py --cases slake64 slake16 vqarad64 vqarad16 single --arms trl compact mmedpo
        trees --steps 2 --rounds 1 --output benchmarks/results/train_throughput_epochs.json               an hour
        python benchmarks/train_throughput.py --preset llava-7b --peak-tflops 989 --cases slake64 --arms trl compact
        mmedpo trees --steps 2 --rounds 1 --output ...                                               one GPU of 80 GB
Models  small: CLIP at 336 pixels (576 image tokens) of width 256, Llama of width 512, 8 layers, vocabulary 32,000;
        LoRA r 16, float32, on the CPU. llava-7b: the shape of LLaVA-Med v1.5 (CLIP-L/14-336, Mistral 7B); LoRA r 128,
        bfloat16; toy: bfloat16 in a second, for tests. With --checkpointing, gradient checkpointing. Weights are
        random; 4 pairs a forward pass, but for `trees`.
Cases   text8, text150: answers of so many tokens about the same image; lesion60: the same answer of 60 tokens about
        another image, where no prefix can be shared (TRL sees the first image twice: it has no second one)
        slake64, slake16: as many questions an image as SLAKE has (10.9 on average), each with a text pair and a lesion
        pair about one noised image; vqarad64, vqarad16: as VQA-RAD (5.7), text pairs; single: one question an image,
        16 pairs. The number is the pairs of a step; answers have 8 tokens. An epoch has --steps steps, or 128 pairs.
Arms    trl      DPOTrainer as it is
        compact  TRL's algorithm (a row a side, a live reference, an encoding a row and pass), its head on answers only
        first    ours with a live reference: what the first epoch has
        mmedpo   ours with the reference from its cache: what each later epoch has
        trees    the same with pairs_per_image 16 and the whole step in one forward pass
Reads   `seconds`: median of the steps after the first, of all rounds; `epoch`: seconds of all steps; `epochs3`: seconds
        of a step over three epochs, one with a live reference and two without; `peak_mb`: largest resident memory of
        the arm's own process, on a GPU largest allocation; `tokens`: of a step, padding included; `gflop`: matrix
        operations and attention of a step, mean of the epoch, counted by torch without recomputation (not those of
        TRL's Triton head on a GPU; what a mask hides is counted); `ceiling`: share of the epoch's speed-up over
        `compact` that the operations allow; `mfu`: gflop / seconds / peak; `loss_difference`: largest over the steps,
        to TRL (text) or to `compact` (lesion); `trees` takes the pairs in another order.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ARMS = {
    "trl": None,
    "compact": {"prefix_sharing": False, "encode_images_once": False},
    "first": {},
    "mmedpo": {"reference_cache": "reference"},
    "trees": {"reference_cache": "reference", "pairs_per_image": 16},
}


class Case(NamedTuple):
    """Shape of a dataset: tokens of an answer, kinds of pairs a question, questions an image, pairs a step."""

    tokens: int
    kinds: tuple[str, ...] = ("text",)
    questions: float = 1  # mean; drawn evenly from half of it to one and a half
    step: int = 4


CASES = {
    "text8": Case(8), "text150": Case(150), "lesion60": Case(60, ("lesion",)), "single": Case(8, step=16),
    "slake64": Case(8, ("text", "lesion"), 10.9, 64), "slake16": Case(8, ("text", "lesion"), 10.9, 16),
    "vqarad64": Case(8, questions=5.7, step=64), "vqarad16": Case(8, questions=5.7, step=16),
}  # fmt: skip
PAIRS, SIDE, WORDS, EPOCH = 4, 336, 200, 128


class Preset(NamedTuple):
    """A LLaVA's shape: of the vision tower width, inner width, layers and heads, of the language model likewise."""

    vision: tuple[int, int, int, int]
    text: tuple[int, int, int, int]
    rank: int  # of LoRA
    dtype: str
    side: int = SIDE  # pixels
    vocabulary: int = 32_000
    kind: str = "LlamaConfig"
    more: dict[str, Any] = {}  # noqa: RUF012  of the language model; only read


PRESETS = {
    "toy": Preset((32, 64, 2, 2), (32, 64, 2, 2), 4, "bfloat16", 56, 512),
    "small": Preset((256, 1024, 6, 4), (512, 1376, 8, 8), 16, "float32"),
    "llava-7b": Preset(
        (1024, 4096, 24, 16), (4096, 14336, 32, 32), 128, "bfloat16", kind="MistralConfig",
        more={"num_key_value_heads": 8, "sliding_window": None, "max_position_embeddings": 32768},
    ),
}  # fmt: skip


@functools.cache
def rows(case: str, count: int, seed: int, side: int = SIDE) -> Any:
    import numpy as np
    from datasets import Dataset, Features, Image, List, Value
    from PIL import Image as pillow

    shape = CASES[case]
    rng = np.random.default_rng(seed)

    def said(number: int) -> str:
        return " ".join(f"word{i}" for i in rng.integers(WORDS, size=number))

    def message(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    def picture() -> list[Any]:
        file = io.BytesIO()  # written once, not for each row
        pillow.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file, "PNG")
        return [{"bytes": file.getvalue(), "path": None}]

    pairs: list[dict[str, Any]] = []
    while len(pairs) < count:
        shown, noised = picture(), picture()
        for _ in range(round(shape.questions * rng.uniform(0.5, 1.5)) or 1):
            asked, chosen = message("user", said(20)), message("assistant", said(shape.tokens))
            pairs += [
                {
                    "prompt": asked, "chosen": chosen, "weight": 1.0, "images": shown,
                    "rejected": chosen if kind == "lesion" else message("assistant", said(shape.tokens)),
                    "rejected_images": noised if kind == "lesion" else None,
                }
                for kind in shape.kinds
            ]  # fmt: skip
    pairs = [pairs[i] for i in rng.permutation(count)]
    messages = List({"role": Value("string"), "content": Value("string")})
    features = {"prompt": messages, "chosen": messages, "rejected": messages, "weight": Value("float32")}
    return Dataset.from_list(
        pairs, features=Features({**features, "images": List(Image()), "rejected_images": List(Image())})
    )


def model_and_processor(
    preset: str, seed: int, attention: str = "sdpa", device: Any = None, words: Iterable[str] = ()
) -> tuple[Any, Any]:
    """Return the preset's model of random weights, made on the device, and a processor that knows these words too."""
    import torch
    import transformers as tf

    from mmedpo.quickstart import tiny
    from mmedpo.runs.device import best_device

    shape = PRESETS[preset]
    _, processor = tiny.build([f"word{i}" for i in range(WORDS)] + [*words])
    processor.image_processor = tf.CLIPImageProcessorPil()
    processor.image_processor.size = {"shortest_edge": shape.side}
    processor.image_processor.crop_size = {"height": shape.side, "width": shape.side}
    processor.patch_size = 14
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes: dict[str, Any] = dict(zip(names, shape.vision, strict=True))
    vision = tf.CLIPVisionConfig(**sizes, image_size=shape.side, patch_size=14)
    tokens = {"vocab_size": shape.vocabulary, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
    text = getattr(tf, shape.kind)(**dict(zip(names, shape.text, strict=True)), **tokens, **shape.more)
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    config = tf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=image)
    torch.manual_seed(seed)
    with torch.device(device or ("cpu" if preset == "small" else best_device())):
        model = tf.AutoModelForImageTextToText.from_config(
            config,
            dtype=getattr(torch, shape.dtype),
            attn_implementation={"text_config": attention, "vision_config": "sdpa"},
        )
    return model, processor


def counting() -> Any:
    """Return torch's counter of operations, which counts attention on the CPU too."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    mapping = {
        forward: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        backward: lambda out, q, k, v, *_, **__: sdpa_backward_flop_count(out, q, k, v),
    }
    return FlopCounterMode(display=False, custom_mapping=mapping)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train one arm; its seconds, memory, operations and losses."""
    model, processor = model_and_processor(options.preset, options.seed, options.attention)
    steps = options.steps or max(EPOCH // CASES[options.case].step, 2)
    rank, at = PRESETS[options.preset].rank, options.cache
    found = train(model, processor, options.arm, options.case, at, rank, steps, options.seed, options.checkpointing)
    return {name: found[name] for name in ("seconds", "peak_mb", "tokens", "gflop", "losses", "device")}


def train(
    model: Any, processor: Any, arm: str, case: str, cache: Path, rank: int, steps: int, seed: int,
    checkpointing: bool = False, epochs: int = 1, counted: int | None = None, callbacks: Sequence[Any] = (),
    **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """Train one arm for so many epochs of so many steps, and leave the model as it was.

    Args:
        cache: folder of the reference's log-probabilities.
        counted: forward passes whose operations are counted and scaled to a step's tokens; None: all of an epoch.
        more: further settings of the trainer.

    Returns: `seconds` and `periods` of each step, without and with its input (the first period none); `begin_seconds`
        before the first step; `peak_mb`, `tokens`, `gflop`, `losses`, `device`.
    """
    import torch
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from mmedpo import MMedPOConfig, MMedPOTrainer
    from mmedpo.training.model import language_model_linears

    began: list[float] = []
    ended: list[float] = []
    gpu = model.device.type == "cuda"

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            began.append(now())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ended.append(now())

    def now() -> float:
        if gpu:
            torch.cuda.synchronize()
        return time.monotonic()

    step = CASES[case].step
    batch = step if arm == "trees" else PAIRS
    settings: dict[str, Any] = {
        "output_dir": str(cache / arm), "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": step // batch,
        "max_steps": steps * epochs, "logging_steps": 1, "learning_rate": 1e-4, "bf16": model.dtype == torch.bfloat16,
        "use_cpu": not gpu, "gradient_checkpointing": checkpointing, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "max_length": None, "seed": seed, "dataloader_num_workers": 0,
        "loss_type": ["sigmoid"], **more,
    }  # fmt: skip
    ours = ARMS[arm]
    folders = {key: str(cache / value) for key, value in (ours or {}).items() if isinstance(value, str)}
    config: Any = DPOConfig(**settings) if ours is None else MMedPOConfig(**settings, **{**ours, **folders})
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    with as_it_was(model):
        trainer = (DPOTrainer if ours is None else MMedPOTrainer)(
            model,
            args=config,
            train_dataset=rows(case, step * steps, seed, model.config.vision_config.image_size),
            processing_class=processor,
            peft_config=LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=language_model_linears(model)),
            callbacks=[Clock(), *callbacks],
        )
        before = now()
        trainer.train()
        peak = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        tokens, gflop = operations(trainer, 1 if arm in ("trl", "compact") else steps, step // batch, counted)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "seconds": [end - start for start, end in zip(began, ended, strict=True)],
        "periods": [end - start for start, end in itertools.pairwise(ended)],
        "begin_seconds": began[0] - before,
        "peak_mb": round(peak / 2**20),
        "tokens": tokens,
        "gflop": gflop,
        "losses": losses,
        "device": torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads",
    }


def operations(trainer: Any, steps: int, passes: int, counted: int | None = None) -> tuple[int, float | None]:
    """Return tokens and matrix operations (GFLOP) of a step of so many forward passes, mean of so many steps.

    Rows without anything shared are alike, so that one step stands for all. No operations where `counted` is 0.
    """
    trainer.model.gradient_checkpointing_disable()
    sizes: list[int] = []
    with counting() as counter:
        for inputs in itertools.islice(trainer.get_train_dataloader(), steps * passes):
            sizes.append(inputs["input_ids"].numel())
            if counted is None or len(sizes) <= counted:
                trainer.training_step(trainer.model_wrapped, inputs)
    share = sum(sizes) / (sum(sizes[:counted]) or 1)
    gflop = counter.get_total_flops() / 1e9 / steps * share if counted != 0 else None
    return round(sum(sizes) / steps), gflop


@contextlib.contextmanager
def as_it_was(model: Any) -> Iterator[None]:
    """Take from the model, in the end, what trainers put into it: adapters, TRL's forward pass, checkpointing."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    try:
        yield
    finally:
        for name, module in [*model.named_modules()]:
            if isinstance(module, BaseTunerLayer):
                model.set_submodule(name, module.get_base_layer())
        for added in ("forward", "peft_config"):
            vars(model).pop(added, None)
        model.gradient_checkpointing_disable()
        model.disable_input_require_grads()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["text8", "text150", "lesion60"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[arm for arm in ARMS if arm != "trees"])
    parser.add_argument("--steps", type=int, help="of an epoch; default: 128 pairs, at least 2 steps")
    parser.add_argument("--attention", choices=("sdpa", "eager", "flex_attention"), default="sdpa")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--peak-tflops", type=float, help="of the device, for `mfu`")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--arm", choices=ARMS, help="run this arm alone on --case, and print its numbers")
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--cache", type=Path, help="of the arm's own process")
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(run(options)))
        return
    tables = {}
    for case in options.cases:
        with tempfile.TemporaryDirectory() as cache:
            results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in options.arms}
            # The first run of the last arm fills the cache and is not counted.
            for arm in [options.arms[-1], *options.arms * options.rounds]:
                results[arm].append(_alone(arm, case, cache, options))
                print(case, arm, json.dumps(results[arm][-1]), file=sys.stderr, flush=True)
            results[options.arms[-1]].pop(0)
        tables[case] = _table(case, results, options)
        _show(case, tables[case])
    if options.output:
        from mmedpo.runs.json_files import write_json
        from mmedpo.runs.provenance import versions

        options.output.parent.mkdir(parents=True, exist_ok=True)
        record = {"command": " ".join(["python", *sys.argv]), "seed": options.seed, "versions": versions()}
        write_json(options.output, {**record, "device": results[options.arms[0]][0]["device"], "results": tables})


def _alone(arm: str, case: str, cache: str, options: argparse.Namespace) -> dict[str, Any]:
    same = [f"--{name}={getattr(options, name)}" for name in ("preset", "attention", "seed")]
    same += [f"--steps={options.steps}"] * bool(options.steps) + ["--checkpointing"] * options.checkpointing
    typed = [sys.executable, __file__, "--arm", arm, "--case", case, "--cache", cache, *same]
    done = subprocess.run(typed, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _table(
    case: str, results: dict[str, list[dict[str, Any]]], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    medians = {
        arm: statistics.median(second for run in runs for second in run["seconds"][1:]) for arm, runs in results.items()
    }
    epochs = {arm: statistics.median(sum(run["seconds"]) for run in runs) for arm, runs in results.items()}
    flops = {arm: runs[0]["gflop"] for arm, runs in results.items()}
    base = results["trl" if CASES[case].kinds == ("text",) else "compact"][0]["losses"]
    table = {}
    for arm, runs in results.items():
        later = medians[arm] if arm in ("trl", "compact", "first") else 0
        row = {
            "seconds": medians[arm],
            "epoch": epochs[arm],
            "epochs3": later or (medians.get("first", medians[arm]) + 2 * medians[arm]) / 3,
            "peak_mb": max(run["peak_mb"] for run in runs),
            "tokens": runs[0]["tokens"],
            "gflop": flops[arm],
            "ceiling": epochs["compact"] / epochs[arm] / (flops["compact"] / flops[arm]),
            "loss_difference": max(abs(a - b) for run in runs for a, b in zip(run["losses"], base, strict=True)),
        }
        if options.peak_tflops:
            row["mfu"] = flops[arm] / 1e3 / medians[arm] / options.peak_tflops
        table[arm] = row
    return table


def _show(case: str, table: dict[str, dict[str, float]]) -> None:
    print(f"\n{case}\n\n| arm | seconds a step | an epoch | epoch: times TRL | times compact | 3 epochs: times TRL "
          "| tokens | memory (MB) | of TRL's | GFLOP | share of ceiling | loss difference | MFU |\n|---"
          + "|---:" * 12 + "|")  # fmt: skip
    trl, compact = table["trl"], table["compact"]
    for arm, row in table.items():
        cells = (f"{row['seconds']:.2f}", f"{row['epoch']:.1f}", f"{trl['epoch'] / row['epoch']:.1f}",
                 f"{compact['epoch'] / row['epoch']:.2f}", f"{trl['epochs3'] / row['epochs3']:.1f}", row["tokens"],
                 row["peak_mb"], f"{row['peak_mb'] / trl['peak_mb']:.2f}", f"{row['gflop']:.0f}",
                 f"{row['ceiling']:.2f}", f"{row['loss_difference']:.0e}",
                 f"{row['mfu']:.2f}" if "mfu" in row else "")  # fmt: skip
        print(f"| {arm} | " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
