"""Plan of a curation: its source, models, localizer and noise, opened once from the settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmedpo.curation import noise
from mmedpo.curation.corrected import Corrector
from mmedpo.curation.hallucinate import Writer
from mmedpo.curation.localize import Localizer, open_localizer
from mmedpo.curation.noise import Noise
from mmedpo.curation.ranked import Ranker
from mmedpo.curation.relevance import Panel
from mmedpo.curation.sampling import EndpointSampler, Sampler, Target
from mmedpo.curation.settings import Settings
from mmedpo.curation.standins import STANDINS
from mmedpo.data import reading
from mmedpo.data.sources import Source, mark, read_source, refuse_faults
from mmedpo.errors import InputError
from mmedpo.models import restricted
from mmedpo.models.adapters import check_base
from mmedpo.models.chat import ChatModel, opening
from mmedpo.models.chat.limits import Budget
from mmedpo.models.model_input import longer_side
from mmedpo.models.refusals import drop_refused
from mmedpo.models.vision_language import load_processor
from mmedpo.runs.formats import STANDIN
from mmedpo.runs.journal import Store
from mmedpo.runs.ledger import Ledger, Overlay

log = logging.getLogger(__name__)
open_chat = partial(opening.open_chat, standins=STANDINS)
OWN_SIZE = "If your model sees them at another size, give it as --noise-pixels."


@dataclass(frozen=True)
class Plan:
    """Objects of a curation, each with its own options; None for a step that is left out.

    Attributes:
        sampler: target model, whose samples are candidates for rejected responses.
        writer: maker of text pairs.
        budget: of all chat models.
    """

    source: Source
    sampler: Target | None
    writer: Writer | Ranker | None
    localizer: Localizer
    noise: Noise | None
    panel: Panel | None
    seed: int
    budget: Budget

    @property
    def chats(self) -> list[ChatModel]:
        """All chat models, the target behind an endpoint too."""
        found = [self.writer.chat] if self.writer and self.writer.chat else []
        found += self.panel.judges.values() if self.panel else []
        return found + ([self.sampler.chat] if isinstance(self.sampler, EndpointSampler) else [])


def open_plan(settings: Settings, source: Source, budget: Budget, calls: Ledger | Overlay, used: Store) -> Plan:
    """Return the objects of a curation of `source`; the target model is loaded by the step that samples it.

    Args:
        budget, calls, used: budget, cache and counted calls, shared by all chat models.

    Raises:
        InputError: a model cannot be opened.
    """
    chat = partial(
        open_chat, budget=budget, cache=calls, used=used, seed=settings.seed, batch_size=settings.batch_size,
        discreet=source.credentialed, max_tokens=settings.max_reply_tokens,
    )  # fmt: skip
    localizer, panel = localizer_of(settings), None
    sampler: Target | None = None
    writer: Writer | Ranker | None = None
    if settings.makes_text_pairs:
        # A model that is named several times is opened once.
        opened = {name: chat(name) for name in dict.fromkeys([*settings.scorers, *settings.writers])}
        panel = open_panel(settings, settings.scorers, opened.__getitem__)
        if settings.ranks:
            writer = Ranker(settings.ranks, settings.min_gap, settings.length_ratio, panel)
        elif settings.chosen == "corrected":
            chosen_by = opened[settings.writers[0]]
            writer = Corrector(chosen_by, settings.style, settings.show_images, settings.max_changed)
        else:
            writer = Writer(opened[settings.writers[0]], settings.style, settings.show_images)
        if not all(one.name.startswith(STANDIN) for one in opened.values()):
            calls.open()  # before any work is paid for
        if settings.local_model is not None:
            same = None if settings.adapter else getattr(opened.get(f"local:{settings.model}"), "chat", None)
            if settings.adapter:  # before anything is paid for; a warning comes with the weights
                check_base(settings.adapter, settings.local_model, download=False)
            sampler = Sampler(
                settings.local_model, settings.samples, settings.temperature, settings.max_new_tokens,
                settings.max_new_tokens_report, settings.batch_size, settings.seed, same and same.model,
                settings.adapter,
            )  # fmt: skip
        elif settings.model is not None:
            target = chat(settings.model, max_tokens=settings.max_new_tokens, temperature=settings.temperature)
            sampler = EndpointSampler(
                settings.model, settings.samples, settings.max_new_tokens, settings.max_new_tokens_report,
                settings.seed, target,
            )  # fmt: skip
    corruption = noise_of(settings) if settings.makes_visual_pairs else None
    return Plan(source, sampler, writer, localizer, corruption, panel, settings.seed, budget)


def open_panel(settings: Settings, names: Sequence[str], chat: Callable[[str], ChatModel]) -> Panel | None:
    """Return the panel of these judges, each opened by `chat`; None without judges."""
    judges = [chat(name) for name in names]
    return Panel(judges, settings.rounds, settings.tolerance, settings.panel) if judges else None


def open_source(settings: Settings, also: Collection[str] = (), cache: Path | None = None) -> Source:
    """Return the source that the settings name, always with the samples whose ids are in `also`.

    Args:
        cache: file of answered calls, beside which lies what is remembered of images.

    Raises:
        InputError: as `read_source`; rows are faulty; or lesions are in another column than the one named.
    """
    source = read_source(
        settings.source, settings.split, settings.limit, settings.seed, settings.license,
        settings.official_split, settings.source_name, settings.credentialed, also,
        [*map(Path, settings.image_folders)], cache and reading.beside(cache),
    )  # fmt: skip
    refuse_faults(source, settings.skip_faulty)  # before the model's processor is loaded
    if trained := _trained_on_restricted(settings):
        mark(source, trained)
    if settings.local_model is not None and settings.makes_text_pairs:
        drop_refused(source, load_processor(settings.local_model))
        refuse_faults(source, settings.skip_faulty)
    if settings.localizer == "boxes" and not any(
        sample.boxes for sample in source.samples
    ):  # the default, maybe unasked
        held = [
            name
            for name in ("masks", "heatmap")
            if any(getattr(one, name) for sample in source.samples for one in sample.images)
        ]
        if held:
            raise InputError(f"{source.name} marks lesions by {held[0]}, not by boxes: give --localizer {held[0]}.")
    return source


def _trained_on_restricted(settings: Settings) -> str | None:
    """Return the first model in this process that was trained on restricted data, which its texts may repeat."""
    asked = [settings.chat or "", *settings.judges] if settings.makes_text_pairs else []
    own = [(settings.local_model, settings.adapter)] if settings.makes_text_pairs and settings.local_model else []
    own += [(name.removeprefix("local:"), None) for name in asked if name.startswith("local:")]
    return next(filter(None, (restricted.evidence(*named) for named in dict.fromkeys(own))), None)


def localizer_of(settings: Settings) -> Localizer:
    return open_localizer(
        settings.localizer, settings.query, settings.mask_rule, settings.threshold, settings.max_coverage
    )


def noise_of(settings: Settings) -> Noise:
    pixels = settings.noise_pixels or noise.PIXELS
    return Noise(
        settings.noise, settings.noise_step, settings.noise_edge, settings.noise_region, settings.reversed, pixels,
        settings.noise_per, settings.noise_images,
    )  # fmt: skip


def with_noise_pixels(settings: Settings, processor: Any = None, say: Callable[[str], None] = log.warning) -> Settings:
    """Return the settings with `noise_pixels` filled in where it matters.

    Args:
        processor: the target model's image processor; loaded by the model's name if needed.
        say: gets a message if the size is not the target model's own.

    Raises:
        InputError: the target model's processor cannot be read.
    """
    if settings.noise_pixels is not None or settings.noise not in noise.DRAWN or not settings.makes_visual_pairs:
        return settings
    if processor is None and settings.local_model is not None:
        processor = load_processor(settings.local_model).image_processor
    seen = processor and longer_side(processor)
    if not seen:
        why = "the target model is behind an endpoint" if settings.model else "no --model is named"
        if settings.local_model:
            why = f"the processor of {settings.local_model} gives no size"
        say(f"Noise: drawn for a model that sees images at {noise.PIXELS} pixels, since {why}. {OWN_SIZE}")
    return replace(settings, noise_pixels=seen or noise.PIXELS)
