"""Images with answers or reports: any folder with a table, read as `Sample`s.

A source folder holds one table (`*.jsonl`, `*.json` or `*.csv`) and its images, anywhere below the folder. Columns are
found by their usual names (`samples.COLUMNS`). Rows that have lesion boxes and labels but no question (NIH
ChestX-ray14's box list, for one) become questions about those findings.

A source may not be passed on (docs/credentialed.md) if its name, its licence, its table's name or a folder of its path
says so, if a file `CREDENTIALED` lies in its folder, if a row of its table has `credentialed: true`, or if the caller
says so. Then the licence of each of its samples says so too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmedpo.data import credentialed, gold, licenses, safe_paths, splits
from mmedpo.data.columns import check_columns, group_name
from mmedpo.data.columns import notices as column_notices
from mmedpo.data.images import UnusableImage, digest, open_rgb
from mmedpo.data.samples import Sample, image_files, questions, read_heat, read_sample
from mmedpo.data.tables import find_table
from mmedpo.data.text import unit_interval
from mmedpo.errors import Fault, InputError


@dataclass
class Source:
    """What was read: the good samples, the faulty rows, how the split was made, and what says that its terms forbid
    passing it on (`marked_by`; None: nothing does). Faults then quote no cell.

    `license` is the strictest of `licenses`. `split_by` is "source", "patient", "study" or "image"; `note` says that
    the table's own split was not used, and why; `told` how the source was split in any case. `images_in_other_splits`
    counts pictures of the split (of all, where none was chosen) that another one holds too, `patients_in_other_splits`
    its patients (or studies, where these stand for them): 0 but for a split that was taken as it stands. `notices` say
    what else a person should know: columns that are not read, gold answers that may be none (`doubtful_answers`),
    several licences.
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
    told: str = ""
    split_rows: dict[str, int] = field(default_factory=dict)  # of the whole source, by split
    moved: dict[str, int] = field(default_factory=dict)  # "rows" and "images" that changed side
    notices: list[str] = field(default_factory=list)

    @property
    def credentialed(self) -> bool:
        return self.marked_by is not None

    @property
    def licenses(self) -> dict[str, int]:
        """How many samples are under each licence, the strictest first."""
        return licenses.strictest_first(sample.license for sample in self.samples)

    @property
    def doubtful_answers(self) -> dict[str, int]:
        """How many gold answers may be none, by reason."""
        return gold.doubts((sample.question, sample.answer) for sample in self.samples)

    @property
    def in_other_splits(self) -> dict[str, int]:
        """What a split that was taken as it stands shares with others, as manifests and results record it."""
        names = ("images_in_other_splits", "patients_in_other_splits")
        return {name: getattr(self, name) for name in names}

    def record(self, split: str | None) -> dict[str, Any]:
        """The "source" of a manifest; `split` is the one that was kept."""
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
    image_folders: Sequence[Path] = (),
) -> Source:  # fmt: skip
    """Read a source folder (or its table) and keep one split.

    The table's own split is used where no image or patient is in two of its splits. Where one is (as in VQA-RAD's
    official split), or where there is none, the split is made by patient or image (`mmedpo.data.splits`), the same for
    every seed, so that no command trains on what another tests on. An image is known by its pixels, whatever its file
    is called.

    Args:
        split: the split to keep; all where None.
        limit: keep this many questions, the first of a shuffle.
        seed: of that shuffle.
        license: of the rows that do not say.
        official_split: use the table's own split as it stands, with images and patients in several parts or not.
        name: of the source where its rows do not say; the folder's by default.
        marked: the source is credentialed, whatever it says itself.
        also: ids of questions to keep whatever `split` and `limit` are.
        image_folders: folders outside of the source that links in it may lead to.

    Returns:
        The samples and the faults of all rows (good rows are kept beside faulty ones).

    Raises:
        InputError: the folder or its table is missing, ambiguous, empty or unreadable, no column is known, the split
            has no question, or an official split is asked for and rows have none.
    """
    table = find_table(path)
    root = table.parent
    name = name or root.resolve().name
    if path.is_dir() and not safe_paths.is_inside(table, (root, *image_folders)):
        raise InputError(f"{table} {safe_paths.LINKED}.")
    images = image_files(root, image_folders)
    marked_by = credentialed.of_path(table) or ("--credentialed" if marked else None)
    source = Source(name, license, [], marked_by=marked_by)
    taken: dict[str, str] = {}
    studies: dict[str, str] = {}
    columns: dict[str, None] = {}
    nameless = 0
    for where, row in questions(table, columns):
        if credentialed.is_yes(row.get("credentialed")):
            source.marked_by = source.marked_by or f"the row {where}"
        sample, faults = read_sample(where, row, root, images, name, license)
        if sample and taken.setdefault(sample.id, where) != where:
            faults = [Fault(where, "id", f"{sample.id!r} was used by {taken[sample.id]}; make ids unique")]
        source.faults += faults
        if sample and not faults:
            source.samples.append(sample)
            if study := group_name(row["study_id"]):
                studies[sample.id] = study
            nameless += any(row[one] is not None and not group_name(row[one]) for one in ("patient_id", "study_id"))
    if not source.samples and not source.faults:
        raise InputError(f"{table} holds no row; a source needs at least one image with a question and an answer.")
    if not source.samples:
        check_columns(table, columns)
    _read_files(source)
    _settle_patients(source)
    _settle_mark(source)
    if source.samples:
        source.name = source.samples[0].source
        _settle_split(source, _unit(source, studies), split, official_split)
        _keep(source, split, limit, seed, also)
    if nameless:
        source.notices.append(
            f"{nameless} rows of {source.name} name a patient or study that is nobody (unknown, anonymous, -): it is "
            "read as missing."
        )
    source.license = next(iter(source.licenses), license)
    source.notices += licenses.notices(source.record(split))
    source.notices += column_notices(source.name, columns)
    source.notices += [said] if (said := gold.notice(source.name, source.doubtful_answers)) else []
    return source


