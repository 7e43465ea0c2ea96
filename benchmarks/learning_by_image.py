"""What `pairs_per_image` does to learning: the same pairs, steps and rates in random order and by image, over seeds.

Run     python benchmarks/learning_by_image.py --data ../shared/data --output runs/learning
        Prints tables; writes OUTPUT/learning_by_image.json and OUTPUT/curves.png. Trainings that OUTPUT holds are not
        repeated; --report-only reads what is there. Five seeds of the three arms with steps of 16 pairs take about 12
        minutes of CPU time for phantoms and vqa-rad, 10 for phantoms-merged; those of 64 pairs take 7 for phantoms.
Data    phantoms: drawn anew for each seed, with all that `quickstart.phantom` can ask about an image. Rejected: "no"
        for yes and the reverse; else the answer to another question of that part and first word, drawn by seed.
        phantoms-merged: the same, and beside each text pair whose question has a lesion the pair of the same answer
        with that lesion noised, one noised image an image and lesion (`curate`'s default --noise-per image).
        vqa-rad: images of VQA-RAD with the preference pairs that MMedPO's authors released (DATA/vqa-rad/images,
        DATA/released); their weights are left out. Images are divided anew for each seed.
        Text pairs only, since the released pairs mark no lesion. Pairs and held-out pairs share no image, and neither
        has one of the starting model's.
Model   `quickstart.tiny`, one for each dataset, trained on gold answers for a few steps; then LoRA by the rates and the
        loss of recipes/quickstart.yaml (DPO + NLL). All arms of a seed share LoRA's initial weights, pairs and cached
        reference. They differ in the order of the pairs alone.
Arms    random, K=8 and K=16: steps of 16 pairs; random 64, K=8 64 and K=16 64: of 64 pairs, a quarter as many.
Reads   Decided before any result by image was seen. At the end of training the preference loss of the held-out pairs,
        mean of -log sigmoid(beta * margin), and the share of them with a margin above 0; also the chosen side's NLL a
        token. Intervals: 95 %, Student's t over the differences of the seeds to random order.
        K is taken for harmless where the upper end of the loss's interval is at most a tenth of what training in random
        order gains over the start (log 2). Sizes were tried on seed 100 in random order, which is not reported; with
        wrong answers of the same kind, drawn for VQA-RAD's own questions, nothing was learned there (held-out .710).
        Merged pairs and steps of 64 pairs came later, under the same rule, decided before their first result: merged,
        it holds for all held-out pairs, for text pairs and for lesion pairs, each by its own gain. K = 8 becomes the
        default where it is harmless in all four cases: phantoms and vqa-rad at 16 pairs, merged at 16, phantoms at 64.
        No seed is added, and no size changed, after a result. On seed 100 in random order lesion pairs gained .004 from
        the start of the text case, so that the merged case starts from a longer training on more images.
        The rule was not met: merged at 16, lesion pairs learned less with K = 8, so that the default stays 1. What was
        run on merged pairs after that, K = 4 and steps of 64 (random and K = 8), explores why and decides nothing.
Limits  half a million weights, rates of such a model, short trainings; nothing clinical. The first arm of a seed also
        fills the reference cache, so that its CPU seconds include the reference.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np

from mmedpo.data.samples import Sample, SampleImage

ARMS = {  # pairs an image, pairs a step
    "random": (1, 16), "K=8": (8, 16), "K=16": (16, 16), "random 64": (1, 64), "K=8 64": (8, 64), "K=16 64": (16, 64),
    "K=4": (4, 16),
}  # fmt: skip
CONTROL = {arm: "random 64" if step == 64 else "random" for arm, (most, step) in ARMS.items() if most > 1}
MERGED = "phantoms-merged"
IMAGES = {"phantoms": (300, 150, 60), MERGED: (1000, 150, 60), "vqa-rad": (80, 100, 51)}  # start, pairs, held out
START_STEPS, START_SEED = {"phantoms": 200, MERGED: 500, "vqa-rad": 100}, 100
EPOCHS = {"phantoms": 2, MERGED: 2, "vqa-rad": 3}
BETA, EVALUATIONS, BATCH = 0.1, 4, 64
OUTCOMES = {  # by name: heading, factor
    "loss": ("held-out loss", 1), "loss of hallucinated_response": ("of text pairs", 1),
    "loss of lesion_noise": ("of lesion pairs", 1), "accuracy": ("held-out accuracy, %", 100),
    "nll": ("NLL of the chosen side", 1),
}  # fmt: skip


class Asked(NamedTuple):
    """A question about an image, with both responses."""

    image: Path
    prompt: str
    answer: str
    rejected: str = ""
    noised: Path | None = None

    @property
    def sample(self) -> Sample:
        """The question as supervised training takes it."""
        image = SampleImage(self.image, self.image.name)
        return Sample(self.prompt, (image,), self.prompt, self.answer, "open_vqa", None, "train", "", "")


def parts(dataset: str, seed: int, data: Path, folder: Path) -> list[list[Asked]]:
    """Return the questions to start from, for pairs, and held out; no image is in two of them."""
    rng = np.random.default_rng(seed)
    everything = drawn(sum(IMAGES[dataset]), rng, folder) if dataset != "vqa-rad" else released(data)
    images = sorted({asked.image for asked in everything})
    first = rng if dataset != "vqa-rad" else np.random.default_rng(START_SEED)
    images = [images[i] for i in first.permutation(len(images))]
    begun, rest = images[: IMAGES[dataset][0]], images[IMAGES[dataset][0] :]
    rest = [rest[i] for i in rng.permutation(len(rest))]
    split = (begun, rest[: IMAGES[dataset][1]], rest[IMAGES[dataset][1] :])
    found = [[asked for asked in everything if asked.image in {*images}] for images in split]
    return found if dataset == "vqa-rad" else [found[0], *(disputed(part, seed) for part in found[1:])]


def released(data: Path) -> list[Asked]:
    """Return the released pairs of VQA-RAD, texts in small letters."""

    def said(conversation: list[dict[str, str]], turn: int) -> str:
        return conversation[turn]["value"].replace("<image>", "").strip().lower()

    rows = json.loads((data / "released" / "vqa-rad_dpo_weighted.json").read_text(encoding="utf-8"))
    found = [
        Asked(
            data / "vqa-rad" / "images" / row["image"], said(row["conversations"], 0), said(row["conversations"], 1),
            said(row["rejected_conversations"], 1),
        )
        for row in rows
    ]  # fmt: skip
    return [asked for asked in found if asked.answer != asked.rejected]


def drawn(count: int, rng: np.random.Generator, folder: Path) -> list[Asked]:
    """Return what can be asked about each of `count` phantoms; write images, also those with lesions noised."""
    from PIL import Image

    from mmedpo.curation.noise import box_mask, diffuse, generator, name_of
    from mmedpo.data.samples import Box
    from mmedpo.quickstart import phantom

    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(count):
        pixels, lesions = phantom.draw(rng)
        file = folder / f"{number:05d}.png"
        Image.fromarray(pixels).save(file)
        rows: dict[str, Any] = {str(row["question"]): row for _ in range(8) for row in phantom.questions(lesions, rng)}
        for question, row in rows.items():
            mask, noised = box_mask([Box(**box) for box in row["boxes"]], *pixels.shape), None
            if mask.any():
                name = name_of(pixels, mask)
                noised = folder / f"{name}.png"
                Image.fromarray(diffuse(pixels, mask, 800, generator(0, name))).save(noised)
            found.append(Asked(file, question, row["answer"], noised=noised))
    return found


def disputed(part: Sequence[Asked], seed: int) -> list[Asked]:
    """Return the questions with a rejected response."""
    rng = np.random.default_rng(seed)

    def wrong(asked: Asked) -> str:
        alike = [o.answer for o in part if o.prompt.split()[0] == asked.prompt.split()[0] and o.answer != asked.answer]
        return alike[rng.integers(len(alike))]

    return [asked._replace(rejected=wrong(asked)) for asked in part]


def pairs(part: Sequence[Asked], merged: bool) -> list[dict[str, Any]]:
    """Return rows of a preference dataset, with images of the model's size; merged, lesion pairs beside text pairs."""
    from PIL import Image

    from mmedpo.data.images import open_rgb, png
    from mmedpo.quickstart.tiny import IMAGE_SIZE
    from mmedpo.schema import DISPREFERENCES

    shown: dict[Path | None, Any] = {}
    for file in {file for asked in part for file in (asked.image, asked.noised) if file}:
        picture = open_rgb(file)
        size = [max(IMAGE_SIZE, round(side * IMAGE_SIZE / min(picture.size))) for side in picture.size]
        shown[file] = png(np.asarray(picture.resize(size, Image.Resampling.BICUBIC)), file.stem)
    found = []
    for asked in part:
        text = {
            "prompt": [{"role": "user", "content": asked.prompt}],
            "chosen": [{"role": "assistant", "content": asked.answer}],
            "rejected": [{"role": "assistant", "content": asked.rejected}],
            "images": [shown[asked.image]], "rejected_images": None, "dispreference": DISPREFERENCES[0], "weight": 1.0,
        }  # fmt: skip
        found.append(text)
        if merged and asked.noised:
            noised = {"rejected": text["chosen"], "rejected_images": [shown[asked.noised]]}
            found.append({**text, **noised, "dispreference": DISPREFERENCES[1]})
    return found


