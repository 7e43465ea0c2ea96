"""Restricted data published without a text or a pixel over HTTP, and rebuilt where the data is; all invented."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import credentialed_tree
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from chat_server import ChatServer
from credentialed_tree import FINDINGS, WRONG
from hub.server import Hub
from huggingface_hub import DatasetCard
from standins import STANDINS, WORDS

from mmedpo.curation.settings import Run, Settings
from mmedpo.data import loading, origin
from mmedpo.errors import InputError
from mmedpo.hub import build
from mmedpo.hub import rejoin as rejoining
from mmedpo.hub.publish import publish, stripped
from mmedpo.hub.publish.files import File
from mmedpo.hub.rejoin import DIFFERS, IDENTICAL, MISSING
from mmedpo.runs.json_files import read_json

MakeSource = Callable[..., Path]
TEXT, LESION = "hallucinated_response", "lesion_noise"
BOX = {"label": "mass", "x": 4, "y": 4, "width": 9, "height": 9}
BOXED = [
    {"image": "a.png", "question": "Where is it?", "answer": "left lung", "boxes": [BOX]},
    {"image": "b.png", "question": "What is it?", "answer": "a nodule", "boxes": [BOX]},
]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the invented tree and the dataset built from it."""
    return credentialed_tree.build(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
def bare(house: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published form as a folder."""
    return strip(house / "pairs", tmp_path_factory.mktemp("bare") / "weights")


def strip(dataset: Path, folder: Path) -> Path:
    for name, file in stripped.dataset(dataset, "user/weights", "it").files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(file.read())
    return folder


def rebuilt(bare: Path, source: Path, output: Path, **named: Any) -> Path:
    """Rejoin from a folder, in this process."""
    published = rejoining.read(str(bare))
    kinds, given = (
        (Settings, Run, published.options),
        {**published.defaults(), "source": source, "output": output, **named},
    )
    settings, run, options = (
        kind(**{f.name: given[f.name] for f in fields(kind) if f.name in given}) for kind in kinds
    )
    rejoining.rejoin(published, settings, run, options)
    return output


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for file in sorted(folder.glob("data/*.parquet")) for row in File(file).rows()}


def states(folder: Path) -> dict[str, str]:
    return {line["id"]: line["state"] for line in lines(folder)}


def lines(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "rejoin.jsonl").read_text().splitlines()]


def kinds(folder: Path) -> dict[str, set[str]]:
    return {kind: {line["state"] for line in lines(folder) if line["dispreference"] == kind} for kind in (TEXT, LESION)}


def without_rationales(row: dict[str, Any]) -> dict[str, Any]:
    judged = row["provenance"]["judgements"]
    quiet = judged and [{**one, "rationale": None} for one in judged]
    return {**row, "provenance": {**row["provenance"], "judgements": quiet}}


@pytest.mark.parametrize(
    ("recorded", "kept"),
    [
        ("endpoint#org/m", "cache:org/m"), ("hub:org/m@provider", "cache:org/m"), ("local:tiny#1", "cache:tiny#1"),
        ("standin:rules", "standin:rules"),
    ],
)  # fmt: skip
def test_a_chat_model_is_asked_of_the_cache_by_its_recorded_name(recorded: str, kept: str) -> None:
    assert rejoining._kept(recorded) == kept


@pytest.mark.parametrize("changes", [
    {"settings": None}, {"settings": []}, {"settings": {}}, {"settings": "x"}, {"source": 5}, {"source": None},
    {"source": {"builder": [1]}}, {"source": {"options": [1]}}, {"standins": 5}, {"standins": [1]},
    {"seed": float("nan")},
    {"settings": {"chat": 5, "localizer": "none"}}, {"settings": {"chat": "none", "localizer": 5}},
    {"source": {"builder": "mimic_cxr", "options": {"sections": []}}}, {"source": {"builder": "../folder"}},
])  # fmt: skip
def test_a_manifest_of_another_shape_is_refused(bare: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(bare, tmp_path / "bare"))
    manifest = read_json(folder / "manifest.json")
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    with pytest.raises(InputError):
        published = rejoining.read(str(folder))
        published.options(sections=published.defaults()["sections"])


def test_the_dataset_is_marked_and_holds_no_header(house: Path) -> None:
    manifest = read_json(house / "pairs" / "manifest.json")
    assert manifest["source"]["credentialed"] is True and manifest["counts"] == {TEXT: 4, LESION: 4}
    assert manifest["settings"]["source_name"] == "mimic-cxr" and "source" not in manifest["settings"]
    assert str(house) not in json.dumps(manifest)
    for row in rows(house / "pairs").values():
        images = [*row["images"], *(row["rejected_images"] or [])]
        assert not any(credentialed_tree.PATIENT.encode() in image["bytes"] for image in images)
    assert "is restricted data.**" in (house / "pairs" / "README.md").read_text()


def test_from_one_house_over_the_hub_to_another(
    hub_here: Hub, house: Path, run: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = hub_here
    shutil.copy(house / "calls.sqlite", house / "pairs" / "calls.sqlite")  # a cache copied into the dataset's folder
    (house / "pairs" / "README.md").write_text(f"---\nlicense: other\n---\n\nA person quotes: {FINDINGS[0]}\n")
    done = publish(house / "pairs", "user/weights", endpoint=hub.url, token="write", confirm=lambda _: True)
    assert "no text and no image" in done.notices[0] and "mimic-cxr" in done.notices[0]
    files = hub.files("user/weights", "dataset")
    assert files.keys() == {"README.md", ".mmedpo/card.md", "manifest.json", "data/train-00000-of-00001.parquet"}
    table = parquet.read_table(io.BytesIO(files["data/train-00000-of-00001.parquet"]))
    received = {**{f"{repo.id}/{path}": blob.data for repo in hub.store for commit in repo.commits.values()
                   for path, blob in commit.files.items()}, "cells": repr(table.to_pylist()).encode()}  # fmt: skip
    assert len(received) > 4 and not credentialed_tree.found(house / "tree", received)
    assert not credentialed_tree.found(house / "tree", hub.repo("user/weights", "dataset").large)
    assert "Without texts and images" in files["README.md"].decode()
    assert DatasetCard(files["README.md"].decode()).data.dataset_info["splits"][0]["num_examples"] == 8

    other = tmp_path / "other house"
    shutil.copytree(house / "tree", other / "somewhere else")
    shutil.copy(house / "calls.sqlite", other / "mine.sqlite")
    command = ["rejoin", "user/weights", "--source", "somewhere else", "--cache", "mine.sqlite", "--output", "pairs"]
    monkeypatch.chdir(other)
    monkeypatch.setenv("HF_TOKEN", "read")
    code, said = run(*command)
    assert code == 0, said
    assert set(states(other / "pairs").values()) == {IDENTICAL} and len(states(other / "pairs")) == 8
    before, after = rows(house / "pairs"), rows(other / "pairs")
    assert list(after) == list(before)
    assert all(after[id] == without_rationales(row) for id, row in before.items())
    manifest = read_json(other / "pairs" / "manifest.json")
    first = read_json(house / "pairs" / "manifest.json")
    assert manifest["rejoined"] == {
        "from": "user/weights", "revision": done.commit, IDENTICAL: 8, DIFFERS: 0, MISSING: 0,
        "made_by": {name: first[name] for name in rejoining.MAKERS},
    }  # fmt: skip
    assert first["calls"].keys() == {"penman", "judge"} and manifest["calls"].keys() == {"penman"}
    assert manifest["judges"] == first["judges"] and manifest["weights"] == first["weights"]
    said = "8 rows identical, 0 rebuilt and different, 0 missing"
    assert said in (other / "pairs" / "README.md").read_text()
    assert manifest["source"]["credentialed"] is True
    assert loading.load(str(other / "pairs")).num_rows == 8


def test_without_a_cache_the_lesion_pairs_come_back_and_the_others_are_said_to_be_missing(
    house: Path, bare: Path, tmp_path: Path
) -> None:
    output = rebuilt(bare, house / "tree", tmp_path / "pairs")
    assert kinds(output) == {TEXT: {MISSING}, LESION: {IDENTICAL}}
    assert {line.get("reason") for line in lines(output) if line["dispreference"] == TEXT} == {
        "the chat model did not answer: the cache has no answer to this question, and no model was given "
        "(looked for: penman)"
    }
    before = rows(house / "pairs")
    assert rows(output) == {id: row for id, row in before.items() if id.endswith(LESION)}


def test_the_models_may_be_asked_again(house: Path, bare: Path, chat_server: ChatServer, tmp_path: Path) -> None:
    chat_server.answer = credentialed_tree.answer
    output = rebuilt(bare, house / "tree", tmp_path / "pairs", chat=f"{chat_server.url}#penman")
    assert kinds(output) == {TEXT: {IDENTICAL}, LESION: {IDENTICAL}}
    assert {received.body["model"] for received in chat_server.received} == {"penman"}  # scores are published


def test_what_differs_is_said_and_keeps_the_published_weight(house: Path, bare: Path, tmp_path: Path) -> None:
    tree = Path(shutil.copytree(house / "tree", tmp_path / "tree"))
    (tree / "files/p10/p10000001/s50000001/dicom-0.jpg").write_bytes(credentialed_tree.jpeg(99))
    (tree / "files/p10/p10000002/s50000002.txt").write_text(
        " FINAL REPORT\n FINDINGS:   Another text altogether here.\n"
    )
    output = rebuilt(bare, tree, tmp_path / "pairs", cache=house / "calls.sqlite")
    before, after, said = rows(house / "pairs"), rows(output), states(output)
    pairs = {id: state for id, state in said.items() if state != IDENTICAL}
    assert pairs == {
        f"mimic-cxr/dicom-0/{TEXT}": DIFFERS, f"mimic-cxr/dicom-0/{LESION}": DIFFERS,
        f"mimic-cxr/dicom-1/{TEXT}": MISSING, f"mimic-cxr/dicom-1/{LESION}": DIFFERS,
    }  # fmt: skip
    assert all(after[id]["weight"] == before[id]["weight"] for id in after)


def test_a_part_of_the_source_gives_its_part(house: Path, bare: Path, tmp_path: Path) -> None:
    tree = Path(shutil.copytree(house / "tree", tmp_path / "tree"))
    (tree / "files/p10/p10000003/s50000003/dicom-2.jpg").unlink()
    with pytest.raises(InputError, match="--skip-faulty"):
        rebuilt(bare, tree, tmp_path / "pairs")
    output = rebuilt(bare, tree, tmp_path / "pairs", skip_faulty=True)
    missing = [line for line in lines(output) if line["id"] == f"mimic-cxr/dicom-2/{LESION}"]
    assert [(line["state"], line["reason"]) for line in missing] == [(MISSING, rejoining.NOT_MADE)]


def test_boxes_of_a_detector_need_no_detector(make_source: MakeSource, detector: Path, tmp_path: Path) -> None:
    source = make_source([
        {"id": name, "image": f"{name}.png", "question": "Is it ill?", "answer": "yes"} for name in "ab"
    ])  # fmt: skip
    made = curated(source, tmp_path / "made", localizer=f"detector:{detector}", chat="none", max_coverage=1.0)
    bare = strip(made, tmp_path / "weights")
    output = rebuilt(bare, source, tmp_path / "pairs")
    assert set(states(output).values()) == {IDENTICAL} and len(states(output)) == 2
    before, after = rows(made), rows(output)
    assert [row["rejected_images"] for row in after.values()] == [row["rejected_images"] for row in before.values()]
    assert {row["provenance"]["localizer"] for row in after.values()} == {"detector:yolos"}


@pytest.mark.parametrize("settings", [{}, {"symmetric": True, "healthy_noise": True, "balance": "answer"}])
def test_a_source_folder_may_be_called_otherwise_elsewhere(
    make_source: MakeSource, tmp_path: Path, settings: dict[str, Any]
) -> None:
    source = make_source(BOXED)
    made = curated(source, tmp_path / "made", **settings)
    assert any(id.endswith("/healthy_noise") for id in rows(made)) == bool(settings)
    elsewhere = source.rename(tmp_path / "elsewhere")
    output = rebuilt(strip(made, tmp_path / "weights"), elsewhere, tmp_path / "pairs")
    assert set(states(output).values()) == {IDENTICAL}
    assert rows(output) == {id: without_rationales(row) for id, row in rows(made).items()}


def curated(source: Path, output: Path, **settings: Any) -> Path:
    from mmedpo.runs.run_folder import output_folder

    chosen = Settings(source=source, credentialed=True, **{**STANDINS, **settings})
    with output_folder(output, chosen.record()) as folder:
        build.make_dataset(chosen, Run(output), folder, "mmedpo curate")
    return output


def change_manifest(bare: Path, copy: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    shutil.copytree(bare, copy)
    manifest = read_json(copy / "manifest.json")
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_a_manifest_from_elsewhere_opens_nothing(bare: Path, house: Path, tmp_path: Path) -> None:
    """Neither the flag nor a folder of this machine, nor that the data is free, is taken from it."""
    evil = {"send_credentialed_data_to_third_parties": True, "third_parties": True, "output": "/tmp/away",
            "cache": "/tmp/a", "resume": True, "reports": "/etc", "sections": "findings", "seed": 9}  # fmt: skip

    def change(manifest: dict[str, Any]) -> None:
        manifest["source"].update(options=evil, credentialed=False, license="mit", name="free")
        manifest["settings"].update(credentialed=False, chat="HTTP://models.invalid/v1#penman", source="/etc")
        manifest["settings"].update(image_folders=["/"])

    published = rejoining.read(str(change_manifest(bare, tmp_path / "weights", change)))
    defaults = published.defaults()
    assert (
        defaults["noise_pixels"] == 336
        and defaults["sections"] == "findings"
        and defaults["seed"] == 0
        and defaults["chat"] == "cache:penman"
    )
    assert not {*evil, "source", "image_folders"} - {"sections", "seed"} & defaults.keys()
    output = rebuilt(tmp_path / "weights", house / "tree", tmp_path / "pairs", credentialed=False)
    assert read_json(output / "manifest.json")["source"]["credentialed"] is True
    with pytest.raises(InputError, match=r"Nothing was sent: .* is restricted data"):
        rebuilt(tmp_path / "weights", house / "tree", tmp_path / "o", chat="http://models.invalid/v1#penman")


def test_what_was_published_in_this_form_stays_marked(make_source: MakeSource, tmp_path: Path) -> None:
    """Though neither name, manifest nor licence says so where it was made (an earlier version)."""
    source = make_source(BOXED)
    made = curated(source, tmp_path / "made")

    def forget(manifest: dict[str, Any]) -> None:
        manifest["source"].pop("credentialed")
        manifest["settings"]["credentialed"] = False

    bare = change_manifest(strip(made, tmp_path / "bare"), tmp_path / "weights", forget)
    file = bare / "data/train-00000-of-00001.parquet"
    table = [{**row, "license": "mit"} for row in parquet.read_table(file).to_pylist()]
    parquet.write_table(pa.Table.from_pylist(table, schema=stripped.features().arrow_schema), file)
    output = rebuilt(bare, source, tmp_path / "pairs")
    assert {row["license"] for row in rows(output).values()} == {"mit (credentialed)"}
    (output / "manifest.json").unlink()
    assert origin.credentialed_source(output) == "source"


@pytest.mark.parametrize("settings", [{"limit": 2}, {"split": "train"}])
def test_the_published_questions_are_taken_though_the_source_has_grown(
    make_source: MakeSource, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """A limit would choose others among more of them, and a split made anew would place them elsewhere."""
    table = [{**BOXED[n % 2], "id": f"q{n}", "patient_id": f"p{n % 2}", "split": "train"} for n in range(4)]
    source = make_source(table)
    made = curated(source, tmp_path / "made", chat="none", **settings)
    bare = strip(made, tmp_path / "weights")
    more = [{**BOXED[n % 2], "id": f"r{n}", "patient_id": f"p{n % 2}", "split": "test"} for n in range(40)]
    grown = make_source([*table, *more], name="grown")
    output = rebuilt(bare, grown, tmp_path / "pairs")
    assert set(states(output).values()) == {IDENTICAL} and len(states(output)) == len(rows(made)) >= 2


def test_rows_that_nobody_scored_stay_unscored(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source(BOXED)
    made = curated(source, tmp_path / "made", judges=["none"], weights="none")
    output = rebuilt(strip(made, tmp_path / "weights"), source, tmp_path / "pairs")
    assert set(states(output).values()) == {IDENTICAL} and rows(output) == rows(made)
    assert {row["clinical_relevance"] for row in rows(output).values()} == {None, 1.0}
    first, again = (read_json(folder / "manifest.json") for folder in (made, output))
    for name in ("judges", "panel", "weights", "standins", "counts"):
        assert again[name] == first[name]
    assert again["settings"]["judges"] == ["none"] and again["weights"]["unscored"] == 2


def test_weights_are_published_and_made_by_nobody_again(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source(BOXED)
    made = curated(source, tmp_path / "made", weights_over="merged")
    defaults = rejoining.read(str(strip(made, tmp_path / "weights"))).defaults()
    assert (defaults["judges"], defaults["weights"], defaults["chat"]) == (["none"], "none", "standin:rules")
    output = rebuilt(tmp_path / "weights", source, tmp_path / "pairs")
    assert rows(output) == {id: without_rationales(row) for id, row in rows(made).items()}
    first, again = (read_json(folder / "manifest.json") for folder in (made, output))
    assert again["weights"] == first["weights"] and again["settings"]["weights"] == "rescale"
    assert again["standins"] == first["standins"] == ["standin:rules", *first["judges"]]


def test_nothing_rebuilt_leaves_nothing_and_says_what_was_expected(
    make_source: MakeSource, house: Path, bare: Path, tmp_path: Path
) -> None:
    made = curated(make_source(BOXED), tmp_path / "made")
    other = make_source([{**one, "id": f"other-{n}"} for n, one in enumerate(BOXED)], name="other")
    with pytest.raises(InputError) as raised:
        rebuilt(strip(made, tmp_path / "weights"), other, tmp_path / "pairs")
    said = str(raised.value)
    assert f"All 4 are missing, 4 of them because: {rejoining.NOT_MADE}" in said
    assert "Published ids: source/samples.jsonl:1/" in said and "ids made here: source/other-0/" in said
    with pytest.raises(InputError, match="does not have the layout of mimic_cxr"):
        rebuilt(bare, other, tmp_path / "pairs")
    assert not list(tmp_path.glob("pairs*"))


def test_a_source_on_the_hub_is_read_there_again(
    hub_here: Hub, run: Callable[..., tuple[int, str]], png: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import Dataset, Features, Image, Value

    columns = {"image": [{"bytes": png, "path": None}] * 2, "question": ["Is it ill?", "What is it?"],
               "answer": ["yes", "a mass"]}  # fmt: skip
    kinds = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})
    Dataset.from_dict(columns, kinds).to_parquet(tmp_path / "rows.parquet")
    file = {"data/train-00000-of-00001.parquet": (tmp_path / "rows.parquet").read_bytes()}
    hub_here.put("flaviagiammarino/vqa-rad", file, "dataset")

    monkeypatch.setenv("HF_TOKEN", "read")
    assert run("build", "vqa_rad", *WORDS, "--credentialed", "true", "--output", "made")[0] == 0
    strip(tmp_path / "made", tmp_path / "weights")
    assert run("rejoin", "weights", "--source", "hub:flaviagiammarino/vqa-rad", "--output", "pairs")[0] == 0
    assert set(states(tmp_path / "pairs").values()) == {IDENTICAL}
    about = [read_json(tmp_path / name / "manifest.json")["source"] for name in ("made", "pairs")]
    assert about[0] == about[1] and about[0]["hub"] == "flaviagiammarino/vqa-rad"


def test_boxes_of_the_data_are_not_published(make_source: MakeSource, detector: Path, tmp_path: Path) -> None:
    source = make_source(BOXED)
    for localizer, are in (("boxes", False), (f"detector:{detector}", True)):
        made = curated(source, tmp_path / f"made-{are}", localizer=localizer, max_coverage=1.0, chat="none")
        published = rows(strip(made, tmp_path / f"weights-{are}")).values()
        assert published and all(bool(row["provenance"]["boxes"]) == are for row in published)


def test_a_mask_is_not_published_and_its_tool_is_asked_for(bare: Path, house: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bare, tmp_path / "weights"))
    manifest = read_json(copy / "manifest.json")
    manifest["settings"]["localizer"] = "medklip:medklip"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    file = copy / "data/train-00000-of-00001.parquet"
    table = parquet.read_table(file).to_pylist()
    for row in table:
        row["provenance"]["mask_rule"] = "quantile:0.8"
    parquet.write_table(pa.Table.from_pylist(table, schema=stripped.features().arrow_schema), file)
    output = rebuilt(copy, house / "tree", tmp_path / "pairs", cache=house / "calls.sqlite")
    assert kinds(output) == {TEXT: {IDENTICAL}, LESION: {MISSING}}
    assert "its mask is not published: name medklip:... with --localizer" in {
        line.get("reason") for line in lines(output)
    }


def test_what_is_no_published_form_is_refused(house: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not the published form of restricted data"):
        rejoining.read(str(house / "pairs"))
    with pytest.raises(InputError, match="does not exist"):
        rejoining.read(str(house))


def test_the_published_form_holds_numbers_and_names_alone(bare: Path, house: Path) -> None:
    full, kept = rows(house / "pairs"), rows(bare)
    assert kept.keys() == full.keys()
    row = kept[f"mimic-cxr/dicom-0/{TEXT}"]
    assert row.keys() == {*stripped.COLUMNS, "provenance", "row_digest"}
    assert row["provenance"]["judgements"] == [
        {"round": 1, "judge": "judge", "score": pytest.approx(row["clinical_relevance"])}
    ]
    assert row["provenance"]["rejected_by"] == "penman" and row["provenance"]["patient_id"] == "p10000001"
    assert len({row["row_digest"] for row in kept.values()}) == 8
    assert WRONG not in repr(kept) and "centre" not in repr([row["provenance"]["boxes"] for row in kept.values()])
    manifest = read_json(bare / "manifest.json")
    assert manifest["rejects"] == {"left out": 0} and "rejects_by_task" not in manifest


def test_training_and_auditing_point_to_rejoin(bare: Path) -> None:
    with pytest.raises(InputError, match="`mmedpo rejoin` rebuilds the pairs"):
        loading.load(str(bare))


def test_noise_of_settings_of_earlier_versions_is_of_every_pixel_and_row() -> None:
    manifest = {"source": {}, "settings": {"chat": "none", "localizer": "boxes"}}
    defaults = rejoining.Published("user/weights", None, manifest, {}).defaults()
    assert (defaults["noise_pixels"], defaults["noise_per"]) == (2**31 - 1, "row")
