"""Open the source that a curation's settings name."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from mmedpo.curation.settings import Settings
from mmedpo.data.sources import Source, read_source, refuse_faults
from mmedpo.errors import InputError
from mmedpo.models.refusals import drop_refused
from mmedpo.models.vision_language import load_processor


def open_source(settings: Settings, also: Collection[str] = ()) -> Source:
    """Return the source that the settings name, always with the samples whose ids are in `also`.

    Raises:
        InputError: as `read_source`; rows are faulty; or lesions are in another column than the one named.
    """
    source = read_source(
        settings.source, settings.split, settings.limit, settings.seed, settings.license,
        settings.official_split, settings.source_name, settings.credentialed, also,
        [*map(Path, settings.image_folders)],
    )  # fmt: skip
    refuse_faults(source, settings.skip_faulty)  # before the model's processor is loaded
    if settings.model is not None and settings.writes_answers:
        drop_refused(source, load_processor(settings.model))
        refuse_faults(source, settings.skip_faulty)
    if settings.localizer == "boxes" and not any(
        sample.boxes for sample in source.samples
    ):  # the default, maybe unasked
        held = [name for name in ("masks", "heatmap") if any(getattr(sample, name) for sample in source.samples)]
        if held:
            raise InputError(f"{source.name} marks lesions by {held[0]}, not by boxes: give --localizer {held[0]}.")
    return source
