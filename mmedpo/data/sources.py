"""Source folders: one table (`*.jsonl`, `*.json` or `*.csv`) with images below the folder, read as `Sample`s.

Columns are found by their usual names (`columns.COLUMNS`). Rows with lesion boxes and labels but no question, as in
NIH ChestX-ray14's list of boxes, become questions about those findings.

A source is restricted (docs/restricted.md) by its name, licence, table's name or a folder of its path; by a file
`CREDENTIALED` in its folder; by a row whose `credentialed` says anything but no; or by the caller. The licence of each
sample then names it as restricted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmedpo.data import credentialed, gold, licenses, options, safe_paths, splits
from mmedpo.data.columns import check_columns, group_name
from mmedpo.data.columns import notices as column_notices
from mmedpo.data.files import Files, image_files
from mmedpo.data.reading import Read, read_files
from mmedpo.data.samples import Sample, SampleImage, questions, read_sample
from mmedpo.data.studies import join, resolve_studies, unify_patients
from mmedpo.data.tables import as_text, find_table
from mmedpo.data.text import number_of, unit_interval
from mmedpo.errors import Fault, InputError


@dataclass
class Source:
    """A source as read: good samples, faults of rows, and the facts that manifests and messages need.

    Attributes:
        license: strictest of `licenses`.
        split_by: "source" for the table's own split, else "patient", "study" or "image".
        images_in_other_splits: images of the chosen split (or of all) that another split has too; 0 except for an
            official split taken unchanged.
        patients_in_other_splits: likewise patients, or studies where no patient is named.
        note: why the table's own split was not used; None where it was.
        marked_by: evidence that the source is restricted, or None. Faults of a restricted source quote no cell.
        split_notice: sentence about how the source was split.
        split_rows: rows of the whole source by split.
        moved: counts of "rows" and "images" that changed their split.
        gold_by_options: gold answers of the table, by letter or otherwise, that were written as their options.
        notices: sentences for the user, about unread columns, doubtful gold answers, several licences and the like.
    """

    name: str
    license: str
    samples: list[Sample]
    faults: list[Fault] = field(default_factory=list)
    split_by: str = "source"
    images_in_other_splits: int = 0
    patients_in_other_splits: int = 0
    note: str | None = None
    marked_by: str | None = None
    split_notice: str = ""
    split_rows: dict[str, int] = field(default_factory=dict)
    moved: dict[str, int] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    gold_by_options: int = 0

    @property
    def credentialed(self) -> bool:
        return self.marked_by is not None

    @property
    def licenses(self) -> dict[str, int]:
        """Return the count of samples by licence, the strictest first."""
        return licenses.strictest_first(sample.license for sample in self.samples)

    @property
    def doubtful_answers(self) -> dict[str, int]:
        """Return the count of doubtful gold answers by reason."""
        return gold.doubts((sample.question, sample.answer) for sample in self.samples)

    @property
    def in_other_splits(self) -> dict[str, int]:
        """Return the counts of images and patients shared with other splits, as manifests and results record them."""
        return {name: getattr(self, name) for name in ("images_in_other_splits", "patients_in_other_splits")}

    def record(self, split: str | None) -> dict[str, Any]:
        """Return the "source" of a manifest; `split` is the chosen one."""
        return {
            "name": self.name, "license": self.license, "licenses": self.licenses,
            "split": split, "split_by": self.split_by, "split_rows": self.split_rows,
            **({"moved": self.moved} if self.moved else {}),
            **{name: count for name, count in self.in_other_splits.items() if count},
            "questions": len(self.samples), "doubtful_answers": self.doubtful_answers, "notices": self.notices,
            **({"credentialed": True} if self.credentialed else {}),
        }  # fmt: skip


def read_source(
    path: Path, split: str | None = None, limit: int | None = None, seed: int = 0, license: str = "unknown",
    official_split: bool = False, name: str | None = None, marked: bool = False, also: Collection[str] = (),
    image_folders: Sequence[Path] = (), known: Path | None = None,
) -> Source:  # fmt: skip
    """Read a source folder (or its table) and keep one split.

    The table's own split is used if no image or patient is in two of its parts. Otherwise (as for VQA-RAD's official
    split), or without one, a split is made by patient or image (`mmedpo.data.splits`). It is the same for every seed,
    so that no command trains on another's test images. Images are compared by their pixels, not by name.

    Args:
        split: the split to keep; None keeps all.
        limit: keep this many questions, the first of a shuffle.
        seed: of that shuffle.
        license: of rows without one.
        official_split: use the table's own split unchanged, even if images or patients are in several parts.
        name: of the source where its rows have none; the folder's by default.
        marked: treat the source as restricted.
        also: ids of questions to keep regardless of `split` and `limit`.
        image_folders: folders outside of the source that its links may lead to.
        known: file of what was read of images before (`reading`), which runs may share; None remembers nothing.

    Returns:
        The good samples, and the faults of all rows.

    Raises:
        InputError: the folder or its table is missing, ambiguous, empty or unreadable; no column is known; the split
            has no question; or rows have no official split.
    """
    table = find_table(path)
    root = table.parent
    name = name or root.resolve().name
    if path.is_dir() and not safe_paths.is_inside(table, (root, *image_folders)):
        raise InputError(f"{table} {safe_paths.LINKED}.")
    images = image_files(root, image_folders)
    source = Source(name, license, [], marked_by=credentialed.of_path(table) or ("--credentialed" if marked else None))
    taken, torn = dict[str, tuple[str, int]](), dict[tuple[str, str], str]()  # first row of an id; faulty rows
    studies, columns = dict[str, str](), dict[str, None]()
    origins = dict.fromkeys([name, license])  # sources and licences, of faulty rows too
    nameless = 0
    for where, row in questions(table, columns):
        if not credentialed.is_no(row["credentialed"]):
            source.marked_by = source.marked_by or f"the row {where}"
        origins.update(dict.fromkeys(map(str, (row["source"], row["license"]))))
        sample, faults = read_sample(where, row, root, images, name, license)
        study = group_name(row["study_id"])
        if sample is None:
            torn.setdefault((as_text(row["id"]), study), where)
        elif sample.id in taken:
            earlier, place = taken[sample.id]
            joint = join(source.samples[place], sample, study != "" and studies.get(sample.id) == study)
            if isinstance(joint, Sample):
                source.samples[place] = joint
                continue
            faults = [Fault(where, "id", f"was used by {earlier}; {joint}", repr(sample.id))]
        source.faults += faults
        if sample and not faults:
            taken[sample.id] = where, len(source.samples)
            source.samples.append(sample)
            if study:
                studies[sample.id] = study
            source.gold_by_options += bool(sample.options) and sample.answer != str(row["answer"]).strip()
            nameless += any(row[one] is not None and not group_name(row[one]) for one in ("patient_id", "study_id"))
    if not source.samples and not source.faults:
        raise InputError(f"{table} has no rows; a source needs at least one image with a question and an answer.")
    if not source.samples:
        check_columns(table, columns)
    _drop_torn(source, {one.id: torn.get((one.id, studies.get(one.id, "-"))) for one in source.samples})
    _read_files(source, known)
    unify_patients(source)
    _apply_mark(source, origins, images)
    if source.samples:
        source.name = source.samples[0].source
        _apply_split(source, resolve_studies(source, studies), split, official_split)
        _select(source, split, limit, seed, also)
    if nameless:
        source.notices.append(
            f"{source.name}: {number_of(nameless, 'rows')} with a placeholder as patient or study (unknown, "
            "anonymous, -), which is read as missing."
        )
    source.license = next(iter(source.licenses), license)
    source.notices += [*licenses.notices(source.record(split)), *column_notices(source.name, columns)]
    said = (gold.notice(source.name, source.doubtful_answers), options.notice(source.name, source.gold_by_options))
    source.notices += filter(None, said)
    return source


def refuse_faults(source: Source, skip_faulty: bool) -> None:
    """Raise InputError with all faults, unless `skip_faulty` and good rows are left."""
    if source.faults and not (skip_faulty and source.samples):
        rows = len({fault.row for fault in source.faults})
        remedy = "Correct them, or leave these rows out with --skip-faulty." if source.samples else "No row is usable."
        with credentialed.hiding_cells(source.credentialed):
            raise InputError(f"Faulty rows in {source.name}: {rows}. {remedy}", source.faults)


def _drop_torn(source: Source, faulty: Mapping[str, str | None]) -> None:
    """Make questions faulty that a faulty row of the same study belongs to, since one of their images is missing."""
    for id_, where in faulty.items():
        if where is not None:
            source.faults.append(Fault(id_, "images", f"are incomplete, since {where} is faulty"))
    source.samples = [sample for sample in source.samples if faulty[sample.id] is None]


def _read_files(source: Source, known: Path | None) -> None:
    """Decode each image, mask and heat map once, to find broken files before any work; set digests and sizes."""
    files = dict.fromkeys(pair for sample in source.samples for pair in _files(sample))
    read = read_files([*files], known)
    broken = {pair: found.fault for pair, found in read.items() if found.fault}
    for sample in source.samples:
        source.faults += [Fault(sample.id, pair[0], broken[pair]) for pair in _files(sample) if pair in broken]
    source.samples = [
        replace(sample, images=tuple(_as_read(one, read["image", one.file]) for one in sample.images))
        for sample in source.samples
        if not broken.keys() & set(_files(sample))
    ]


def _files(sample: Sample) -> list[tuple[str, Path]]:
    """Return the sample's files with their columns."""
    files = []
    for one in sample.images:
        heat = [] if one.heatmap is None else [("heatmap", one.heatmap)]
        files += [("image", one.file), *(("masks", file) for file in one.masks), *heat]
    return files