def refuse_faults(source: Source, skip_faulty: bool) -> None:
    """Raise InputError with the table of all faults, unless `skip_faulty` and good rows are left."""
    if source.faults and not (skip_faulty and source.samples):
        rows = len({fault.row for fault in source.faults})
        remedy = "Mend them, or leave those rows out with --skip-faulty." if source.samples else "No row is usable."
        with credentialed.quoting_nothing(source.credentialed):
            raise InputError(f"Faulty rows in {source.name}: {rows}. {remedy}", source.faults)


def _read_files(source: Source) -> None:
    """Read each image, mask and heat map once, to the end: a broken file is found now and not after hours. A sample
    gets its image's digest and size."""
    read = {pair: _read(*pair) for pair in {pair for sample in source.samples for pair in _files(sample)}}
    broken = {pair: sentence for pair, (*_, sentence) in read.items() if sentence}
    for sample in source.samples:
        source.faults += [Fault(sample.id, pair[0], broken[pair]) for pair in _files(sample) if pair in broken]
    source.samples = [
        replace(sample, image_digest=read["image", sample.image][0], image_size=read["image", sample.image][1])
        for sample in source.samples
        if not broken.keys() & set(_files(sample))
    ]


def _files(sample: Sample) -> list[tuple[str, Path]]:
    """The sample's files, each with its column."""
    heat = [] if sample.heatmap is None else [("heatmap", sample.heatmap)]
    return [("image", sample.image), *(("masks", file) for file in sample.masks), *heat]


def _read(column: str, file: Path) -> tuple[str, tuple[int, int], str]:
    """The digest ("" of a mask or heat map) and size of an image, and what is wrong with the file ("": nothing)."""
    try:
        if column == "heatmap":
            read_heat(file)
            return "", (0, 0), ""
        picture = open_rgb(file)
        return digest(picture) if column == "image" else "", picture.size, ""
    except InputError as error:
        if column == "heatmap" or isinstance(error, UnusableImage):
            return "", (0, 0), str(error).rstrip(".")
        raise


def _settle_mark(source: Source) -> None:
    """Look for a mark in names, licences and the folders that files lie in, too; faults of a marked source quote no
    cell, and its samples' licences say what they are of."""
    said = [source.name, source.license, *(text for one in source.samples for text in (one.source, one.license))]
    known = credentialed.telling(dict.fromkeys(said))
    files = (file for sample in source.samples for _, file in _files(sample))
    source.marked_by = source.marked_by or (known and f"the name or licence {known!r}")
    source.marked_by = source.marked_by or credentialed.of_folders(safe_paths.parents(files))
    if source.credentialed:
        source.faults = credentialed.unquoted(source.faults)
        source.samples = [replace(one, license=credentialed.marked(one.license)) for one in source.samples]


