"""What visual pairs do to closed questions of phantoms, and three mends: balance by answer, reversed pairs, controls.

Run     python benchmarks/visual_balance.py --output runs/balance --record benchmarks/results/visual_balance.json
        What OUTPUT holds is not made again. One corpus and starting model (`quickstart`, seed 0), one dataset for each
        way of making pairs, one training a seed and arm, all with as many steps of 16 pairs by the loss and the rates
        of recipes/quickstart.yaml.
Arms    text            text pairs alone
        visual          text and lesion pairs, as `curate` makes them
        balance         the same with --balance answer
        symmetric       the same with --symmetric: beside each lesion pair its reversed one
        healthy         the same with --healthy-noise: beside each text pair its control
        NAME-alone      the visual pairs of "visual", "balance" and "symmetric" without text pairs
Reads   closed questions of the validation part alone: accuracy by `mmedpo compare` over seeds and images, and the share
        of answers "yes" (`yes_rate`: mean and sd over seeds; of the gold answers `yes_gold`), with the accuracy on
        questions whose gold answer is yes and no. Settings were not changed after a result.
Limits  half a million weights on drawings; one corpus, starting model and set of pairs, so that seeds are those of
        LoRA's initial weights and of the order of pairs.
"""

import argparse
import json
import shutil
from collections import Counter
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from mmedpo.cli import app
from mmedpo.data.text import polarity
from mmedpo.errors import AlreadyFinished
from mmedpo.evaluation.compare import compare
from mmedpo.quickstart.demonstration import _prepare
from mmedpo.runs import packaged
from mmedpo.runs.json_files import read_json, write_json
from mmedpo.runs.provenance import versions

DATASETS = {
    "visual": [],
    "balance": ["--balance", "answer"],
    "symmetric": ["--symmetric"],
    "healthy": ["--healthy-noise"],
}
TEXT = "hallucinated_response"
ARMS = {"text": ("visual", "text"), **{name: (name, "all") for name in DATASETS}}  # arm: dataset, kinds of pairs
ARMS |= {f"{name}-alone": (name, "visual") for name in ("visual", "balance", "symmetric")}


def invoke(*words: object) -> None:
    try:
        app([str(word) for word in words] + ["--resume"], standalone_mode=False)
    except AlreadyFinished as finished:
        print(finished)


def closed_questions(corpus: Path, folder: Path) -> None:
    """Write the closed questions of the validation part as a source of their own."""
    if folder.exists():
        return
    lines = (corpus / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if (row["split"], row["task"]) == ("validation", "closed_vqa")]
    (folder / "images").mkdir(parents=True)
    for name in {row["image"] for row in rows}:
        shutil.copy(corpus / "images" / name, folder / "images" / name)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "samples.jsonl").write_text(text, encoding="utf-8")


def visual_only(dataset: Path, folder: Path) -> None:
    """Write a dataset's visual pairs alone."""
    from datasets import Dataset, load_dataset

    if folder.exists():
        return
    pairs: Any = load_dataset(str(dataset), split="train")
    assert isinstance(pairs, Dataset)
    text = pairs.features["dispreference"].str2int(TEXT)
    kept = pairs.filter(lambda kind: kind != text, input_columns="dispreference")
    (folder / "data").mkdir(parents=True)
    kept.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    shutil.copy(dataset / "manifest.json", folder / "manifest.json")