def _as_read(image: SampleImage, read: Read) -> SampleImage:
    return replace(image, digest=read.digest, size=read.size)


def _apply_mark(source: Source, origins: Iterable[str], images: Files) -> None:
    """Mark the source by names, licences and folders of files too; then redact its faults and mark its licences.

    Faulty rows count: their cells would be quoted, and one damaged image more must not unmark the others.
    """
    known = credentialed.telling(origins)
    files = (file for file in images.known.values() if isinstance(file, Path))
    source.marked_by = source.marked_by or (known and f"the name or licence {known!r}")
    source.marked_by = source.marked_by or credentialed.of_folders(safe_paths.parents(files))
    if source.marked_by:
        mark(source, source.marked_by)


def mark(source: Source, evidence: str) -> None:
    """Treat a source as restricted from here on: its faults quote nothing, its licences say so."""
    source.marked_by = source.marked_by or evidence
    source.faults = credentialed.without_cells(source.faults)
    source.samples = [replace(one, license=credentialed.marked(one.license)) for one in source.samples]
    source.license = credentialed.marked(source.license)


def _apply_split(source: Source, unit: str, chosen: str | None, official: bool) -> None:
    try:
        made = splits.split(source.samples, unit, official)
    except InputError as error:
        raise InputError(f"{source.name} has {error}") from None
    source.samples, source.split_by, source.split_rows, source.moved = made.samples, made.by, made.rows, made.moved
    source.note = made.note(source.name)
    source.split_notice = made.notice(source.name, chosen, official, quoted=not source.credentialed)
    source.images_in_other_splits = made.shared(chosen)
    source.patients_in_other_splits = made.shared(chosen, "patient_id")


