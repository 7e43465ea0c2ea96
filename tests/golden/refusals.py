"""Bad inputs to every command: each is refused with one message, an exit code, and nothing left behind.

In a line of `CASES` {CURATE}, {EVALUATE} and {TRAIN} stand for a command that would run. `inputs` writes the files that
they name. The messages are in `expected/refusals.txt`.
"""

from __future__ import annotations

import io
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from golden import render
from golden.commands import loopback_hub, run

STANDINS = "--chat standin:rules --judges standin:strict standin:lenient"
COMMANDS = {
    "CURATE": f"curate {STANDINS} --source good --output out",
    "EVALUATE": "evaluate --source good --output out --max-new-tokens 4 --max-new-tokens-report 4",
    "TRAIN": "train --use_peft true --use_cpu true --bf16 false --max_steps 1 --model_name_or_path tiny --output out",
}
CHECKOUT = Path(__file__).parents[2]
MESSAGE = re.compile(
    r"^(Error:|usage:|Usage: mmedpo \[).*", re.MULTILINE | re.DOTALL
)  # without what was shown before it
SOURCES = (
    "no-table empty no-image-column no-answer missing-image torn-image repeated-id unknown-task broken-line latin-1 "
)
SOURCES += "bad-box"
DATASETS = "nan-weight same-sides torn-pixels missing-column negative-weight repeated-rows"
CASES = (
    "{CURATE} --sampels 3",
    "{CURATE} --samples many",
    "{CURATE} --samples 0 --noise-step 1001 --style long --weights zscore",
    "curate --split train",
    "curate --source good --output out",
    "{CURATE} --chat gpt",
    "{CURATE} --judges standin:strict standin:strict",
    "{CURATE} --localizer medklip",
    "{CURATE} --localizer detector:tiny",
    "{CURATE} --localizer masks --query pet=lesion",
    "{CURATE} --localizer heatmap --mask-rule mean",
    "{CURATE} --model nowhere",
    "{CURATE} --model bert",
    "{CURATE} --model tiny --temperature 0",
    "{CURATE} --split train",
    "{CURATE} --limit 0",
    "{CURATE} --chat none --judges none --localizer none",
    "{CURATE} --config nowhere.yaml",
    "{CURATE} --config unknown-option.yaml",
    "{CURATE} --config wrong-types.yaml",
    "{CURATE} --config broken.yaml",
    "{CURATE} --config consent.yaml",
    "{CURATE} --output good",
    "{CURATE} --resume --seed 1 --output pairs",
    "{CURATE} --credentialed --chat https://models.invalid/v1#writer",
    "{CURATE} --chat http://127.0.0.1:9/v1#writer",
    "{CURATE} --seed -1",
    *(f"{{CURATE}} --source {name}" for name in SOURCES.split()),
    "build",
    "build nothing --source good --output out",
    "build vqa_rad --source good --output out " + STANDINS,
    "preview --source good --output out.png --count 0",
    "preview --source good --output out.png --localizer none",
    "preview --source good --output out.png --localizer masks",
    "audit nowhere --output out",
    "audit bert --output out",
    "audit pairs --split test --output out",
    *(f"audit {name} --output out" for name in DATASETS.split()),
    "convert tiny --output out",
    "convert nowhere --output out",
    "{TRAIN} --dataset_name nowhere",
    *(f"{{TRAIN}} --dataset_name {name}" for name in DATASETS.split()[:-1]),  # repeated rows are trained on
    "{TRAIN} --dataset_name pairs --loss_type dpop",
    "{TRAIN} --dataset_name pairs --max_length 8",
    "{TRAIN} --dataset_name pairs --dispreference blur",
    "{TRAIN} --dataset_name pairs --beta 0",
    "{TRAIN} --dataset_name pairs --trust_remote_code true",
    "{TRAIN} --dataset_name pairs --learning-rat 1",
    "{TRAIN} --dataset_name pairs --adapter_name_or_path foreign",
    "{TRAIN} --dataset_name restricted --push_to_hub true",
    "{EVALUATE} --model nowhere",
    "{EVALUATE} --model bert",
    "{EVALUATE} --model tiny --adapter foreign",
    "{EVALUATE} --model tiny --dataset pairs",
    "{EVALUATE} --model tiny --vqa-protocol lenient",
    "{EVALUATE} --model tiny --split train",
    "{EVALUATE} --model tiny --measure preference",
    "{EVALUATE} --model http://127.0.0.1:9/v1",
    "{EVALUATE} --model https://models.invalid/v1#m --credentialed",
    "{EVALUATE} --model tiny --limit some",
    *(f"{{EVALUATE}} --model tiny --source {name}" for name in ("no-answer", "missing-image", "latin-1")),
    "questions --output out.jsonl",
    "questions --source nowhere --output out.jsonl",
    "score --output out",
    "score bert --output out",
    "score start --vqa-protocol lenient --output out",
    "score --source good --predictions few.jsonl --output out",
    "score --source good --predictions broken.jsonl --output out",
    "compare start --output out",
    "compare start start --output out",
    "compare start nowhere --output out",
    "compare start shorter --output out",
    "compare start again --card bert --output out",
    "compare start again --dataset nowhere --output out",
    "attention --model tiny --adapter foreign --source good --output out",
    "attention --model tiny --adapter nowhere --source good --layers last --output out",
    "rejoin",
    "rejoin pairs --source good --output out",
    "quickstart --scale 2 --output out",
    "quickstart --output good",
    "no-such-command",
)
PUBLISH = (
    "publish nowhere user/pairs",
    "publish good user/pairs",
    "publish bert user/pairs --adapter",
    "publish good user/good --metric",
    "publish pairs user/pairs --adapter --metric",
    "publish pairs user/pairs",
    "publish pairs other/pairs --yes",
    "publish pairs 'user/a b' --yes",
    "publish pairs user/pairs --yes --fill license=",
    "publish pairs user/pairs --yes --fill colour=blue",
    "publish nan-weight user/pairs --yes",
    "publish torn-pixels user/pairs --yes",
    "publish ward user/ward --adapter --yes",
)