def said(run: Path) -> dict[str, float]:
    """Return the shares of "yes" among answers and gold answers, and accuracy by gold answer."""
    lines = [
        {row["id"]: row for row in map(json.loads, (run / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())}
        for name in ("questions", "predictions", "scores")
    ]
    rows = [(lines[0][id], lines[1][id], lines[2][id]) for id in lines[0]]
    gold = [polarity(question["reference"]) for question, _, _ in rows]
    right = [bool(score["correct"]) for *_, score in rows]
    return {
        "yes_rate": fmean(polarity(answer["prediction"]) == "yes" for _, answer, _ in rows),
        "yes_gold": fmean(side == "yes" for side in gold),
        "accuracy_yes": fmean(one for one, side in zip(right, gold, strict=True) if side == "yes"),
        "accuracy_no": fmean(one for one, side in zip(right, gold, strict=True) if side == "no"),
    }


def preferred(dataset: Path) -> dict[str, dict[str, int]]:
    """Return by kind of pair how often the preferred side of a closed pair says yes or no."""
    from mmedpo.data.loading import load_pairs
    from mmedpo.schema import DISPREFERENCES, TASKS, message_text

    counts: dict[str, Counter[str]] = {}
    for row in load_pairs(str(dataset)).select_columns(["dispreference", "task", "chosen"]):
        side = polarity(message_text(row["chosen"]))
        if TASKS[row["task"]] == "closed_vqa" and side is not None:
            counts.setdefault(DISPREFERENCES[row["dispreference"]], Counter())[side] += 1
    return {kind: dict(found) for kind, found in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--record", type=Path, help="JSON file of the results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--scale", type=float, default=1.0, help="of the corpus, as of `mmedpo quickstart`")
    parser.add_argument("--questions", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=160)
    arguments = parser.parse_args()
    out = arguments.output.resolve()
    out.mkdir(parents=True, exist_ok=True)
    corpus, start, closed = out / "corpus", out / "start", out / "closed"
    _prepare(corpus, start, 0, arguments.scale, True)
    closed_questions(corpus, closed)
    for name, options in DATASETS.items():
        if not (out / "pairs" / name).exists():
            invoke("curate", "--source", corpus, "--split", "preference", "--limit", arguments.questions,
                   "--chat", "standin:rules", "--judges", "standin:strict", "standin:lenient", "standin:lexical",
                   "--localizer", "boxes", "--seed", 0, "--output", out / "pairs" / name, *options)  # fmt: skip
    recipe, runs = packaged.folder("recipes") / "quickstart.yaml", {"start": [out / "eval" / "start"]}
    ask = ("--source", closed, "--split", "validation", "--batch-size", 64, "--max-new-tokens", 8)
    if not runs["start"][0].exists():
        invoke("evaluate", "--model", start, *ask, "--output", runs["start"][0])
    for arm in arguments.arms:
        made, kinds = ARMS[arm]
        dataset = out / "pairs" / made
        if kinds == "visual":
            dataset = out / "pairs" / f"{made}-alone"
            visual_only(out / "pairs" / made, dataset)
        for seed in arguments.seeds:
            adapter, run = out / "adapters" / arm / str(seed), out / "eval" / f"{arm}-{seed}"
            if not adapter.exists():
                invoke("train", "--config", recipe, "--dataset_name", dataset, "--model_name_or_path", start,
                       "--max_steps", arguments.steps, "--save_strategy", "no", "--seed", seed, "--output", adapter,
                       *(["--dispreference", TEXT] if kinds == "text" else []))  # fmt: skip
            if not run.exists():
                invoke("evaluate", "--model", start, "--adapter", adapter, *ask, "--output", run)
            runs.setdefault(arm, []).append(run)
    if not arguments.record:
        return
    record: dict[str, Any] = {
        "command": f"python benchmarks/visual_balance.py --questions {arguments.questions} --steps {arguments.steps} "
        f"--arms {' '.join(arguments.arms)}",
        "seeds": arguments.seeds, "scale": arguments.scale,
        "questions": arguments.questions, "steps": arguments.steps, "versions": versions(),
        "pairs": {name: {"counts": read_json(out / "pairs" / name / "manifest.json")["counts"],
                         "rejects": read_json(out / "pairs" / name / "manifest.json")["rejects"],
                         "preferred": preferred(out / "pairs" / name)} for name in DATASETS},
    }  # fmt: skip
    record["answers"] = {}
    for arm, folders in runs.items():
        found = [said(folder) for folder in folders]
        record["answers"][arm] = {
            key: {"mean": round(fmean(one[key] for one in found), 4), "values": [round(one[key], 4) for one in found],
                  **({"sd": round(stdev(one[key] for one in found), 4)} if len(found) > 1 else {})}
            for key in found[0]
        }  # fmt: skip
    pairs = [(arm, folder) for arm, folders in runs.items() for folder in folders]
    for baseline in ("start", "text", "visual"):
        ordered = sorted(pairs, key=lambda pair: pair[0] != baseline)
        names, places = zip(*ordered, strict=True)
        compared = compare(places, methods=names)
        record[f"closed_accuracy_against_{baseline}"] = {
            "n": compared["sizes"]["closed_accuracy"],
            **compared["metrics"]["closed_accuracy"],
        }
    write_json(arguments.record, record)


if __name__ == "__main__":
    main()
