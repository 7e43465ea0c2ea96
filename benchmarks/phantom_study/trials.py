"""Trainings of the study: starting models, arms by mmedpo's own trainer, and their outcomes on test phantoms."""

from __future__ import annotations

import json
import resource
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import numpy as np

from phantom_study import judges
from phantom_study.world import (
    ALSO_SAID,
    IMPORTANCE,
    OPENING,
    RELEVANCE,
    Pair,
    Question,
    balanced,
    facts,
    in_other_words,
    in_style,
    reversed_of,
    text_pairs,
    visual_pairs,
    world,
)  # fmt: skip

IMAGES = (200, 150)  # of a world: preference, test
STARTS, START_IMAGES, START_STEPS = 3, 1500, 500
PATCH = 16  # pixels: 16 image tokens, a quarter of the quickstart's, which make a training three times as fast
FIRST_START = 500  # seed of the first start
STEPS, BATCH = 200, 16
BETA = 0.1
RATES = (1e-3, 2e-3, 4e-3)
TOGETHER = 64  # questions answered at once


@dataclass(frozen=True)
class Arm:
    """How one arm trains.

    Attributes:
        pairs: "text", "visual" or "both".
        weights: a method of `judges.weigh`; "none" needs no judge.
        losses: "both" (preference loss and NLL), "dpo" or "sft" alone.
        style, chosen: "match" or "free"; "gold" or "corrected".
        detector, step, grid: of `world.visual_pairs`.
        also: "balance", "symmetric" or "".
        steps: of training.
        warm: steps of supervised training on the chosen responses before (a start by SFT).
        over: unit of normalisation, "kind" or "merged" (`--weights-over`).
        rates: learning rates to try.
    """

    pairs: str = "text"
    weights: str = "none"
    judge: str = "oracle"
    losses: str = "both"
    style: str = "match"
    chosen: str = "gold"
    detector: str = "mixed"
    step: int = 800
    grid: int | None = None
    also: str = ""
    steps: int = STEPS
    warm: int = 0
    over: str = "kind"
    rates: tuple[float, ...] = RATES


def pairs_of(arm: Arm, asked: Sequence[Question], seed: int) -> tuple[list[tuple[Pair, float]], dict[str, float]]:
    """Return an arm's pairs with their weights, and the judge's rank correlation with the truth for each kind.

    Every arm of a world has the same text pairs. Pairs that "filter" gives the weight 0 are left out.
    """
    rng = [np.random.default_rng([seed, 10 + i]) for i in range(3)]
    text = text_pairs(asked, rng[0])
    if arm.style == "free":
        text = in_style(text, arm.chosen)
    visual = visual_pairs(asked, rng[1], arm.detector, arm.step, arm.grid)
    if arm.also == "balance":
        visual = balanced(visual, rng[2])
    if arm.also == "symmetric":
        visual = [one for pair in visual for one in (pair, reversed_of(pair, rng[2])) if one]
    kinds = {"text": text, "visual": visual}
    kinds = kinds if arm.pairs == "both" else {arm.pairs: kinds[arm.pairs]}
    pairs = [pair for kind in kinds.values() for pair in kind]
    if arm.weights == "none":
        return [(pair, 1.0) for pair in pairs], {}
    values = {kind: judges.scores(arm.judge, own, seed) for kind, own in kinds.items()}
    if arm.over == "merged":
        weights = judges.weigh(np.concatenate([*values.values()]), arm.weights)
    else:
        weights = np.concatenate([judges.weigh(own, arm.weights) for own in values.values()])
    weighted = [(pair, weight) for pair, weight in zip(pairs, weights.tolist(), strict=True)]
    kept = [(pair, weight) for pair, weight in weighted if weight > 0 or arm.weights != "filter"]
    return kept, {kind: judges.agreement(values[kind], own) for kind, own in kinds.items()}


