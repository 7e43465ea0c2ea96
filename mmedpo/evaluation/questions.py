"""Questions of an evaluation, from a source folder or from the pairs of a preference dataset."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedpo import schema
from mmedpo.data import credentialed, loading
from mmedpo.data.images import digest, open_rgb, size
from mmedpo.data.samples import Sample
from mmedpo.data.sources import chosen_ids, limited, read_source, refuse_faults
from mmedpo.data.text import plain
from mmedpo.errors import Fault, InputError
from mmedpo.evaluation.contents import keep
from mmedpo.evaluation.score import Row, Scoring, refuse_unscorable
from mmedpo.models import refusals
from mmedpo.runs.provenance import portable

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

TEXT_COLUMNS = ["id", "prompt", "chosen", "dispreference", "task", "source", "provenance"]
READERS = 2  # threads that decode images


@dataclass(frozen=True)
class Question:
    """One question with its gold answer; `image` is a path or a row index, equal for all questions about the image."""

    id: str
    image: Path | int
    image_id: str
    patient_id: str | None
    task: str
    text: str
    reference: str
    question_type: str | None = None
    organ: str | None = None
    modality: str | None = None
    image_digest: str | None = None  # `images.digest`, where the image has been read

    def row(self) -> Row:
        """Return the line of questions.jsonl without the image's digest."""
        return {
            "id": self.id, "image_id": self.image_id, "patient_id": self.patient_id, "task": self.task,
            "question": self.text, "reference": self.reference, "question_type": self.question_type,
            "organ": self.organ, "modality": self.modality,
        }  # fmt: skip


@dataclass(frozen=True)
class QuestionSet:
    """Questions in recorded order, without images in memory.

    Attributes:
        questions: at least one question.
        open_image: function that opens a question's `image` as RGB, in any thread.
        record: fields of results.json about the origin; faults quote no text of restricted data ("credentialed").
        note: notice for the user, if any.
        marked_by: as `sources.Source.marked_by`.

    Raises:
        InputError: no question, or questions that cannot be scored; all are listed.
    """

    questions: Sequence[Question]
    open_image: Callable[[Any], Image]
    record: dict[str, Any]
    note: str | None = None
    marked_by: str | None = None

    def __post_init__(self) -> None:
        if not self.questions:
            raise InputError(f"There is no question to ask: {self.record}.")
        with credentialed.quoting_nothing(self.marked):
            refuse_unscorable(self.rows())

    def rows(self) -> list[Row]:
        """Return the lines of questions.jsonl without the images' digests."""
        return [question.row() for question in self.questions]

    @property
    def marked(self) -> bool:
        """True for questions of restricted data."""
        return bool(self.record.get("credentialed"))


def read(
    source: Path | None = None, dataset: str | None = None, split: str | None = None, limit: int | None = None,
    seed: int = 0, skip_faulty: bool = False, dataset_revision: str | None = None, official_split: bool = False,
    scoring: Scoring | None = None, marked: bool = False, processor: Any = None,
    image_folders: Sequence[Path] = (),
) -> QuestionSet:  # fmt: skip
    """Return the questions of a source or of a preference dataset.

    Args:
        source, split, limit, seed, skip_faulty, official_split, image_folders: as in `of_source`.
        dataset, dataset_revision: as `name` and `revision` in `of_dataset`.
        scoring: protocols by which answers must be scorable.
        marked: treat the questions as restricted data, whatever their records say.
        processor: processor of the answering model, which must accept the questions; a partial loads it late.

    Raises:
        InputError: not exactly one of source and dataset, or questions that cannot be asked or scored; all are listed.
    """
    scoring = scoring or Scoring()
    if (source is None) == (dataset is None):
        raise InputError("Give either --source or --dataset, which hold the questions.")
    if source is not None:
        asked = of_source(
            source, split, limit, seed, skip_faulty, official_split, scoring, marked, processor, image_folders
        )
    else:
        asked = of_dataset(str(dataset), split, limit, seed, dataset_revision, marked, processor)
    with credentialed.quoting_nothing(asked.marked):
        scoring.check(asked.rows())
    return asked


def of_samples(samples: Iterable[Sample], record: dict[str, Any] | None = None, note: str | None = None) -> QuestionSet:
    """Return the questions of a source's samples."""
    return QuestionSet([*map(of_sample, samples)], open_rgb, record or {}, note)


