"""The audit of datasets that are not ours: LLaVA's layout, plain texts, several splits, broken files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from invented import picture

from mmedpo.errors import InputError
from mmedpo.report import audit

PAIRS = [  # question, preferred, rejected, weight
    ("Where is the liver?", " Right", " Right", 0.2),
    ("Which organ?", " Lung", " The heart beside the lungs.", 0.8),
    ("Which organ is it?", " Lung", " Not the lung, the heart.", 0.0),
    ("Is it healthy?", " No", " No, it is ill.", 1.0),
    ("Is it a scan?", " Yes", " No, it is a drawing.", 1.0),
    ("Is it a scan?", " Yes", " No, it is a photograph.", 0.9),
]


def llava(question: str, chosen: str, rejected: str, weight: Any, number: int = 0) -> dict[str, Any]:
    def turns(answer: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]

    return {
        "id": number, "image": "a/source.jpg", "conversations": turns(chosen),
        "rejected_conversations": turns(rejected), "weighted_score": weight,
    }  # fmt: skip


def flaws(found: dict[str, Any]) -> list[int]:
    names = ("identical_pairs", "gold_in_rejected", "same_polarity", "zero_weights", "repeated_questions")
    return [found[name] for name in names]


@pytest.fixture
def llava_file(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps([llava(*pair, number=number) for number, pair in enumerate(PAIRS)]))
    return file


def test_a_file_is_audited_into_a_folder_and_compared_when_the_run_is_repeated(
    llava_file: Path, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    command = "audit", llava_file, "--output", tmp_path / "audit"
    run(*command)  # its code tells of the rows' faults
    found = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert found == audit.audit(str(llava_file))
    llava_file.write_text("[]")
    code, said = run(*command, "--resume")
    assert code == 2 and "replaced under the same name" in said


def test_llava_layout_is_audited_without_its_images(llava_file: Path) -> None:
    found = audit.audit(str(llava_file))
    assert found["rows"] == 6 and found["dataset"] == "pairs.json"
    assert flaws(found) == [1, 1, 1, 1, 1]
    # As strings: "Right" in "Right", "lung" in "lungs" and in "lung"; and "No" opens "No, it is ill."
    assert found["by_letters"] == {"open": 3, "gold_in_rejected": 3, "closed": 3, "same_polarity": 1}
    assert {(fault["row"], fault["column"]) for fault in found["faults"]} == {(n, "rejected") for n in ("0", "2", "3")}
    assert found["weights"]["mean"] == pytest.approx((0.2 + 0.8 + 0 + 1 + 1 + 0.9) / 6)
    page = audit.render(found)
    assert "“lung” in “lungs”" in page and "3 of 3 open rows" in page
    assert audit.audit(str(llava_file), name="theirs")["dataset"] == "theirs"
    with pytest.raises(InputError, match="no split 'test'; it has 'train'"):
        audit.audit(str(llava_file), split="test")


def test_every_layout_gives_the_same_counts(llava_file: Path, tmp_path: Path) -> None:
    expected = flaws(audit.audit(str(llava_file)))
    names = ("question", "chosen", "rejected", "weight")
    plain = [{**dict(zip(names, pair, strict=True)), "image": "a/source.jpg"} for pair in PAIRS]
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(one) + "\n" for one in plain))
    parts = [
        {
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": chosen}]}],
            "rejected": [{"role": "assistant", "content": rejected}],
            "images": ["a/source.jpg"],
            "weight": weight,
        }
        for question, chosen, rejected, weight in PAIRS
    ]
    (tmp_path / "parts.json").write_text(json.dumps(parts))
    (tmp_path / "folder").mkdir()
    Dataset.from_list(plain).to_parquet(tmp_path / "folder" / "train.parquet")
    for path in ("plain.jsonl", "parts.json", "folder"):
        assert flaws(audit.audit(str(tmp_path / path))) == expected


def test_long_answers_without_a_task_are_reports(tmp_path: Path) -> None:
    report = "No effusion is seen. " * 7  # 28 words
    (tmp_path / "reports.json").write_text(json.dumps([llava("Describe it.", report, "No mass is seen. " + report, 1)]))
    found = audit.audit(str(tmp_path / "reports.json"))
    assert found["faults"] == [] and found["same_polarity"] == 0 and found["checked"] == {"open": 0, "closed": 0}


def test_a_foreign_dataset_shares_images_by_their_bytes(tmp_path: Path) -> None:
    features = Features(
        {"question": Value("string"), "chosen": Value("string"), "rejected": Value("string"), "image": ImageFeature()}
    )
    for split, shades in (("train", (1, 2)), ("test", (2, 3))):
        rows = [{"question": "q", "chosen": "a", "rejected": "b", "image": picture(shade)} for shade in shades]
        Dataset.from_list(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    found = audit.audit(str(tmp_path))
    (shared,) = found["shared_groups"]
    assert shared["column"] == "images" and shared["sentence"] == "occurs in the splits 'train' and 'test'"
    assert found["repeated_questions"] == 0  # one question, but two images


def test_images_that_do_not_decode_are_faults(tmp_path: Path) -> None:
    torn = {"bytes": picture(1)["bytes"][:60], "path": None}
    rows = [{"chosen": "a", "rejected": "b", "images": [image]} for image in (picture(1), torn)]
    features = Features({"chosen": Value("string"), "rejected": Value("string"), "images": List(ImageFeature())})
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "train.parquet")
    found = [fault for fault in audit.audit(str(tmp_path))["faults"] if fault["row"] != "(all rows)"]
    assert [(fault["row"], fault["column"]) for fault in found] == [("row 2", "images")]


def test_odd_rows_are_faults_and_the_rest_is_measured(tmp_path: Path) -> None:
    good = llava("Which organ?", "Lung", "Heart", 0.5, number=1)
    rows = [good, {**good, "id": "\ud800", "weighted_score": 10**400}, {**good, "id": None, "weighted_score": -1.0}]
    rows += [{**good, "id": "nan", "weighted_score": float("nan")}, {**good, "id": "none", "weighted_score": None}]
    rows += [{**good, "id": "silent", "rejected_conversations": [{"from": "gpt", "value": 7}]}]
    rows += [{**good, "id": "bare", "image": None}, "no object"]
    (tmp_path / "odd.json").write_text(json.dumps(rows))
    found = audit.audit(str(tmp_path / "odd.json"))
    assert found["rows"] == 7
    assert [(fault["row"], fault["column"]) for fault in found["faults"]] == [
        ("odd.json[8]", "(row)"), ("?", "weight"), ("row 3", "weight"), ("nan", "weight"), ("none", "weight"),
        ("silent", "rejected"), ("bare", "images"),
    ]  # fmt: skip
    assert found["weights"]["max"] == 0.5
    json.dumps(found, allow_nan=False)
    audit.render(found).encode()


LIST = "must be a list with one object a question"
TEXT = "none of 1 rows has a chosen or a rejected text"


@pytest.mark.parametrize(
    ("name", "content", "phrase"),
    [
        ("a.png", b"\x89PNG\r\n\x1a\n", "neither a folder nor a .json or .jsonl file"),
        ("a.json", b"\x89PNG\r\n\x1a\n", "is not UTF-8"),
        ("a.json", b"", "is not JSON"),
        ("a.jsonl", b"", "none of 0 rows"),
        ("a.json", b'[{"id": 1', "is not JSON"),
        ("a.json", b'{"rows": []}', LIST),
        ("a.json", b"[]", "none of 0 rows"),
        ("a.json", b'[{"question": "why?", "answer": "so"}]', TEXT),
        ("a.json", b'["text"]', TEXT),
        ("a.json", b"[" * 100_000, "cannot be read as preference rows"),
        ("a.json", b"[" + b"1" * 5000 + b"]", "cannot be read as preference rows"),
    ],
)
def test_a_file_that_holds_no_preferences_is_refused(tmp_path: Path, name: str, content: bytes, phrase: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        audit.audit(str(tmp_path / name))
    assert phrase in str(error.value) and "LLaVA's layout" in str(error.value)


def test_a_shard_that_is_torn_in_its_middle_is_named(tmp_path: Path) -> None:
    file = tmp_path / "data" / "train-00000-of-00001.parquet"
    file.parent.mkdir()
    Dataset.from_dict({"chosen": ["a" * 50_000], "rejected": ["b" * 50_000]}).to_parquet(file)
    content = file.read_bytes()
    file.write_bytes(b"PAR1" + b"\xff" * 100 + content[104:])  # its footer is whole
    with pytest.raises(InputError, match="cannot be read to its end"):
        audit.audit(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "rows", "counted", "weights", "letters", "auc"),
    [
        ("slake", 4919, [5, 199, 22, 78, 7], (0.721, 0.320), [3450, 217, 1469, 18], 0.975),
        # 1,327 of the 1,797 published rows, in which 52 of 893 open rows hold their gold answer and 12 weigh nothing
        ("vqa-rad", 1327, [0, 39, 3, 11, 1], (0.773, 0.283), [675, 43, 652, 1], 0.971),
        ("iuxray", 2069, [0, 0, 0, 34, 0], (0.880, 0.147), [2069, 0, 0, 0], 0.971),
    ],
)
def test_published_flaws_are_found(
    shared_data: Path, name: str, rows: int, counted: list[int], weights: tuple[float, float], letters: list[int],
    auc: float,
) -> None:  # fmt: skip
    found = audit.audit(str(shared_data / "released" / f"{name}_dpo_weighted.json"))
    assert found["rows"] == rows and flaws(found) == counted
    assert (found["weights"]["mean"], found["weights"]["sd"]) == pytest.approx(weights, abs=5e-4)
    assert list(found["by_letters"].values()) == letters
    assert found["style_shortcut"]["auc"] == pytest.approx(auc, abs=0.01)
    assert len(found["faults"]) == sum(counted[:3])