def start(split: Sequence[Sequence[Asked]], steps: int, folder: Path) -> None:
    """Write a tiny model trained on the gold answers of the first part, with the words of all parts."""
    from mmedpo.quickstart import tiny

    words = [text for part in split for asked in part for text in asked[1:4]]
    model, processor = tiny.build(words, START_SEED)
    tiny.supervise(model, processor, [asked.sample for asked in split[0]], steps, START_SEED)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def train(arm: str, seed: int, epochs: int, folder: Path, begun: Path, trained: list[Any], held: list[Any]) -> Any:
    """Train one arm; return its curve over the held-out pairs, images a step and CPU seconds a step."""
    import torch
    from datasets import Dataset, Features
    from transformers import TrainerCallback, set_seed
    from trl import ModelConfig

    from mmedpo import schema
    from mmedpo.models.vision_language import load_model, load_processor
    from mmedpo.runs.provenance import versions
    from mmedpo.training.config import MMedPOConfig
    from mmedpo.training.model import choose_trained
    from mmedpo.training.trainer import MMedPOTrainer

    most, step = ARMS[arm]
    dataset = Dataset.from_list(trained, features=Features({name: schema.FEATURES[name] for name in trained[0]}))
    config = MMedPOConfig(
        output_dir=str(folder / "trainer"), beta=BETA, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 1.0],
        learning_rate=2e-3, lr_scheduler_type="cosine", warmup_steps=0.03, weight_decay=0.0, max_grad_norm=1.0,
        num_train_epochs=epochs, per_device_train_batch_size=step, pairs_per_image=most, seed=seed,
        reference_cache=str(folder / "reference"), use_cpu=True, bf16=False, report_to="none",
        gradient_checkpointing=False, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    model, processor = load_model(str(begun), dtype="float32"), load_processor(str(begun))
    set_seed(seed)  # LoRA's initial weights
    peft = choose_trained(model, ModelConfig(use_peft=True, lora_r=16, lora_alpha=32, lora_dropout=0.0), config)
    curve: list[dict[str, float]] = []
    spent = [0.0]

    class HeldOut(TrainerCallback):
        """Measure the held-out pairs at the start, in between and at the end."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == 0:
                self.reference: list[Any] = []
                self.batches = [trainer.data_collator(held[i : i + BATCH]) for i in range(0, len(held), BATCH)]
                self.measure(0)

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step in {round(state.max_steps * i / EVALUATIONS) for i in range(1, EVALUATIONS + 1)}:
                self.measure(state.global_step)

        @torch.no_grad()
        def measure(self, step: int) -> None:
            began = time.process_time()
            logps = [trainer.answer_logps(trainer.model, batch).sum(1) for batch in self.batches]
            self.reference = self.reference or logps
            losses, right, nll, kinds = [], [], [], []
            for now, before, batch in zip(logps, self.reference, self.batches, strict=True):
                chosen, rejected = (now - before).chunk(2)
                losses += (-torch.nn.functional.logsigmoid(BETA * (chosen - rejected))).tolist()
                right += (chosen > rejected).float().tolist()
                nll += (-now / batch["completion_mask"].sum(1)).chunk(2)[0].tolist()
                kinds += batch["kind"].tolist()
            point = {"step": step, "loss": fmean(losses), "accuracy": fmean(right), "nll": fmean(nll)}
            for kind in {*kinds} if len({*kinds}) > 1 else ():
                own = [loss for loss, one in zip(losses, kinds, strict=True) if one == kind]
                point[f"loss of {schema.DISPREFERENCES[kind]}"] = fmean(own)
            curve.append(point)
            spent[0] += time.process_time() - began

    trainer = MMedPOTrainer(
        model, args=config, train_dataset=dataset, processing_class=processor, peft_config=peft, callbacks=[HeldOut()]
    )
    began = time.process_time()
    trainer.train()
    seconds = (time.process_time() - began - spent[0]) / trainer.state.max_steps
    order = list(trainer._get_train_sampler())
    steps = [order[i : i + step] for i in range(0, len(order) - step + 1, step)]
    images = fmean(len({trained[i]["images"][0]["path"] for i in own}) for own in steps)
    spent_on = {"steps": trainer.state.max_steps, "seconds_a_step": seconds, "commit": versions()["commit"]}
    return {"curve": curve, "images_a_step": images, **spent_on}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean and 95 % limits by Student's t."""
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return fmean(values), fmean(values) - half, fmean(values) + half


