"""Dataset builders, each on a small invented tree in its data set's own layout: no real image, report or question."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from hub.server import Hub
from PIL import Image
from standins import WORDS
from typer.testing import CliRunner

from mmedpo import cli, schema
from mmedpo.curation.rows import Precomputed, Reject
from mmedpo.curation.settings import Settings
from mmedpo.data import loading, shards
from mmedpo.data.samples import Sample
from mmedpo.data.sources import read_source
from mmedpo.errors import Fault, InputError
from mmedpo.hub import builders, upstream
from mmedpo.hub.publish import Publication, stripped
from mmedpo.hub.publish.state import Plan
from mmedpo.hub.readers import Item, sections
from mmedpo.runs import packaged
from mmedpo.runs.json_files import read_json

Run = Callable[..., tuple[int, str]]
NAMES = list(builders.names())


@pytest.fixture
def build(run: Run) -> Run:
    """Run `mmedpo build ...`; stand-ins are asked, but where rows bring their wrong answers along."""
    return lambda *words: run("build", *words, *(WORDS if words[0] in NAMES and words[0] != "released" else ()))


def picture(seed: int, size: int = 32) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(root: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def packed(folder: Path, file: Path, top: str = "") -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in sorted(folder.rglob("*")):
            archive.write(entry, f"{top}{entry.relative_to(folder)}")
    return file


def options_of(name: str, **given: Any) -> Any:
    return getattr(builders.load(name), "Options", builders.Options)(**given)


def read(name: str, source: Path, **options: Any) -> list[Item]:
    return list(builders.load(name).read(source, options_of(name, **options)))


def rows(items: list[Item]) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)]


def reasons(items: list[Item]) -> Counter[str]:
    return Counter(item.reason for item in items if isinstance(item, Reject))


def written(name: str, source: Path, folder: Path, **options: Any) -> list[Sample]:
    """The samples that the rows of a builder become."""
    items = builders.load(name).read(source, options_of(name, **options))
    upstream.write_source(items, name, folder, skip_faulty=False, about={}, folders=[source])
    found = read_source(folder)
    assert found.faults == []
    return found.samples


# Every builder.


def test_there_is_a_builder_for_each_data_set_that_is_promised() -> None:
    promised = {
        "vqa_rad",
        "path_vqa",
        "slake",
        "iu_xray",
        "mimic_cxr",
        "released",
        "folder",
        "nih_bbox",
        "probmed",
        "pmc_vqa",
    }
    assert promised == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_builder_is_whole(name: str) -> None:
    builder = builders.load(name)
    doc = builder.__doc__ or ""
    assert f"\nExample: mmedpo build {name} " in doc
    assert all(f"\n{word} " in doc for word in ("Source", "Terms", "Flaws", "Lesions"))
    assert set(builders.defaults(builder)) <= {option.name for option in fields(Settings)}
    assert builder.SOURCE is None or builder.SOURCE.startswith("hub:")
    assert builder.CREDENTIALED is (name == "mimic_cxr")


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_the_data_is_and_lists_options(build: Run, name: str) -> None:
    code, output = build(name, "--help")
    assert code == 0
    assert f"Example: mmedpo build {name} " in output and "Flaws" in output
    assert all(option in output for option in ("--localizer", "--publish", "--keep-source"))


def test_builders_are_listed_by_help_and_where_the_name_is_unknown(build: Run) -> None:
    code, output = build("--help")
    assert code == 0 and "SLAKE: questions in English" in output
    code, output = build("nope", "--output", "out")
    assert code == 2 and f"There is no builder 'nope'; there are {', '.join(NAMES)}." in output
    assert build("--output", "out")[0] == 2


@pytest.mark.parametrize(
    ("words", "code", "phrase"),
    [
        (
            "--source nowhere --output out",
            2,
            "nowhere does not exist. `mmedpo build slake --help` describes it",
        ),
        ("--help", 0, "usage: mmedpo build slake [--config RECIPE.yaml]"),
    ],
)
def test_a_script_is_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, code: int, phrase: str
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    script = str(packaged.folder("dataset_builders") / "slake.py")
    monkeypatch.setattr(sys, "argv", [script, *WORDS, *words.split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
        raise SystemExit(0)
    assert (ended.value.code or 0) == code and phrase in "".join(capsys.readouterr())


def test_a_recipe_overrides_a_builder_and_the_command_line_both(
    build: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Settings] = []
    monkeypatch.setattr("mmedpo.hub.build.build", lambda builder, settings, *rest: given.append(settings))
    (tmp_path / "recipe.yaml").write_text("localizer: standin:centre\nseed: 3\nlicense: mit\n")
    assert build("vqa_rad", "--config", "recipe.yaml", "--license", "apache-2.0", "--output", "out") == (0, "")
    (settings,) = given
    assert (settings.localizer, settings.seed, settings.license) == ("standin:centre", 3, "apache-2.0")
    assert (str(settings.source), settings.split) == ("hub:flaviagiammarino/vqa-rad", "train")


def test_a_source_of_another_data_set_is_recognised(build: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "data", {"annotation.json": "{}", "images/a.png": picture(1)})
    code, output = build("slake", "--source", source, "--output", "out")
    assert code == 2
    assert (
        "does not have the layout of slake (train.json with imgs* or *Slake*.zip or *SLAKE*.zip or *slake*.zip)"
        in output
    )
    assert "It holds annotation.json, images. It looks like the source of `mmedpo build iu_xray`." in output
    code, output = build("mimic_cxr", "--source", tmp_path / "data" / "images", "--output", "out")
    assert code == 2 and "It holds a.png." in output and "looks like" not in output
    assert not list(tmp_path.glob("out*"))


# The runner, on PathVQA's layout: images without names.


@pytest.fixture
def path_vqa(tmp_path: Path) -> Path:
    """A copy of a Hub dataset: 12 images with 2 questions each, of which one image is in two splits."""
    features = Features({"image": ImageFeature(), "question": Value("string"), "answer": Value("string")})
    root = tmp_path / "invented-path-vqa"
    for split, numbers in {"train": range(8), "validation": range(8, 10), "test": [10, 11, 0]}.items():
        table = [
            {"image": {"bytes": picture(n), "path": "x.png"}, "question": f"is this {what} {n}?", "answer": answer}
            for n in numbers
            for what, answer in (("tissue", "yes"), ("cell", "no"))
        ]
        (root / "data").mkdir(parents=True, exist_ok=True)
        Dataset.from_list(table, features=features).to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return root


def test_a_build_is_whole(build: Run, path_vqa: Path, tmp_path: Path) -> None:
    code, output = build("path_vqa", "--source", path_vqa, "--output", "out", "--keep-source", "kept/source")
    assert code == 0
    assert "out: 26 rows read, " in output
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == {
        ".mmedpo", ".settings.sha256", "README.md", "audit.json", "data", "manifest.json", "rejects.jsonl",
    }  # fmt: skip
    manifest = read_json(tmp_path / "out" / "manifest.json")
    source = manifest["source"]
    assert (source["name"], source["license"], source["split"]) == ("path-vqa", "mit", "train")
    assert (source["rows"], source["builder"], source["upstream_split"]) == (26, "path_vqa", "by image")
    assert source["split_by"] == "image"  # one image was in train and in test
    assert len(loading.load("out")) == source["questions"] == manifest["counts"]["hallucinated_response"]
    assert "| split of its authors | by image |" in (tmp_path / "out" / "README.md").read_text()
    assert str(tmp_path) not in "".join(
        (tmp_path / "out" / name).read_text() for name in ("README.md", "manifest.json")
    )
    # What was kept is a source whose test images are none of the training images.
    parts = {split: read_source(Path("kept/source"), split).samples for split in ("train", "test")}
    trained, tested = ({sample.image_id for sample in part} for part in parts.values())
    assert len(parts["train"]) == source["questions"] and tested and not trained & tested
    assert len(list(Path("kept/source/images").iterdir())) == 12  # each written once


def test_other_columns_are_named(build: Run, tmp_path: Path) -> None:
    (tmp_path / "copy" / "data").mkdir(parents=True)
    Dataset.from_dict({"image": ["a"], "text": ["b"]}).to_parquet(tmp_path / "copy" / "data" / "train-0.parquet")
    code, output = build("vqa_rad", "--source", "copy", "--output", "out")
    assert code == 2 and "has no column answer, question; its columns are image, text" in output
    assert not list(tmp_path.glob("out*"))


def test_an_interrupted_build_goes_on_without_reading_again(
    build: Run, path_vqa: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ("path_vqa", "--source", path_vqa, "--output", "out")
    with monkeypatch.context() as patch:
        patch.setattr("mmedpo.hub.build.make_dataset", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert build(*words)[0] == 130
    with monkeypatch.context() as patch:
        patch.setattr(upstream, "_write", lambda *_: pytest.fail("the rows were read again"))
        assert build(*words, "--resume")[0] == 0
    assert read_json(tmp_path / "out" / "manifest.json")["source"]["rows"] == 26


def test_a_build_whose_source_changed_is_refused_or_does_those_questions_again(
    build: Run, path_vqa: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def change(old: str, new: str) -> None:
        (file,) = (path_vqa / "data").glob("train*")
        table = Dataset.from_parquet(str(file))
        assert isinstance(table, Dataset)
        table.map(lambda row: {"answer": row["answer"].replace(old, new)}).to_parquet(file)

    words = ("path_vqa", "--source", path_vqa, "--output", "out")
    with monkeypatch.context() as patch:
        patch.setattr(shards, "write", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert build(*words)[0] == 130
    change("no", "No.")
    code, output = build(*words, "--resume")
    assert code == 2 and "rows changed" in output and "train-1 [answer]: changed since the start" in output
    code, output = build(*words, "--resume", "--redo-changed")
    assert code == 0 and "questions since the start of this run: 5 changed and curated again." in caplog.text
    pairs = {(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in loading.load("out")}
    assert pairs == {("yes", "no"), ("no", "yes"), ("No.", "Yes.")}  # "no" of the files that did not change
    (tmp_path / ".out.writing" / "source").mkdir(parents=True)  # of a check that was killed
    code, output = build(*words, "--resume")
    assert code == 0 and "nothing to resume" in output
    change("No.", "no")
    code, output = build(*words, "--resume")
    assert code == 2 and "is finished, but questions of path-vqa were changed" in output
    assert {entry.name for entry in tmp_path.iterdir()} == {"out", "invented-path-vqa"}


def test_publishing_comes_last_and_can_be_repeated(build: Run, path_vqa: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[tuple[Path, str]] = []

    def publish(folder: Path, repo: str, fill: dict[str, str], confirm: None, third_parties: bool) -> Publication:
        assert (folder / "README.md").exists() and not third_parties and fill == {"license": "mit"}
        published.append((folder, repo))
        return Publication(repo, "there", "private", None, None, Plan([], [], [], []), {}, [], [])

    prepared: list[str] = []
    monkeypatch.setattr("mmedpo.hub.publish.prepare", prepared.append)
    monkeypatch.setattr("mmedpo.hub.publish.publish", publish)
    words = ("path_vqa", "--source", path_vqa, "--limit", 4, "--output", "out", "--publish", "me/pairs")
    words += ("--fill", "license=mit")
    assert build(*words)[0] == 0
    assert build(*words, "--resume")[0] == 0
    assert published == [(Path("out"), "me/pairs")] * 2 and prepared == ["me/pairs"] * 2


def test_a_card_with_open_fields_is_published_when_somebody_answers(
    hub_here: Hub, build: Run, path_vqa: Path, tmp_path: Path
) -> None:
    code, output = build("path_vqa", "--source", path_vqa, "--limit", 4, "--output", "out", "--publish", "user/pairs")
    said = " ".join(output.split())
    assert code == 2 and (tmp_path / "out" / "manifest.json").exists()
    assert not list(hub_here.store) and "There is no terminal to ask at" in said
    assert "The dataset is complete in out, but was not published." in said
    assert "- license: " in said and "- privacy: " in said
    assert 'Publish it with: mmedpo publish out user/pairs [--fill KEY="..."]' in said


@pytest.mark.parametrize("name", ["slake", "vqa_rad"])
def test_a_hub_that_cannot_be_reached_is_said(build: Run, name: str, tmp_path: Path) -> None:
    code, output = build(name, "--source", "hub:nobody/of-that-name", "--output", "out")  # HF_HUB_OFFLINE is set here
    assert code == 2 and "nobody/of-that-name" in output and "Give a " in output
    code, output = build(name, "--source", "nobody/of-that-name", "--output", "out")  # no folder, and not asked for
    assert code == 2 and "does not exist" in output and f"give {builders.load(name).SOURCE}" in output
    assert not list(tmp_path.glob("out*"))


def test_images_outside_the_source_are_refused(tmp_path: Path) -> None:
    tree = slake(tmp_path / "tree", {"train": [question(1, "../../secret.jpg")]})
    with pytest.raises(InputError, match=r"leads out of the source"):
        written("slake", tree, tmp_path / "source")


@pytest.mark.slow
def test_two_tasks_build_what_one_does(path_vqa: Path, tmp_path: Path) -> None:
    for tasks in ("1", "2"):
        words = [sys.executable, "-m", "mmedpo.cli", "build", "path_vqa", *WORDS, "--source", str(path_vqa), "--output",
                 tasks, "--tasks", tasks]  # fmt: skip
        surroundings = {**os.environ, "PYTHONPATH": str(packaged.folder("dataset_builders").parent)}
        subprocess.run(words, cwd=tmp_path, env=surroundings, check=True)
    assert loading.load(str(tmp_path / "1")).to_dict() == loading.load(str(tmp_path / "2")).to_dict()
    assert {entry.name for entry in (tmp_path / "1").iterdir()} == {entry.name for entry in (tmp_path / "2").iterdir()}


# SLAKE.


def question(number: int, image: str = "xmlab1/source.jpg", **changes: Any) -> dict[str, Any]:
    row = {
        "img_id": 1, "img_name": image, "question": f"Invented question {number}?", "answer": "Left", "q_lang": "en",
        "location": "Lung", "modality": "X-Ray", "answer_type": "OPEN", "base_type": "vqa", "content_type": "Position",
        "triple": ["vhead", "_", "_"], "qid": number,
    }  # fmt: skip
    return {**row, **changes}


BOXED = [{"Left Lung": [1.0, 2.0, 8.0, 9.0]}, {"Lung Cancer": [3.0, 4.0, 5.0, 6.0]}, {"Atelectasis": [0, 0, 4, 4]}]


def slake(root: Path, tables: dict[str, list[dict[str, Any]]] | None = None, validation: str = "validate") -> Path:
    """An invented tree in SLAKE's layout: two images with boxes; English and Chinese questions."""
    given = {
        "train": [question(1), question(2, q_lang="zh"), question(3, answer="Yes", answer_type="CLOSED")],
        "validate": [question(4, "xmlab2/source.jpg", q_lang="zh")],
        "test": [question(5, "xmlab2/source.jpg")],
        **(tables or {}),
    }
    files: dict[str, bytes | str] = {
        f"{validation if split == 'validate' else split}.json": json.dumps(rows) for split, rows in given.items()
    }
    boxed = {"imgs/xmlab1/detection.json": json.dumps(BOXED), "imgs/xmlab2/detection.json": "[]"}
    return write(root, {**files, **boxed, **{f"imgs/xmlab{n}/source.jpg": picture(n) for n in (1, 2)}})


