"""Results on the Hub, read back by the Hub's own classes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData, parse_eval_result_entries
from invented import comparison

from mmedpo.errors import InputError
from mmedpo.evaluation.questions import Asked, read
from mmedpo.hub import results
from mmedpo.models.adapters import adapter_digest


def with_source(source: str, **more: Any) -> dict[str, Any]:
    found = comparison()
    found["evaluations"]["mmedpo"] |= {"source": source, **more}
    return found


def test_model_index_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    index = results.model_index(comparison())
    data = ModelCardData(model_name="invented", eval_results=index)
    (tmp_path / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n", encoding="utf-8")
    read = ModelCard.load(tmp_path / "README.md").data
    assert read.model_name == "invented" and read.eval_results == index
    first = read.eval_results[0]
    assert (first.dataset_type, first.dataset_split) == ("invented/questions", "test")
    assert (first.metric_type, first.metric_value) == ("overall_accuracy", 0.741)
    assert first.metric_args == {
        "questions": 1204, "images": 400, "low": 0.711, "high": 0.771, "definitions": {"med_vqa": "strict"},
    }  # fmt: skip


def test_eval_results_are_read_back_as_they_were_written() -> None:
    found = with_source("phantom", dataset="invented/questions", dataset_revision="abc123")
    ((path, text),) = results.hub_files(found).items()
    assert path == ".eval_results/invented_questions.yaml"
    entries = parse_eval_result_entries(yaml.safe_load(text))
    assert entries == results.hub_entries(found)
    assert [(entry.dataset_id, entry.task_id, entry.value) for entry in entries] == [
        ("invented/questions", "overall_accuracy", 0.741), ("invented/questions", "open_f1", 0.52),
    ]  # fmt: skip
    assert entries[0].dataset_revision == "abc123"
    assert entries[0].notes == (
        "split test, 1,204 questions, 400 images; 95 % interval [0.7110, 0.7710]; med_vqa strict"
    )


def test_accuracies_come_with_the_share_of_unread_answers() -> None:
    found = with_source("phantom", dataset="invented/questions", dataset_revision="abc123")
    for part in ("metrics", "sizes"):
        found[part]["closed_accuracy"] = found[part].pop("open_f1")
    found["reading"] = {"closed": {"shares": {"unread": {"mmedpo": {"value": 0.125}}}, "gain": {}},
                        "open": {"shares": {"wrong_side": {"mmedpo": {"value": 0.5}}}}}  # fmt: skip
    assert "; 12.5 % of the answers could not be read; med_vqa" in str(results.hub_entries(found)[1].notes)
    assert [(one.metric_args or {}).get("unread") for one in results.model_index(found)] == [None, 0.125]


def test_a_local_source_or_dataset_has_no_eval_results() -> None:
    assert results.hub_files(with_source("phantom")) == {}
    assert results.hub_files(with_source("phantom", dataset="runs/pairs", dataset_revision=None)) == {}


def test_the_record_of_an_asked_dataset_names_it_on_the_hub(preferences: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(preferences.parents[1])
    record = read(Asked(dataset=f"{preferences.parent.name}/{preferences.name}")).record
    assert results.HUB_ID.fullmatch(record["dataset"]) and record["dataset_revision"] is None
    assert results.hub_files(with_source(**record)) == {}
    on_hub = with_source(**record | {"dataset_revision": "abc123"})
    for found in (results.hub_entries(on_hub), results.model_index(on_hub)):
        assert {entry.dataset_revision for entry in found} == {"abc123"}
    assert results.hub_entries(on_hub)[0].dataset_id == results.model_index(on_hub)[0].dataset_type == record["dataset"]


def test_the_record_beside_a_model_holds_no_question() -> None:
    kept = json.loads(results.record(comparison()))
    assert "examples" not in kept and kept["metrics"] == comparison()["metrics"]


@pytest.mark.parametrize("key", ["adapter", "model"])
def test_results_of_another_adapter_are_refused(key: str, tmp_path: Path) -> None:
    found = comparison()
    found["evaluations"]["mmedpo"] = {"adapter": None, key: "runs/mine"}
    results.require_results_of(tmp_path / "mine", found)
    with pytest.raises(InputError, match=r"is not what the last run evaluated \(mine\)"):
        results.require_results_of(tmp_path / "other", found)


def test_a_mean_over_seeds_is_no_result_of_one_adapter(tmp_path: Path) -> None:
    found = comparison() | {"seeds": {"mmedpo": 3}}
    with pytest.raises(InputError, match="one adapter, and the last row of this comparison is a mean over 3 seeds"):
        results.require_results_of(tmp_path / "mine", found)
    found["seeds"] = {"start": 2}
    found["metrics"]["open_f1"]["start"]["sd"] = 0.0123
    assert any("± 1.2 % [" in cell for row in results.card_part(found)["table"] for cell in row)


def test_an_adapter_is_known_by_its_weights_where_they_were_recorded(tmp_path: Path) -> None:
    found = comparison()
    for name, weights in (("evaluated", b"one"), ("renamed", b"one"), ("mine", b"two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(weights)
    digest = adapter_digest(str(tmp_path / "evaluated"))  # as an evaluation records it
    assert digest == hashlib.sha256(b"one").hexdigest()
    found["evaluations"]["mmedpo"] |= {"adapter": "runs/mine", "adapter_sha256": digest}
    results.require_results_of(tmp_path / "renamed", found)
    with pytest.raises(InputError, match="has other weights"):
        results.require_results_of(tmp_path / "mine", found)