def rows(weighted: Sequence[tuple[Pair, float]]) -> Any:
    """Return a preference dataset of pairs."""
    from datasets import Dataset, Features

    from mmedpo import schema
    from mmedpo.data.images import png

    shown = {}
    for pair, _ in weighted:
        if pair.question.shown.number not in shown:
            shown[pair.question.shown.number] = png(pair.question.shown.pixels, str(pair.question.shown.number))
    found = []
    for place, (pair, weight) in enumerate(weighted):
        image = shown[pair.question.shown.number]
        noised = None if pair.noised is None else png(pair.noised, f"{place}-noised")
        kind = "reversed_noise" if pair.reversed else "lesion_noise" if noised else "hallucinated_response"
        found.append({
            "id": str(place), "prompt": [{"role": "user", "content": pair.question.text}],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
            "images": [noised if pair.reversed else image],
            "rejected_images": [noised] if noised and not pair.reversed else None,
            "dispreference": kind, "weight": weight,
        })  # fmt: skip
    return Dataset.from_list(found, features=Features({name: schema.FEATURES[name] for name in found[0]}))


def start(folder: Path, number: int, images: int = START_IMAGES, steps: int = START_STEPS) -> None:
    """Write FOLDER/starts/NUMBER: a tiny model trained on gold answers, a share of them in other words."""
    from PIL import Image

    from mmedpo.data.samples import Sample, SampleImage
    from mmedpo.quickstart import tiny

    own = folder / "starts" / str(number)
    if (own / "processor_config.json").exists():
        return
    seed = FIRST_START + number
    (asked,), rng = world(seed, (images,)), np.random.default_rng([seed, 20])
    (own / "images").mkdir(parents=True, exist_ok=True)
    samples = []
    for question in asked:
        file = own / "images" / f"{question.shown.number:05d}.png"
        if not file.exists():
            Image.fromarray(question.shown.pixels).save(file)
        said = in_other_words(question.answer) if rng.random() < ALSO_SAID else question.answer
        image = SampleImage(file, file.name)
        samples.append(Sample(file.name, (image,), question.text, said, question.task, None, "train", "phantom", ""))
    words = [text for question in asked for text in (question.text, *question.accepted)]
    model, processor = tiny.build([*words, OPENING], seed, PATCH)
    tiny.supervise(model, processor, samples, steps, seed)
    model.save_pretrained(own)
    processor.save_pretrained(own)


def train(arm: Arm, rate: float, seed: int, begun: Path, cache: Path, weighted: Sequence[tuple[Pair, float]]) -> Any:
    """Train an arm by `MMedPOTrainer`, and return the model with its LoRA adapter merged."""
    from transformers import set_seed
    from trl import ModelConfig

    from mmedpo.models.vision_language import load_model, load_processor
    from mmedpo.training.config import MMedPOConfig
    from mmedpo.training.model import choose_trained
    from mmedpo.training.trainer import MMedPOTrainer

    losses = {"both": ["sigmoid", "sft"], "dpo": ["sigmoid"], "sft": ["sft"]}

    def config(names: list[str], steps: int) -> MMedPOConfig:
        return MMedPOConfig(
            output_dir=str(cache / "trainer"), beta=BETA, loss_type=names, loss_weights=[1.0] * len(names),
            learning_rate=rate, lr_scheduler_type="cosine", warmup_steps=0.03, weight_decay=0.0, max_grad_norm=1.0,
            max_steps=steps, per_device_train_batch_size=BATCH, seed=seed, use_cpu=True, bf16=False,
            reference_cache=None if arm.warm else str(cache / "reference"), report_to="none", logging_steps=1000,
            gradient_checkpointing=False, save_strategy="no", disable_tqdm=True, reference="base",
        )  # fmt: skip

    model, processor = load_model(str(begun), dtype="float32"), load_processor(str(begun))
    dataset = rows(weighted)
    if arm.warm:
        set_seed(seed + 1)
        settings = config(["sft"], arm.warm)
        peft = choose_trained(model, ModelConfig(use_peft=True, lora_r=16, lora_alpha=32, lora_dropout=0.0), settings)
        first = MMedPOTrainer(model, args=settings, train_dataset=dataset, processing_class=processor, peft_config=peft)
        first.train()
        model = first.model.merge_and_unload()
    settings = config(losses[arm.losses], arm.steps)
    set_seed(seed)  # LoRA's initial weights
    peft = choose_trained(model, ModelConfig(use_peft=True, lora_r=16, lora_alpha=32, lora_dropout=0.0), settings)
    trainer = MMedPOTrainer(model, args=settings, train_dataset=dataset, processing_class=processor, peft_config=peft)
    trainer.train()
    return trainer.model.merge_and_unload()