def in_a_folder(tmp_path: Path) -> Path:
    return slake(tmp_path / "tree", validation="validation")


def in_one_archive(tmp_path: Path) -> Path:
    return packed(slake(tmp_path / "tree"), tmp_path / "Slake1.0.zip", "Slake1.0/")


def with_packed_images(tmp_path: Path) -> Path:
    tree = slake(tmp_path / "tree")
    packed(tree / "imgs", tree / "imgs.zip", "imgs/")
    (tree / "imgs").rename(tmp_path / "elsewhere")
    return tree


@pytest.mark.parametrize("layout", [in_a_folder, in_one_archive, with_packed_images])
def test_slake_is_read_from_each_of_its_layouts(layout: Callable[[Path], Path], tmp_path: Path) -> None:
    first, *_, last = samples = written("slake", layout(tmp_path), tmp_path / "source")
    assert [(sample.id, sample.split, sample.task) for sample in samples] == [
        ("train-1", "train", "open_vqa"), ("train-3", "train", "closed_vqa"), ("test-5", "test", "open_vqa"),
    ]  # fmt: skip
    assert (first.source, first.image_id, first.modality, first.organ) == (
        "slake", "imgs/xmlab1/source.jpg", "X-Ray", "Lung",
    )  # fmt: skip
    assert first.images[0].file.read_bytes() == picture(1)
    assert [(box.label, box.x, box.y, box.width, box.height) for box in first.boxes] == [
        ("Lung Cancer", 3, 4, 5, 6), ("Atelectasis", 0, 0, 4, 4),
    ]  # fmt: skip
    assert last.boxes == ()


