"""Questions of an evaluation, from a source folder or from the pairs of a preference dataset."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedpo import schema
from mmedpo.data import credentialed, loading, options, origin
from mmedpo.data.images import digest, open_rgb, size
from mmedpo.data.samples import Sample, joint_digest
from mmedpo.data.sources import chosen_ids, limited, read_source, refuse_faults
from mmedpo.data.text import plain
from mmedpo.errors import Fault, InputError
from mmedpo.evaluation.metrics import question_sets
from mmedpo.evaluation.score import Row, Scoring, refuse_unscorable
from mmedpo.models import refusals
from mmedpo.runs.provenance import portable

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

TEXT_COLUMNS = ["id", "prompt", "chosen", "dispreference", "task", "source", "provenance"]
READERS = 2  # threads that decode images


@dataclass(frozen=True)
class Asked:
    """Choice of questions: of a source folder or of a preference dataset, one of the two.

    Attributes:
        source: folder with a table of questions and its images.
        dataset: folder or Hub id of a preference dataset.
        split: split to ask; where None, all rows of a source, the only split of a dataset.
        limit: most questions, a seeded choice.
        seed: seed of splits and of the choice.
        official_split: take the source's own split unchanged.
        skip_faulty: leave faulty rows of a source out instead of raising.
        credentialed: treat the questions as restricted data, whatever their records say.
        image_folders: further folders that images of a source may lie in.
        dataset_revision: branch, tag or commit of a dataset on the Hub.
    """

    source: Path | None = None
    dataset: str | None = None
    split: str | None = None
    limit: int | None = None
    seed: int = 0
    official_split: bool = False
    skip_faulty: bool = False
    credentialed: bool = False
    image_folders: Sequence[str | Path] = ()
    dataset_revision: str | None = None


@dataclass(frozen=True)
class Question:
    """One question with its gold answer; `images` are arguments of `QuestionSet.open_image`, equal for equal images."""

    id: str
    images: tuple[Any, ...]
    image_id: str
    patient_id: str | None
    task: str
    text: str
    reference: str
    question_type: str | None = None
    organ: str | None = None
    modality: str | None = None
    image_digest: str | None = None  # `images.digest`, or `samples.joint_digest` of several
    options: tuple[str, ...] = ()  # of multiple choice; `reference` is one of them
    question_set: str | None = None  # `metrics.question_sets`
    image_digests: tuple[str, ...] = ()
    sample: Sample | None = field(default=None, compare=False, repr=False)  # of a source

    @property
    def prompt(self) -> str:
        """Return the text that a model is asked."""
        return options.asked(self.text, self.options)

    def row(self) -> Row:
        """Return the line of questions.jsonl."""
        return {
            "id": self.id, "image_id": self.image_id, "patient_id": self.patient_id, "task": self.task,
            "question": self.text, "reference": self.reference, "question_type": self.question_type,
            "organ": self.organ, "modality": self.modality, "image_digest": self.image_digest,
            **({"image_digests": [*self.image_digests]} if len(self.image_digests) > 1 else {}),
            **({"options": [*self.options]} if self.options else {}),
            **({"question_set": self.question_set} if self.question_set else {}),
        }  # fmt: skip


@dataclass(frozen=True)
class QuestionSet:
    """Questions in recorded order, without images in memory.

    Attributes:
        questions: at least one question.
        open_image: function that opens one of a question's `images` as RGB, in any thread.
        record: fields of results.json about the origin; faults quote no text of restricted data ("credentialed").
        note: notice for the user, if any.
        marked_by: as `sources.Source.marked_by`.

    Raises:
        InputError: there is no question.
    """

    questions: Sequence[Question]
    open_image: Callable[[Any], Image]
    record: dict[str, Any]
    note: str | None = None
    marked_by: str | None = None

    def __post_init__(self) -> None:
        if not self.questions:
            raise InputError(f"No questions to ask in {self.record}.")

    def rows(self) -> list[Row]:
        """Return the lines of questions.jsonl."""
        return [question.row() for question in self.questions]

    def marked_because(self, evidence: str | None) -> QuestionSet:
        """Return the questions as restricted data, where there is evidence that the answers are."""
        if evidence is None or self.marked:
            return self
        note = f"Answers are treated as restricted data: they are those of {evidence}."
        record = {**self.record, "credentialed": True}
        return replace(self, record=record, note="\n".join(filter(None, [self.note, note])), marked_by=evidence)

    @property
    def marked(self) -> bool:
        """True for questions of restricted data."""
        return bool(self.record.get("credentialed"))


def read(
    asked: Asked, scoring: Scoring | None = None, load_processor: Callable[[], Any] = lambda: None,
    known: Path | None = None,
) -> QuestionSet:  # fmt: skip
    """Return the questions of a source or of a preference dataset.

    Args:
        asked: choice of the questions.
        scoring: protocols by which answers must be scorable.
        load_processor: function that loads the processor of the answering model, which must accept the questions.
        known: file of what was read of images before, as for `read_source`.

    Raises:
        InputError: not exactly one of source and dataset, or questions that cannot be asked or scored; all are listed.
    """
    scoring = scoring or Scoring()
    if (asked.source is None) == (asked.dataset is None):
        raise InputError("Give either --source or --dataset, which hold the questions.")
    if asked.source is None:
        found = _of_dataset(asked, load_processor)
    else:
        found = _of_source(asked, scoring, load_processor, known)
    with credentialed.hiding_cells(found.marked):
        refuse_unscorable(found.rows(), scoring)
    return found


def of_sample(sample: Sample) -> Question:
    """Return the question of a source's sample."""
    return Question(
        sample.id, sample.files, sample.image_id, sample.patient_id, sample.task, sample.question, sample.answer,
        sample.question_type, sample.organ, sample.modality, sample.image_digest, sample.options, sample.question_set,
        tuple(image.digest for image in sample.images), sample,
    )  # fmt: skip