def make(folder: Path) -> dict[str, str]:
    """Run every case; return in one text for each its command, exit code, message and what it left."""
    inputs(folder)
    kept = {path.name for path in folder.iterdir()}
    said = [_said(case, folder, kept) for case in CASES]
    with loopback_hub(folder / "clients") as (_, environment):
        said += [_said(case, folder, kept, environment) for case in PUBLISH]
    commands = "".join(f"{name} = {words}\n" for name, words in COMMANDS.items())
    return {"refusals.txt": f"{commands}\n" + "\n".join(said)}


def _said(case: str, folder: Path, kept: set[str], environment: dict[str, str] | None = None) -> str:
    code, printed = run(case.format(**COMMANDS), folder, environment)
    left = sorted({path.name for path in folder.iterdir() if not path.name.endswith(("-shm", "-wal"))} - kept)
    for name in left:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = render.terminal(printed).replace(str(folder), "HERE").replace(str(CHECKOUT), "CHECKOUT")
    message = MESSAGE.search(text)
    return f"$ {case}\nexit {code}{''.join(f', left {name}' for name in left)}\n{message[0] if message else text}"


def inputs(folder: Path) -> None:
    """Write good and bad sources, datasets, models, recipes and predictions."""
    from transformers import BertConfig

    from mmedpo.quickstart import tiny

    for name, (rows, table) in _sources().items():
        _source(folder / name, rows, table)
    (folder / "torn-image" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    for line in (
        f"curate {STANDINS} --source good --output pairs",
        f"curate {STANDINS} --source good --credentialed --output restricted",
    ):
        assert run(line, folder)[0] == 0
    tiny.make(folder / "good", "test", steps=1, output=folder / "tiny")
    for name in ("start", "again"):
        assert run(f"evaluate --source good --model tiny --max-new-tokens 4 --output {name}", folder)[0] == 0
    _datasets(folder)
    BertConfig().save_pretrained(folder / "bert")
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "org/another", "target_modules": ["q_proj"]}
    (folder / "foreign").mkdir()
    (folder / "foreign" / "adapter_config.json").write_text(json.dumps(adapter))
    shutil.copytree(folder / "start", folder / "shorter")
    lines = (folder / "start" / "predictions.jsonl").read_text("utf-8").splitlines(keepends=True)
    (folder / "shorter" / "predictions.jsonl").write_text("".join(lines[1:]), "utf-8")
    (folder / "few.jsonl").write_text('{"id": "q1", "prediction": "yes"}\n{"id": "q9", "prediction": 3}\n')
    (folder / "broken.jsonl").write_text('{"id": "q1", "prediction": "yes"\n')
    for name, text in {
        "unknown-option": "samplez: 3\n", "wrong-types": "samples: [1, 2]\njudges: 3\ntemperature:\n",
        "broken": "samples: '3\n", "consent": "send_credentialed_data_to_third_parties: true\n",
    }.items():  # fmt: skip
        (folder / f"{name}.yaml").write_text(text)
    (folder / "ward").mkdir()
    shutil.copy(folder / "foreign" / "adapter_config.json", folder / "ward")
    (folder / "ward" / "adapter_model.safetensors").write_bytes(b"")
    manifest = json.loads((folder / "restricted" / "manifest.json").read_text("utf-8"))
    facts = {"model": "tiny", "dataset": "restricted", "config": {}}
    record = {"format": "mmedpo.training/1", **facts, "dataset_manifest": manifest, "credentialed_source": "good"}
    (folder / "ward" / "training.json").write_text(json.dumps(record))