def test_slake_counts_questions_in_the_other_language(tmp_path: Path) -> None:
    tree = slake(tmp_path / "tree")
    assert reasons(read("slake", tree)) == {"the question is not in the language en": 2}
    chinese = read("slake", tree, language="zh")
    assert [row["id"] for row in rows(chinese)] == ["train-2", "validation-4"]
    with pytest.raises(InputError, match="--language is 'de'"):
        options_of("slake", language="de")


def test_slake_left_out_rows_are_rejects_of_the_dataset(build: Run, tmp_path: Path) -> None:
    assert build("slake", "--source", slake(tmp_path / "tree"), "--output", "out")[0] == 0
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert manifest["rejects"]["the question is not in the language en"] == 2
    assert manifest["counts"] == {"hallucinated_response": 2, "lesion_noise": 2}
    assert manifest["source"]["split_by"] == "source"
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [(one["id"], one["detail"]) for one in rejects[:2]] == [("train-2", "zh"), ("validation-4", "zh")]


def test_slake_names_all_that_is_missing_or_broken(tmp_path: Path) -> None:
    tree = slake(tmp_path / "a", {"train": [question(n, f"xmlab{n}/source.jpg") for n in (7, 8)]})
    with pytest.raises(InputError, match="Faulty rows in slake: 2") as raised:
        written("slake", tree, tmp_path / "source")
    assert [(fault.row, fault.column) for fault in raised.value.faults] == [("train-7", "image"), ("train-8", "image")]
    (tree / "validate.json").unlink()
    (tree / "test.json").unlink()
    with pytest.raises(InputError, match=r"no validate.json or validation.json, no test.json"):
        read("slake", tree)
    tree = write(slake(tmp_path / "b"), {"imgs/xmlab1/detection.json": '[{"Lung Cancer": [1, 2]}]'})
    assert [item.row for item in read("slake", tree) if isinstance(item, Fault)] == ["train-1", "train-3"]
    with pytest.raises(InputError, match=r"train.json is not JSON"):
        read("slake", write(slake(tmp_path / "c"), {"train.json": "[{"}))
    incomplete = [{key: value for key, value in question(1).items() if key != "q_lang"}]
    with pytest.raises(InputError, match=r"slake: after row 0, it differs from .* \(no 'q_lang'\)"):
        written("slake", slake(tmp_path / "d", {"train": incomplete}), tmp_path / "source2")


