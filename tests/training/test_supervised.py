"""Supervised training on the gold answers of a source, without its test questions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from launches import arguments, history
from transformers import AutoModelForImageTextToText

from mmedpo.data import answers, loading
from mmedpo.data.images import png
from mmedpo.data.sources import read_source
from mmedpo.errors import InputError
from mmedpo.hub.cards import adapter_card
from mmedpo.models.vision_language import load_processor
from mmedpo.quickstart import tiny
from mmedpo.runs.json_files import read_json
from mmedpo.training import run

SFT = {"loss_type": "sft", "loss_weights": 1.0}


def test_the_loss_is_the_nll_of_the_gold_answers(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    samples = read_source(corpus, "preference").samples
    settings = {**SFT, "per_device_train_batch_size": len(samples), "max_steps": 1, "dataset_split": "preference"}
    run.main(arguments(f"source:{corpus}", tiny_model, tmp_path / "adapter", **settings))
    model = AutoModelForImageTextToText.from_pretrained(tiny_model).eval()
    with torch.no_grad():
        rows = tiny._encode(load_processor(str(tiny_model)), samples)
        expected = torch.stack([model(**tiny._batch([row])).loss for row in rows]).mean().item()
    assert history(tmp_path / "adapter")[0] == pytest.approx(expected, rel=1e-5)
    record = read_json(tmp_path / "adapter" / "training.json")
    assert record["rows"] == {"gold_answer": len(samples)} and record["dataset_is_local"]
    assert record["dataset_manifest"]["source"]["name"] == "phantom"
    assert "trained on the gold answers of a source" in adapter_card(tmp_path / "adapter")


def test_test_questions_are_in_no_part(corpus: Path, make_source: Callable[..., Path]) -> None:
    own = loading.load_splits(f"source:{corpus}")
    tested = {sample.id for sample in read_source(corpus, "test").samples}
    ids = {id_ for part in own.values() for id_ in part["id"]}
    assert set(own) == {"supervised", "preference", "validation"} and len(ids) > 20
    assert not {f"phantom/{id_}" for id_ in tested} & ids
    pictures = {
        f"{shade}.png": png(np.full((8, 8), shade, np.uint8) + np.eye(8, dtype=np.uint8), "x") for shade in range(9)
    }
    made = make_source(
        [{"image": name, "question": "q?", "answer": "yes"} for name in pictures],
        images={name: picture["bytes"] for name, picture in pictures.items()},
    )
    own = ["train", "Test", "testing", "TEST ", "train", "validation", "train", "train", "train"]
    named = make_source(
        [{"image": f"{shade}.png", "question": "q?", "answer": "yes", "split": own[shade]} for shade in range(9)],
        images={name: picture["bytes"] for name, picture in pictures.items()}, name="named",
    )  # fmt: skip
    assert {*loading.load_splits(f"source:{named}")} == {"train", "validation"}
    split = [sample.split for sample in read_source(made).samples]  # made here, as for every command
    assert loading.load_pairs(f"source:{made}").num_rows == len(split) - split.count("test") and "test" in split


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_split": "test"}, "has no split 'test'; it has"),
        ({"loss_type": "sigmoid"}, "gold answers and no rejected ones: give --loss_type sft"),
        ({"dispreference": "lesion_noise"}, "leave out --streaming and --dispreference"),
    ],
)
def test_what_answers_cannot_do_is_refused(
    changes: dict, message: str, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    settings = {**SFT, "dataset_split": "preference", **changes}
    with pytest.raises(InputError, match=message):
        run.main(arguments(f"source:{corpus}", tiny_model, tmp_path / "adapter", **settings))
    assert not list(tmp_path.iterdir())


def test_faulty_rows_are_refused_and_restricted_sources_known(corpus: Path, tmp_path: Path) -> None:
    source = shutil.copytree(corpus, tmp_path / "copy")
    (source / "CREDENTIALED").touch()
    assert answers.read(f"source:{source}").credentialed
    table = next(source.glob("*.jsonl"))
    table.write_text(table.read_text() + json.dumps({"image": "nowhere.png", "question": "q?", "answer": "yes"}))
    with pytest.raises(InputError, match="Faulty rows in"):
        answers.read(f"source:{source}")
