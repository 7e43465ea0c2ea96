"""What belongs together in a source: rows of one question, images that questions show together, patients, studies."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, TypeVar

from mmedpo.data.samples import Sample
from mmedpo.data.text import number_of
from mmedpo.errors import Fault

if TYPE_CHECKING:
    from mmedpo.data.sources import Source

Name = TypeVar("Name", bound=Hashable)


def join(first: Sample, further: Sample, one_study: bool) -> Sample | str:
    """Return the question of two rows with one id about the images of both, or what to correct.

    A study is asked for, since ids of a table may name templates of questions, not questions.
    """
    known = {image.file for image in first.images}
    asked = (first.question, first.answer) == (further.question, further.answer)
    if not asked or any(image.file in known for image in further.images):
        return "make ids unique"
    if not one_study:
        return "make ids unique, or give the rows of one question about several images the same study_id"
    names = [one.name for one in fields(Sample) if one.name != "images"]
    if differing := [name for name in names if getattr(first, name) != getattr(further, name)]:
        return f"make ids unique, or write the same {', '.join(differing)} in all rows of the question"
    return replace(first, images=first.images + further.images)


def together(samples: Iterable[Sample]) -> list[str]:
    """Return `linked` of the images of each sample."""
    return linked([[image.digest for image in sample.images] for sample in samples])


def linked(shown: Sequence[Sequence[Name]]) -> list[Name]:
    """Return a digest for each question's images, equal where questions link them: shown together, or by a third."""
    links: dict[Name, Name] = {}

    def first(digest: Name) -> Name:
        while links.setdefault(digest, digest) != digest:
            digest = links[digest]
        return digest

    for images in shown:
        for digest in images[1:]:
            links[first(digest)] = first(images[0])
    return [first(images[0]) for images in shown]


def unify_patients(source: Source) -> None:
    """Give all rows of a picture its one patient; rows of a picture with several patients are faulty."""
    patients: dict[str, set[str]] = {}
    names: dict[str, set[str]] = {}
    groups = together(source.samples)
    for group, sample in zip(groups, source.samples, strict=True):
        patients.setdefault(group, set()).update([sample.patient_id] if sample.patient_id else [])
        names.setdefault(group, set()).add(sample.image_id)
    doubtful = {picture: sorted(names[picture])[:2] for picture, found in patients.items() if len(found) > 1}
    for picture, sample in zip(groups, source.samples, strict=True):
        if picture in doubtful:
            others = [f"{name} has the same pixels" for name in doubtful[picture] if name != sample.image_id]
            sentence = f"{sample.image_id} belongs to {len(patients[picture])} patients"
            sentence += f" ({others[0]})" if others else ""
            source.faults.append(Fault(sample.id, "patient_id", f"{sentence}; give it one"))
    source.samples = [
        replace(sample, patient_id=next(iter(patients[group]), None))
        for group, sample in zip(groups, source.samples, strict=True)
        if group not in doubtful
    ]


def resolve_studies(source: Source, studies: Mapping[str, str]) -> str:
    """Return the meaning of `patient_id`: "study" if the table names studies and no patients, else "patient".

    Rows without a patient get that of their study, or the study itself. Notices say what this means for the split.
    """
    alone = [sample for sample in source.samples if not sample.patient_id]
    mixed = len(alone) < len(source.samples)
    of_picture: dict[str, set[str]] = {}
    of_study: dict[str, set[str]] = {}
    pictures = together(source.samples)
    for picture, sample in zip(pictures, source.samples, strict=True):
        if study := studies.get(sample.id):
            of_picture.setdefault(picture, set()).add(study)
            of_study.setdefault(study, set()).update([sample.patient_id] if sample.patient_id else [])
    one = {picture: next(iter(found)) for picture, found in of_picture.items() if len(found) == 1}
    stands = {study: next(iter(found)) for study, found in of_study.items() if len(found) == 1}
    name = "study {}" if mixed else "{}"  # a study may have the name of another patient
    groups = {picture: stands.get(study, name.format(study)) for picture, study in one.items()}
    source.samples = [
        sample if sample.patient_id else replace(sample, patient_id=groups.get(picture))
        for picture, sample in zip(pictures, source.samples, strict=True)
    ]
    left = sum(not sample.patient_id for sample in source.samples)
    if mixed and alone:
        sentence = f"{source.name}: {len(alone)} of {number_of(len(source.samples), 'rows')} without a patient"
        by_study = f"the study is used as the patient of {len(alone) - left}, who may be one named elsewhere"
        one_by_one = f"{'their images' if left == len(alone) else f'the images of {left}'} are split one by one"
        parts = [*([by_study] if left < len(alone) else []), *([one_by_one] if left else [])]
        source.notices.append(f"{sentence}: {'; '.join(parts)}.")
    if mixed or left == len(source.samples):
        return "patient"
    source.notices.append(
        f"{source.name} has studies but no patients: a study is kept in one split, but studies of one patient may be "
        "in several. Add a column patient_id if you can."
    )
    return "study"