def of_row(row: Row, id_: str, images: tuple[Any, ...], digests: Sequence[str]) -> Question:
    """Return the question of a preference dataset's row, whose gold answer is the chosen response."""
    made, task = row["provenance"] or {}, str(schema.label(row["task"], schema.TASKS))
    text, reference = (schema.message_text(row[column] or []) for column in ("prompt", "chosen"))
    offered, joint = tuple(row.get("options") or ()), joint_digest(digests)
    return Question(
        id_, images, made.get("image_id") or joint, made.get("patient_id"), task, options.bare(text, offered),
        reference, image_digest=joint, options=offered, image_digests=tuple(digests),
    )  # fmt: skip


def _of_source(asked: Asked, scoring: Scoring, load_processor: Callable[[], Any], known: Path | None) -> QuestionSet:
    """Return the questions of a source folder; gold answers without words and refused images are faulty rows."""
    source = read_source(
        Path(str(asked.source)), asked.split, seed=asked.seed, official_split=asked.official_split,
        marked=asked.credentialed, image_folders=[*map(Path, asked.image_folders)], known=known,
    )  # fmt: skip
    faults = {one.id: scoring.reference_fault(one.id, "answer", one.task, one.answer) for one in source.samples}
    source.faults += filter(None, faults.values())
    source.samples = [sample for sample in source.samples if not faults[sample.id]]
    refuse_faults(source, asked.skip_faulty)  # before the model's processor is loaded
    if (processor := load_processor()) is not None:
        refusals.drop_refused(source, processor)
        refuse_faults(source, asked.skip_faulty)
    shared = source.in_other_splits if asked.official_split else {}
    notes = [*source.notices, *([source.note] if asked.split and source.note else [])]
    chosen = [*map(of_sample, limited(source.samples, asked.limit, asked.seed))]
    return QuestionSet(question_sets.without_parts(chosen, source.samples), open_rgb, {
        "source": source.name, "split": asked.split, "split_by": source.split_by, **shared, "limit": asked.limit,
        "faulty_rows_skipped": len({fault.row for fault in source.faults}),
        **({"doubtful_answers": source.doubtful_answers} if source.doubtful_answers else {}),
        **({"gold_by_options": source.gold_by_options} if source.gold_by_options else {}),
        **({"credentialed": True} if source.credentialed else {}),
    }, "\n".join(notes) or None, source.marked_by)  # fmt: skip


def _of_dataset(asked: Asked, load_processor: Callable[[], Any]) -> QuestionSet:
    """Return the distinct questions of a preference dataset; images of equal pixels are one image.

    The gold answer is the chosen response. Rows whose chosen response is not the gold answer are left out and counted,
    as are rows that repeat a question with another answer.
    """
    dataset, record = open_split(asked)
    pictures = loading.pictures(str(asked.dataset), record["dataset_revision"], record["split"], dataset)
    left_out: Counter[str] = Counter()
    faults: list[Fault] = []
    questions = list(_distinct(dataset.select_columns(_text_columns(dataset)), pictures, left_out, faults))
    processor = load_processor()
    faults += refusals.faults(processor, (
        (
            question.id, {"prompt": question.prompt},
            {}
            if processor is None
            else {"images": tuple(filter(None, (size(pictures.rows[row]["images"][n]) for row, n in question.images)))},
        )
        for question in questions
    ))  # fmt: skip
    counts = Counter(question.id for question in questions)
    faults += [Fault(id_, "provenance", f"{n} questions have this sample_id") for id_, n in counts.items() if n > 1]
    if faults:
        raise InputError(f"{asked.dataset} (split {record['split']!r}) cannot be asked:", faults)
    kept = chosen_ids([question.id for question in questions], asked.limit, asked.seed)
    return QuestionSet(
        [question for question in questions if question.id in kept],
        pictures,
        {**record, "limit": asked.limit, "rows": len(dataset), "rows_left_out": dict(left_out)},
    )


