"""The audit: every number is counted by hand on a few invented rows, and broken datasets are still audited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from test_report import picture, row

from mmedpo import audit, schema
from mmedpo.errors import InputError


def text(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


def write(rows: list[dict[str, Any]], folder: Path, split: str = "train", drop: tuple[str, ...] = ()) -> Path:
    """Write rows without the schema's checks, as a foreign program might."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    dataset = Dataset.from_list(rows, features=schema.FEATURES).remove_columns(list(drop))
    dataset.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return folder


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("clean") / "pairs"
    folder.mkdir()
    rows = [row(0), row(1, rejected=text("a lung nodule seen")), row(2, visual=True), row(3, visual=True)]
    rows[1]["chosen"] = text("left lower lobe")
    schema.save(rows, folder)
    return audit.audit(str(folder))


def test_clean_dataset_in_numbers(clean: dict[str, Any]) -> None:
    assert clean["format"] == "mmedpo.audit/1"
    assert clean["dataset"] == "pairs"  # and not the machine's path
    assert clean["rows"] == 4
    assert clean["counts"] == {
        "dispreference": {"hallucinated_response": 2, "lesion_noise": 2},
        "task": {"open_vqa": 4},
    }
    assert clean["faults"] == [] and clean["shared_groups"] == []
    assert clean["mask_coverage"] == {"mean": 0.0625, "max": 0.0625}
    # words: "a nodule" / "the heart is too large" and "left lower lobe" / "a lung nodule seen"
    assert clean["style"] == {
        "chosen_words_mean": 2.5,
        "rejected_words_mean": 4.5,
        "rejected_longer_share": 1.0,
        "within_two_words_share": 0.5,
    }
    assert clean["judges"] == {"rows": 2, "agreed_share": 1.0, "judgements": 6, "unreadable": 2}


def test_weights_and_relevance(clean: dict[str, Any]) -> None:
    weights, relevance = clean["weights"], clean["relevance"]
    # weights .75 .80 .85 .90: the population variance is .05^2 * (1.5^2 + .5^2) / 2
    assert weights["mean"] == pytest.approx(0.825)
    assert weights["sd"] == pytest.approx(0.05 * 1.25**0.5, abs=1e-6)
    assert (weights["min"], weights["max"]) == pytest.approx((0.75, 0.9))
    assert weights["by_dispreference"]["lesion_noise"]["mean"] == pytest.approx(0.875)
    assert sum(weights["histogram"]["counts"]) == 4
    assert relevance["histogram"]["counts"] == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]  # 0, .1, .2, .3: a bin each
    for part in weights["by_dispreference"].values():
        assert part["histogram"]["edges"] == weights["histogram"]["edges"]


def test_is_json_and_a_page_and_a_table(clean: dict[str, Any]) -> None:
    json.dumps(clean, allow_nan=False)
    table = dict(audit.rows(clean))
    assert table["rows"] == "4"
    assert table["words, preferred / rejected"] == "2.5 / 4.5"
    assert table["  answers that could not be read"] == "2 of 6"
    page = audit.render(clean)
    assert "4 rows in the split" in page and "no fault found" in page
    assert "src=" not in page and "href=" not in page


def test_contradictions_are_counted_each_once(tmp_path: Path) -> None:
    rows = [
        row(0, rejected=text(" A nodule")),  # identical
        row(1, rejected=text("a nodule in the heart")),  # contains the gold answer
        row(2, chosen=text("yes"), rejected=text("yes, it is"), task="closed_vqa"),  # same polarity
        row(3, weight=0.0),
        row(4, id="invented/again"),
        row(4),  # the same image, question and kind
        row(5, visual=True, rejected_images=[picture(15)]),  # "noised" image equals the preferred one
    ]
    found = audit.audit(str(write(rows, tmp_path / "pairs")))
    names = ("identical_pairs", "gold_in_rejected", "same_polarity", "zero_weights", "repeated_questions")
    assert [found[name] for name in names] == [2, 1, 1, 1, 1]
    assert {fault["row"] for fault in found["faults"]} == {row["id"] for row in (*rows[:3], rows[6])}


def test_a_missing_column_is_a_fault_and_the_rest_is_counted(tmp_path: Path) -> None:
    folder = write([row(0), row(1)], tmp_path / "pairs", drop=("weight", "provenance", "rejected_images"))
    found = audit.audit(str(folder))
    assert {fault["column"] for fault in found["faults"]} == {"weight", "provenance", "rejected_images"}
    assert found["rows"] == 2 and found["weights"] is None and found["mask_coverage"] is None
    assert found["judges"]["rows"] == 0 and found["style"]["chosen_words_mean"] == 2.0
    assert found["relevance"]["max"] == pytest.approx(0.1)
    page = audit.render(found)
    assert "3 faults found" in page and "is missing; expected" in page
    assert len(audit.rows(found)) > 8


def test_a_foreign_dataset_yields_an_audit(tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    Dataset.from_dict({"question": ["a", "b"], "weight": ["heavy", None]}).to_parquet(str(folder / "train.parquet"))
    found = audit.audit(str(folder))
    assert found["rows"] == 2 and len(found["faults"]) == len(schema.FEATURES)
    assert found["counts"] == {"dispreference": {"(none)": 2}, "task": {"(none)": 2}}
    assert found["weights"] is None and found["style"] is None
    audit.render(found)


def test_groups_shared_between_splits(tmp_path: Path) -> None:
    folder = write([row(0), row(1)], tmp_path / "pairs")
    write([row(1, id="invented/other"), row(2)], folder, split="test")
    found = audit.audit(str(folder))
    assert [(fault["row"], fault["column"]) for fault in found["shared_groups"]] == [("i1", "image_id")]
    assert audit.audit(str(folder), split="test")["rows"] == 2
    with pytest.raises(InputError, match="no split 'dev'; it has 'test', 'train'"):
        audit.audit(str(folder), split="dev")


def test_folders_of_one_name_are_not_mixed_up(tmp_path: Path) -> None:
    configs = "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: data/train-*}\n---\n"
    for number in (1, 2):
        folder = write([row(n) for n in range(number)], tmp_path / str(number) / "pairs")
        (folder / "README.md").write_text(configs)
        assert audit.audit(str(folder))["rows"] == number


def test_equal_weights_have_a_histogram() -> None:
    part = audit.distributions({"hallucinated_response": [1.0, 1.0, None], "lesion_noise": [None]})
    assert part and part["sd"] == 0 and sum(part["histogram"]["counts"]) == 2
    assert list(part["by_dispreference"]) == ["hallucinated_response"]
    assert audit.distributions({"lesion_noise": [None]}) is None


@pytest.mark.parametrize("content", [None, b"", b"no parquet"])
def test_nothing_to_load(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "pairs" / "data").mkdir(parents=True)
        (tmp_path / "pairs" / "data" / "train-00000-of-00001.parquet").write_bytes(content)
    with pytest.raises(InputError, match="cannot be loaded as a dataset"):
        audit.audit(str(tmp_path / "pairs"))