def answers(model: Any, begun: Path, asked: Sequence[Question], images: Sequence[Any] | None = None) -> list[str]:
    """Return the model's greedy answers; `images` (uint8 arrays) replace the phantoms."""
    from PIL import Image

    from mmedpo.models.generation import Sampling
    from mmedpo.models.vision_language import VisionLanguageModel

    open_model = VisionLanguageModel(str(begun), weights=model)
    found: list[str] = [""] * len(asked)
    arrays = [question.shown.pixels for question in asked] if images is None else images
    pictures = {id(array): Image.fromarray(array).convert("RGB") for array in arrays}
    for kinds, longest in ((("closed_vqa", "open_vqa"), 12), (("report",), 48)):
        places = [i for i, question in enumerate(asked) if question.task in kinds]
        for begin in range(0, len(places), TOGETHER):
            batch = places[begin : begin + TOGETHER]
            shown = [(pictures[id(arrays[i])], asked[i].text) for i in batch]
            for i, (text,) in zip(batch, open_model.answer(shown, Sampling(longest)), strict=True):
                found[i] = text
    return found


def right(question: Question, said: str) -> bool:
    """Return whether an answer is right by `strict@4`, against the gold answer or the same in other words."""
    from mmedpo.evaluation.metrics import med_vqa

    said = said.removeprefix(OPENING).strip()
    kind = med_vqa.ANSWER_TYPES[question.task]
    return any(
        med_vqa.score(said, gold, kind, "strict", question.text)["correct"] == 1.0
        for gold in (question.accepted if kind == "open" else question.accepted[:1])
    )


def outcomes(model: Any, begun: Path, asked: Sequence[Question], held: Sequence[Pair]) -> dict[str, Any]:
    """Return the outcomes of docs/study.md over test questions and held-out text pairs, and all answers in order."""
    from mmedpo.evaluation.metrics import report_generation

    model.eval()
    said = answers(model, begun, asked)
    reports = [i for i, question in enumerate(asked) if question.task == "report"]
    found: dict[str, Any] = accuracies(asked, said)
    metrics = report_generation.compute([said[i] for i in reports], [asked[i].answer for i in reports])
    found |= {"bleu_1": metrics["bleu_1"], "rouge_l": metrics["rouge_l"]}
    lesions = [i for i, question in enumerate(asked) if question.task != "report" and question.lesions]
    about = [asked[i] for i in lesions]
    blind = answers(
        model, begun, about, [pair.noised for pair in visual_pairs(about, np.random.default_rng(0), "hit", 1000)]
    )
    found["visual_reliance"] = fmean(right(asked[i], said[i]) for i in lesions) - fmean(
        right(question, text) for question, text in zip(about, blind, strict=True)
    )
    found["style_auc"] = style_auc([(one, text) for one, text in zip(asked, said, strict=True) if one.task != "report"])
    return found | preferred(model, begun, held) | {"answers": said}


def accuracies(asked: Sequence[Question], said: Sequence[str]) -> dict[str, Any]:
    """Return accuracies of the answers to all questions but reports, by importance and task, and their style."""
    rows = [(question, text) for question, text in zip(asked, said, strict=True) if question.task != "report"]
    correct = [(question, right(question, text)) for question, text in rows]
    total = sum(IMPORTANCE[question.importance] for question, _ in correct)
    by_task = {
        name: [is_right for one, is_right in correct if one.task == f"{name}_vqa"] for name in ("closed", "open")
    }
    by_importance = {name: [is_right for one, is_right in correct if one.importance == name] for name in IMPORTANCE}
    return {
        "weighted_accuracy": sum(IMPORTANCE[one.importance] for one, is_right in correct if is_right) / total,
        "accuracy": fmean(is_right for _, is_right in correct),
        **{f"{name}_accuracy": fmean(own) for name, own in by_task.items()},
        **{f"accuracy_{name}": fmean(own) for name, own in by_importance.items()},
        "free_style": fmean(text.startswith(OPENING) for text in said),
        "words": fmean(len(text.split()) for _, text in rows),
    }


def style_auc(answered: Sequence[tuple[Question, str]]) -> float | None:
    """Return how well form alone tells answers that differ from the gold ones from these (`audit`'s AUC), or None."""
    from mmedpo.report.audit.style import Shortcut

    found = Shortcut()
    for question, said in answered:
        images = (question.shown.number,)
        found.add(SimpleNamespace(gold=question.answer, wrong=said, same_images=True, images=images))  # type: ignore[arg-type]
    auc: float | None = found.result()["auc"]
    return auc