def of_sample(sample: Sample) -> Question:
    """Return the question of a source's sample."""
    return Question(
        sample.id, sample.image, sample.image_id, sample.patient_id, sample.task, sample.question, sample.answer,
        sample.question_type, sample.organ, sample.modality, sample.image_digest or None,
    )  # fmt: skip


def of_source(
    path: Path, split: str | None = None, limit: int | None = None, seed: int = 0, skip_faulty: bool = False,
    official_split: bool = False, scoring: Scoring | None = None, marked: bool = False, processor: Any = None,
    image_folders: Sequence[Path] = (),
) -> QuestionSet:  # fmt: skip
    """Return the questions of a source folder (`sources.read_source`).

    Rows with a gold answer without words, or that the processor refuses, are faulty.

    Args:
        path: source folder.
        split: split to ask; all rows where None.
        limit: most questions, a seeded choice.
        seed: seed of splits and of the choice.
        skip_faulty: leave faulty rows out instead of raising.
        official_split: take the source's own split unchanged.
        scoring, marked, processor: as in `read`.
        image_folders: further folders that images may lie in.

    Raises:
        InputError: a source that cannot be read, or faulty rows.
    """
    scoring = scoring or Scoring()
    source = read_source(
        path, split, seed=seed, official_split=official_split, marked=marked, image_folders=image_folders
    )
    said = {sample.id: scoring.reference_fault(sample.task, sample.answer) for sample in source.samples}
    source.faults += [Fault(id_, "answer", sentence) for id_, sentence in said.items() if sentence]
    source.samples = [sample for sample in source.samples if not said[sample.id]]
    refuse_faults(source, skip_faulty)  # before the model's processor is loaded
    if isinstance(processor, partial):
        processor = processor()
    if processor is not None:
        refusals.drop_refused(source, processor)
        refuse_faults(source, skip_faulty)
    shared = source.in_other_splits if official_split else {}
    source.samples = limited(source.samples, limit, seed)
    asked = of_samples(source.samples, {
        "source": source.name, "split": split, "split_by": source.split_by, **shared, "limit": limit,
        "faulty_rows_skipped": len({fault.row for fault in source.faults}),
        **({"doubtful_answers": source.doubtful_answers} if source.doubtful_answers else {}),
        **({"credentialed": True} if source.credentialed else {}),
    }, "\n".join([*source.notices, *([source.note] if split and source.note else [])]) or None)  # fmt: skip
    return replace(asked, marked_by=source.marked_by)


def of_dataset(
    name: str, split: str | None = None, limit: int | None = None, seed: int = 0, revision: str | None = None,
    marked: bool = False, processor: Any = None,
) -> QuestionSet:  # fmt: skip
    """Return the distinct questions of a preference dataset; images of equal pixels are one image.

    The gold answer is the chosen response. Rows whose chosen response is not the gold answer are left out and counted,
    as are rows that repeat a question with another answer.

    Args:
        name: folder or Hub id.
        split: split to ask; the only one where None.
        limit, seed: most questions, a seeded choice.
        revision: branch, tag or commit on the Hub.
        marked, processor: as in `read`.

    Raises:
        InputError: no such dataset or split, columns that are not the schema's, unusable images, or ids of two
            questions.
    """
    dataset, record = open_split(name, split, revision, marked)
    pictures = schema.undecoded(dataset.select_columns(["images"]))
    left_out: Counter[str] = Counter()
    faults: list[Fault] = []
    questions = list(_distinct(dataset.select_columns(TEXT_COLUMNS), pictures, left_out, faults))
    if isinstance(processor, partial):
        processor = processor()
    faults += refusals.faults(processor, (
        (
            question.id, {"prompt": question.text},
            {} if processor is None else {"images": _sizes(pictures[question.image]["images"][:1])},
        )
        for question in questions
    ))  # fmt: skip
    counts = Counter(question.id for question in questions)
    faults += [Fault(id_, "provenance", f"{n} questions have this sample_id") for id_, n in counts.items() if n > 1]
    if faults:
        raise InputError(f"{name} (split {record['split']!r}) cannot be asked:", faults)
    kept = chosen_ids([question.id for question in questions], limit, seed)
    return QuestionSet(
        [question for question in questions if question.id in kept],
        partial(_picture, pictures),
        {**record, "limit": limit, "rows": len(dataset), "rows_left_out": dict(left_out)},
    )


