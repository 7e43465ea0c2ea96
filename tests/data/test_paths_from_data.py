"""Paths that come from data: where tables, archives, links and datasets of others may lead, and where they may not."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from chat_server import ChatServer
from PIL import Image
from typer.testing import CliRunner

from mmedpo import cli, schema
from mmedpo.data import safe_paths
from mmedpo.data.loading import load_splits
from mmedpo.data.sources import Source, read_source
from mmedpo.errors import Fault, InputError
from mmedpo.hub import builders
from mmedpo.hub.upstream import write_source
from mmedpo.runs.json_files import read_json

MakeSource = Callable[..., Path]


def picture(file: Path, seed: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16), dtype=np.uint8)).save(file, "PNG")
    return file


def row(**changes: Any) -> dict[str, Any]:
    return {"image": "a.png", "question": "Is it ill?", "answer": "yes", **changes}


@pytest.mark.parametrize(("name", "out"), [
    ("a.png", False), ("a/b..c/d.png", False), ("./a.png", False), ("/etc/a.png", True), ("../a.png", True),
    ("a/../../b.png", True), ("..\\a.png", True), ("C:/a.png", False), ("\\\\host\\a.png", True), ("..", True),
])  # fmt: skip
def test_leads_out(name: str, out: bool) -> None:
    assert safe_paths.leads_out(name) is out


def test_inside_follows_links(tmp_path: Path) -> None:
    there = picture(tmp_path / "there" / "x.png")
    root = tmp_path / "root"
    picture(root / "own.png")
    (root / "out.png").symlink_to(there)
    (root / "in.png").symlink_to(root / "own.png")
    (root / "folder").symlink_to(there.parent)
    for name in ("own.png", "in.png", "none.png"):
        assert safe_paths.inside(root, name)
    for name in ("out.png", "folder/x.png", "../there/x.png", str(there)):
        assert safe_paths.inside(root, name) is None
    assert safe_paths.inside(root, "folder/x.png", [there.parent]) == root / "folder/x.png"
    assert safe_paths.inside(root, "../there/x.png", [there.parent]) is None
    (tmp_path / "link").symlink_to(root)  # the user's own way to the source
    assert safe_paths.inside(tmp_path / "link", "own.png")


def test_inside_a_snapshot_of_the_hub(tmp_path: Path) -> None:
    blob = picture(tmp_path / "datasets--a--b" / "blobs" / "0f")
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "commit"
    (snapshot / "imgs").mkdir(parents=True)
    (snapshot / "imgs" / "a.png").symlink_to(blob)
    (snapshot / "imgs" / "b.png").symlink_to(picture(tmp_path / "other" / "blobs" / "0f"))
    assert safe_paths.inside(snapshot, "imgs/a.png") and safe_paths.inside(snapshot / "imgs", "a.png")
    assert safe_paths.inside(snapshot, "imgs/b.png") is None


# Tables.


def linked(make_source: MakeSource, column: str, target: Path) -> Path:
    """A source whose `column` is a link to a file elsewhere."""
    name = "l" + target.suffix
    folder = make_source([row(), row(id="2", **{column: name})])
    (folder / name).symlink_to(target)
    return folder


def elsewhere(folder: Path, column: str) -> Path:
    if column != "heatmap":
        return picture(folder / "x.png")
    folder.mkdir(parents=True)
    np.save(folder / "x.npy", np.ones((16, 16)))
    return folder / "x.npy"


@pytest.mark.parametrize("column", ["image", "masks", "heatmap"])
def test_a_link_out_of_a_source_is_a_fault_of_its_row(make_source: MakeSource, tmp_path: Path, column: str) -> None:
    target = elsewhere(tmp_path / "there" / "deep", column)
    source = linked(make_source, column, target)
    found = read_source(source)
    assert len(found.samples) == 1 and [fault.column for fault in found.faults] == [column]
    assert "is a link that leads out of the source folder" in found.faults[0].sentence
    assert str(target) not in str(found.faults[0])
    for named in (tmp_path / "there", target.parent):
        assert len(read_source(source, image_folders=[named]).samples) == 2
    assert not read_source(source, image_folders=[tmp_path / "there"]).credentialed


def test_a_table_that_is_a_link_is_read_only_if_it_is_named(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source([row()])
    (source / "samples.jsonl").rename(tmp_path / "secret.jsonl")
    (source / "samples.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(InputError, match="is a link that leads out"):
        read_source(source)
    assert len(read_source(source / "samples.jsonl").samples) == 1


# Restricted images reached from elsewhere.


def restricted(tmp_path: Path, mark: str, column: str = "image") -> tuple[Path, Path]:
    """A tree that a file or a name marks, and a file deep in it."""
    tree = tmp_path / ("clinic" if mark == "file" else mark)
    file = elsewhere(tree / "files" / "p10" / "s1", column)
    if mark == "file":
        (tree / "CREDENTIALED").touch()
    return tree, file


@pytest.mark.parametrize("column", ["image", "masks", "heatmap"])
@pytest.mark.parametrize("mark", ["file", "mimic-cxr-jpg", "PadChest_GR"])
def test_a_source_is_restricted_if_a_file_of_it_is(
    make_source: MakeSource, tmp_path: Path, column: str, mark: str
) -> None:
    tree, file = restricted(tmp_path, mark, column)
    found = read_source(linked(make_source, column, file), image_folders=[tree])
    assert found.marked_by == ("the file CREDENTIALED" if mark == "file" else f"the name {mark!r}")
    assert all("(credentialed)" in sample.license for sample in found.samples)


@pytest.mark.parametrize(("spelled", "known"), [
    ("mimic-cxr", "the name 'mimic-cxr'"), ("clinic/scans", "the file CREDENTIALED"), ("free/one", None),
    ("free/two", "the name 'PadChest'"), ("free/x.png", "the name 'PadChest'"),
])  # fmt: skip
def test_a_link_marks_what_it_leads_to(
    make_source: MakeSource, tmp_path: Path, spelled: str, known: str | None
) -> None:
    """By its own name and place, and those of each further link, though the last folder is called `d7`."""
    disk = make_source([row()], name="disk/d7")
    for folder in ("clinic", "free"):
        (tmp_path / folder).mkdir()
    (tmp_path / "clinic" / "CREDENTIALED").touch()
    (tmp_path / "PadChest").symlink_to("disk/d7")
    (tmp_path / "free" / "two").symlink_to("../PadChest")
    for name in ("mimic-cxr", "clinic/scans", "free/one"):
        (tmp_path / name).symlink_to(disk)
    (tmp_path / "free" / "x.png").symlink_to("two/a.png")
    if spelled == "free/x.png":
        (tmp_path / "free" / "s.jsonl").write_text(json.dumps(row(image="x.png")))
        found = read_source(tmp_path / "free" / "s.jsonl", image_folders=[disk])
    else:
        found = read_source(tmp_path / spelled)
    assert found.marked_by == known and len(found.samples) == 1
    assert safe_paths.routes(tmp_path / "free" / "two")[1:] == [tmp_path / "free" / "../PadChest",
                                                                tmp_path / "free" / "../disk/d7", disk]  # fmt: skip


def test_links_in_a_circle_have_an_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("a/b")
    with pytest.raises(RuntimeError, match="Symlink loop"):
        safe_paths.routes(tmp_path / "a")


@pytest.mark.parametrize("folder", ["chexpert/train", "free/deep/er"])
def test_a_source_is_restricted_by_a_folder_inside_it(make_source: MakeSource, folder: str) -> None:
    source = make_source([row(image=f"{folder}/x.png")])
    picture(source / folder / "x.png")
    if folder.startswith("free"):
        assert not read_source(source).credentialed
        (source / "free" / "CREDENTIALED").touch()
    assert read_source(source).credentialed


def test_a_source_below_a_marked_folder_is_restricted(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source([row()], name="clinic/a/b/c")
    assert not read_source(source).credentialed
    (tmp_path / "clinic" / "CREDENTIALED").touch()
    assert read_source(source).credentialed


@pytest.mark.parametrize("command", ["curate", "evaluate", "build"])
def test_restricted_images_are_not_sent(make_source: MakeSource, tmp_path: Path, command: str) -> None:
    tree, file = restricted(tmp_path, "file")
    words = ["--source", str(linked(make_source, "image", file)), "--output", str(tmp_path / "out")]
    with ChatServer() as server:
        model = f"{server.url.replace('127.0.0.1', '0.0.0.0')}#m"
        curate = ["--chat", model, "--judges", model, "--localizer", "none", "--license", "x"]
        given = {"curate": ["curate", *curate], "evaluate": ["evaluate", "--model", model],
                 "build": ["build", "folder", *curate]}[command]  # fmt: skip
        ran = CliRunner().invoke(cli.app, [*given, *words, "--image-folders", str(tree)])
        assert "is restricted data, and http://0.0.0.0" in str(ran.exception), ran.output
        assert not server.received
        ran = CliRunner().invoke(cli.app, [*given, *words])
        assert "Faulty rows" in str(ran.exception) and not server.received


def test_preview_says_whose_images_it_shows(make_source: MakeSource, tmp_path: Path) -> None:
    tree, file = restricted(tmp_path, "file")
    source = linked(make_source, "image", file)
    (source / "samples.jsonl").write_text(
        json.dumps(row(image="l.png", boxes=[{"label": "x", "x": 1, "y": 1, "w": 5, "h": 5}]))
    )
    ran = CliRunner().invoke(cli.app, [
        "preview", "--source", str(source), "--image-folders", str(tree), "--output", str(tmp_path / "sheet.png"),
    ])  # fmt: skip
    assert ran.exit_code == 0, ran.exception
    assert "is restricted data: the sheet shows its images" in " ".join(ran.output.split())


# Builders.


def slake(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    rows = [
        {"qid": n, "q_lang": "en", "img_name": name, "question": "Is it ill?", "answer": "Yes", "answer_type": "CLOSED",
         "modality": "X-Ray", "location": "Lung", "content_type": "Abnormality"} for n, name in enumerate(names)
    ]  # fmt: skip
    for stem in ("train", "validate", "test"):
        (folder / f"{stem}.json").write_text(json.dumps(rows if stem == "train" else []))
    picture(folder / "imgs" / "xmlab0" / "source.jpg")
    return folder


def read(name: str, source: Path, **options: Any) -> list[Any]:
    builder = builders.load(name)
    return list(builder.read(source, builders.options_of(builder)(**options)))


@pytest.mark.parametrize("packed", [False, True])
def test_slake_reads_no_file_outside_the_source(tmp_path: Path, packed: bool) -> None:
    secret = picture(tmp_path / "secret" / "x.png")
    (secret.parent / "detection.json").write_text(json.dumps([{"Mass": [1, 1, 5, 5]}]))
    source = slake(tmp_path / "s", str(secret), "../../secret/x.png", "xmlab0/source.jpg", "xmlab0/../../train.json")
    if packed:
        with zipfile.ZipFile(source / "imgs.zip", "w") as archive:
            archive.write(source / "imgs" / "xmlab0" / "source.jpg", "imgs/xmlab0/source.jpg")
        (source / "imgs" / "xmlab0" / "source.jpg").unlink()
        (source / "imgs" / "xmlab0").rmdir()
        (source / "imgs").rmdir()
    *out, good, inner = [read("slake", source)[place] for place in (0, 1, 2, 3)]
    assert all(isinstance(item, Fault) and "leads out of the source" in item.sentence for item in (*out, inner))
    assert good["image"].name == "imgs/xmlab0/source.jpg" and good["boxes"] == []


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "name",
    ["a" * 300 + ".png", ("a" * 200 + "/") * 21 + "a.png", ".", "xmlab0", "\ud800.png", "a\0b.png", "C:\\..\\a.png"],
)
def test_a_name_that_no_file_can_have_is_a_fault_of_its_row(tmp_path: Path, name: str, packed: bool) -> None:
    source = slake(tmp_path / "s", "xmlab0/source.jpg", name)
    if packed:
        with zipfile.ZipFile(tmp_path / "slake.zip", "w") as archive:
            for file in source.rglob("*"):
                archive.write(file, file.relative_to(source))
            archive.writestr("imgs/" + name.replace("\ud800", "x"), b"x")
    given = tmp_path / "slake.zip" if packed else source
    write_source(read("slake", given), "slake", tmp_path / "made", True, {}, folders=[source])
    rows = [json.loads(line) for line in (tmp_path / "made" / "samples.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == ["imgs/xmlab0/source.jpg"]


@pytest.mark.parametrize("door", ["deep", "nested"])
def test_a_small_archive_that_unpacks_to_much_is_refused(tmp_path: Path, door: str) -> None:
    source = slake(tmp_path / "s", "xmlab0/source.jpg")
    with zipfile.ZipFile(tmp_path / "slake.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in source.glob("*.json"):
            archive.write(file, file.name)
        archive.writestr("a/" * 30_000 if door == "deep" else "imgs.zip", b"0" * 1_000_000)
    with pytest.raises(InputError, match="more than 64 folders" if door == "deep" else "unpacks to 1,000,000 bytes"):
        read("slake", tmp_path / "slake.zip")


def test_an_archive_in_an_archive_is_read(tmp_path: Path) -> None:
    source = slake(tmp_path / "s", "xmlab0/source.jpg")
    with zipfile.ZipFile(tmp_path / "imgs.zip", "w") as archive:
        archive.write(source / "imgs" / "xmlab0" / "source.jpg", "imgs/xmlab0/source.jpg")
    with zipfile.ZipFile(tmp_path / "slake.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in (*source.glob("*.json"), tmp_path / "imgs.zip"):
            archive.write(file, file.name)
    write_source(read("slake", tmp_path / "slake.zip"), "slake", tmp_path / "made", False, {})
    assert (tmp_path / "made" / "imgs" / "xmlab0" / "source.jpg").is_file()


def test_a_text_that_utf8_cannot_hold_is_written_with_a_mark(tmp_path: Path) -> None:
    source = slake(tmp_path / "s", "xmlab0/source.jpg")
    table = source / "train.json"
    table.write_text(table.read_text().replace('"question": "', '"question": "\\ud800', 1))
    write_source(read("slake", source), "slake", tmp_path / "made", False, {}, folders=[source])
    (row,) = [json.loads(line) for line in (tmp_path / "made" / "samples.jsonl").read_text().splitlines()]
    assert row["question"].startswith("?")


def test_slake_follows_no_link_to_boxes_or_images(tmp_path: Path) -> None:
    secret = picture(tmp_path / "secret" / "x.png")
    (secret.parent / "d.json").write_text(json.dumps([{"Mass": [1, 1, 5, 5]}]))
    source = slake(tmp_path / "s", "one/x.png", "two/source.jpg")
    picture(source / "imgs" / "two" / "source.jpg")
    (source / "imgs" / "one").symlink_to(secret.parent)
    (source / "imgs" / "two" / "detection.json").symlink_to(secret.parent / "d.json")
    assert all(isinstance(item, Fault) and "leads out" in item.sentence for item in read("slake", source))


def test_a_folder_that_is_a_link_has_to_be_named_and_keeps_its_mark(tmp_path: Path, monkeypatch: Any) -> None:
    tree, file = restricted(tmp_path, "file")
    source = slake(tmp_path / "s", "x.png")
    (source / "imgs" / "xmlab0" / "source.jpg").unlink()
    (source / "imgs" / "xmlab0").rmdir()
    (source / "imgs").rmdir()
    (source / "imgs").symlink_to(file.parent)
    words = ["build", "slake", "--source", str(source), "--chat", "standin:rules", "--judges", "standin:strict",
             "--localizer", "none", "--split", "train", "--keep-source", str(tmp_path / "kept")]  # fmt: skip
    ran = CliRunner().invoke(cli.app, [*words, "--output", str(tmp_path / "a")])
    assert "leads out of the source folder" in str(ran.exception)
    ran = CliRunner().invoke(cli.app, [*words, "--output", str(tmp_path / "b"), "--image-folders", str(tree)])
    assert ran.exit_code == 0, ran.exception
    assert read_json(tmp_path / "b" / "manifest.json")["source"]["credentialed"] is True
    assert "image_folders" not in read_json(tmp_path / "b" / "manifest.json")["settings"]
    kept = read_source(tmp_path / "kept")  # needs no folder named: it holds the files themselves
    assert kept.credentialed and len(kept.samples) == 1
    assert not (tmp_path / "kept" / "imgs" / "x.png").is_symlink()


def test_a_kept_source_on_another_disk_holds_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    source = slake(tmp_path / "s", "xmlab0/source.jpg")
    write_source(read("slake", source), "slake", tmp_path / "made", False, {}, folders=[source])
    assert (tmp_path / "made" / "imgs" / "xmlab0" / "source.jpg").is_symlink()
    assert read_source(tmp_path / "made").faults
    found: Source = read_source(tmp_path / "made", image_folders=[source])
    assert not found.faults and len(found.samples) == 1


def test_mimic_reads_no_report_outside_the_tree(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "s1.txt").write_text(" FINDINGS:   secret\n")
    tree = tmp_path / "tree"
    (tree / "files").mkdir(parents=True)
    (tree / "mimic-cxr-2.0.0-split.csv").write_text("dicom_id,study_id,subject_id,split\nd,1,/../../../../etc,train\n")
    (tree / "mimic-cxr-2.0.0-metadata.csv").write_text("dicom_id,ViewPosition\nd,PA\n")
    (item,) = read("mimic_cxr", tree)
    assert isinstance(item, Fault) and item.column == "report"


@pytest.mark.parametrize("name", ["{secret}", "../../secret/x.png", "none.png"])
def test_iu_xray_reads_no_image_outside_the_source(tmp_path: Path, name: str) -> None:
    secret = picture(tmp_path / "secret" / "x.png")
    name = name.format(secret=secret)
    kaggle = tmp_path / "kaggle"
    kaggle.mkdir()
    (kaggle / "indiana_reports.csv").write_text("uid,findings,impression\n1,The lungs are clear.,\n")
    (kaggle / "indiana_projections.csv").write_text(f"uid,filename,projection\n1,{name},Frontal\n")
    (item,) = read("iu_xray", kaggle)
    assert isinstance(item, Fault)
    r2gen = tmp_path / "r2gen"
    (r2gen / "images").mkdir(parents=True)
    study = {"id": "CXR1_1", "report": "The lungs are clear.", "image_path": [name]}
    (r2gen / "annotation.json").write_text(json.dumps({"train": [study]}))
    with pytest.raises(InputError) as raised:
        write_source(read("iu_xray", r2gen), "iu_xray", tmp_path / "made", False, {}, folders=[r2gen])
    assert [fault.column for fault in raised.value.faults] == ["image"]


# Datasets.


def dataset(folder: Path, path: str, nested: bool) -> Path:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    image: Any = {"bytes": None, "path": path}
    column = pa.array([[image]] if nested else [image], pa.list_(kind) if nested else kind)
    feature = {"_type": "Image"}
    features = {"image": {"feature": feature, "_type": "List"} if nested else feature}
    schema = pa.schema([("image", column.type)], {"huggingface": json.dumps({"info": {"features": features}})})
    (folder / "data").mkdir(parents=True)
    parquet.write_table(pa.table([column], schema=schema), folder / "data" / "train-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("path", ["{secret}", "../secret/x.png", "http://127.0.0.1:9/x.png"])
def test_a_dataset_names_no_file_outside_of_it(tmp_path: Path, path: str, nested: bool, streaming: bool) -> None:
    made = dataset(tmp_path / "d", path.format(secret=picture(tmp_path / "secret" / "x.png")), nested)
    with pytest.raises(InputError, match="names image files outside of the dataset"):
        next(iter(load_splits(str(made), streaming=streaming)["train"]))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_may_name_files_inside_it(tmp_path: Path, streaming: bool) -> None:
    inside = picture(tmp_path / "d" / "images" / "x.png")
    rows = load_splits(str(dataset(tmp_path / "d", str(inside), nested=True)), streaming=streaming)["train"]
    assert [row["image"] for row in schema.undecoded(rows)] == [[{"bytes": None, "path": str(inside)}]]