def _select(source: Source, split: str | None, limit: int | None, seed: int, also: Collection[str]) -> None:
    chosen = [sample.id for sample in source.samples if split in (None, sample.split)]
    selected = chosen_ids(chosen, limit, seed) | set(also)
    splits = sorted({sample.split for sample in source.samples})
    source.samples = [sample for sample in source.samples if sample.id in selected]
    if not chosen and not source.samples:
        raise no_split(source, split, splits)


def no_split(source: Source, split: str | None, splits: Sequence[str]) -> InputError:
    """Return the error of a split that is not among those of a source."""
    held = f"{len(splits)} others" if source.credentialed else ", ".join(splits)
    return InputError(f"{source.name} has no split {split!r}; it has {held}.")


def limited(samples: list[Sample], limit: int | None, seed: int = 0) -> list[Sample]:
    """Return the first `limit` samples of a shuffle, in the given order; all if None."""
    selected = chosen_ids([sample.id for sample in samples], limit, seed)
    return [sample for sample in samples if sample.id in selected]


def chosen_ids(ids: Sequence[str], limit: int | None, seed: int) -> set[str]:
    """Return the first `limit` ids of a shuffle, all if None; the order depends on the ids and the seed only."""
    return set(sorted(ids, key=lambda id_: unit_interval("limit", seed, id_))[:limit])