@pytest.mark.parametrize("cut", [100, 0.5])
def test_slake_broken_archives_are_said_to_be_broken(build: Run, tmp_path: Path, cut: float) -> None:
    file = in_one_archive(tmp_path)
    data = bytearray(file.read_bytes())
    if cut < 1:  # inside an image, so that the table of contents is whole
        place = data.index(b"source.jpg", data.index(b"xmlab1/source.jpg") + 20) - 600
        data[place : place + 50] = bytes(50)
    else:
        del data[-int(cut) :]
    file.write_bytes(data)
    code, output = build("slake", "--source", file, "--output", "out")
    assert code == 2 and "the ZIP file is damaged" in output and "Download it again" in output
    assert not list(tmp_path.glob("out*"))


# IU X-Ray.


def r2gen(root: Path) -> Path:
    def study(number: int, report: str = "Invented  report.") -> dict[str, Any]:
        name = f"CXR{number}_IM-000{number}"
        return {"id": name, "report": report, "image_path": [f"{name}/0.png", f"{name}/1.png"]}

    parts = {"train": [study(1), study(2, " ")], "val": [study(3)], "test": [study(4)]}
    files = {f"images/CXR{n}_IM-000{n}/{view}.png": picture(n) for n in (1, 2, 3, 4) for view in (0, 1)}
    return write(root, {"annotation.json": json.dumps(parts), **files})


def kaggle(root: Path) -> Path:
    reports = (
        "uid,MeSH,Problems,image,indication,comparison,findings,impression\n"
        '1,normal,normal,x,x,x,"Invented, clear\nlungs.",Invented impression.\n2,x,x,x,x,x,,Only an impression.\n'
    )
    projections = (
        "uid,filename,projection\n1,1_IM-0001-4001.dcm.png,Frontal\n1,1_IM-0001-3001.dcm.png,Lateral\n"
        "2,2_IM-0652-1001.dcm.png,Frontal\n"
    )
    names = ("1_IM-0001-4001.dcm.png", "1_IM-0001-3001.dcm.png", "2_IM-0652-1001.dcm.png")
    files = {f"images/images_normalized/{name}": picture(n) for n, name in enumerate(names)}
    return write(root, {"indiana_reports.csv": reports, "indiana_projections.csv": projections, **files})


def test_iu_xray_in_r2gens_layout(tmp_path: Path) -> None:
    samples = written("iu_xray", r2gen(tmp_path / "tree"), tmp_path / "source")
    assert [(sample.id, sample.split, sample.image_id, sample.patient_id) for sample in samples] == [
        ("CXR1_IM-0001", "train", "images/CXR1_IM-0001/0.png", "CXR1"),
        ("CXR3_IM-0003", "validation", "images/CXR3_IM-0003/0.png", "CXR3"),
        ("CXR4_IM-0004", "test", "images/CXR4_IM-0004/0.png", "CXR4"),
    ]
    assert {(sample.task, sample.answer) for sample in samples} == {("report", "Invented report.")}
    assert builders._about(builders.load("iu_xray"), tmp_path / "tree")["upstream_split"] == "by study"
    assert reasons(read("iu_xray", tmp_path / "tree")) == {"the report is empty": 1}
    write(tmp_path / "tree", {"annotation.json": "[]"})
    with pytest.raises(InputError, match="R2Gen's holds the lists train, val and test"):
        read("iu_xray", tmp_path / "tree")


def test_iu_xray_in_kaggles_layout(tmp_path: Path) -> None:
    tree = kaggle(tmp_path / "tree")
    (sample,) = written("iu_xray", tree, tmp_path / "source")
    assert (sample.id, sample.answer, sample.patient_id) == ("1_IM-0001-4001", "Invented, clear lungs.", "CXR1")
    assert sample.image_id == "images/images_normalized/1_IM-0001-4001.dcm.png"
    assert builders._about(builders.load("iu_xray"), tree)["upstream_split"] is None
    assert reasons(read("iu_xray", tree)) == {"the view is not frontal": 1, "the report has no findings": 1}
    both = rows(read("iu_xray", tree, sections="findings,impression"))
    assert [row["report"] for row in both] == ["Invented, clear lungs. Invented impression.", "Only an impression."]
    with pytest.raises(InputError, match="--sections is 'history'"):
        options_of("iu_xray", sections="history")


