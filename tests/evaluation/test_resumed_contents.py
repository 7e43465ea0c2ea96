"""A resumed evaluation goes on with the model, adapter and rows that it was begun with, or says which are others.

One evaluation of each measure is interrupted half-way and one is finished; then something is replaced under its name.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file, save_file

from mmedpo.cli import main
from mmedpo.errors import AlreadyFinished, InputError
from mmedpo.evaluation import attention, pairs
from mmedpo.evaluation.measures import measure, opened
from mmedpo.evaluation.settings import Run, Settings
from mmedpo.models import prefill
from mmedpo.models.chat.limits import Limits

MEASURES = ("answers", "preference", "visual_reliance", "attention")
STATES = ("half", "done")
ROWS = 8


def broken_off(calls: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which a Ctrl-C interrupts the second time."""
    called: list[object] = []

    def call(*given: Any, **options: Any) -> Any:
        called.append(given)
        if len(called) > 1:
            raise KeyboardInterrupt
        return calls(*given, **options)

    return call


BROKEN = {
    "answers": (prefill, "answers"), "preference": (pairs, "_seen"),
    "visual_reliance": (pairs.VisualReliance, "found"), "attention": (attention, "draw"),
}  # fmt: skip


class Work:
    """A source, a dataset, a model and an adapter, and evaluations of them in the states of `STATES`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source, self.dataset, self.model, self.adapter = (
            folder / name for name in ("source", "pairs", "model", "adapter")
        )

    def run(self, kind: str, state: str) -> None:
        """Raise what the evaluation raises."""
        output = self.folder / f"{kind}-{state}"
        if kind == "attention":
            words = ["--model", self.model, "--adapter", self.adapter, "--source", self.source, "--output", output]
            with pytest.raises(SystemExit) as ended:
                main(["attention", *map(str, words), "--resume"])
            if ended.value.code == 130:
                raise KeyboardInterrupt
            return
        given: dict[str, Any] = {"source": self.source, "max_new_tokens": 5, "max_new_tokens_report": 5}
        if kind != "answers":
            given = {"dataset": str(self.dataset)}
        settings = Settings(str(self.model), adapter=str(self.adapter), measure=kind, batch_size=2, **given)
        measure(settings, Run(output=output, resume=True))

    def refused(self, kind: str, state: str, capsys: pytest.CaptureFixture[str]) -> str:
        """Return the message that an evaluation is refused with; its folder stays as it was."""
        capsys.readouterr()
        if kind == "attention":
            self.run(kind, state)
            said = capsys.readouterr().err
        else:
            with pytest.raises(InputError) as refused:
                self.run(kind, state)
            said = str(refused.value)
        assert (self.folder / (f"{kind}-half.partial" if state == "half" else f"{kind}-done")).is_dir()
        assert not (self.folder / f"{kind}-half").exists()
        return " ".join(said.split())


@pytest.fixture(scope="module")
def built(corpus: Path, tiny_model: Path, preferences: Path, tmp_path_factory: pytest.TempPathFactory) -> Work:
    work = Work(tmp_path_factory.mktemp("work"))
    shutil.copytree(corpus, work.source)
    table = work.source / "samples.jsonl"
    rows = [row for row in map(json.loads, table.read_text("utf-8").splitlines()) if row["split"] == "test"]
    boxed = [row for row in rows if row.get("boxes")]
    write_table(work, [row | {"id": f"row {number}"} for number, row in enumerate(boxed[:ROWS])])
    shutil.copytree(preferences, work.dataset)
    (file,) = (work.dataset / "data").glob("train*.parquet")
    kinds = Dataset.from_parquet(str(file))
    places = [i for i, kind in enumerate(kinds["dispreference"]) if kind == 1][::7][:4]
    write_pairs(work, [*kinds.select(places + [i for i in range(9) if i not in places][:3])])
    shutil.copytree(tiny_model, work.model)
    write_adapter(work, 0)
    for kind, (owner, name) in BROKEN.items():
        work.run(kind, "done")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, name, broken_off(getattr(owner, name)))
            work.run(kind, "half")
    return work


def write_table(work: Work, rows: list[dict[str, Any]]) -> None:
    (work.source / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def table(work: Work) -> list[dict[str, Any]]:
    return [*map(json.loads, (work.source / "samples.jsonl").read_text("utf-8").splitlines())]


def pair_file(work: Work) -> Path:
    (file,) = (work.dataset / "data").glob("train*.parquet")
    return file


def write_pairs(work: Work, rows: list[dict[str, Any]]) -> None:
    features = Dataset.from_parquet(str(pair_file(work))).features
    Dataset.from_list(rows, features=features).to_parquet(str(pair_file(work)))


def write_adapter(work: Work, seed: int) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(seed)
    plain = AutoModelForImageTextToText.from_pretrained(work.model)
    config = LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False)
    get_peft_model(plain, config).save_pretrained(work.adapter)


@pytest.fixture
def work(built: Work, tmp_path: Path) -> Iterator[Work]:
    """Whatever a test replaces is put back."""
    given = (built.source, built.dataset, built.model, built.adapter)
    for folder in given:
        shutil.copytree(folder, tmp_path / folder.name)
    yield built
    for folder in given:
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / folder.name, folder)


def change_row(**values: Any) -> Callable[[Work], None]:
    def change(work: Work) -> None:
        rows = table(work)
        rows[2] |= {name: value(rows[2]) if callable(value) else value for name, value in values.items()}
        write_table(work, rows)

    return change


def paint(work: Work) -> None:
    (file,) = work.source.rglob(table(work)[2]["image"])
    Image.radial_gradient("L").resize(Image.open(file).size).save(file)


def move_box(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**box, "x": box["x"] + 1} for box in row["boxes"]]


def change_pair(**values: Any) -> Callable[[Work], None]:
    def change(work: Work) -> None:
        rows = [*Dataset.from_parquet(str(pair_file(work)))]
        write_pairs(work, [rows[0] | values, *rows[1:]])

    return change


def change_model(work: Work) -> None:
    file = work.model / "model.safetensors"
    weights = load_file(file)
    next(value for value in weights.values() if value.is_floating_point()).add_(0.01)
    save_file(weights, file, {"format": "pt"})


RED = [Image.new("RGB", (64, 64), "red")]
OTHER = [{"role": "assistant", "content": "something else"}]
ROW = {
    "question": (change_row(question="Is this another question?"), "1 changed, of 8", "row 2 [question]: changed"),
    "answer": (change_row(answer="another answer"), "1 changed, of 8", "row 2 [gold answer]: changed"),
    "image": (paint, "changed, of 8", "row 2 [image]: changed"),
    "new": (lambda work: write_table(work, [*table(work), {**table(work)[0], "id": "row 9"}]), "1 new, of 8", "is new"),
    "gone": (lambda work: write_table(work, table(work)[1:]), "1 missing, of 8", "row 0 [(row)]: is missing"),
    "order": (lambda work: write_table(work, table(work)[::-1]), "another order, of 8", "--output"),
}
BOX = {"box": (change_row(boxes=move_box), "1 changed, of 8", "row 2 [boxes]: changed")}
PAIR = {
    "rejected answer": (change_pair(rejected=OTHER), "1 changed", "[the rejected side or another part of the pair]"),
    "chosen answer": (change_pair(chosen=OTHER), "1 changed", "[gold answer, the rejected side"),
    "weight": (change_pair(weight=1.25), "1 changed", "[weight]: changed"),
    "image": (change_pair(images=RED), "1 changed", "image, the rejected side"),
    "noised image": (change_pair(rejected_images=RED), "1 changed", "[the rejected side or another part of the pair]"),
}
DOORS = {
    "answers": ROW, "preference": PAIR, "visual_reliance": {name: PAIR[name] for name in ("noised image", "image")},
    "attention": {name: {**ROW, **BOX}[name] for name in ("box", "image", "answer")},
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "change", "state"),
    [(kind, change, state) for kind, changes in DOORS.items() for number, change in enumerate(changes)
     for state in (("half",) if number else STATES)],
)  # fmt: skip
def test_changed_rows_are_named(work, kind, change, state, capsys):
    make, counted, named = DOORS[kind][change]
    make(work)
    said = work.refused(kind, state, capsys)
    assert f"{work.folder}/{kind}-{state}" in said and "the questions differ" in said
    assert counted in said and named in said and "another --output" in said


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", MEASURES)
def test_a_replaced_adapter_or_model_is_named(work, kind, state, capsys):
    write_adapter(work, 1)
    said = work.refused(kind, state, capsys)
    assert f"adapter {work.adapter}: " in said and "model" not in said.partition("the same name.")[2]
    change_model(work)
    said = work.refused(kind, state, capsys)
    assert f"model {work.model}: " in said and "start a new --output" in said


@pytest.mark.parametrize("kind", ["answers", "preference"])
def test_what_is_replaced_while_it_is_loaded_is_refused(work, kind, monkeypatch):
    from mmedpo.models import vision_language

    def load(*given: Any, **options: Any) -> Any:
        write_adapter(work, 1)  # as a training does that saves there
        return models_load(*given, **options)

    models_load = vision_language.load_model
    monkeypatch.setattr(vision_language, "load_model", load)
    with pytest.raises(InputError, match=r"adapter '.*adapter' changed while it was loaded"):
        work.run(kind, "fresh")
    assert not list(work.folder.glob("*fresh*"))


def test_a_comparison_shows_no_other_images(work, tmp_path, capsys):
    runs = [work.folder / "answers-done", tmp_path / "again"]
    shutil.copytree(*runs)
    results = json.loads((runs[1] / "results.json").read_text("utf-8"))
    (runs[1] / "results.json").write_text(json.dumps(results | {"name": "again"}), "utf-8")
    words = ["compare", *map(str, runs), "--source", str(work.source), "--output"]
    for output, code in (("shown", 0), ("other", 2)):
        with pytest.raises(SystemExit) as ended:
            main([*words, str(tmp_path / output)])
        assert ended.value.code == code
        paint(work)
    said = " ".join(capsys.readouterr().err.split())
    assert "had another image in the runs" in said and "row 2" in said
    assert not (tmp_path / "other").exists()


def test_a_task_refuses_an_adapter_that_was_replaced_since_the_start(work):
    settings = Settings(str(work.model), work.source, adapter=str(work.adapter))
    contents = settings.model_spec.contents()
    write_adapter(work, 1)
    with pytest.raises(InputError, match=r"adapter '.*adapter' changed while it was loaded"):
        opened(settings, Limits(), contents, 2)


def test_what_is_as_it_was_goes_on_to_the_same_bytes(work):
    """The last test: afterwards nothing is half done."""
    shutil.move(work.adapter, work.folder / "elsewhere")
    shutil.copytree(work.folder / "elsewhere", work.adapter)  # equal contents in other files
    for kind in MEASURES:
        work.run(kind, "half")
        whole, resumed = (work.folder / f"{kind}-{state}" for state in ("done", "half"))
        names = ["questions.jsonl", *([] if kind == "attention" else ["predictions.jsonl", "scores.jsonl"])]
        for name in names:
            assert (resumed / name).read_bytes() == (whole / name).read_bytes()
        if kind != "attention":
            with pytest.raises(AlreadyFinished):
                work.run(kind, "done")