def report(runs: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Print the tables; return their numbers. `runs`: by dataset, arm and seed."""
    found: dict[str, Any] = {}
    for dataset, arms in runs.items():
        points = [run["curve"][-1] for seeds in arms.values() for run in seeds.values()]
        outcomes = {name: known for name, known in OUTCOMES.items() if points and name in points[0]}
        headings = " | ".join(heading for heading, _ in outcomes.values())
        print(f"\n{dataset}\n\n| arm | seeds | images a step | CPU s a step | {headings} |")
        print("|---" * (4 + len(outcomes)) + "|")
        for arm, seeds in arms.items():
            ends = {seed: run["curve"][-1] for seed, run in seeds.items()}
            control = {seed: run["curve"][-1] for seed, run in arms.get(CONTROL.get(arm, ""), {}).items()}
            facts = ("images_a_step", "seconds_a_step", "steps")
            entry: dict[str, Any] = {name: fmean(run[name] for run in seeds.values()) for name in facts}
            cells = []
            for name, (_, scale) in outcomes.items():
                values = [end[name] for end in ends.values()]
                entry[name] = {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None}
                digits = 1 if scale == 100 else 3
                cells.append(f"{scale * fmean(values):.{digits}f}")
                if both := sorted(ends.keys() & control.keys()):
                    entry[name]["difference"] = interval([ends[seed][name] - control[seed][name] for seed in both])
                    mean, low, high = (scale * value for value in entry[name]["difference"])
                    cells[-1] += f" ({mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}])"
                    if name.startswith("loss"):
                        bound = (math.log(2) - fmean(control[seed][name] for seed in both)) / 10
                        entry[name] |= {"bound": bound, "harmless": bool(high <= bound)}
                        cells[-1] += f" {'<=' if high <= bound else '>'} {bound:.4f}"
            spent = f"{entry['images_a_step']:.1f} | {entry['seconds_a_step']:.3f}"
            print(f"| {arm} | {len(seeds)} | {spent} | {' | '.join(cells)} |")
            found.setdefault(dataset, {})[arm] = entry
    return found


def draw(runs: dict[str, dict[str, dict[str, Any]]], output: Path) -> None:
    """Draw the held-out loss and accuracy of each arm over the pairs seen: means, and each seed's line."""
    from matplotlib.figure import Figure

    from mmedpo.data.plots import PALETTE, saved

    figure = Figure(figsize=(10, 3.4 * len(runs)), layout="constrained")
    for axes, (dataset, arms) in zip(figure.subplots(len(runs), 2, squeeze=False), runs.items(), strict=True):
        for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
            for colour, (arm, seeds) in zip(PALETTE, arms.items(), strict=False):
                lines = [[point[name] for point in run["curve"]] for run in seeds.values()]
                seen = [point["step"] * ARMS[arm][1] for point in next(iter(seeds.values()))["curve"]]
                for line in lines:
                    axis.plot(seen[: len(line)], line, color=colour, linewidth=0.5, alpha=0.4)
                axis.plot(seen, [fmean(values) for values in zip(*lines, strict=True)], color=colour, label=arm)
            axis.set(title=f"{dataset}: held-out {name}", xlabel="pairs seen")
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].legend(frameon=False, fontsize="small")
    output.write_bytes(saved(figure, dpi=110))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of vqa-rad/ and released/")
    parser.add_argument("--output", type=Path, default=Path("runs/learning"))
    parser.add_argument("--datasets", nargs="+", default=[*IMAGES], choices=[*IMAGES])
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(5)])
    parser.add_argument("--arms", nargs="+", default=[*ARMS][:3], choices=[*ARMS])
    parser.add_argument("--report-only", action="store_true")
    options = parser.parse_args()
    from mmedpo.runs.provenance import versions

    runs: dict[str, dict[str, dict[str, Any]]] = {dataset: {} for dataset in options.datasets}
    sizes: dict[str, dict[str, Any]] = {dataset: {} for dataset in options.datasets}
    for seed in options.seeds:
        for dataset in options.datasets:
            folder = options.output / f"{dataset}-{seed}"
            files = {arm: folder / f"{arm.replace(' ', '-')}.json" for arm in options.arms}
            if not (options.report_only or all(file.exists() for file in files.values())):
                begun = options.output / f"{dataset}-start"
                if not (begun / "model.safetensors").exists():
                    first = parts(dataset, START_SEED, options.data, options.output / f"{dataset}-{START_SEED}")
                    start(first, START_STEPS[dataset], begun)
                split = parts(dataset, seed, options.data, folder / "images")
                trained, held = (pairs(part, dataset == MERGED) for part in split[1:])
                size = {"images": IMAGES[dataset], "pairs": [len(trained), len(held)]}
                (folder / "reference").mkdir(parents=True, exist_ok=True)
                (folder / "sizes.json").write_text(json.dumps(size))
                for arm, file in files.items():
                    if not file.exists():
                        began = time.process_time()
                        run = train(arm, seed, EPOCHS[dataset], folder, begun, trained, held)
                        file.write_text(json.dumps(run))
                        print(dataset, seed, arm, f"{time.process_time() - began:.0f} s", run["curve"][-1], flush=True)
            for arm, file in files.items():
                if file.exists():
                    sizes[dataset][str(seed)] = json.loads((folder / "sizes.json").read_text())
                    runs[dataset].setdefault(arm, {})[str(seed)] = json.loads(file.read_text())
    table = report(runs)
    draw(runs, options.output / "curves.png")
    words = ["python benchmarks/learning_by_image.py", "--seeds", *map(str, options.seeds)]
    found = {"command": " ".join(words), "versions": versions(), "sizes": sizes, "results": table, "runs": runs}
    (options.output / "learning_by_image.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