def test_all_views_of_a_study_are_one_question_in_order(tmp_path: Path) -> None:
    samples = written("iu_xray", r2gen(tmp_path / "r2gen"), tmp_path / "a", views="all")
    assert [(one.id, one.split, [image.name for image in one.images]) for one in samples] == [
        (f"CXR{n}_IM-000{n}", split, [f"images/CXR{n}_IM-000{n}/{view}.png" for view in (0, 1)])
        for n, split in ((1, "train"), (3, "validation"), (4, "test"))
    ]
    tree = kaggle(tmp_path / "kaggle")
    table = tree / "indiana_projections.csv"
    header, *lines = table.read_text().splitlines()
    table.write_text("\n".join([header, *reversed(lines)]) + "\n")  # the lateral image of study 1 comes first
    (study,) = written("iu_xray", tree, tmp_path / "b", views="all")
    assert (study.id, study.patient_id, study.answer) == ("CXR1", "CXR1", "Invented, clear lungs.")
    assert [image.file.name for image in study.images] == ["1_IM-0001-4001.dcm.png", "1_IM-0001-3001.dcm.png"]
    (tree / "images/images_normalized/1_IM-0001-3001.dcm.png").unlink()
    (fault, reject) = read("iu_xray", tree, views="all")
    assert isinstance(fault, Fault) and fault.row == "1_IM-0001-3001" and isinstance(reject, Reject)
    with pytest.raises(InputError, match="--views is 'side'; choose one of frontal, all"):
        options_of("iu_xray", views="side")

    tree = mimic(tmp_path / "mimic")
    both, alone = written("mimic_cxr", tree, tmp_path / "c", views="all")
    assert (both.id, both.split, both.patient_id, len(alone.images)) == ("s50000001", "train", "p10000001", 1)
    assert [image.name for image in both.images] == [
        f"files/p10/p10000001/s50000001/{name}.jpg" for name in ("aa", "ab")
    ]
    assert [row["id"] for row in rows(read("mimic_cxr", tree, views="frontal"))] == ["aa", "ca"]


def test_iu_xray_missing_images_and_reports_are_listed(tmp_path: Path) -> None:
    tree = kaggle(tmp_path / "tree")
    (tree / "images" / "images_normalized" / "1_IM-0001-4001.dcm.png").unlink()
    with (tree / "indiana_projections.csv").open("a") as table:
        table.write("9,9_IM-1.png,Frontal\n")
    with pytest.raises(InputError) as raised:
        written("iu_xray", tree, tmp_path / "source")
    assert [(fault.row, fault.column) for fault in raised.value.faults] == [
        ("1_IM-0001-4001", "image"), ("9_IM-1.png", "uid"),
    ]  # fmt: skip


# MIMIC-CXR.

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  Invented: ___F with a cough.

 FINDINGS:

 The invented lungs are clear.  Ratio 1:2 is
 unchanged.

 IMPRESSION:  Nothing invented.
"""


def mimic(root: Path) -> Path:
    """An invented tree in PhysioNet's layout: two patients, three studies, four images."""
    images = [  # dicom, patient, study, view, split
        ("aa", 10000001, 50000001, "PA", "train"), ("ab", 10000001, 50000001, "LATERAL", "train"),
        ("ba", 10000001, 50000002, "AP", "train"), ("ca", 11000002, 50000003, "PA", "validate"),
    ]  # fmt: skip
    split = "dicom_id,study_id,subject_id,split\n" + "".join(f"{d},{s},{p},{part}\n" for d, p, s, _, part in images)
    views = "dicom_id,ViewPosition\n" + "".join(f"{d},{view}\n" for d, _, _, view, _ in images)
    study = "files/p{0}/p{1}/s{2}".format
    files = {f"{study(str(p)[:2], p, s)}/{d}.jpg": picture(n) for n, (d, p, s, *_) in enumerate(images)}
    reports = {f"{study(str(p)[:2], p, s)}.txt": REPORT for _, p, s, *_ in images}
    reports["files/p10/p10000001/s50000002.txt"] = " FINAL REPORT\n IMPRESSION:  Only this.\n"
    tables = {"mimic-cxr-2.0.0-split.csv.gz": gzip.compress(split.encode()), "mimic-cxr-2.0.0-metadata.csv": views}
    return write(root, {**tables, **files, **reports})


def test_mimic_cxr_is_read_by_patient(tmp_path: Path) -> None:
    samples = written("mimic_cxr", mimic(tmp_path / "tree"), tmp_path / "source")
    assert [(sample.id, sample.split, sample.patient_id, sample.image_id) for sample in samples] == [
        ("aa", "train", "p10000001", "files/p10/p10000001/s50000001/aa.jpg"),
        ("ca", "validation", "p11000002", "files/p11/p11000002/s50000003/ca.jpg"),
    ]
    assert {sample.answer for sample in samples} == {"The invented lungs are clear. Ratio 1:2 is unchanged."}
    left = reasons(read("mimic_cxr", tmp_path / "tree"))
    assert left == {"the view was not asked for": 1, "the report has no findings": 1}
    lateral = rows(read("mimic_cxr", tmp_path / "tree", sections="impression", views="LATERAL"))
    assert [(row["id"], row["report"]) for row in lateral] == [("ab", "Nothing invented.")]
    files = tmp_path / "tree" / "files"
    (files / "p11/p11000002/s50000003/ca.jpg").rename(files / "p11/p11000002/s50000003/ca.dcm")  # MIMIC-CXR itself
    assert rows(read("mimic_cxr", tmp_path / "tree"))[-1]["image"].name == "files/p11/p11000002/s50000003/ca.dcm"


