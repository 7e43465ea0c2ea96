"""What is asked: the questions of a source, or those behind the pairs of a preference dataset, each once."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmedpo import schema
from mmedpo.data import loading
from mmedpo.data.images import digest, open_rgb
from mmedpo.data.sources import chosen_ids, read_source
from mmedpo.errors import InputError
from mmedpo.evaluation.questions import QuestionSet, of_dataset, of_samples, of_source, read, write
from mmedpo.evaluation.score import Scoring


@pytest.fixture(scope="module")
def rows(preferences: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = schema.undecoded(loading.load(str(preferences))).to_list()
    return found


def saved(rows: list[dict[str, Any]], folder: Path, split: str = "train") -> str:
    names = {"task": schema.TASKS, "dispreference": schema.DISPREFERENCES}
    rows = [
        {**row, **{key: kinds[row[key]] for key, kinds in names.items() if isinstance(row[key], int)}} for row in rows
    ]
    schema.save(rows, folder, split)
    return str(folder)


def written(asked: QuestionSet, tmp_path: Path) -> list[dict[str, Any]]:
    write(asked, tmp_path / "questions.jsonl")
    return [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_questions_behind_pairs_are_those_of_the_source_they_were_made_from(
    corpus: Path, preferences: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """By id: what curation keeps of a sample is what an evaluation of the source itself asks."""
    asked = of_dataset(str(preferences))
    source = {row["id"]: row for row in written(of_source(corpus, "preference"), tmp_path)}
    (tmp_path / "questions.jsonl").unlink()
    found = written(asked, tmp_path)
    assert [row["id"] for row in found] == list(dict.fromkeys(row["provenance"]["sample_id"] for row in rows))
    assert len(found) < len(rows)  # both kinds of pairs of a question ask it once
    for row in found:
        assert row == {**source[row["id"]], "question_type": None, "organ": None, "modality": None}
    assert asked.record == {
        "source": "phantom", "dataset": preferences.name, "dataset_revision": None, "split": "train",
        "limit": None, "rows": len(rows), "rows_left_out": {},
    }  # fmt: skip


def test_rows_whose_chosen_answer_is_not_gold_are_left_out_and_counted(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    text = next(row for row in rows if row["rejected_images"] is None)
    noised = next(row for row in rows if row["rejected_images"] and row["prompt"] != text["prompt"])
    reversed_ = {
        **text, "id": "reversed", "images": noised["rejected_images"], "dispreference": "reversed_noise",
        "chosen": text["rejected"], "rejected": text["chosen"],
    }  # fmt: skip
    asked = of_dataset(saved([text, reversed_, noised], tmp_path / "pairs"))
    assert [question.reference for question in asked.questions] == [
        row["chosen"][0]["content"] for row in (text, noised)
    ]
    assert asked.record["rows_left_out"] == {"the chosen answer is not the gold one": 1}


def test_a_dataset_without_a_question_is_refused_with_the_reason(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    text = next(row for row in rows if row["rejected_images"] is None)
    sides = {"chosen": text["rejected"], "rejected": text["chosen"]}
    with pytest.raises(InputError, match=r"no question to ask: .*the chosen answer is not the gold one': 1"):
        of_dataset(saved([{**text, **sides, "dispreference": "reversed_noise"}], tmp_path / "pairs"))


def test_a_question_repeated_with_another_answer_is_asked_once_and_counted(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    text = next(row for row in rows if row["rejected_images"] is None)
    again = {**text, "id": "again", "chosen": [{"role": "assistant", "content": "something else entirely"}]}
    asked = of_dataset(saved([text, again], tmp_path / "pairs"))
    assert len(asked.questions) == 1
    assert asked.record["rows_left_out"] == {"repeated with another answer": 1}


def test_a_question_about_the_same_pixels_in_another_file_is_asked_once(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    text = next(row for row in rows if row["rejected_images"] is None)
    again = io.BytesIO()
    open_rgb(text["images"][0]).save(again, "PNG", compress_level=0)
    assert again.getvalue() != text["images"][0]["bytes"]
    made = {**text["provenance"], "sample_id": "twin", "image_id": "copy.png"}
    twin = {**text, "id": "twin", "images": [{"bytes": again.getvalue(), "path": "copy.png"}], "provenance": made}
    asked = of_dataset(saved([text, twin], tmp_path / "pairs"))
    assert [question.id for question in asked.questions] == [text["provenance"]["sample_id"]]
    assert asked.questions[0].image_digest == digest(open_rgb(text["images"][0]))


def test_torn_image_of_a_dataset_is_a_fault_of_its_row(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    name = saved(rows[:2], tmp_path / "pairs")
    (shard,) = (tmp_path / "pairs" / "data").glob("*.parquet")
    from datasets import Dataset, Features

    torn = [rows[0], {**rows[1], "images": [{"bytes": b"torn", "path": "a.png"}]}]
    Dataset.from_list(torn, features=Features(schema.FEATURES)).to_parquet(shard)
    with pytest.raises(InputError, match="cannot be asked:") as raised:
        of_dataset(name)
    assert [(fault.row, fault.column) for fault in raised.value.faults] == [(rows[1]["id"], "images")]


def test_rows_without_provenance_are_named_by_their_id_and_their_image(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    bare = [{**row, "provenance": dict.fromkeys(row["provenance"])} for row in rows[:6]]
    asked = of_dataset(saved(bare, tmp_path / "pairs"))
    ids = {row["id"] for row in bare}
    assert {question.id for question in asked.questions} <= ids
    images = {row["images"][0]["bytes"] for row in bare}
    assert len({question.image_id for question in asked.questions}) == len(images)


def test_ids_that_mean_two_questions_are_refused(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    one, other = rows[0], next(row for row in rows if row["prompt"] != rows[0]["prompt"])
    same = {**other, "provenance": {**other["provenance"], "sample_id": one["provenance"]["sample_id"]}}
    with pytest.raises(InputError, match=r"cannot be asked:(?s:.*)2 questions have this sample_id"):
        of_dataset(saved([one, same], tmp_path / "pairs"))


def test_a_split_is_needed_where_there_are_several(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    saved(rows[:2], tmp_path / "pairs", "train")
    name = saved(rows[2:4], tmp_path / "pairs", "test")
    with pytest.raises(InputError, match="choose one with --split"):
        of_dataset(name)
    with pytest.raises(InputError, match="no split 'validation'; it has"):
        of_dataset(name, "validation")
    assert of_dataset(name, "test").record["split"] == "test"


def test_another_dataset_is_refused_by_its_columns(tmp_path: Path) -> None:
    from datasets import Dataset

    (tmp_path / "data").mkdir()
    Dataset.from_list([{"question": "Where?", "answer": "left"}]).to_parquet(tmp_path / "data" / "train-0.parquet")
    with pytest.raises(InputError, match=r"is no preference dataset:(?s:.*)\[images\]: is missing"):
        of_dataset(str(tmp_path))


def test_the_choice_of_a_limit_is_made_as_a_sources(corpus: Path, preferences: Path) -> None:
    chosen = {question.id for question in of_dataset(str(preferences), limit=5, seed=1).questions}
    everything = [question.id for question in of_dataset(str(preferences)).questions]
    assert len(chosen) == 5 and chosen == chosen_ids(everything, 5, seed=1)
    assert chosen != {question.id for question in of_dataset(str(preferences), limit=5, seed=2).questions}
    asked = {sample.id for sample in read_source(corpus, "preference").samples}
    ranked = {sample.id for sample in read_source(corpus, "preference", limit=5, seed=1).samples}
    assert ranked == chosen_ids(sorted(asked), 5, seed=1)


def test_either_a_source_or_a_dataset(corpus: Path, preferences: Path) -> None:
    for given in ({}, {"source": corpus, "dataset": str(preferences)}):
        with pytest.raises(InputError, match="either --source or --dataset"):
            read(**given)  # type: ignore[arg-type]


def test_reference_that_cannot_be_scored_is_named(corpus: Path) -> None:
    sample, other = read_source(corpus, "test", limit=2).samples
    with pytest.raises(InputError, match=r"(?s)1 questions cannot be scored:.*no words") as raised:
        of_samples([replace(sample, answer="+"), other])
    assert [fault.row for fault in raised.value.faults] == [sample.id]


TOO_SHORT = {
    "image": "a.png",
    "question": "Describe.",
    "task": "report",
    "answer": "The.",
}  # for the paper's words, which drop it


def test_a_reference_without_words_is_a_faulty_row_by_the_words_of_the_protocol(make_source: Any) -> None:
    rows = [{"id": "short", **TOO_SHORT}, {"id": "good", **TOO_SHORT, "answer": "No effusion."}]
    source, paper = make_source(rows), Scoring(report_protocol="paper")
    assert len(read(source).questions) == 2
    with pytest.raises(
        InputError, match=r"(?s)Faulty rows in .*: 1\..*short \[answer\].*no words to compare"
    ) as raised:
        read(source, scoring=paper)
    assert [fault.row for fault in raised.value.faults] == ["short"]
    asked = read(source, skip_faulty=True, scoring=paper)
    assert [question.id for question in asked.questions] == ["good"] and asked.record["faulty_rows_skipped"] == 1


def test_an_official_split_is_recorded_with_what_it_shares(make_source: Any) -> None:
    row = {"image": "a.png", "question": "Where?", "answer": "left"}
    rows = [{"id": split, **row, "split": split} for split in ("train", "test")]
    source = make_source([*rows, {**row, "id": "b", "image": "b.png", "split": "test"}])
    asked = read(source, split="test", official_split=True)
    assert [question.id for question in asked.questions] == ["test", "b"] and asked.note is None
    assert (asked.record["split_by"], asked.record["images_in_other_splits"]) == ("source", 1)


def test_a_split_made_anew_is_noted(make_source: Any) -> None:
    rows = [{"id": f"{n}", "image": "a.png", "question": f"{n}?", "answer": "left", "split": n} for n in ("x", "y")]
    (split,) = {sample.split for sample in read_source(make_source(rows)).samples}
    note = read(make_source(rows, name="again"), split=split).note
    assert note and "its own has 1 of 1 images in several parts" in note


def test_equal_pictures_have_one_digest_whatever_their_files(corpus: Path, tmp_path: Path) -> None:
    sample, other, *_ = {sample.image_id: sample for sample in read_source(corpus, "test").samples}.values()
    copy = tmp_path / "copy.bmp"
    open_rgb(sample.image).save(copy)
    twin = replace(sample, id="twin", image=copy)
    found = [row["image_digest"] for row in written(of_samples([sample, twin, other]), tmp_path)]
    assert found[0] == found[1] == digest(open_rgb(sample.image)) != found[2]


def test_images_that_cannot_be_read_are_all_named(corpus: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"torn")
    samples = read_source(corpus, "test", limit=3).samples
    asked = of_samples([*(replace(one, image=torn, image_digest="") for one in samples[:2]), samples[2]])
    with pytest.raises(
        InputError, match=r"2 questions have no usable image:(?s:.*)torn.png: the image is in no"
    ) as raised:
        write(asked, tmp_path / "questions.jsonl")
    assert [fault.row for fault in raised.value.faults] == [samples[0].id, samples[1].id]
    assert not list(tmp_path.glob("questions*"))


def test_what_a_source_says_of_a_question_is_kept_without_stray_white_space(make_source: Any, tmp_path: Path) -> None:
    row = {"id": 1, "image": "a.png", "question": "Where?", "answer": "left lung", "qid": 1}
    source = make_source([{**row, "question_type": "PRES,  ABN ", "image_organ": " CHEST", "modality": "X-Ray"}])
    (found,) = written(of_source(source), tmp_path)
    assert (found["question_type"], found["organ"], found["modality"]) == ("PRES, ABN", "CHEST", "X-Ray")