def open_split(
    name: str, split: str | None = None, revision: str | None = None, marked: bool = False
) -> tuple[Dataset, dict[str, Any]]:
    """Return a split of a preference dataset (the only one where None), and its fields of results.json.

    Raises:
        InputError: no such dataset or split, or columns that are not the schema's.
    """
    commit = loading.dataset_commit(name, revision)
    splits = loading.load_splits(name, revision=commit)
    if split is None and len(splits) > 1:
        raise InputError(f"{name} has the splits {', '.join(splits)}; choose one with --split.")
    split = split or next(iter(splits))
    if split not in splits:
        raise InputError(f"{name} has no split {split!r}; it has {', '.join(splits)}.")
    dataset = splits[split]
    if wrong := schema.column_faults(dataset.features):
        raise InputError(f"{name} (split {split!r}) is no preference dataset:", wrong)
    sources = ", ".join(sorted(set(dataset.unique("source"))))
    record = {"source": sources, "dataset": portable(name), "dataset_revision": commit, "split": split}
    marked = marked or loading.credentialed_source(name, commit) is not None
    return dataset, {**record, "credentialed": True} if marked else record


def _distinct(rows: Any, pictures: Any, left_out: Counter[str], faults: list[Fault]) -> Iterator[Question]:
    first: dict[tuple[str, str], str] = {}  # (image, question) -> first gold answer
    places: dict[str, int] = {}  # image -> first row
    read = _read(pictures)
    for place, row in enumerate(rows):
        if row["dispreference"] in schema.REVERSED:
            left_out["the chosen answer is not the gold one"] += 1
            continue
        text, reference = schema.message_text(row["prompt"] or []), schema.message_text(row["chosen"] or [])
        image, said = read[place]
        if said is not None:
            faults.append(Fault(row["id"] or f"row {place}", "images", said))
            continue
        task = schema.label(row["task"], schema.TASKS)
        if image is None or not text or task is None:
            faults.append(Fault(row["id"] or f"row {place}", "(row)", "has no image, no prompt or no task; drop it"))
            continue
        asked = (image, plain(text))
        if asked in first:
            left_out.update(["repeated with another answer"] * (first[asked] != plain(reference)))
            continue
        first[asked] = plain(reference)
        made = row["provenance"] or {}
        yield Question(
            made.get("sample_id") or row["id"], places.setdefault(image, place), made.get("image_id") or image,
            made.get("patient_id"), task, text, reference, image_digest=image,
        )  # fmt: skip


def _read(pictures: Any) -> list[tuple[str | None, str | None]]:
    """Return (digest, fault) of each row's first image; (None, None) for rows without one."""
    files = [_file(row["images"] or []) for row in pictures]
    first = {file: place for place, file in reversed(list(enumerate(files))) if file is not None}
    with ThreadPoolExecutor(READERS) as pool:
        found = dict(zip(first, pool.map(partial(_digest, partial(_picture, pictures)), first.values()), strict=True))
    return [(None, None) if file is None else found[file] for file in files]


def _file(images: Sequence[Row]) -> str | None:
    """Return the identity of the first image's file, before it is decoded."""
    return next(
        (hashlib.sha256(image["bytes"]).hexdigest() if image["bytes"] else image["path"] for image in images if image),
        None,
    )


def _sizes(images: Any) -> tuple[tuple[int, int], ...]:
    return tuple(known for image in images if (known := size(image)))  # `write` reports unreadable images


def _picture(pictures: Any, place: int) -> Image:
    return open_rgb(pictures[place]["images"][0])


def write(asked: QuestionSet, path: Path) -> str:
    """Write questions.jsonl and return the SHA-256 of the file; raises as `lines` and `contents.keep`."""
    return keep(lines(asked), path)


def lines(asked: QuestionSet) -> list[Row]:
    """Return the lines of questions.jsonl, each with the digest of its image.

    Raises:
        InputError: images that cannot be read; all are listed.
    """
    images = list({question.image for question in asked.questions if question.image_digest is None})
    with ThreadPoolExecutor(READERS) as pool:
        found = dict(zip(images, pool.map(partial(_digest, asked.open_image), images), strict=True))
    faults = [Fault(q.id, "image", said) for q in asked.questions if (said := found.get(q.image, (None, None))[1])]
    if faults:
        with credentialed.quoting_nothing(asked.marked):
            raise InputError(f"{len(faults)} questions have no usable image:", faults)
    return [{**q.row(), "image_digest": q.image_digest or found[q.image][0]} for q in asked.questions]


def _digest(open_image: Callable[[Any], Image], image: Any) -> tuple[str | None, str | None]:
    try:
        return digest(open_image(image)), None
    except InputError as error:
        return None, str(error)
