"""Curation end to end, with a real (tiny) target model: what is made, what is recorded, and what survives a kill."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from PIL import Image
from standins import STANDINS

from mmedpo import schema
from mmedpo.curation import ask, blocks, hallucinate, noiser, relevance, rows, run
from mmedpo.curation.localize import Localizer
from mmedpo.curation.noise import box_mask
from mmedpo.curation.run import curate_folder
from mmedpo.curation.settings import Settings
from mmedpo.curation.weights import normalize
from mmedpo.data import loading, shards
from mmedpo.data.samples import Box, Sample
from mmedpo.data.sources import read_source
from mmedpo.data.text import words
from mmedpo.errors import InputError
from mmedpo.models.thoughts import EMPTY, Answer
from mmedpo.models.vision_language import VisionLanguageModel
from mmedpo.runs.journal import Journal
from mmedpo.runs.run_folder import output_folder

MakeSource = Callable[..., Path]
CALLER = "mmedpo curate"


@pytest.fixture(scope="module")
def settings(corpus: Path, tiny_model: Path) -> Settings:
    """The settings that `preferences` was made with."""
    return Settings(source=corpus, split="preference", model=str(tiny_model), **STANDINS)


@pytest.fixture(scope="module")
def samples(corpus: Path) -> dict[str, Sample]:
    return {sample.id: sample for sample in read_source(corpus, "preference").samples}


@pytest.fixture(scope="module")
def dataset(preferences: Path) -> Dataset:
    return loading.load(str(preferences))


@pytest.fixture(scope="module")
def text_pairs(dataset: Dataset) -> list[dict[str, Any]]:
    return [row for row in dataset if row["dispreference"] == 0]


@pytest.fixture(scope="module")
def visual_pairs(dataset: Dataset) -> list[dict[str, Any]]:
    return [row for row in dataset if row["dispreference"] == 1]


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def rejects(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text(encoding="utf-8").split("\n") if line]


def curate(output: Path, settings: Settings, resume: bool = False) -> Path:
    """Curate into `output`; by the stand-ins where `settings` name no chat model."""
    settings = replace(settings, **STANDINS) if settings.chat is None else settings
    with output_folder(output, settings.record(), resume) as folder:
        curate_folder(settings, folder, CALLER)
    return output


def recorded(folder: Path) -> dict[str, Any]:
    """What a folder holds but the versions of this moment: another session may commit while the tests run."""
    files = {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return {**files, "manifest.json": {**manifest(folder), "versions": None}}


# What is made.


def test_plain_load_dataset_gives_the_features(preferences: Path, dataset: Dataset) -> None:
    loaded = load_dataset(str(preferences))
    assert list(loaded) == ["train"]
    assert loaded["train"].features == schema.FEATURES
    assert len(loaded["train"]) == len(dataset)


def test_every_question_gives_both_kinds_of_pairs_or_a_counted_reject(
    preferences: Path, dataset: Dataset, samples: dict[str, Sample]
) -> None:
    made = [(row["sample_id"], kind) for row, kind in zip(dataset["provenance"], dataset["dispreference"], strict=True)]
    refused = [(line["id"], schema.DISPREFERENCES.index(line["dispreference"])) for line in rejects(preferences)]
    assert sorted(made + refused) == sorted((id_, kind) for id_ in samples for kind in (0, 1))
    assert Counter(line["reason"] for line in rejects(preferences)) == manifest(preferences)["rejects"]
    assert manifest(preferences)["source"]["questions"] == len(samples)


def test_rows_are_the_sources_questions(dataset: Dataset, samples: dict[str, Sample]) -> None:
    assert len(set(dataset["id"])) == len(dataset)
    for row in schema.undecoded(dataset):
        sample = samples[row["provenance"]["sample_id"]]
        assert row["id"] == f"phantom/{sample.id}/{schema.DISPREFERENCES[row['dispreference']]}"
        assert [image["bytes"] for image in row["images"]] == [sample.images[0].file.read_bytes()]
        assert row["prompt"] == [{"role": "user", "content": sample.question}]
        assert row["chosen"] == [{"role": "assistant", "content": sample.answer}]
        assert schema.TASKS[row["task"]] == sample.task
        assert (row["source"], row["license"]) == ("phantom", "cc0-1.0")
        assert row["provenance"]["image_id"] == sample.image_id


def test_text_pairs_differ_in_the_answer_alone_and_say_where_it_came_from(text_pairs: list[dict[str, Any]]) -> None:
    authors = Counter(row["provenance"]["rejected_by"] for row in text_pairs)
    assert authors.keys() == {"tiny", "standin:rules", "flip"}
    versions = {"tiny": "select@3", "standin:rules": "inject@3", "flip": "flip@1"}
    for row in text_pairs:
        made = row["provenance"]
        assert row["rejected_images"] is None
        assert row["rejected"][0]["content"] != row["chosen"][0]["content"]
        sampled = made["rejected_by"] == "tiny"
        assert made["prompt_version"] == versions[made["rejected_by"]]
        assert len(made["candidates"]) in ([0] if made["rejected_by"] == "flip" else range(5))  # a flip needs none
        said = [words(candidate) for candidate in made["candidates"]]  # the form is that of the gold answer
        assert words(row["rejected"][0]["content"]) in said or not sampled
        assert {entry["judge"] for entry in made["judgements"]} == {
            "standin:strict", "standin:lenient", "standin:lexical",
        }  # fmt: skip
        assert made["agreed"] in (True, False)
        assert made["seed"] == 0
        assert made["boxes"] is made["noise_step"] is made["mask_coverage"] is made["localizer"] is None


def test_visual_pairs_differ_inside_the_lesion_alone(
    visual_pairs: list[dict[str, Any]], samples: dict[str, Sample]
) -> None:
    assert visual_pairs
    for row in visual_pairs:
        made, sample = row["provenance"], samples[row["provenance"]["sample_id"]]
        assert row["rejected"] == row["chosen"]
        boxes = [Box(**box) for box in made["boxes"]]
        sides = ("x", "y", "width", "height")
        assert [[getattr(box, side) for side in sides] for box in boxes] == [
            pytest.approx([getattr(box, side) for side in sides]) for box in sample.boxes
        ]
        before, after = np.asarray(row["images"][0]), np.asarray(row["rejected_images"][0])
        mask = box_mask(sample.boxes, *before.shape)
        assert np.array_equal(before[~mask], after[~mask])
        assert np.mean(before[mask] != after[mask]) > 0.9
        assert made["mask_coverage"] == pytest.approx(mask.mean())
        assert (made["rejected_by"], made["localizer"], made["noise_step"]) == ("diffusion", "boxes", 800)
        assert made["candidates"] is made["judgements"] is made["agreed"] is None


def test_weights_are_the_normalised_relevance_of_each_kind(preferences: Path, dataset: Dataset) -> None:
    kinds = [schema.DISPREFERENCES[kind] for kind in dataset["dispreference"]]
    expected, found = normalize(dataset["clinical_relevance"], groups=kinds)
    assert dataset["weight"] == pytest.approx(expected.tolist())
    # scores are doubles when they are normalised, and single precision in the dataset
    recorded, known = manifest(preferences)["weights"], found.record()
    for part, own in ((recorded, known), *((recorded["by_kind"][kind], known["by_kind"][kind]) for kind in set(kinds))):
        numbers = {name: value for name, value in own.items() if isinstance(value, float | int)}
        assert {name: part[name] for name in numbers} == pytest.approx(numbers)
    assert recorded["notes"] == known["notes"]
    lesions = kinds.count("lesion_noise")
    assert recorded["notes"][-1] == (
        f"lesion_noise: all {lesions} scores are 1, so each weight is 1 (normalised apart from the other kinds)."
    )
    relevances = {row["clinical_relevance"] for row in dataset if row["dispreference"] == 1}
    assert relevances == {1.0}  # boxes drawn by a person


def test_noise_depends_on_seed_and_image_alone(
    corpus: Path, visual_pairs: list[dict[str, Any]], tmp_path: Path
) -> None:
    """A run over other questions, without a model, noises the images it shares with `preferences` alike."""
    everything = {row["id"]: np.asarray(row["rejected_images"][0]).tobytes() for row in visual_pairs}
    for seed, alike in ((0, True), (1, False)):
        part = Settings(source=corpus, split="preference", limit=8, seed=seed)
        for row in loading.load(str(curate(tmp_path / str(seed), part))):
            if row["rejected_images"]:
                same = np.asarray(row["rejected_images"][0]).tobytes() == everything[row["id"]]
                assert same is alike


@pytest.mark.parametrize(("given", "lengths"), [({}, (64, 512)), ({"max_new_tokens_report": 7}, (64, 7))])
def test_samples_have_the_length_of_their_task_and_only_whole_ones_are_candidates(
    corpus: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, int], lengths: Any
) -> None:
    asked: list[tuple[int, int]] = []

    def generate(self: VisionLanguageModel, prompts: Any, sampling: Any) -> list[list[Answer]]:
        asked.append((sampling.max_new_tokens, len(prompts.tokens)))
        cut = Answer(failure="cut off at 7 tokens", partial="the left")
        return [[Answer("left lung"), cut, Answer("right lung"), Answer(failure=EMPTY)]] * len(prompts.tokens)

    monkeypatch.setattr(VisionLanguageModel, "generate", generate)
    settings = Settings(source=corpus, split="preference", limit=60, model=str(tiny_model), localizer="none", **given)
    folder = curate(tmp_path / "out", settings)
    tasks = Counter(
        s.task for s in read_source(corpus, "preference", limit=60).samples if s.answer not in ("yes", "no")
    )
    counts = {most: sum(size for length, size in asked if length == most) for most in dict.fromkeys(lengths)}
    assert counts == {lengths[0]: tasks["open_vqa"] + tasks["closed_vqa"], lengths[1]: tasks["report"]}
    total = sum(counts.values())
    assert manifest(folder)["candidates"] == {
        "sampled": 4 * total, "left_out": {"cut off at 7 tokens": total, "the answer is empty": total},
    }  # fmt: skip
    assert manifest(folder)["settings"]["max_new_tokens_report"] == lengths[1]
    shown = [row["provenance"]["candidates"] for row in loading.load(str(folder))]
    assert ["left lung", "right lung"] in shown and all(texts in ([], ["left lung", "right lung"]) for texts in shown)


# Rejects.


def question(**changes: Any) -> dict[str, Any]:
    boxes = [{"label": "nodule", "x": 4, "y": 4, "w": 8, "h": 8}]
    return {"id": "q", "image": "a.png", "question": "Is there a nodule?", "answer": "yes", "boxes": boxes, **changes}


def test_box_that_cannot_be_noised_is_a_counted_reject(make_source: MakeSource, tmp_path: Path) -> None:
    reason = "the lesion covers more than 60% of the image"
    source = make_source([question(), question(id="r", boxes=[{"x": -9, "y": -9, "w": 99, "h": 99}])])
    folder = curate(tmp_path / "out", Settings(source=source))
    assert manifest(folder)["counts"] == {"hallucinated_response": 2, "lesion_noise": 1}
    assert manifest(folder)["rejects"] == {reason: 1}
    assert rejects(folder) == [
        {"id": "r", "dispreference": "lesion_noise", "reason": reason, "detail": "", "task": "closed_vqa",
         "step": "locate"},
    ]  # fmt: skip
    assert manifest(folder)["rejects_by_task"] == {"closed_vqa": {reason: 1}}


@pytest.mark.parametrize("restricted", [False, True])
def test_source_that_gives_no_pair_is_bad_input(make_source: MakeSource, tmp_path: Path, restricted: bool) -> None:
    source = make_source([question(answer="unheard-of", boxes=[])])
    with pytest.raises(InputError, match="Every pair of source was rejected") as raised:
        curate(tmp_path / "out", Settings(source=source, credentialed=restricted))
    said = str(raised.value)
    assert f"choosing rejected responses lost 1 ({hallucinate.DECLINED}: 1)" in said
    assert "locating lesions lost 1 (no lesion was found: 1)." in said
    assert ("Examples: q: to the gold answer 'unheard-of'; q: no lesion was found." in said) is not restricted
    assert ("unheard-of" in said) is not restricted
    file = Path(re.search(r"All are in (.*rejects.jsonl); correct what they list\.", str(raised.value))[1])
    assert len(file.read_text(encoding="utf-8").splitlines()) == 2 and "{" not in str(raised.value)


def test_pairs_below_the_least_relevance_are_rejects(make_source: MakeSource, tmp_path: Path) -> None:
    boxes = [{"label": "nodule", "x": 4, "y": 4, "w": 8, "h": 8, "confidence": 0.6}]
    source = make_source([question(boxes=boxes), question(id="r", question="What is it?", answer="left lung")])
    folder = curate(tmp_path / "out", Settings(source=source, min_relevance=0.75, judges=["standin:strict"]))
    scores = {row["id"].split("/", 1)[1]: row["clinical_relevance"] for row in loading.load(str(folder))}
    assert scores == pytest.approx({"q/hallucinated_response": 0.9, "r/lesion_noise": 1.0})
    assert [(line["id"], line["step"], line["reason"], line["detail"]) for line in rejects(folder)] == [
        ("q", "locate", rows.BELOW, "relevance 0.6, at least 0.75 asked for"),
        ("r", "judge", rows.BELOW, "relevance 0.6, at least 0.75 asked for"),
    ]
    assert manifest(folder)["rejects_by_task"] == {"closed_vqa": {rows.BELOW: 1}, "open_vqa": {rows.BELOW: 1}}
    with pytest.raises(InputError, match="min-relevance"):
        Settings(source=source, chat="standin:rules", judges=["none"], weights="none", min_relevance=0.1)


def test_how_often_no_candidate_was_wrong_is_recorded(
    make_source: MakeSource, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(self: VisionLanguageModel, prompts: Any, sampling: Any) -> list[list[Answer]]:
        return [[Answer("Yes, it is"), Answer("No, it is not"), Answer("in the heart")]] * len(prompts.tokens)

    monkeypatch.setattr(VisionLanguageModel, "generate", generate)
    source = make_source([
        question(answer="Yes, a nodule"), question(id="r", question="Where is it?", answer="left atrium"),
        question(id="s", question="Where is it?", answer="right ear"),
    ])  # fmt: skip
    settings = Settings(source=source, model=str(tiny_model), localizer="none", style="free")
    found = manifest(curate(tmp_path / "out", settings))
    assert found["selected"] == {"answered": 2, "none": 0, "not_asked": 1}


def test_faulty_rows_are_refused_or_counted(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source([question(), question(id="r", answer="")])
    with pytest.raises(InputError, match="--skip-faulty"):
        curate(tmp_path / "out", Settings(source=source))
    folder = curate(tmp_path / "out", Settings(source=source, skip_faulty=True))
    (line,) = rejects(folder)
    assert (line["id"], line["reason"]) == ("samples.jsonl:2", "faulty row of the source")
    assert manifest(folder)["rejects"] == {"faulty row of the source": 1}


# What is recorded.


def paths_in(folder: Path, *machine: Path) -> list[str]:
    """Files of the folder that hold one of these machine's folders."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file.name for file in files if any(str(path).encode() in everything(file) for path in machine)]


