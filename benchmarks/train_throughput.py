"""Seconds a step and peak memory of training: TRL's DPOTrainer and ours, same model, rows and machine, alternating.

Run     python benchmarks/train_throughput.py --answers 8 --rounds 2 --output benchmarks/results/train_throughput.json
Model   a LLaVA of random weights: CLIP at 336 pixels (576 image tokens), Llama of width 512, 8 layers, vocabulary
        32,000, LoRA r 16, float32; 4 pairs a step whose sides see the same image
Arms    trl      DPOTrainer as it is
        mmedpo   prefix sharing, and the reference from its cache (filled before: what every epoch after the first has)
        first    prefix sharing with a live reference: what the first epoch has
        apart    separate rows with a live reference: TRL's algorithm with the head on answer tokens only
Reads   `seconds`: median of the steps after the first; `peak_mb`: largest resident memory of the arm's own process;
        `loss_difference`: largest over the steps, to TRL's losses of the same steps
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ARMS = ("trl", "mmedpo", "first", "apart")
PAIRS, SIDE, WORDS, VOCABULARY = 4, 336, 200, 32_000


def rows(answer_words: int, count: int, seed: int) -> Any:
    import numpy as np
    from datasets import Dataset, Features, Image, List, Value
    from PIL import Image as pillow

    rng = np.random.default_rng(seed)

    def said(number: int) -> str:
        return " ".join(f"word{i}" for i in rng.integers(WORDS, size=number))

    def message(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    pairs = [
        {
            "prompt": message("user", said(20)), "chosen": message("assistant", said(answer_words)),
            "rejected": message("assistant", said(answer_words)), "weight": 1.0,
            "images": [pillow.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))],
        }
        for _ in range(count)
    ]  # fmt: skip
    messages = List({"role": Value("string"), "content": Value("string")})
    features = {"prompt": messages, "chosen": messages, "rejected": messages, "weight": Value("float32")}
    return Dataset.from_list(pairs, features=Features({**features, "images": List(Image())}))


def model_and_processor(seed: int) -> tuple[Any, Any]:
    import torch
    import transformers as tf

    from mmedpo import tiny

    _, processor = tiny.build([f"word{i}" for i in range(WORDS)])
    processor.image_processor = tf.CLIPImageProcessorPil()  # 336 x 336 below
    processor.image_processor.size = {"shortest_edge": SIDE}
    processor.image_processor.crop_size = {"height": SIDE, "width": SIDE}
    processor.patch_size = 14
    vision = tf.CLIPVisionConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4, image_size=SIDE,
        patch_size=14,
    )  # fmt: skip
    text = tf.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8, eos_token_id=1, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(seed)
    return tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=image)
    ), processor


def run(arm: str, answer_words: int, steps: int, seed: int, cache: Path) -> dict[str, Any]:
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from mmedpo import MMedPOConfig, MMedPOTrainer
    from mmedpo.training.model import language_model_linears

    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.monotonic() - self.began)

    model, processor = model_and_processor(seed)
    settings: dict[str, Any] = {
        "output_dir": str(cache / arm), "per_device_train_batch_size": PAIRS, "max_steps": steps, "logging_steps": 1,
        "learning_rate": 1e-4, "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "max_length": None, "seed": seed, "dataloader_num_workers": 0,
    }  # fmt: skip
    config: Any = DPOConfig(**settings)
    if arm != "trl":
        kept = str(cache / "reference") if arm == "mmedpo" else None
        config = MMedPOConfig(**settings, prefix_sharing=arm != "apart", reference_cache=kept)
    trainer = (DPOTrainer if arm == "trl" else MMedPOTrainer)(
        model,
        args=config,
        train_dataset=rows(answer_words, PAIRS * steps, seed),
        processing_class=processor,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=language_model_linears(model)),
        callbacks=[Clock()],
    )
    trainer.train()
    return {
        "seconds": statistics.median(seconds[1:]),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=8, help="words, which are tokens, of each answer")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--arm", choices=ARMS, help="run this arm alone, and print its numbers")
    parser.add_argument("--cache", type=Path, help="of the arm's own process")
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(run(options.arm, options.answers, options.steps, options.seed, options.cache)))
        return
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    same = ["--answers", str(options.answers), "--steps", str(options.steps), "--seed", str(options.seed)]
    with tempfile.TemporaryDirectory() as cache:
        # The first run fills the reference's cache and is not counted.
        for arm in ["mmedpo", *ARMS * options.rounds]:
            typed = [sys.executable, __file__, "--arm", arm, "--cache", cache, *same]
            done = subprocess.run(typed, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            results[arm].append(json.loads(done.stdout.splitlines()[-1]))
            print(arm, json.dumps(results[arm][-1]), file=sys.stderr, flush=True)
    results["mmedpo"] = results["mmedpo"][1:]
    _report(results, options)


def _report(results: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    from mmedpo.workdir import versions, write_json

    trl = results["trl"][0]["losses"]
    table = {
        arm: {
            "seconds": round(statistics.median(run["seconds"] for run in runs), 2),
            "peak_mb": max(run["peak_mb"] for run in runs),
            "loss_difference": max(abs(a - b) for run in runs for a, b in zip(run["losses"], trl, strict=True)),
        }
        for arm, runs in results.items()
    }
    print("| arm | seconds a step | times TRL's speed | peak memory (MB) | of TRL's | largest loss difference |")
    print("|---|---:|---:|---:|---:|---:|")
    for arm, row in table.items():
        speed, memory = table["trl"]["seconds"] / row["seconds"], row["peak_mb"] / table["trl"]["peak_mb"]
        cells = (row["seconds"], f"{speed:.1f}", row["peak_mb"], f"{memory:.2f}", f"{row['loss_difference']:.0e}")
        print(f"| {arm} | " + " | ".join(map(str, cells)) + " |")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        record = {"command": " ".join(sys.argv), "seed": options.seed, "versions": versions(), "results": table}
        write_json(options.output, record)


if __name__ == "__main__":
    main()
