"""Folders to publish, small and written by the project's own functions."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmedpo import schema
from mmedpo.data import shards
from mmedpo.hub import cards
from mmedpo.report.audit import audit
from mmedpo.runs.json_files import write_json

EXAMPLES = Path(__file__).parents[2] / "model_cards" / "examples"


def picture(seed: int, side: int = 16) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"picture-{seed}.png"}


def row(number: int, **changes: Any) -> dict[str, Any]:
    def says(text: str, role: str = "assistant") -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    noised = number % 3 == 2
    return {
        "id": f"made/{number}", "images": [picture(number)],
        "rejected_images": [picture(10_000 + number)] if noised else None,
        "prompt": says("What is seen?", "user"), "chosen": says("a nodule"),
        "rejected": says("a nodule" if noised else "a mass"), "weight": 0.75 + (number % 10) / 20,
        "clinical_relevance": 0.5, "dispreference": "lesion_noise" if noised else "hallucinated_response",
        "task": "open_vqa", "source": "made", "license": "cc0-1.0",
        "provenance": dict.fromkeys(schema.FEATURES["provenance"]) | {"image_id": f"image-{number}"}, **changes,
    }  # fmt: skip


def make_dataset(
    folder: Path,
    count: int = 24,
    shard_size: str = "3KB",
    change: Callable[[dict[str, Any]], Any] = lambda _: None,
    seed: int = 0,
) -> Path:
    """A finished dataset folder of `count` rows, each given to `change` first (in place); its manifest names `seed`."""
    rows = [row(number) for number in range(count)]
    for one in rows:
        change(one)
    shards.save(iter(rows), folder, shard_size=shard_size)
    manifest = json.loads((EXAMPLES / "dataset" / "manifest.json").read_text())
    kinds = [one["dispreference"] for one in rows]
    manifest["counts"] = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    manifest["seed"] = seed
    write_json(folder / "manifest.json", manifest)
    write_json(folder / "audit.json", audit(str(folder), name="pairs"))
    cards.write_dataset_card(folder)
    (folder / "rejects.jsonl").write_text('{"id": "made/99", "detail": "Someone said this"}\n')
    return folder


def make_adapter(folder: Path) -> Path:
    """A finished training folder with weights of no model."""
    shutil.copytree(EXAMPLES / "adapter", folder)
    (folder / "adapter_model.safetensors").write_bytes(np.random.default_rng(0).bytes(200_000))
    for name in ("adapter_config.json", "tokenizer.json", "processor_config.json"):
        (folder / name).write_text("{}\n")
    (folder / "recipe.yaml").write_text("beta: 0.1\n")
    cards.write_adapter_card(folder)
    return folder
