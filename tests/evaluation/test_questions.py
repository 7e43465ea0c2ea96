"""Questions of a source, and those behind the pairs of a preference dataset, each once."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest

from mmedpo import schema
from mmedpo.data import loading, shards
from mmedpo.data.images import digest, open_rgb
from mmedpo.data.sources import chosen_ids, read_source
from mmedpo.errors import InputError
from mmedpo.evaluation.questions import Asked, read
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
    shards.save(rows, folder, split)
    return str(folder)


def test_the_questions_behind_pairs_are_those_of_the_source_they_were_made_from(corpus, preferences, rows):
    """By id: what curation keeps of a sample is what an evaluation of the source itself asks."""
    asked = read(Asked(dataset=str(preferences)))
    source = {row["id"]: row for row in read(Asked(corpus, split="preference")).rows()}
    found = asked.rows()
    assert [row["id"] for row in found] == list(dict.fromkeys(row["provenance"]["sample_id"] for row in rows))
    assert len(found) < len(rows)  # both kinds of pairs of a question ask it once
    for row in found:
        assert row == {**source[row["id"]], "question_type": None, "organ": None, "modality": None}
    assert asked.record == {
        "source": "phantom", "dataset": preferences.name, "dataset_revision": None, "split": "train",
        "limit": None, "rows": len(rows), "rows_left_out": {},
    }  # fmt: skip


def test_questions_of_a_dataset_reach_a_task_without_their_images(preferences):
    asked = read(Asked(dataset=str(preferences)))
    sent = pickle.dumps(asked.open_image)
    assert len(sent) < 1000
    for question in asked.questions[:3]:
        assert digest(pickle.loads(sent)(question.images[0])) == question.image_digest


def test_rows_whose_chosen_answer_is_not_gold_are_left_out_and_counted(rows, tmp_path):
    text = next(row for row in rows if row["rejected_images"] is None)
    noised = next(row for row in rows if row["rejected_images"] and row["prompt"] != text["prompt"])
    reversed_ = {
        **text, "id": "reversed", "images": noised["rejected_images"], "dispreference": "reversed_noise",
        "chosen": text["rejected"], "rejected": text["chosen"],
    }  # fmt: skip
    asked = read(Asked(dataset=saved([text, reversed_, noised], tmp_path / "pairs")))
    assert [question.reference for question in asked.questions] == [
        row["chosen"][0]["content"] for row in (text, noised)
    ]
    assert asked.record["rows_left_out"] == {"the chosen answer is not the gold one": 1}


def test_a_dataset_without_a_question_is_refused_with_the_reason(rows, tmp_path):
    text = next(row for row in rows if row["rejected_images"] is None)
    sides = {"chosen": text["rejected"], "rejected": text["chosen"]}
    with pytest.raises(InputError, match=r"No questions to ask in .*the chosen answer is not the gold one': 1"):
        read(Asked(dataset=saved([{**text, **sides, "dispreference": "reversed_noise"}], tmp_path / "pairs")))


def test_a_question_repeated_with_another_answer_is_asked_once_and_counted(rows, tmp_path):
    text = next(row for row in rows if row["rejected_images"] is None)
    again = {**text, "id": "again", "chosen": [{"role": "assistant", "content": "something else entirely"}]}
    asked = read(Asked(dataset=saved([text, again], tmp_path / "pairs")))
    assert len(asked.questions) == 1
    assert asked.record["rows_left_out"] == {"repeated with another answer": 1}


def test_a_question_about_the_same_pixels_in_another_file_is_asked_once(rows, tmp_path):
    text = next(row for row in rows if row["rejected_images"] is None)
    again = io.BytesIO()
    open_rgb(text["images"][0]).save(again, "PNG", compress_level=0)
    assert again.getvalue() != text["images"][0]["bytes"]
    made = {**text["provenance"], "sample_id": "twin", "image_id": "copy.png"}
    twin = {**text, "id": "twin", "images": [{"bytes": again.getvalue(), "path": "copy.png"}], "provenance": made}
    asked = read(Asked(dataset=saved([text, twin], tmp_path / "pairs")))
    assert [question.id for question in asked.questions] == [text["provenance"]["sample_id"]]
    assert asked.questions[0].image_digest == digest(open_rgb(text["images"][0]))


def test_torn_image_of_a_dataset_is_a_fault_of_its_row(rows, tmp_path):
    name = saved(rows[:2], tmp_path / "pairs")
    (shard,) = (tmp_path / "pairs" / "data").glob("*.parquet")
    from datasets import Dataset, Features

    torn = [rows[0], {**rows[1], "images": [{"bytes": b"torn", "path": "a.png"}]}]
    Dataset.from_list(torn, features=Features(schema.FEATURES)).to_parquet(shard)
    with pytest.raises(InputError, match="cannot be asked:") as raised:
        read(Asked(dataset=name))
    assert [(fault.row, fault.column) for fault in raised.value.faults] == [(rows[1]["id"], "images")]


def test_rows_without_provenance_are_named_by_their_id_and_their_image(rows, tmp_path):
    bare = [{**row, "provenance": dict.fromkeys(row["provenance"])} for row in rows[:6]]
    asked = read(Asked(dataset=saved(bare, tmp_path / "pairs")))
    ids = {row["id"] for row in bare}
    assert {question.id for question in asked.questions} <= ids
    images = {row["images"][0]["bytes"] for row in bare}
    assert len({question.image_id for question in asked.questions}) == len(images)


def test_ids_that_mean_two_questions_are_refused(rows, tmp_path):
    one, other = rows[0], next(row for row in rows if row["prompt"] != rows[0]["prompt"])
    same = {**other, "provenance": {**other["provenance"], "sample_id": one["provenance"]["sample_id"]}}
    with pytest.raises(InputError, match=r"cannot be asked:(?s:.*)2 questions have this sample_id"):
        read(Asked(dataset=saved([one, same], tmp_path / "pairs")))


def test_a_split_is_needed_where_there_are_several(rows, tmp_path):
    saved(rows[:2], tmp_path / "pairs", "train")
    name = saved(rows[2:4], tmp_path / "pairs", "test")
    with pytest.raises(InputError, match="choose one with --split"):
        read(Asked(dataset=name))
    with pytest.raises(InputError, match="no split 'validation'; it has"):
        read(Asked(dataset=name, split="validation"))
    assert read(Asked(dataset=name, split="test")).record["split"] == "test"


def test_another_dataset_is_refused_by_its_columns(tmp_path):
    from datasets import Dataset

    (tmp_path / "data").mkdir()
    Dataset.from_list([{"question": "Where?", "answer": "left"}]).to_parquet(tmp_path / "data" / "train-0.parquet")
    with pytest.raises(InputError, match=r"is not a preference dataset:(?s:.*)\[images\]: is missing"):
        read(Asked(dataset=str(tmp_path)))


def test_the_choice_of_a_limit_is_made_as_a_sources(corpus, preferences):
    chosen = {question.id for question in read(Asked(dataset=str(preferences), limit=5, seed=1)).questions}
    everything = [question.id for question in read(Asked(dataset=str(preferences))).questions]
    assert len(chosen) == 5 and chosen == chosen_ids(everything, 5, seed=1)
    assert chosen != {question.id for question in read(Asked(dataset=str(preferences), limit=5, seed=2)).questions}
    asked = {sample.id for sample in read_source(corpus, "preference").samples}
    ranked = {sample.id for sample in read_source(corpus, "preference", limit=5, seed=1).samples}
    assert ranked == chosen_ids(sorted(asked), 5, seed=1)


def test_either_a_source_or_a_dataset(corpus, preferences):
    for given in ({}, {"source": corpus, "dataset": str(preferences)}):
        with pytest.raises(InputError, match="either --source or --dataset"):
            read(Asked(**given))  # type: ignore[arg-type]


TOO_SHORT = {
    "image": "a.png",
    "question": "Describe.",
    "task": "report",
    "answer": "The.",
}  # for the paper's words, which drop it


def test_a_reference_without_words_is_a_faulty_row_by_the_words_of_the_protocol(make_source):
    rows = [{"id": "short", **TOO_SHORT}, {"id": "good", **TOO_SHORT, "answer": "No effusion."}]
    source, paper = make_source(rows), Scoring(report_protocol="paper")
    assert len(read(Asked(source)).questions) == 2
    with pytest.raises(
        InputError, match=r"(?s)Faulty rows in .*: 1\..*short \[answer\].*no words to compare"
    ) as raised:
        read(Asked(source), scoring=paper)
    assert [fault.row for fault in raised.value.faults] == ["short"]
    asked = read(Asked(source, skip_faulty=True), scoring=paper)
    assert [question.id for question in asked.questions] == ["good"] and asked.record["faulty_rows_skipped"] == 1


def test_an_official_split_is_recorded_with_what_it_shares(make_source):
    row = {"image": "a.png", "question": "Where?", "answer": "left"}
    rows = [{"id": split, **row, "split": split} for split in ("train", "test")]
    source = make_source([*rows, {**row, "id": "b", "image": "b.png", "split": "test"}])
    asked = read(Asked(source, split="test", official_split=True))
    assert [question.id for question in asked.questions] == ["test", "b"] and asked.note is None
    assert (asked.record["split_by"], asked.record["images_in_other_splits"]) == ("source", 1)


def test_a_split_made_anew_is_noted(make_source):
    rows = [{"id": f"{n}", "image": "a.png", "question": f"{n}?", "answer": "left", "split": n} for n in ("x", "y")]
    (split,) = {sample.split for sample in read_source(make_source(rows)).samples}
    note = read(Asked(make_source(rows, name="again"), split=split)).note
    assert note and "its own has 1 of 1 images in several splits" in note


def test_what_a_source_says_of_a_question_is_kept_without_stray_white_space(make_source):
    row = {"id": 1, "image": "a.png", "question": "Where?", "answer": "left lung", "qid": 1}
    source = make_source([{**row, "question_type": "PRES,  ABN ", "image_organ": " CHEST", "modality": "X-Ray"}])
    (found,) = read(Asked(source)).rows()
    assert (found["question_type"], found["organ"], found["modality"]) == ("PRES, ABN", "CHEST", "X-Ray")
