"""A small run of every stage: an invented source, pairs, an adapter, evaluations, a comparison, a publication."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from golden import render
from golden.commands import loopback_hub, run
from PIL import Image

STANDINS = "--chat standin:rules --judges standin:strict standin:lenient standin:lexical"
CURATE = "curate --source clinic --split preference --skip-faulty"
EVALUATE = "evaluate --model tiny --source clinic --split test --skip-faulty"
PAIRS = "evaluate --model tiny --adapter adapter --dataset pairs --limit 6"
COMMANDS = (
    f"{CURATE} {STANDINS} --model tiny --limit 4 --max-new-tokens 8 --max-new-tokens-report 8 --seed 3 --output pairs",
    f"{CURATE} {STANDINS} --limit 1 --localizer masks --noise gaussian --noise-edge 2 --noise-pixels 32 "
    "--style minimal --panel independent --rounds 2 --tolerance 0.2 --weights literal --output masks",
    f"{CURATE} {STANDINS} --limit 1 --localizer heatmap --mask-rule otsu --rounds 1 --noise black "
    "--weights-over merged --weights raw --reversed --output heatmap",
    f"{CURATE} --chat none --judges none --weights none --limit 1 --noise-region image --noise crop --output plain",
    "audit pairs --output audit",
    "build folder --source clinic --license cc-by-4.0 --split preference --skip-faulty --limit 3 "
    f"{STANDINS} --output built",
    "preview --source clinic --split test --skip-faulty --count 2 --model tiny --output sheet.png",
    "train --config quickstart.yaml --dataset_name pairs --model_name_or_path tiny --num_train_epochs 1 --max_steps 3 "
    "--learning_rate 1e-2 --per_device_train_batch_size 4 --logging_steps 1 --save_strategy no --disable_tqdm true "
    "--output adapter",
    f"{EVALUATE} --max-new-tokens 8 --max-new-tokens-report 8 --name start --output start",
    f"{EVALUATE} --max-new-tokens 8 --max-new-tokens-report 8 --name tuned --adapter adapter --output tuned",
    f"{PAIRS} --measure preference --output preference",
    f"{PAIRS} --measure visual_reliance --output visual",
    "attention --model tiny --adapter adapter --source clinic --split test --skip-faulty --limit 2 --output attention",
    "questions --source clinic --split test --skip-faulty --output questions.jsonl",
    "score --predictions right.jsonl --source clinic --split test --skip-faulty --name right --output right",
    "score --predictions wrong.jsonl --source clinic --split test --skip-faulty --name wrong --output wrong",
    "score right --vqa-protocol llava_med --report-protocol huggingface --meteor-variant nltk_exact_stem "
    "--output lenient",
    "compare wrong right --seed 1 --output comparison",
    "compare start tuned --source clinic --dataset pairs --training adapter --attention attention --card adapter "
    "--output page",
)
RESTRICTED = (
    f"{CURATE} {STANDINS} --limit 2 --rounds 1 --credentialed --cache calls.sqlite --output restricted",
    "evaluate --model tiny --source clinic --split test --skip-faulty --credentialed --limit 2 --max-new-tokens 4 "
    "--max-new-tokens-report 4 --output ward",
)
PUBLISH = (
    "publish pairs user/pairs --dry-run",
    "publish --adapter adapter user/adapter --dry-run",
    "publish pairs user/pairs --fill license=cc0-1.0 --yes",
    "publish restricted user/ward --yes",
    "publish --adapter adapter user/adapter --yes",
)
REJOIN = "rejoin hub/user/ward --source clinic --cache calls.sqlite --output rejoined"
# What is compared of the folders that these commands write, beside the names of all their files.
GUARDED = (
    "pairs/README.md", "pairs/manifest.json", "pairs/rejects.jsonl", "pairs/data/*", "audit/audit.json", "sheet.png",
    "masks/data/*", "heatmap/data/*", "plain/data/*", "built/manifest.json", "questions.jsonl",
    "adapter/README.md", "adapter/*.yaml", "adapter/training.json", "adapter/trainer_state.json",
    "start/predictions.jsonl", "tuned/predictions.jsonl", "tuned/results.json",
    "preference/results.json", "visual/results.json",
    "attention/attention.json", "lenient/results.json", "comparison/*.json", "comparison/table.*",
    "page/report.html", "ward/results.json", "hub/user/ward/*", "hub/user/ward/data/*", "rejoined/rejoin.jsonl",
)  # fmt: skip
# Answers made elsewhere: right, wrong, with words around, without a verdict, empty. They are used in turn.
ANSWERS = {
    "right": ("{gold}", "The answer is {gold}.", "{gold}", "not a {gold}", "{gold}"),
    "wrong": ("{gold}", "yes", "a nodule in the left upper zone", "", "I cannot say."),
}


def source(folder: Path) -> None:
    """Write a source with every form of lesion, groups of questions, and faulty rows of several kinds."""
    from mmedpo.quickstart import phantom

    phantom.write(folder, {"preference": 3, "test": 3}, seed=11)
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text("utf-8").splitlines()]
    rows = [row for row in rows if row["split"] != "test" or row["id"][-2:] not in ("-1", "-2")]
    images = {row["image"] for row in rows}
    for number, name in enumerate(sorted(images)):
        row, column = divmod(number, 4)
        heat = np.hypot(*(np.mgrid[0:64, 0:64] - np.array([20 + 4 * row, 16 + 8 * column])[:, None, None]))
        Image.fromarray((np.clip(1 - heat / 24, 0, 1) * 255).astype(np.uint8)).save(folder / f"heat-{name}")
        Image.fromarray(((heat < 9) * 255).astype(np.uint8)).save(folder / f"mask-{name}")
    for number, row in enumerate(rows):
        part, image = row["image"][:-4].rsplit("-", 1)
        row |= {"patient_id": f"{part}-patient-{int(image) // 2}", "modality": "X-Ray", "organ": "CHEST",
                "question_type": ("PRES", "ABN")[number % 2], "masks": [f"mask-{row['image']}"],
                "heatmap": f"heat-{row['image']}", "confidence": round(0.5 + number % 5 / 10, 1)}  # fmt: skip
        if row["id"] == "preference-00001-0":
            row["boxes"] = [{"label": "nodule", "x": 0, "y": 0, "width": 64, "height": 60}]  # more than --max-coverage
        elif row["id"] == "preference-00002-0":
            row |= {"answer": "unknown", "task": "open_vqa"}
    faults = {"image": "gone.png", "answer": " ", "task": "essay", "boxes": [{"x": 1}]}
    first = {split: next(row for row in rows if row["split"] == split) for split in ("preference", "test")}
    for number, (column, cell) in enumerate(faults.items()):
        rows += [{**row, "id": f"{split}-faulty-{number}", column: cell} for split, row in first.items()]
    (folder / "samples.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")


def predictions(folder: Path) -> None:
    """Write `ANSWERS` to the questions of the split test."""
    lines = (folder / "clinic" / "samples.jsonl").read_text("utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == "test" and "faulty" not in row["id"]]
    for name, answers in ANSWERS.items():
        said = [
            {"id": row["id"], "prediction": answers[number % len(answers)].format(gold=row["answer"])}
            for number, row in enumerate(rows)
        ]
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in said), "utf-8")


def make(folder: Path) -> dict[str, str]:
    """Run the whole chain in an empty folder; return the texts to compare, by the name of their file."""
    from mmedpo.quickstart import phantom, tiny
    from mmedpo.runs import packaged

    source(folder / "clinic")
    predictions(folder)
    (folder / "quickstart.yaml").write_bytes((packaged.folder("recipes") / "quickstart.yaml").read_bytes())
    phantom.write(folder / "words", {"supervised": 12}, seed=0)
    tiny.make(folder / "words", "supervised", steps=5, output=folder / "tiny")
    transcript = [_said(line, folder) for line in (*COMMANDS, *RESTRICTED)]
    with loopback_hub(folder / "clients") as (hub, environment):
        transcript += [_said(line, folder, environment) for line in PUBLISH]
        for repo, kind in (("user/pairs", "dataset"), ("user/ward", "dataset"), ("user/adapter", "model")):
            for name, data in hub.files(repo, kind).items():
                (folder / "hub" / repo / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / "hub" / repo / name).write_bytes(data)
    transcript.append(_said(REJOIN, folder))
    outputs = sorted({path for pattern in GUARDED for path in folder.glob(pattern) if path.is_file()})
    made = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.name != ".ledger")
    listing = sorted(f"{path}\n" for path in made if path.parts[0] not in ("clinic", "words", "tiny", "clients"))
    texts = {"transcript.txt": "\n".join(transcript), "files.txt": "".join(listing), **render.files(outputs, folder)}
    for shard in (folder / name / "data/train-00000-of-00001.parquet" for name in ("pairs", "hub/user/ward")):
        texts[f"{shard.parent.relative_to(folder)}/columns.txt"] = render.columns(shard)
    card, published = (folder / place / "pairs/README.md" for place in (".", "hub/user"))
    texts["hub/user/pairs/README.md.diff"] = render.changes(card, published)
    return texts


def _said(line: str, folder: Path, environment: dict[str, str] | None = None) -> str:
    code, printed = run(line, folder, environment)
    shown = render.terminal(printed)
    if line.startswith("compare"):  # table.md has it
        shown = "".join(row for row in shown.splitlines(keepends=True) if not row.startswith("|"))
    return f"$ mmedpo {line}\n{shown}exit {code}\n"