def _row(**changes: Any) -> dict[str, Any]:
    box = {"label": "nodule", "x": 4, "y": 4, "width": 8, "height": 8}
    return {"id": "q1", "image": "a.png", "question": "Is there a nodule?", "answer": "yes", "task": "closed",
            "split": "test", "boxes": [box], "license": "cc0-1.0", **changes}  # fmt: skip


def _sources() -> dict[str, tuple[list[dict[str, Any]], str | bytes | None]]:
    good = [
        _row(),
        _row(id="q2", image="b.png", answer="no"),
        _row(id="q3", question="What is seen?", answer="a nodule", task="open"),
        _row(id="q4", image="b.png", question="Describe it.", answer="A small nodule.", task="report"),
    ]
    nameless = {key: cell for key, cell in _row().items() if key != "image"}
    return {
        "good": (good, None), "no-table": ([], None), "empty": ([], ""), "no-image-column": ([nameless], None),
        "no-answer": ([_row(), _row(id="q2", answer=" ")], None), "missing-image": ([_row(image="c.png")], None),
        "torn-image": ([_row()], None), "repeated-id": ([_row(), _row()], None),
        "unknown-task": ([_row(task="essay")], None), "broken-line": ([], json.dumps(_row()) + "\n{"),
        "latin-1": ([], b'{"answer": "\xe9"}'), "bad-box": ([_row(boxes=[{"x": 1}])], None),
    }  # fmt: skip


def _source(folder: Path, rows: list[dict[str, Any]], table: str | bytes | None) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir()
    for seed, name in enumerate(("a.png", "b.png")):
        pixels = np.random.default_rng(seed).integers(0, 256, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    if table is None and not rows:
        return
    text = table if table is not None else "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "samples.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())


def _datasets(folder: Path) -> None:
    """Write copies of `pairs` of which each has one fault."""
    from datasets import Dataset, load_dataset

    from mmedpo import schema

    rows = schema.undecoded(load_dataset(str(folder / "pairs"), split="train")).to_list()
    image = rows[0]["images"][0]["bytes"]

    def last(**cells: Any) -> Callable[[], list[dict[str, Any]]]:
        return lambda: [*rows[:-1], {**rows[-1], **cells}]

    faulty = {
        "nan-weight": last(weight=math.nan),
        "negative-weight": last(weight=-1.0),
        "same-sides": last(rejected=rows[-1]["chosen"], rejected_images=None),
        "torn-pixels": last(images=[{"bytes": image[: len(image) // 2], "path": "half.png"}]),
        "repeated-rows": lambda: [*rows, rows[0]],
        "missing-column": lambda: rows,
    }
    for name, make_rows in faulty.items():
        (folder / name / "data").mkdir(parents=True)
        dataset = Dataset.from_list(make_rows(), features=schema.FEATURES)
        if name == "missing-column":
            dataset = dataset.remove_columns(["weight"])
        shutil.copy(folder / "pairs" / "manifest.json", folder / name)
        buffer = io.BytesIO()
        dataset.to_parquet(buffer)
        (folder / name / "data" / "train-00000-of-00001.parquet").write_bytes(buffer.getvalue())