def test_mimic_cxr_says_which_files_are_missing(tmp_path: Path) -> None:
    tree = mimic(tmp_path / "tree")
    (tree / "files/p10/p10000001/s50000001.txt").unlink()
    (tree / "files/p11/p11000002/s50000003/ca.jpg").unlink()
    with pytest.raises(InputError, match="leave them out with --skip-faulty") as raised:
        written("mimic_cxr", tree, tmp_path / "source")
    assert [(fault.row, fault.column) for fault in raised.value.faults] == [("aa", "report"), ("ca", "image")]
    (tree / "mimic-cxr-2.0.0-metadata.csv").unlink()
    with pytest.raises(InputError, match=r"has neither .*metadata.csv nor"):
        read("mimic_cxr", tree)


def test_mimic_cxr_is_marked_as_credentialed(build: Run, tmp_path: Path) -> None:
    tree = mimic(tmp_path / "tree")
    (tree / "files/p11/p11000002/s50000003/ca.jpg").unlink()  # a part of the tree will do
    assert build("mimic_cxr", "--source", tree, "--output", "out", "--skip-faulty", "--sections", "impression")[0] == 0
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert manifest["source"]["credentialed"] is True and manifest["source"]["name"] == "mimic-cxr"
    assert manifest["rejects"] == {"the view was not asked for": 1, "faulty row of the source": 1}


def test_sections_of_a_report() -> None:
    assert sections(REPORT) == {
        "EXAMINATION": "CHEST (PA AND LAT)", "INDICATION": "Invented: ___F with a cough.",
        "FINDINGS": "The invented lungs are clear. Ratio 1:2 is unchanged.", "IMPRESSION": "Nothing invented.",
    }  # fmt: skip
    assert sections("no headings at all") == {}
    assert sections("IMPRESSION: first\nIMPRESSION: second\nIMPRESSION:\n") == {"IMPRESSION": "second"}


# Released rows.


