"""A curation that goes on refuses models, images, masks and questions that changed since it began, or does those again.

Real runs, interrupted in the middle; who writes and judges wrong answers are the offline stand-ins.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from standins import STANDINS, WORDS

from mmedpo import cli
from mmedpo.curation import prompts
from mmedpo.curation.localize import Localizer
from mmedpo.curation.run import curate_folder, of_models
from mmedpo.curation.settings import Settings
from mmedpo.data import shards
from mmedpo.data.samples import Sample
from mmedpo.errors import InputError
from mmedpo.models.chat.local import LocalChat
from mmedpo.models.fingerprint import model_contents
from mmedpo.runs.run_folder import output_folder
from tests.medklip_files import random_tensors, write_folder, write_text_encoder

Rows = list[dict[str, Any]]
Change = Callable[[Path, Rows], None]
FINDINGS = ("nodule", "mass", "effusion", "fracture", "cyst")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten questions, each about an image and a mask of its own."""
    folder = tmp_path / "source"
    folder.mkdir()
    rows = []
    for number in range(10):
        Image.effect_noise((32, 32), 10 + number).save(folder / f"{number}.png")
        mask = Image.new("L", (32, 32))
        mask.paste(255, (4, 4, 12, 12 + number))
        mask.save(folder / f"mask {number}.png")
        finding, side = FINDINGS[number % 5], ("left", "right")[number % 2]
        box = {"label": finding, "x": 4, "y": 5, "w": 8, "h": 9}
        rows.append({
            "id": f"q{number}", "image": f"{number}.png", "question": f"What is at place {number}?",
            "answer": f"a small {finding} in the {side} lung", "boxes": [box], "masks": f"mask {number}.png",
        })  # fmt: skip
    write(folder, rows)
    return folder


def write(folder: Path, rows: Rows) -> None:
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(folder: Path) -> Rows:
    return [json.loads(line) for line in (folder / "table.jsonl").read_text().splitlines()]


def edit(folder: Path, change: Change) -> None:
    rows = read(folder)
    change(folder, rows)
    write(folder, rows)


def curate(output: Path, settings: Settings, resume: bool = False, redo: bool = False) -> None:
    models = of_models(settings) if resume else None
    with output_folder(output, settings.record(), resume, contents=models) as folder:
        curate_folder(settings, folder, models=models, redo_changed=redo)


