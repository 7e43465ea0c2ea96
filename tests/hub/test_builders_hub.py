"""Builders that read from the Hub and publish on it, over real HTTP to a loopback one."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from hub.server import ROOT, Hub
from standins import WORDS
from test_benchmark_builders import PROBED, pmc_row, pmc_vqa, probmed, zipped
from test_builders import kaggle, packed, picture, r2gen, slake, write

from mmedpo.data import loading
from mmedpo.data.sources import read_source
from mmedpo.runs.json_files import read_json

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def build(hub_here: Hub, run: Run) -> Run:
    """Run `mmedpo build ...` with the loopback Hub; stand-ins are asked, but where rows bring their wrong answers."""
    return lambda *words: run("build", words[0], *(WORDS if words[0] != "released" else ()), *words[1:])


def triples(images: int) -> bytes:
    features = Features({"image": ImageFeature(), "question": Value("string"), "answer": Value("string")})
    rows = [
        {"image": {"bytes": picture(n), "path": None}, "question": f"is this invented {n}?", "answer": "yes"}
        for n in range(images)
    ]
    buffer = io.BytesIO()
    Dataset.from_list(rows, features=features).to_parquet(buffer)
    return buffer.getvalue()


def test_vqa_rad_is_read_from_the_hub_at_a_revision(hub: Hub, build: Run, tmp_path: Path) -> None:
    repo = hub.put(
        "user/vqa-rad", {"data/train-00000-of-00001-a1.parquet": triples(4), "README.md": b"# Copy\n"}, "dataset"
    )
    first = repo.head.oid
    hub.ask("""
        api.create_tag("user/vqa-rad", tag="old", repo_type="dataset")
        api.upload_file(path_or_fileobj=b"", path_in_repo="other.txt", repo_id="user/vqa-rad", repo_type="dataset")
        say(None)
    """)
    code, said = build("vqa_rad", "--source", "hub:user/vqa-rad@old", "--output", "out")
    assert code == 0, said
    source = read_json(tmp_path / "out" / "manifest.json")["source"]
    assert (source["hub"], source["revision"], source["rows"]) == ("user/vqa-rad", first, 4)
    assert len(loading.load(str(tmp_path / "out"))) == source["questions"] == 4
    code, said = build("vqa_rad", "--source", "hub:user/vqa-rad@never", "--output", "other")
    assert code == 2 and "user/vqa-rad cannot be downloaded: HTTP 404" in said
    assert "Give a local copy as --source." in said and not list(tmp_path.glob("other*"))


def test_slake_is_read_from_the_hub_with_its_archive(hub: Hub, build: Run, tmp_path: Path) -> None:
    tree = slake(tmp_path / "tree")
    archive = packed(tree / "imgs", tmp_path / "imgs.zip", "imgs/").read_bytes()
    tables = {file.name: file.read_bytes() for file in tree.glob("*.json")}
    hub.put("user/slake", {**tables, "imgs.zip": archive}, "dataset", large=("imgs.zip",))
    code, said = build("slake", "--source", "hub:user/slake", "--output", "out")
    assert code == 0, said
    assert read_json(tmp_path / "out" / "manifest.json")["counts"] == {"hallucinated_response": 2, "lesion_noise": 2}
    hub.put("user/other", {"README.md": b"# No tables\n"}, "dataset")
    code, said = build("slake", "--source", "hub:user/other", "--output", "other")
    assert code == 2 and "user/other has no files *.json or imgs.zip. Name" in said


def test_benchmarks_are_read_from_the_hub(hub_here: Hub, hub: Hub, run: Run, png: bytes, tmp_path: Path) -> None:
    tree = pmc_vqa(tmp_path / "PMC-VQA", {"test_2": [pmc_row("PMC1_F1.jpg", "B")]}, "figures")
    zipped(tree, "figures", "images_2.zip")
    for name, folder in {"pmc_vqa": tree, "probmed": probmed(tmp_path / "ProbMed", png, PROBED[:7])}.items():
        files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        hub.put(f"user/{name}", files, "dataset")
        words = ("--parts", "test") if name == "pmc_vqa" else ()
        code, said = run("build", name, "--source", f"hub:user/{name}", "--output", name, "--source-only", *words)
        assert code == 0, said
        source = read_source(tmp_path / name, "test")
        assert (len(source.samples), source.faults) == (1 if words else 7, [])


def llava(root: Path) -> Path:
    """Two invented pairs in the layout of the released files, and their images."""

    def turns(answer: str) -> list[dict[str, str]]:
        return [{"value": "<image>\nWhere?"}, {"value": answer}]

    sides = {"conversations": turns("Left"), "rejected_conversations": turns("Right")}
    rows = [{"id": n, "image": f"{n}.png", "weighted_score": n / 2, **sides} for n in range(2)]
    return write(root, {"pairs.json": json.dumps(rows), **{f"images/{n}.png": picture(n) for n in range(2)}})


NOISE = ("--localizer", "standin:centre")  # the stand-in writer declines to write reports


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("iu_xray", lambda root: ("--source", r2gen(root), *NOISE, "--split", "test")),
        ("iu_xray", lambda root: ("--source", kaggle(root), *NOISE, "--split", "train")),
        ("slake", lambda root: ("--source", packed(slake(root), root / "my slake (1).zip"))),
        ("released", lambda root: ("--source", llava(root) / "pairs.json", "--images", root / "images")),
    ],
    ids=["r2gen", "kaggle", "slake", "released"],
)
def test_a_mark_beside_what_a_builder_reads_holds(
    hub: Hub, build: Run, tmp_path: Path, name: str, words: Callable[[Path], tuple[object, ...]]
) -> None:
    given = words(tmp_path / "clinic")
    (tmp_path / "clinic" / "CREDENTIALED").touch()
    code, said = build(name, *given, "--output", "out", "--chat", "http://models.invalid/v1#writer")
    assert code == 2 and ("Nothing was sent" in said or name == "released"), said
    code, said = build(name, *given, "--output", "out2")
    assert code == 0, said
    assert read_json(tmp_path / "out2" / "manifest.json")["source"]["credentialed"] is True


def test_a_name_on_the_hub_marks(hub: Hub, build: Run, tmp_path: Path) -> None:
    hub.put("user/mimic-cxr-vqa", {"data/train-00000-of-00001.parquet": triples(4)}, "dataset")
    code, said = build("vqa_rad", "--source", "hub:user/mimic-cxr-vqa", "--output", "out")
    assert code == 0, said
    assert read_json(tmp_path / "out" / "manifest.json")["source"]["credentialed"] is True


def test_the_released_pairs_are_split_alike_from_both_roots_and_train(
    build: Run, run: Run, shared_data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    file, data = shared_data / "released" / "vqa-rad_dpo_weighted.json", shared_data / "vqa-rad"
    words = ("released", "--source", file, "--limit", 8, "--split", "train", "--localizer", "standin:centre")
    for name, images in {"out": data, "other": data / "images"}.items():
        code, said = build(*words, "--images", images, "--output", name)
        assert code == 0, said
    shards = [next((tmp_path / name / "data").glob("*.parquet")).read_bytes() for name in ("out", "other")]
    assert shards[0] == shards[1]
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert manifest["source"]["rows"] == 1327 and manifest["counts"] == {"hallucinated_response": 8, "lesion_noise": 8}
    train = ("train", "--config", ROOT / "recipes" / "quickstart.yaml", "--dataset_name", "out", "--max_steps", "2")
    code, said = run(*train, "--model_name_or_path", tiny_model, "--save_strategy", "no", "--output", "adapter")
    assert code == 0, said
    assert read_json(tmp_path / "adapter" / "training.json")["rows"] == {"hallucinated_response": 8, "lesion_noise": 8}


def test_what_keeps_a_dataset_from_being_published_is_said_before_the_work(
    hub: Hub, build: Run, tmp_path: Path
) -> None:
    words = ("slake", "--source", slake(tmp_path / "tree"), "--output", "out", "--yes")
    for repo, why in {
        "user/a name": "the name is not allowed", "other/pairs": "is not yours", "../x": "the name is not allowed",
    }.items():  # fmt: skip
        code, said = build(*words, "--publish", repo)
        assert code == 2 and why in said, said
    code, said = build(*words, "--publish", "user/pairs", "--fill", "license=")
    assert code == 2 and "--fill 'license' has no value" in said
    code, said = build("slake", "--source", "nowhere", "--output", "out", "--publish", "user/pairs")
    assert code == 2 and "The source nowhere does not exist" in said
    assert not list(tmp_path.glob("out*")) and not list(hub.store)


def test_a_build_is_published_where_its_card_is_answered(hub: Hub, build: Run, tmp_path: Path) -> None:
    words = ("slake", "--source", slake(tmp_path / "tree"), "--output", "out", "--publish", "user/pairs")
    code, said = build(*words, "--fill", "license=cc-by-4.0", "privacy=Invented images.")
    assert code == 0, said
    card = hub.files("user/pairs", "dataset")["README.md"].decode()
    assert "\nlicense: cc-by-4.0\n" in card and "Invented images." in card
    assert hub.repo("user/pairs", "dataset").private and list(hub.repo("user/pairs", "dataset").tags) == ["v1"]
    commits = len(hub.repo("user/pairs", "dataset").commits)
    assert build(*words, "--resume")[0] == 0 and len(hub.repo("user/pairs", "dataset").commits) == commits
