"""What a lesion tool is asked for, which may depend on the kind of image and on the question."""

from __future__ import annotations

import re
from itertools import pairwise

from mmedpo.data.samples import Sample
from mmedpo.data.text import folded
from mmedpo.errors import InputError

# What tables call a kind of image: a word, or two written together.
MODALITIES = {
    "xray": {"xray", "xrays", "xr", "cr", "dr", "dx", "cxr", "radiograph", "radiographs", "radiography", "plainfilm"},
    "ct": {"ct", "computedtomography"},
    "mri": {"mri", "mr", "magneticresonance"},
    "ultrasound": {"ultrasound", "us", "sonography", "ultrasonography"},
}
QUESTION, DISEASE = "question", "disease"  # as a query: the sample's own question, and what stands for it


class Query:
    """What a tool is asked for: one text ("disease"), one a modality ("xray=opacity,ct=lesion", all others
    "disease"), or "question": the sample's own question.

    Raises:
        InputError: empty, or a modality that is none of `MODALITIES`.
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
        """All texts it may give, with `DISEASE` in place of the samples' questions."""
        given = (*self._by_modality.values(), self._default)
        return [DISEASE if text == QUESTION else text for text in given]

    def __call__(self, sample: Sample) -> str:
        text = self._by_modality.get(modality(sample) or "", self._default)
        return sample.question if text == QUESTION else text


def modality(sample: Sample) -> str | None:
    """The sample's modality as `MODALITIES` has it; None if the table says nothing, something else or several."""
    parts = letters(sample.modality)
    said = {*parts, *map("".join, pairwise(parts))}
    found = [name for name, spellings in MODALITIES.items() if said & spellings]
    return found[0] if len(found) == 1 else None


def letters(text: str | None) -> list[str]:
    """Runs of letters, in lower case: "Chest_X-Ray" is chest, x, ray."""
    return re.findall("[a-z]+", folded(text or ""))
