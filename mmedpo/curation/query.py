"""Queries for lesion tools, which may depend on modality and question."""

from __future__ import annotations

import re
from itertools import pairwise

from mmedpo.data.samples import Sample
from mmedpo.data.text import folded
from mmedpo.errors import InputError

# Spellings of modalities in tables: one word, or two joined.
MODALITIES = {
    "xray": {"xray", "xrays", "xr", "cr", "dr", "dx", "cxr", "radiograph", "radiographs", "radiography", "plainfilm"},
    "ct": {"ct", "computedtomography"},
    "mri": {"mri", "mr", "magneticresonance"},
    "ultrasound": {"ultrasound", "us", "sonography", "ultrasonography"},
}
QUESTION, DISEASE = "question", "disease"  # query that stands for the sample's own question; default query


class Query:
    """Query for a tool.

    `spec` is one text ("disease"), one text per modality ("xray=opacity,ct=lesion"; "disease" for others), or
    "question" for the sample's own question.

    Raises:
        InputError: the spec is empty, or names a modality outside `MODALITIES`.
    """

    def __init__(self, spec: str) -> None:
        self._default, self._by_modality = spec, dict[str, str]()
        if "=" in spec:
            self._default = DISEASE
            parts = [part.partition("=") for part in spec.split(",")]
            self._by_modality = {name.strip(): text.strip() for name, _, text in parts}
        if not spec.strip() or not self._by_modality.keys() <= MODALITIES.keys() or "" in self._by_modality.values():
            raise InputError(
                f"The query {spec!r} cannot be read; give one text, one a modality as in xray=opacity,ct=lesion "
                f"({', '.join(MODALITIES)}), or question."
            )

    def texts(self) -> list[str]:
        """Return all texts that it may give, with `DISEASE` in place of the samples' questions."""
        given = (*self._by_modality.values(), self._default)
        return [DISEASE if text == QUESTION else text for text in given]

    def __call__(self, sample: Sample) -> str:
        text = self._by_modality.get(modality(sample) or "", self._default)
        return sample.question if text == QUESTION else text


def modality(sample: Sample) -> str | None:
    """Return the sample's modality, a key of `MODALITIES`; None if the table names none, another or several."""
    parts = letters(sample.modality)
    said = {*parts, *map("".join, pairwise(parts))}
    found = [name for name, spellings in MODALITIES.items() if said & spellings]
    return found[0] if len(found) == 1 else None


def letters(text: str | None) -> list[str]:
    """Return runs of letters in lower case: "Chest_X-Ray" gives chest, x, ray."""
    return re.findall("[a-z]+", folded(text or ""))