def preferred(model: Any, begun: Path, held: Sequence[Pair]) -> dict[str, float]:
    """Return the share of held-out wrong answers that the model likes less than the gold answer, and the Brier score.

    The probability of the gold answer among the two is the sigmoid of the difference of their log-probabilities.
    """
    import torch

    from mmedpo.models.answers import read_answers
    from mmedpo.models.vision_language import load_processor
    from mmedpo.schema import undecoded
    from mmedpo.training.collator import PreferenceCollator

    pairs = [pair for pair in held if pair.severity != "not wrong"]
    dataset, collate = undecoded(rows([(pair, 1.0) for pair in pairs])), PreferenceCollator(load_processor(str(begun)))
    margins: list[float] = []
    names = ("weight", "kind", "side_keys")
    with torch.no_grad():
        for begin in range(0, len(dataset), TOGETHER):
            batch = collate([dataset[i] for i in range(begin, min(begin + TOGETHER, len(dataset)))])
            logps = read_answers(model, {key: value for key, value in batch.items() if key not in names}).logps().sum(1)
            margins += torch.sub(*logps.chunk(2)).tolist()
    chance = 1 / (1 + np.exp(-np.array(margins)))
    by = {name: [m > 0 for m, pair in zip(margins, pairs, strict=True) if pair.severity == name] for name in RELEVANCE}
    return {
        "preferred": fmean(margin > 0 for margin in margins), "brier": float(np.mean((1 - chance) ** 2)),
        **{f"preferred_{name}": fmean(own) for name, own in by.items() if own},
    }  # fmt: skip


def run_world(folder: Path, seed: int, wanted: Sequence[tuple[str, Arm, float]], sizes: Sequence[int] = IMAGES) -> None:
    """Train and measure arms in one world, whose starting model is there; what is there is not made again.

    Writes FOLDER/worlds/SEED/start.json and NAME@RATE.json.
    """
    import torch

    from mmedpo.models.vision_language import load_model
    from mmedpo.runs.json_files import write_json
    from mmedpo.runs.provenance import versions

    torch.set_num_threads(1)
    own, begun = folder / "worlds" / str(seed), folder / "starts" / str(seed % STARTS)
    wanted = [one for one in wanted if not file_of(own, one[0], one[2]).exists()]
    if not wanted and (own / "start.json").exists():
        return
    (own / "reference").mkdir(parents=True, exist_ok=True)
    preference, test = world(seed, sizes)
    held = text_pairs([question for question in test if question.task != "report"], np.random.default_rng([seed, 30]))
    if not (own / "start.json").exists():
        write_json(own / "start.json", outcomes(load_model(str(begun), dtype="float32"), begun, test, held))
    for name, arm, rate in wanted:
        began = time.process_time()
        weighted, agreement = pairs_of(arm, preference, seed)
        model = train(arm, rate, seed, begun, own, weighted)
        found = outcomes(model, begun, test, held)
        by_kind: dict[str, list[float]] = defaultdict(list)
        for pair, weight in weighted:
            by_kind[pair.severity or "visual"].append(weight)
        found |= {
            "pairs": facts([pair for pair, _ in weighted]),
            "agreement": agreement,
            "mean_weights": {kind: fmean(weights) for kind, weights in by_kind.items()},
            "cpu_s": time.process_time() - began, "commit": versions()["commit"],
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }  # fmt: skip
        write_json(file_of(own, name, rate), found)
        print(f"world {seed}: {name} at {rate:g}: {100 * found['weighted_accuracy']:.1f} %, "
              f"{found['cpu_s']:.0f} s", flush=True)  # fmt: skip


def file_of(folder: Path, name: str, rate: float) -> Path:
    return folder / f"{name.replace(' ', '-')}@{rate:g}.json"


def result(folder: Path, seed: int, name: str, rate: float | None) -> dict[str, Any] | None:
    """Return the outcomes of an arm in a world, or of its start; None where they are not there yet."""
    own = folder / "worlds" / str(seed)
    file = own / "start.json" if rate is None else file_of(own, name, rate)
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