def open_split(asked: Asked) -> tuple[Dataset, dict[str, Any]]:
    """Return the chosen split of a preference dataset, and its fields of results.json.

    Raises:
        InputError: no such dataset or split, or columns that are not the schema's.
    """
    name, split = str(asked.dataset), asked.split
    commit = origin.dataset_commit(name, asked.dataset_revision)
    splits = loading.load_splits(name, revision=commit)
    if split is None and len(splits) > 1:
        raise InputError(f"{name} has the splits {', '.join(splits)}; choose one with --split.")
    split = split or next(iter(splits))
    if split not in splits:
        raise InputError(f"{name} has no split {split!r}; it has {', '.join(splits)}.")
    dataset = splits[split]
    if wrong := schema.column_faults(dataset.features):
        raise InputError(f"{name} (split {split!r}) is not a preference dataset:", wrong)
    sources = ", ".join(sorted(set(dataset.unique("source"))))
    record = {"source": sources, "dataset": portable(name), "dataset_revision": commit, "split": split}
    marked = asked.credentialed or origin.credentialed_source(name, commit) is not None
    return dataset, {**record, "credentialed": True} if marked else record


def _text_columns(dataset: Dataset) -> list[str]:
    return [*TEXT_COLUMNS, *(name for name in schema.OPTIONAL if name in dataset.column_names)]


def _distinct(rows: Any, pictures: loading.Pictures, left_out: Counter[str], faults: list[Fault]) -> Iterator[Question]:
    first: dict[tuple[str, str], str] = {}  # (images, question) -> first gold answer
    places: dict[str, tuple[int, int]] = {}  # image -> its first row and number there
    read = _read(pictures)
    for place, row in enumerate(rows):
        if row["dispreference"] in schema.REVERSED:
            left_out["the chosen answer is not the gold one"] += 1
            continue
        if (row["id"] or "").endswith(schema.CONTROL):
            left_out["the image has noise"] += 1
            continue
        text, reference = schema.message_text(row["prompt"] or []), schema.message_text(row["chosen"] or [])
        digests, said = read[place]
        if said is not None:
            faults.append(Fault(row["id"] or f"row {place}", "images", said))
            continue
        if not digests or not text or schema.label(row["task"], schema.TASKS) is None:
            faults.append(Fault(row["id"] or f"row {place}", "(row)", "has no image, no prompt or no task; drop it"))
            continue
        asked = (joint_digest(digests), plain(text))
        if asked in first:
            left_out.update(["repeated with another answer"] * (first[asked] != plain(reference)))
            continue
        first[asked] = plain(reference)
        id_ = (row["provenance"] or {}).get("sample_id") or row["id"]
        images = (places.setdefault(image, (place, number)) for number, image in enumerate(digests))
        yield of_row(row, id_, tuple(images), digests)


def _read(pictures: loading.Pictures) -> list[tuple[list[str], str | None]]:
    """Return (digests, fault) of each row's images; no digests of a row without images."""
    files = [[*map(_file, row["images"] or [])] for row in pictures.rows]
    first: dict[str | None, tuple[int, int]] = {}
    for row, own in enumerate(files):
        for number, file in enumerate(own):
            first.setdefault(file, (row, number))
    first.pop(None, None)
    with ThreadPoolExecutor(READERS) as pool:
        found = dict(zip(first, pool.map(partial(_digest, pictures), first.values()), strict=True))
    read = [[found[file] for file in own if file is not None] for own in files]
    return [
        ([digest or "" for digest, _ in there] * (len(there) == len(own)), next((s for _, s in there if s), None))
        for own, there in zip(files, read, strict=True)
    ]


def _file(image: Row | None) -> str | None:
    """Return the identity of an image's file, before it is decoded; None of a missing image."""
    if not image:
        return None
    return hashlib.sha256(image["bytes"]).hexdigest() if image["bytes"] else image["path"]


def _digest(pictures: loading.Pictures, place: tuple[int, int]) -> tuple[str | None, str | None]:
    try:
        return digest(pictures(place)), None
    except InputError as error:
        return None, str(error)