def interrupted(output: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed when all steps are done, and no row is written."""

    def kill(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shards, "write", kill)
        curate(output, settings)


def made(output: Path) -> dict[str, bytes]:
    return {str(file.relative_to(output)): file.read_bytes() for file in output.rglob("*") if file.is_file()}


def other_answer(folder: Path, rows: Rows) -> None:
    rows[3]["answer"] = "a large cyst in the liver"


def other_question(folder: Path, rows: Rows) -> None:
    rows[3]["question"] = "Which finding is there?"


def other_form(folder: Path, rows: Rows) -> None:
    rows[3] |= {"question": "Is there a mass?", "answer": "Yes"}


def other_box(folder: Path, rows: Rows) -> None:
    rows[3]["boxes"][0]["x"] = 9


def other_mask(folder: Path, rows: Rows) -> None:
    shutil.copyfile(folder / "mask 9.png", folder / "mask 3.png")


def other_image(folder: Path, rows: Rows) -> None:
    Image.effect_noise((32, 32), 90).save(folder / "3.png")


CHANGES = [
    pytest.param(other_answer, "answer", "boxes", id="answer"),
    pytest.param(other_question, "question", "masks", id="question"),
    pytest.param(other_form, "answer, question, task", "boxes", id="form"),
    pytest.param(other_box, "boxes", "boxes", id="box"),
    pytest.param(other_mask, "masks", "masks", id="mask"),
    pytest.param(other_image, "image", "masks", id="image"),
]


@pytest.mark.parametrize(("change", "named", "localizer"), CHANGES)
def test_a_question_that_changed_is_refused_or_done_again_alone(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, named: str, localizer: str
) -> None:
    settings = Settings(source=source, localizer=localizer, **STANDINS)
    interrupted(tmp_path / "out", settings, monkeypatch)
    curate(tmp_path / "as it was", settings)
    edit(source, change)
    for _ in range(2):
        with pytest.raises(InputError, match=r"1 row changed.*--redo-changed") as refused:
            curate(tmp_path / "out", settings, resume=True)
        assert [(fault.row, fault.column) for fault in refused.value.faults] == [("q3", named)]
    with monkeypatch.context() as patch:
        located = noted(patch)
        curate(tmp_path / "out", settings, resume=True, redo=True)
    assert located == ["q3"]
    curate(tmp_path / "fresh", settings)
    assert made(tmp_path / "out") == made(tmp_path / "fresh")
    assert made(tmp_path / "out") != made(tmp_path / "as it was")


def noted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that the localizer is asked about from now on."""
    locate, seen = Localizer.locate, list[str]()

    def noting(self: Localizer, sample: Sample) -> Any:
        seen.append(sample.id)
        return locate(self, sample)

    monkeypatch.setattr(Localizer, "locate", noting)
    return seen


def restored(folder: Path, rows: Rows) -> None:
    rows[3], rows[5] = rows[5], rows[3]
    (folder / "3.png").touch()


def test_questions_in_another_order_are_the_same(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(source=source, **STANDINS)
    interrupted(tmp_path / "out", settings, monkeypatch)
    edit(source, restored)
    caplog.clear()
    curate(tmp_path / "out", settings, resume=True)
    assert "since the start of this run" not in caplog.text
    curate(tmp_path / "fresh", settings)
    assert made(tmp_path / "out") == made(tmp_path / "fresh")


def test_questions_come_and_go_without_being_asked_for(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(source=source, **STANDINS)
    interrupted(tmp_path / "out", settings, monkeypatch)
    rows = read(source)
    write(source, [*rows[2:], {**rows[2], "id": "new", "question": "And there?"}])
    curate(tmp_path / "out", settings, resume=True)
    assert "questions since the start of this run: 1 added, 2 removed." in caplog.text
    curate(tmp_path / "fresh", settings)
    assert made(tmp_path / "out") == made(tmp_path / "fresh")


def test_a_table_of_other_questions_is_no_resumption(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(source=source, **STANDINS)
    interrupted(tmp_path / "out", settings, monkeypatch)
    rows = read(source)
    write(source, [{**row, "id": f"other {row['id']}"} for row in rows])
    with pytest.raises(InputError, match="none of the 10 questions"):
        curate(tmp_path / "out", settings, resume=True, redo=True)
    write(source, rows)
    curate(tmp_path / "out", settings, resume=True)  # nothing was forgotten


def other_weights(model: Path) -> None:
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)


def test_a_target_that_was_replaced_is_refused(
    source: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    settings = Settings(source=source, model=str(model), samples=2, max_new_tokens=4, **STANDINS)
    interrupted(tmp_path / "out", settings, monkeypatch)
    other_weights(model)
    with pytest.raises(InputError, match=rf"(?s)mixed.*\n  - model {model}: \w+ -> \w+$"):
        curate(tmp_path / "out", settings, resume=True, redo=True)
    shutil.rmtree(model)
    shutil.copytree(tiny_model, model)
    curate(tmp_path / "out", settings, resume=True)
    recorded = json.loads((tmp_path / "out" / "manifest.json").read_text())["contents"]
    assert recorded.keys() == {"source", "model"} and recorded["model"] == model_contents(str(tiny_model))
    other_weights(model)
    with pytest.raises(InputError, match=r"out: since the start of this run"):
        curate(tmp_path / "out", settings, resume=True)


def test_prompts_of_another_version_are_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(source=source, **STANDINS)
    interrupted(tmp_path / "out", settings, monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"\n  - prompts of mmedpo: \w+ -> 0123abcd$"):
        patch.setattr(prompts, "contents", lambda: "0123abcd")
        curate(tmp_path / "out", settings, resume=True)
    curate(tmp_path / "out", settings, resume=True)


def test_a_model_is_looked_for_when_the_source_was_read(source: Path, tmp_path: Path) -> None:
    settings = Settings(source=source, localizer="detector:no/where", **STANDINS)
    with pytest.raises(InputError, match="The model 'no/where' cannot be loaded"):
        curate(tmp_path / "out", settings)
    edit(source, lambda folder, rows: rows[0].update(image="absent.png"))
    with pytest.raises(InputError, match="Faulty rows in source"):
        curate(tmp_path / "out", settings)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("role", ["model", "chat", "judge", "localizer"])
def test_each_model_of_this_machine_is_known_by_its_contents(
    tiny_model: Path, detector: Path, tmp_path: Path, role: str
) -> None:
    shutil.copytree(detector if role == "localizer" else tiny_model, tmp_path / "a")
    named: dict[str, Any] = {"source": tmp_path, **STANDINS}
    place = str(tmp_path / "a")
    options = {"model": place, "chat": f"local:{place}", "judge": f"local:{place}", "localizer": f"detector:{place}"}
    named |= {"judges": ["standin:strict", options[role]]} if role == "judge" else {role: options[role]}
    before = of_models(Settings(**named))
    assert {name for name, digest in before.items() if digest} == {"judge local:a" if role == "judge" else role}
    other_weights(tmp_path / "a")
    after = of_models(Settings(**named))
    assert [name for name in before if before[name] != after[name]] == ["judge local:a" if role == "judge" else role]


def test_endpoints_and_stand_ins_have_no_contents(tmp_path: Path) -> None:
    settings = Settings(source=tmp_path, chat="http://127.0.0.1:1/v1#a", judges=["hub:org/a", "standin:strict"])
    assert set(of_models(settings).values()) == {None}


@pytest.mark.parametrize("file", ["*.pth", "*.json", "text_encoder/tokenizer.json"])
def test_medklip_is_known_by_each_of_its_files(tmp_path: Path, file: str) -> None:
    folder = write_folder(tmp_path / "medklip", random_tensors())
    write_text_encoder(folder / "text_encoder")
    (found,) = folder.glob(file)
    settings = Settings(source=tmp_path, localizer=f"medklip:{folder}", **STANDINS)
    before = of_models(settings)
    (folder / "README").write_text("About.")
    assert of_models(settings) == before
    with found.open("ab") as opened:
        opened.write(b" ")
    assert of_models(settings)["localizer"] != before["localizer"]
    assert before["localizer"] is not None


def test_answers_of_a_local_model_are_cached_by_its_contents(tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    before = LocalChat(str(model)).settings
    assert LocalChat(str(model)).settings == before
    other_weights(model)
    assert LocalChat(str(model)).settings != before


def test_a_finished_dataset_is_said_to_be_of_other_questions(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mmedpo"])
    monkeypatch.setenv("COLUMNS", "300")

    def run(*words: str) -> tuple[int, str]:
        code = 0
        try:
            cli.main(["curate", "--source", str(source), "--output", str(tmp_path / "out"), *WORDS, *words])
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 0
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    assert run()[0] == 0
    edit(source, restored)
    code, said = run("--resume")
    assert code == 0 and "nothing to resume" in said
    edit(source, other_answer)
    code, said = run("--resume", "--redo-changed")
    assert code == 2 and "is finished, but questions of source were changed, added or removed since" in said