def everything(file: Path) -> bytes:
    if file.suffix != ".parquet":
        return file.read_bytes()
    import pyarrow.parquet as parquet  # whose pages are compressed

    table = parquet.read_table(file)
    return repr(table.to_pylist()).encode() + repr(table.schema.metadata).encode()


def test_no_folder_of_this_machine_is_recorded(preferences: Path, corpus: Path, tiny_model: Path) -> None:
    """The source and the target model were given as absolute paths."""
    machine = [corpus.parent, tiny_model.parent, Path(__file__).parents[1], Path.home()]
    assert paths_in(preferences, *machine) == []
    assert manifest(preferences)["target_model"]["name"] == "tiny"


def test_no_folder_of_a_detector_is_recorded(corpus: Path, detector: Path, tmp_path: Path) -> None:
    settings = Settings(source=corpus, split="preference", limit=3, localizer=f"detector:{detector}")
    folder = curate(tmp_path / "out", settings)
    assert paths_in(folder, detector.parent) == []


# Interruptions, in blocks of 8 questions, so that there are several.


@pytest.fixture(scope="module")
def small_blocks(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The dataset of an uninterrupted run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", 8)
        yield curate(tmp_path_factory.mktemp("datasets") / "whole", replace(settings, limit=24))


class CtrlC:
    """Counts the calls of a function, and interrupts the one with a given number."""

    def __init__(self, work: Callable[..., Any], interrupted: int | None = None) -> None:
        self.work, self.interrupted, self.calls = work, interrupted, 0

    def install(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> CtrlC:
        monkeypatch.setattr(owner, name, lambda *arguments, **options: self(*arguments, **options))
        return self

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self.interrupted:
            raise KeyboardInterrupt
        return self.work(*arguments, **options)


@pytest.mark.parametrize(
    ("owner", "name", "call", "calls_left"),
    [
        pytest.param(VisionLanguageModel, "generate", 3, 3, id="sample"),
        pytest.param(hallucinate.Writer, "choose", 2, 2, id="dispute", marks=pytest.mark.slow),
        pytest.param(Localizer, "locate", 20, 8, id="locate", marks=pytest.mark.slow),
        pytest.param(relevance.Panel, "score", 2, 2, id="judge", marks=pytest.mark.slow),
        pytest.param(noiser, "corrupt", 5, None, id="rows"),
        pytest.param(run, "write_json", 1, 1, id="manifest", marks=pytest.mark.slow),
    ],
)
def test_resumed_run_ends_as_an_uninterrupted_one(
    small_blocks: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    owner: Any, name: str, call: int, calls_left: int | None,
) -> None:  # fmt: skip
    work, output = getattr(owner, name), tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        CtrlC(work, call).install(patch, owner, name)
        curate(output, replace(settings, limit=24))
    assert not output.exists()
    again = CtrlC(work).install(monkeypatch, owner, name)
    curate(output, replace(settings, limit=24), resume=True)
    assert calls_left in (again.calls, None)  # what was finished is not done again
    assert recorded(output) == recorded(small_blocks)


def test_results_that_lost_their_ends_are_completed(
    small_blocks: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 8)
    output = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        CtrlC(shards.write, 1).install(patch, shards, "write")
        curate(output, replace(settings, limit=24))
    journals = sorted((tmp_path / "out.partial" / "results").glob("*.journal"))
    for journal, left in zip(journals, (0.2, 0.5, 0.9), strict=True):
        written = journal.read_bytes()
        journal.write_bytes(written[: int(len(written) * left)])
    curate(output, replace(settings, limit=24), resume=True)
    assert recorded(output) == recorded(small_blocks)


@pytest.mark.parametrize("reason", [hallucinate.NO_ANSWER, hallucinate.UNREADABLE, "cut off at 9 tokens"])
def test_question_that_fails_alone_is_asked_again_and_the_answered_ones_are_not(
    corpus: Path, tmp_path: Path, reason: str
) -> None:
    lost = {"reason": reason, "detail": "refused"}
    samples = read_source(corpus, "preference", 20).samples
    journal = Journal(tmp_path / "work.journal")
    done = journal.part("dispute")
    ask.run_step(done, [samples], lambda batch: [lost, *({"text": s.id} for s in batch[1:])])
    assert done[samples[0].id] == lost
    journal.forget()  # as a resumed run begins
    asked: list[str] = []

    def work(batch: Sequence[Sample]) -> list[Any]:
        asked.extend(sample.id for sample in batch)
        return [{"text": "at last"} for _ in batch]

    ask.run_step(done, [samples], work)
    assert asked == [samples[0].id]
    assert (done[samples[0].id], done[samples[1].id]) == ({"text": "at last"}, {"text": samples[1].id})


# Options of the method.


def test_crop_and_whole_image_noise_need_no_lesion(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source([question(), question(id="r", boxes=[])])
    for name, changes in (("crop", {"noise": "crop"}), ("whole", {"noise_region": "image"})):
        folder = curate(tmp_path / name, Settings(source=source, localizer="none", **changes))
        assert manifest(folder)["counts"] == {"hallucinated_response": 2, "image_noise": 2}
        assert manifest(folder)["noise"]["region"] == "image"
        assert manifest(folder)["mask_coverage"]["mean"] == 1.0
        for row in loading.load(str(folder)):
            if row["dispreference"] == schema.DISPREFERENCES.index("image_noise"):
                assert row["clinical_relevance"] == 1.0  # nothing was looked for
                before, after = (np.asarray(row[side][0]) for side in ("images", "rejected_images"))
                assert before.shape == after.shape and np.mean(before != after) > 0.9


def test_whole_image_noise_is_as_relevant_as_the_tool_is_sure(make_source: MakeSource, tmp_path: Path) -> None:
    boxes = [{"label": "nodule", "x": 4, "y": 4, "w": 8, "h": 8, "confidence": 0.25}]
    source = make_source([question(boxes=boxes), question(id="r", boxes=[])])
    rows_ = loading.load(str(curate(tmp_path / "out", Settings(source=source, noise_region="image"))))
    found = {row["provenance"]["sample_id"]: row["clinical_relevance"] for row in rows_ if row["rejected_images"]}
    assert found == {"q": 0.25, "r": 0.0}


def test_reversed_pair_prefers_the_wrong_answer_on_the_noised_image(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source([question(), question(id="r", answer="unheard-of")])
    folder = curate(tmp_path / "out", Settings(source=source, reversed=True))
    assert manifest(folder)["counts"] == {"hallucinated_response": 1, "reversed_noise": 1}
    assert manifest(folder)["rejects"] == {
        hallucinate.DECLINED: 1, "no wrong answer to prefer on the noised image": 1,
    }  # fmt: skip
    text, reversed_ = loading.load(str(folder))
    assert schema.message_text(reversed_["chosen"]) == schema.message_text(text["rejected"]) == "no"
    assert schema.message_text(reversed_["rejected"]) == schema.message_text(text["chosen"]) == "yes"
    before, after = np.asarray(text["images"][0]), np.asarray(reversed_["images"][0])
    assert reversed_["rejected_images"] is None  # both sides see the noised one
    assert np.array_equal(before[12:], after[12:]) and not np.array_equal(before[4:12], after[4:12])
    assert (reversed_["provenance"]["noise"], reversed_["provenance"]["rejected_by"]) == ("diffusion", "flip")


def test_each_kind_may_be_left_out(make_source: MakeSource, tiny_model: Path, tmp_path: Path) -> None:
    source = make_source([question()])
    texts = curate(tmp_path / "texts", Settings(source=source, localizer="none"))
    assert manifest(texts)["counts"] == {"hallucinated_response": 1} and manifest(texts)["rejects"] == {}
    assert manifest(texts)["noise"] is None
    images = curate(tmp_path / "images", Settings(source=source, chat="none", model=str(tiny_model)))
    assert manifest(images)["target_model"] == {"name": None, "revision": None}  # no answer was sampled
    assert manifest(images)["counts"] == {"lesion_noise": 1} and manifest(images)["rejects"] == {}


def test_nobody_is_asked_who_was_not_named(make_source: MakeSource, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="--chat and --judges: required"):
        curate_folder(Settings(source=make_source([question()])), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_without_judges_no_relevance_is_made_up(make_source: MakeSource, tmp_path: Path) -> None:
    settings = Settings(
        source=make_source([question(), question(id="r", answer="unheard-of")]), chat="standin:rules",
        judges=["none"], weights="none",
    )  # fmt: skip
    folder = curate(tmp_path / "out", settings)
    found = manifest(folder)
    assert (found["judges"], found["panel"], found["standins"]) == ([], None, [])  # the only text row is a flip
    assert found["rejects"] == {hallucinate.DECLINED: 1}
    assert (found["weights"]["unscored"], found["weights"]["count"], found["weights"]["mean_before"]) == (1, 3, 1.0)
    dataset = loading.load(str(folder))
    assert schema.validate(dataset) == []
    scores = [(row["dispreference"], row["clinical_relevance"], row["weight"]) for row in dataset]
    assert scores == [(0, None, 1.0), (1, 1.0, 1.0), (1, 1.0, 1.0)]  # drawn boxes are sure
    assert dataset[0]["provenance"]["judgements"] is None


@pytest.mark.parametrize(
    ("settings", "answer", "standins"),
    [
        ({}, "left lung", ["standin:rules", "standin:strict", "standin:lenient", "standin:lexical"]),
        ({}, "yes", ["standin:strict", "standin:lenient", "standin:lexical"]),  # flipped, and nobody was asked
        ({"localizer": "standin:centre", "judges": ["standin:strict"]}, "left lung",
         ["standin:rules", "standin:strict", "standin:centre"]),
        ({"reversed": True, "judges": ["none"], "weights": "none"}, "yes", []),
        ({"chat": "none"}, "yes", []),  # boxes of the source
    ],
)  # fmt: skip
def test_manifest_names_the_stand_ins_that_made_or_scored_rows(
    make_source: MakeSource, tmp_path: Path, settings: dict[str, Any], answer: str, standins: list[str]
) -> None:
    chosen = Settings(source=make_source([question(answer=answer)]), **{**STANDINS, **settings})
    assert manifest(curate(tmp_path / "out", chosen))["standins"] == standins


def test_weights_over_all_pairs_are_recorded(corpus: Path, tmp_path: Path) -> None:
    folder = curate(tmp_path / "out", Settings(source=corpus, split="preference", weights_over="merged"))
    kinds = manifest(folder)["weights"]["by_kind"]
    assert manifest(folder)["weights"]["over"] == "merged"
    assert {kind: part["count"] for kind, part in kinds.items()} == manifest(folder)["counts"]
    visual = [row["weight"] for row in loading.load(str(folder)) if row["rejected_images"]]
    assert set(visual) == {1.0}  # drawn boxes are all equally sure


def test_blackened_region_that_was_black_is_a_counted_reject(make_source: MakeSource, tmp_path: Path) -> None:
    black = io.BytesIO()
    image = Image.new("L", (32, 32))
    image.putpixel((31, 31), 1)
    image.save(black, "PNG")
    source = make_source([question()], images={"a.png": black.getvalue()})
    folder = curate(tmp_path / "out", Settings(source=source, noise="black"))
    assert manifest(folder)["rejects"] == {"the region is black already": 1}


@pytest.mark.parametrize("mistyped", [{"chat": "gpt"}, {"judges": ["standin:strict", "gpt"]}, {}])
def test_a_chat_model_that_is_mistyped_or_does_not_answer_leaves_no_cache(
    corpus: Path, tmp_path: Path, mistyped: dict[str, Any]
) -> None:
    named: dict[str, Any] = {"chat": "http://127.0.0.1:9/v1#writer", "judges": ["standin:strict"], **mistyped}
    settings = Settings(corpus, limit=2, localizer="standin:centre", **named)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"'gpt' is not a chat model|does not answer"):
        curate_folder(settings, tmp_path / "out", cache=tmp_path / "calls.sqlite")
    assert not (tmp_path / "calls.sqlite").exists()
