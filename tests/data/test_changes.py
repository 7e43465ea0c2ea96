"""Rows of a source are compared by what they hold, and models by theirs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub.server import Hub
from PIL import Image

from mmedpo.data import changes
from mmedpo.data.changes import Changes
from mmedpo.data.sources import read_source
from mmedpo.errors import AlreadyFinished, InputError
from mmedpo.models.fingerprint import fingerprint, model_contents
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.run_folder import output_folder

IDS = ["q0", "q1", "q2"]


def picture(path: Path, shade: int, size: tuple[int, int] = (8, 8), **options: Any) -> None:
    image = Image.new("L", size, shade)
    image.putpixel((0, 0), 255 - shade)
    image.save(path, **options)


def rows(**changed: Any) -> list[dict[str, Any]]:
    """Three questions, of which the second is changed."""
    box = [{"label": "mass", "x": 1, "y": 1, "w": 2, "h": 2}]
    made = [
        {"id": id, "image": f"{id[1]}.png", "question": f"Where is it, {id}?", "answer": f"left {id}", "boxes": box,
         "masks": "mask.png", "heatmap": "heat.npy", "confidence": 0.5, "modality": "CT", "organ": "lung"}
        for id in IDS
    ]  # fmt: skip
    made[1] |= changed
    return made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(3):
        picture(folder / f"{number}.png", 40 * number)
    picture(folder / "mask.png", 255)
    picture(folder / "other mask.png", 254)
    np.save(folder / "heat.npy", np.ones((2, 2)))
    write(folder, rows())
    return folder


def write(folder: Path, made: list[dict[str, Any]]) -> None:
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))


def compared(folder: Path, ledger: Path) -> Changes:
    recorded = Ledger(ledger)
    try:
        return changes.compare(changes.of_samples(read_source(folder).samples), recorded)
    finally:
        recorded.close()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"question": "Is it?"}, ["question"]),
        ({"answer": "right"}, ["answer"]),
        ({"answer": "yes"}, ["answer", "task"]),
        ({"task": "report"}, ["task"]),
        ({"image": "0.png"}, ["image"]),
        ({"boxes": [{"label": "mass", "x": 1, "y": 1, "w": 3, "h": 2}]}, ["boxes"]),
        ({"boxes": None}, ["boxes"]),
        ({"masks": "other mask.png"}, ["masks"]),
        ({"heatmap": None}, ["heatmap"]),
        ({"confidence": 0.6}, ["confidence"]),
        ({"modality": "MR"}, ["modality"]),
        ({"organ": "heart"}, ["organ"]),
        ({"patient_id": "p1"}, None),
        ({"license": "cc0-1.0"}, None),
        ({"extra": "column"}, None),
    ],
)
def test_a_changed_row_is_named_with_what_changed(
    source: Path, tmp_path: Path, changed: dict[str, Any], named: list[str] | None
) -> None:
    before = compared(source, tmp_path / "rows.ledger")
    write(source, rows(**changed))
    found = compared(source, tmp_path / "rows.ledger")
    assert (before.added, found.added, found.removed) == (IDS, [], [])
    assert found.changed == ({"q1": named} if named else {})
    assert (found.digest == before.digest) is (named is None)


def other_image(source: Path) -> None:
    file = source / "1.png"
    size, times = file.stat().st_size, (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    picture(file, 41)
    assert file.stat().st_size == size
    os.utime(file, ns=times)


def other_mask(source: Path) -> None:
    picture(source / "mask.png", 254)


def other_heat(source: Path) -> None:
    np.save(source / "heat.npy", np.full((2, 2), 0.9))


@pytest.mark.parametrize(
    ("replace", "changed"),
    [
        (other_image, {"q1": ["image"]}),
        (other_mask, {id: ["masks"] for id in IDS}),
        (other_heat, {id: ["heatmap"] for id in IDS}),
    ],
)
def test_a_file_of_the_same_name_size_and_time_is_known_by_its_contents(
    source: Path, tmp_path: Path, replace: Any, changed: dict[str, list[str]]
) -> None:
    compared(source, tmp_path / "rows.ledger")
    replace(source)
    assert compared(source, tmp_path / "rows.ledger").changed == changed


def reordered(source: Path) -> None:
    write(source, rows()[::-1])


def crlf(source: Path) -> None:
    table = source / "table.jsonl"
    table.write_bytes(table.read_bytes().replace(b"\n", b"\r\n"))


def as_json(source: Path) -> None:
    (source / "table.jsonl").unlink()
    (source / "other.json").write_text(json.dumps(rows(), indent=1))


def touched(source: Path) -> None:
    for file in source.iterdir():
        os.utime(file, (0, 0))


def packed_otherwise(source: Path) -> None:
    picture(source / "1.png", 40, compress_level=0)


def moved(source: Path) -> None:
    shutil.copytree(source, source.with_name("elsewhere"))
    shutil.rmtree(source)
    source.with_name("elsewhere").rename(source)


@pytest.mark.parametrize("rewrite", [reordered, crlf, as_json, touched, packed_otherwise, moved])
def test_the_same_rows_written_otherwise_have_not_changed(source: Path, tmp_path: Path, rewrite: Any) -> None:
    before = compared(source, tmp_path / "rows.ledger")
    rewrite(source)
    found = compared(source, tmp_path / "rows.ledger")
    assert (found.added, found.removed, found.changed, found.kept) == ([], [], {}, 3)
    assert found.digest == before.digest


def test_added_rows_are_recorded_and_removed_ones_until_they_are_accepted(source: Path, tmp_path: Path) -> None:
    compared(source, tmp_path / "rows.ledger")
    write(source, [*rows(answer="right")[1:], {**rows()[0], "id": "new"}])
    found = compared(source, tmp_path / "rows.ledger")
    assert (found.added, found.removed, found.changed) == (["new"], ["q0"], {"q1": ["answer"]})
    again = compared(source, tmp_path / "rows.ledger")
    assert (again.added, again.removed, again.changed) == ([], ["q0"], {"q1": ["answer"]})
    recorded = Ledger(tmp_path / "rows.ledger")
    changes.accept(again, changes.of_samples(read_source(source).samples), recorded)
    recorded.close()
    found = compared(source, tmp_path / "rows.ledger")
    assert (found.added, found.removed, found.changed, found.kept) == ([], [], {}, 3)


def test_changed_rows_are_refused_by_name() -> None:
    Changes(added=["new"], removed=["old"]).refuse("slake", "")
    found = Changes(changed={f"q{number}": ["answer", "image"] for number in range(30)})
    with pytest.raises(InputError, match=r"^slake: 30 rows changed.* Redo\.\n") as refused:
        found.refuse("slake", "Redo.")
    assert [fault.row for fault in refused.value.faults] == list(found.changed)
    assert str(refused.value.faults[0]) == "q0 [answer, image]: changed since the start"


def write_text(file: str, text: str) -> Any:
    def change(model: Path) -> None:
        (model / file).write_text(text)

    return change


def other_bytes(model: Path) -> None:
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)


def other_template(model: Path) -> None:
    template = model / "chat_template.jinja"
    template.write_text(template.read_text() + " ")


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (other_bytes, True),
        (other_template, True),
        (write_text("generation_config.json", "{}"), True),
        (write_text("preprocessor_config.json", "{}"), True),
        (write_text("tokenizer.model", "pieces"), True),
        (write_text("README.md", "A card."), False),
        (write_text("training.json", "{}"), False),
    ],
)
def test_contents_of_a_model_are_all_that_decides_its_answers(
    tiny_model: Path, tmp_path: Path, change: Any, differs: bool
) -> None:
    copy = tmp_path / "another name"
    shutil.copytree(tiny_model, copy)
    known = model_contents(str(copy))
    assert known == model_contents(str(tiny_model)) != fingerprint(str(tiny_model))
    change(copy)
    assert (model_contents(str(copy)) != known) is differs


def test_contents_are_read_again_where_a_file_was_replaced_long_after(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmedpo.models import fingerprint as module

    monkeypatch.setattr(module, "SETTLED", -1e9)  # each digest is remembered
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    known = model_contents(str(copy))
    times = (copy / "model.safetensors").stat()
    other_bytes(copy)
    os.utime(copy / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert model_contents(str(copy)) != known


def test_contents_of_a_model_of_the_hub_are_those_of_its_copy_until_a_file_is_another(
    hub: Hub, tiny_model: Path
) -> None:
    hub.put("user/model", {file.name: file.read_bytes() for file in tiny_model.iterdir()}, large=("model.safetensors",))
    told = hub.ask("""
        from mmedpo.models.fingerprint import model_contents
        found = [model_contents("user/model"), model_contents("user/model")]
        api.upload_file(path_or_fileobj=b"A card.", path_in_repo="README.md", repo_id="user/model")
        found.append(model_contents("user/model"))
        api.upload_file(path_or_fileobj=b"{}", path_in_repo="generation_config.json", repo_id="user/model")
        say([*found, model_contents("user/model")])
    """)
    assert told[:3] == [model_contents(str(tiny_model))] * 3 and told[3] != told[0]


def test_a_model_that_is_not_there_is_said_so() -> None:
    with pytest.raises(InputError, match="The model 'no/where' cannot be loaded"):
        model_contents("no/where")


def test_an_output_is_resumed_with_the_contents_it_was_begun_with(tmp_path: Path) -> None:
    output, settings = tmp_path / "out", {"model": "runs/start", "adapter": None, "config": {"dataset": "me/pairs"}}
    begun = {"model": "a" * 64, "config.dataset": "b" * 64, "judge local:x": "c" * 64, "chat": None}

    def run(resume: bool, **changed: str | None) -> None:
        with output_folder(output, settings, resume, contents=begun | changed) as folder:
            (folder / "work.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(False)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(True, adapter=None)
        with pytest.raises(InputError, match=r"out\.partial: .*start a new --output:") as refused:
            run(True, **{"model": "d" * 64, "config.dataset": "e" * 64, "judge local:x": "f" * 64})
        assert str(refused.value).splitlines()[1:] == [
            "  - config.dataset me/pairs: bbbbbbbb -> eeeeeeee", "  - judge local:x: cccccccc -> ffffffff",
            "  - model runs/start: aaaaaaaa -> dddddddd",
        ]  # fmt: skip
    with output_folder(output, settings, True, contents=begun):
        pass
    assert sorted(file.name for file in output.iterdir()) == [".settings.sha256", "work.txt"]
    with pytest.raises(AlreadyFinished):
        run(True)
    with pytest.raises(InputError, match=r"(?s)out: .*model runs/start: aaaaaaaa -> dddddddd"):
        run(True, model="d" * 64)