def pair(number: int, asked: str, gold: str, wrong: str, **changes: Any) -> dict[str, Any]:
    def turns(answer: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": f"<image>\n{asked}"}, {"from": "gpt", "value": f" {answer}"}]

    row = {
        "id": number, "image": "a.png", "conversations": turns(gold), "rejected_conversations": turns(wrong),
        "weighted_score": 0.8,
    }  # fmt: skip
    return {**row, **changes}


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """Eleven invented rows, of which three are without fault."""
    table = [
        pair(0, "Which organ?", "Liver", "The spleen is shown.", weighted_score=1.0),
        pair(1, "Is it a scan?", "Yes", "No, it is not.", weighted_score=0.2),
        pair(2, "What is it?", " ".join(f"word{n}" for n in range(21)), "Another report.", image="deep/b.png"),
        pair(3, "Where?", "Left", "Left"),
        pair(4, "Where is it?", "Left", "On the left side."),
        pair(5, "Is it ill?", "No", "No, it is not."),
        pair(6, "Which organ?", "Lung", "The spleen is shown."),
        pair(7, "How?", "Well", "Bad\ufffdly"),
        pair(8, "Who?", "A man", "A dog", image="c.png"),
        pair(9, "When?", "Now", "Then", weighted_score=None),
        pair(10, "Why?", "Because", "No reason", weighted_score=7),
    ]
    write(tmp_path / "images", {"a.png": picture(1), "x/deep/b.png": picture(2)})
    return write(tmp_path, {"pairs.json": json.dumps(table)}) / "pairs.json"


def test_released_rows_are_kept_or_counted(build: Run, released: Path, tmp_path: Path) -> None:
    words = ("released", "--source", released, "--images", "images", "--localizer", "standin:centre", "--output", "out")
    code, output = build(*words, "--weights", "raw", "--license", "cc0-1.0")
    assert code == 0 and "11 rows read, " in output
    manifest = read_json(tmp_path / "out" / "manifest.json")
    kept = 3  # rows 0, 1 and 2
    assert manifest["counts"] == {"hallucinated_response": kept, "lesion_noise": 6}
    assert manifest["rejects"] == {
        "chosen and rejected are equal on equal images; nothing can be learned from it": 1,
        "the rejected answer contains the gold answer; it is not wrong": 1,
        "both sides say the same, yes or no; the rejected answer is not wrong": 1,
        "the question was asked of the image before": 1,
        "a character of its texts was lost": 1,
        "no single image of that name": 1,
        "faulty row: no two turns a side and a score": 1,
        "the score is not in [0, 1]": 1,
    }
    assert kept + sum(manifest["rejects"].values()) == manifest["source"]["rows"] == 11
    assert manifest["chat_model"] == "MMedPO's authors, as released" and manifest["style"] is None
    assert manifest["settings"]["judges"] == [] and manifest["settings"]["chat"] is None
    found = {row["id"]: row for row in loading.load("out")}
    first, report = found["pairs/0/hallucinated_response"], found["pairs/2/hallucinated_response"]
    assert (first["prompt"][0]["content"], first["chosen"][0]["content"]) == ("Which organ?", "Liver")
    assert first["rejected"][0]["content"] == "The spleen is shown."
    assert (first["clinical_relevance"], first["weight"]) == (1, 1)
    assert first["provenance"]["rejected_by"] == "MMedPO's authors, as released"
    assert [schema.TASKS[row["task"]] for row in (first, report)] == ["open_vqa", "report"]
    assert report["provenance"]["image_id"] == "images/x/deep/b.png" and report["license"] == "cc0-1.0"
    noised = found["pairs/3/lesion_noise"]  # the question and its answer are good, only the wrong answer was not
    assert noised["chosen"] == noised["rejected"] and noised["rejected_images"]


def test_released_answers_are_rejoined_from_their_own_file(build: Run, released: Path, tmp_path: Path) -> None:
    data = ("--source", str(released), "--images", "images")
    assert build("released", *data, "--credentialed", "true", "--output", "out")[0] == 0
    for name, file in stripped.dataset(tmp_path / "out", "user/weights", "it").files.items():
        write(tmp_path / "weights", {name: file.read()})
    ran = CliRunner().invoke(cli.app, ["rejoin", "weights", *data, "--output", "again"])
    assert ran.exit_code == 0, ran.exception
    made, again = (read_json(tmp_path / name / "manifest.json") for name in ("out", "again"))
    assert again["rejoined"]["identical"] == sum(made["counts"].values()) == 3
    assert {key: again[key] for key in ("chat_model", "judges", "source")} == {
        key: made[key] for key in ("chat_model", "judges", "source")
    }


def test_released_scores_are_normalised_like_any(build: Run, released: Path, tmp_path: Path) -> None:
    assert build("released", "--source", released, "--images", "images", "--output", "out")[0] == 0
    weights = {row["provenance"]["sample_id"]: row["weight"] for row in loading.load("out")}
    scores = np.array([1.0, 0.2, 0.8])
    expected = np.clip(1 + np.sqrt(0.1) * (scores - scores.mean()) / scores.std(), 0.75, 1.25)
    assert [weights[id] for id in "012"] == pytest.approx(expected)


def test_released_options_that_cannot_work_are_refused(build: Run, released: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    words = ("released", "--source", released, "--output", "out")
    code, output = build(*words, "--images", "images", "--judges", "standin:strict", "--model", "org/m")
    assert code == 2 and "Leave out --model, --judges" in output
    code, output = build(*words)
    assert code == 2 and "--images is None; give the folder" in output
    code, output = build(*words, "--images", tmp_path / "nothing")
    assert code == 2 and "None of 11 rows of released gives a question: {'no single image of that name': 8," in output
    code, output = build("released", "--source", "images", "--images", "images", "--output", "out")
    assert code == 2 and "give one of the released JSON files" in output


def test_every_row_of_the_real_file_is_kept_or_counted(shared_data: Path, tmp_path: Path) -> None:
    file, images = shared_data / "released" / "vqa-rad_dpo_weighted.json", shared_data / "vqa-rad"
    (tmp_path / "source").mkdir()
    items = read("released", file, images=images)
    count, given, faults = upstream._write(items, "released", upstream.Placed(tmp_path / "source", [images]))
    assert (count, faults) == (1327, [])
    assert builders._about(builders.load("released"), file)["upstream_split"] == "by question"
    good = [answer for answer in given.answers.values() if "text" in answer]
    assert len(good) == len(given.scores) == 1282
    assert len(given.answers) + len(given.rejects) == 1327
    assert Counter(reject.reason for reject in given.rejects) == {
        "the question was asked of the image before": 1, "a character of its texts was lost": 1,
    }  # fmt: skip
    # The split by image is that of the data set itself, so that training rows show no image of its test split.
    split = read_source(tmp_path / "source", "train")
    tested = {sample.image_id for sample in read_source(images, "test").samples}
    assert 600 < len(split.samples) < 1000 and split.license == "cc0-1.0"
    assert tested and not tested & {sample.image_id for sample in split.samples}


# Source folders.


def test_a_folder_is_built_as_it_is_curated(build: Run, tmp_path: Path) -> None:
    boxes = '"[{""label"": ""x"", ""x"": 1, ""y"": 1, ""w"": 9, ""h"": 9}]"'
    lines = [f"{n}.png,Invented question {n}?,answer {n},{n // 2},{boxes}" for n in range(16)]
    table = "\n".join(["image,question,answer,patient_id,boxes", *lines])
    write(tmp_path / "clinic", {"table.csv": table, **{f"{n}.png": picture(n) for n in range(16)}})
    code, output = build("folder", "--source", "clinic", "--license", "mit", "--output", "out")
    assert code == 0
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert (manifest["source"]["name"], manifest["source"]["split_by"]) == ("clinic", "patient")
    assert manifest["counts"]["lesion_noise"] == manifest["source"]["questions"] > 0
    code, output = build("folder", "--source", "clinic", "--output", "again", "--keep-source", "kept")
    assert code == 2 and "is a source folder already. Leave out --keep-source" in output
    assert not list(tmp_path.glob("again*"))


def test_rows_of_vqa_rads_authors_are_a_source_already(shared_data: Path) -> None:
    assert builders.load("vqa_rad").read(shared_data / "vqa-rad", None) is None


def test_given_pairs_need_no_model(tmp_path: Path) -> None:
    assert Precomputed() == Precomputed([], {}, {})
    given = Precomputed()
    row = {"id": "q", "answer": "Left", "task": "open_vqa", "rejected": "Right", "rejected_by": "x"}
    upstream._bring({**row, "clinical_relevance": 0.5}, given)
    assert given == Precomputed([], {"q": {"text": "Right", "made_by": "x"}}, {"q": 0.5})


# What is not as it should be.


@pytest.mark.parametrize(
    ("name", "file", "content", "said"),
    [
        (
            "iu_xray",
            "annotation.json",
            '{"train": 5}',
            "iu_xray: after row 0, it differs from what its authors publish",
        ),
        ("iu_xray", "annotation.json", '{"train": ["a"]}', "iu_xray: after row 0, it differs"),
        ("iu_xray", "annotation.json", '{"train": [{"id": 1, "report": "x", "image_path": []}]}', "after row 0"),
        ("iu_xray", "annotation.json", "{}".encode("utf-16"), "annotation.json is not UTF-8"),
        ("slake", "train.json", '{"a": 1}', "slake: after row 0, it differs from what its authors publish"),
        ("slake", "train.json", '["a"]', "slake: after row 0, it differs"),
        ("slake", "train.json", json.dumps([{**question(1), "img_name": None}]), "slake: after row 0, it differs"),
    ],
)
def test_files_of_another_shape_are_refused_and_leave_nothing(
    build: Run, tmp_path: Path, name: str, file: str, content: bytes | str, said: str
) -> None:
    tree = (r2gen if name == "iu_xray" else slake)(tmp_path / "tree")
    code, output = build(name, "--source", write(tree, {file: content}), "--output", "out")
    assert code == 2 and said in output
    assert not list(tmp_path.glob("out*"))


def test_byte_order_marks_are_read_over(tmp_path: Path) -> None:
    tree = r2gen(tmp_path / "a")
    write(tree, {"annotation.json": b"\xef\xbb\xbf" + (tree / "annotation.json").read_bytes()})
    assert len(rows(read("iu_xray", tree))) == 3
    tree = slake(tmp_path / "b")
    write(tree, {"train.json": b"\xef\xbb\xbf" + (tree / "train.json").read_bytes()})
    assert len(rows(read("slake", tree))) == 3


def test_a_study_without_a_report_is_left_out(tmp_path: Path) -> None:
    study = {"id": "CXR1", "report": None, "image_path": ["CXR1_IM-0001/0.png"]}
    tree = write(r2gen(tmp_path / "tree"), {"annotation.json": json.dumps({"train": [study]})})
    assert reasons(read("iu_xray", tree)) == {"the report is empty": 1} and not rows(read("iu_xray", tree))


def test_an_image_of_two_places_is_a_fault(tmp_path: Path) -> None:
    tree = write(kaggle(tmp_path / "tree"), {"other/1_IM-0001-4001.dcm.png": picture(9)})
    (fault,) = (item for item in read("iu_xray", tree) if isinstance(item, Fault))
    assert str(fault) == "1_IM-0001-4001.dcm.png [filename]: is the name of 2 files; leave one of them"


def test_a_repeated_id_brings_no_other_rows_answer(build: Run, tmp_path: Path) -> None:
    table = [pair(1, "Which organ?", "Liver", "The spleen."), pair(1, "Which side?", "Left", "It is blue.")]
    write(tmp_path, {"pairs.json": json.dumps(table), "images/a.png": picture(1)})
    words = ("released", "--source", "pairs.json", "--images", "images", "--output", "out")
    code, _ = build(*words)
    assert code == 0
    (row,) = loading.load("out")
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("Liver", "The spleen.")
    assert read_json(tmp_path / "out" / "manifest.json")["rejects"] == {"faulty row of the source": 1}


def test_options_that_a_layout_does_not_use_are_refused(build: Run, tmp_path: Path) -> None:
    tree = r2gen(tmp_path / "tree")
    code, output = build("iu_xray", "--source", tree, "--sections", "impression", "--output", "out")
    assert code == 2 and "does not divide reports into sections: leave out --sections" in output
    code, output = build("slake", "--source", "hub:", "--output", "out")
    assert code == 2 and "'hub:' names no repository. Write for example hub:BoKelvin/SLAKE" in output
    code, output = build("slake", "--source", slake(tmp_path / "s"), "--output", "out", "--keep-source", "out/source")
    assert code == 2 and "--keep-source out/source and --output out overlap" in output
    (tmp_path / "file").touch()
    code, output = build("slake", "--source", tmp_path / "s", "--output", "out", "--keep-source", "file/source")
    assert code == 2 and "file/source: Not a directory. Choose another --keep-source." in output
    assert not list(tmp_path.glob("out*"))
    lateral = rows(read("mimic_cxr", mimic(tmp_path / "m"), sections=" findings , impression", views="LATERAL, PA"))
    assert [row["id"] for row in lateral] == ["aa", "ab", "ca"]
    with pytest.raises(InputError, match="--views is ' , '; use one or more words"):
        options_of("mimic_cxr", views=" , ")


def test_rows_take_the_name_that_is_given(build: Run, tmp_path: Path) -> None:
    words = ("--source", slake(tmp_path / "tree"), "--source-name", "mine", "--output", "out")
    assert build("slake", *words)[0] == 0
    assert {row["source"] for row in loading.load("out")} == {"mine"}
    assert read_json(tmp_path / "out" / "manifest.json")["source"]["name"] == "mine"


def test_a_column_that_marks_lesions_is_named(build: Run, tmp_path: Path) -> None:
    mask = io.BytesIO()
    Image.new("L", (32, 32), 255).save(mask, "PNG")
    table = "image,question,answer,masks\na.png,Invented?,yes,m.png\n"
    write(tmp_path / "clinic", {"table.csv": table, "a.png": picture(1), "m.png": mask.getvalue()})
    words = ("folder", "--source", "clinic", "--split", "train", "--output", "out")
    code, output = build(*words)
    assert code == 2 and "marks lesions by masks, not by boxes: give --localizer masks" in output
    assert build(*words, "--localizer", "masks", "--max_coverage", "1")[0] == 0
    assert read_json(tmp_path / "out" / "manifest.json")["counts"] == {"hallucinated_response": 1, "lesion_noise": 1}


def test_a_source_is_kept_also_after_a_kill_at_the_very_end(
    build: Run, path_vqa: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ("path_vqa", "--source", path_vqa, "--output", "out", "--keep-source", "kept")
    with monkeypatch.context() as patch:
        patch.setattr("mmedpo.hub.build._keep", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert build(*words)[0] == 130
    (tmp_path / ".out.writing" / "source").mkdir(parents=True)  # of a check that was killed
    code, output = build(*words, "--resume")
    assert code == 0 and "nothing to resume" in output
    assert (tmp_path / "kept" / "samples.jsonl").exists() and not (tmp_path / "out" / "source").exists()


def test_a_source_is_kept_whole_on_another_file_system_also_after_a_kill(
    build: Run, path_vqa: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rename = Path.rename

    def other_file_system(self: Path, target: Path) -> Path:
        if Path(target).name == "kept" and self.name == "source":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    def killed(source: Path, target: Path, **options: Any) -> None:
        Path(target, "half").touch()
        raise KeyboardInterrupt

    words = ("path_vqa", "--source", path_vqa, "--output", "out", "--keep-source", "elsewhere/kept")
    monkeypatch.setattr(Path, "rename", other_file_system)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", killed)
        assert build(*words)[0] == 130
    assert not (tmp_path / "elsewhere" / "kept").exists() and (tmp_path / "out" / "source").exists()
    assert build(*words, "--resume")[0] == 0
    assert (tmp_path / "elsewhere" / "kept" / "samples.jsonl").exists() and not (tmp_path / "out" / "source").exists()
    assert [entry.name for entry in (tmp_path / "elsewhere").iterdir()] == ["kept"]
    assert not (tmp_path / "elsewhere" / "kept" / "half").exists()