def _settle_patients(source: Source) -> None:
    """Give every row of a picture the picture's patient; a picture of two patients is a fault of its rows."""
    patients: dict[str, set[str]] = {}
    names: dict[str, set[str]] = {}
    for sample in source.samples:
        patients.setdefault(sample.image_digest, set()).update([sample.patient_id] if sample.patient_id else [])
        names.setdefault(sample.image_digest, set()).add(sample.image_id)
    doubtful = {picture: sorted(names[picture])[:2] for picture, found in patients.items() if len(found) > 1}
    for sample in source.samples:
        if (picture := sample.image_digest) in doubtful:
            others = [f"{name} has the same pixels" for name in doubtful[picture] if name != sample.image_id]
            said = f"{sample.image_id} belongs to {len(patients[picture])} patients"
            said += f" ({others[0]})" if others else ""
            source.faults.append(Fault(sample.id, "patient_id", f"{said}; give it one"))
    source.samples = [
        replace(sample, patient_id=next(iter(patients[sample.image_digest]), None))
        for sample in source.samples
        if sample.image_digest not in doubtful
    ]


def _unit(source: Source, studies: Mapping[str, str]) -> str:
    """What `patient_id` names: "patient", or "study" where the table names no patient but studies.

    A study stands for the patient of rows without one, and is the patient of the rows of that study that name one; what
    that means is said.
    """
    alone = [sample for sample in source.samples if not sample.patient_id]
    mixed = len(alone) < len(source.samples)
    of_picture: dict[str, set[str]] = {}
    of_study: dict[str, set[str]] = {}
    for sample in source.samples:
        if study := studies.get(sample.id):
            of_picture.setdefault(sample.image_digest, set()).add(study)
            of_study.setdefault(study, set()).update([sample.patient_id] if sample.patient_id else [])
    one = {picture: next(iter(found)) for picture, found in of_picture.items() if len(found) == 1}
    stands = {study: next(iter(found)) for study, found in of_study.items() if len(found) == 1}
    name = "study {}" if mixed else "{}"  # a study may be called as some other patient
    groups = {picture: stands.get(study, name.format(study)) for picture, study in one.items()}
    source.samples = [
        sample if sample.patient_id else replace(sample, patient_id=groups.get(sample.image_digest))
        for sample in source.samples
    ]
    left = sum(not sample.patient_id for sample in source.samples)
    if mixed and alone:
        said = f"{len(alone)} of {len(source.samples)} rows of {source.name} name no patient"
        by_study = f"the study stands for the patient of {len(alone) - left}, which may be one named elsewhere"
        one_by_one = f"{'their images' if left == len(alone) else f'the images of {left}'} are split one by one"
        parts = [*([by_study] if left < len(alone) else []), *([one_by_one] if left else [])]
        source.notices.append(f"{said}: {'; '.join(parts)}.")
    if mixed or left == len(source.samples):
        return "patient"
    source.notices.append(
        f"{source.name} names studies and no patients: a study is kept in one split, but studies of one patient may "
        "lie in several. Add a column patient_id if you can."
    )
    return "study"


def _settle_split(source: Source, unit: str, chosen: str | None, official: bool) -> None:
    try:
        made = splits.split(source.samples, unit, official)
    except InputError as error:
        raise InputError(f"{source.name} has {error}") from None
    source.samples, source.split_by, source.split_rows, source.moved = made.samples, made.by, made.rows, made.moved
    source.note = made.note(source.name)
    source.told = made.told(source.name, chosen, official, quoted=not source.credentialed)
    source.images_in_other_splits = made.shared(chosen)
    source.patients_in_other_splits = made.shared(chosen, "patient_id")


def _keep(source: Source, split: str | None, limit: int | None, seed: int, also: Collection[str]) -> None:
    chosen = [sample.id for sample in source.samples if split in (None, sample.split)]
    kept = chosen_ids(chosen, limit, seed) | set(also)
    splits = sorted({sample.split for sample in source.samples})
    source.samples = [sample for sample in source.samples if sample.id in kept]
    if not chosen and not source.samples:
        held = f"{len(splits)} others" if source.credentialed else ", ".join(splits)
        raise InputError(f"{source.name} has no split {split!r}; it has {held}.")


def limited(samples: list[Sample], limit: int | None, seed: int = 0) -> list[Sample]:
    """The first `limit` samples of a shuffle, in the order given; all where None."""
    kept = chosen_ids([sample.id for sample in samples], limit, seed)
    return [sample for sample in samples if sample.id in kept]


def chosen_ids(ids: Sequence[str], limit: int | None, seed: int) -> set[str]:
    """The first `limit` ids of a shuffle, all where None; the same ones whatever else is asked of them."""
    return set(sorted(ids, key=lambda id_: unit_interval("limit", seed, id_))[:limit])
