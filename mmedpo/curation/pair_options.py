"""Checks of the options that say which pairs are made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmedpo.curation import ranked
from mmedpo.errors import InputError

if TYPE_CHECKING:
    from mmedpo.curation.settings import Settings

OF_RANKED, OF_CORRECTED = ("min_gap", "length_ratio"), ("max_changed",)
BALANCES = ("none", "answer")


def contradictions(settings: Settings) -> list[str]:
    """Return a sentence for each option that does not fit the kind of text pairs."""
    kind, _, metric = settings.pairs.partition(":")
    wrong = []
    if settings.chosen == "gold":
        wrong += [f"{name} is of corrections; add --chosen corrected" for name in _given(settings, OF_CORRECTED)]
    elif kind == "ranked":
        wrong.append("ranked pairs have the target's samples on both sides; leave out --chosen corrected")
    elif settings.chat == "none":
        wrong.append("corrections are written by a chat model, and chat is none; name one")
    if kind != "ranked":
        wrong += [] if settings.pairs == "hallucinated" else [_unknown(settings, "hallucinated or ranked:METRIC")]
        return wrong + [f"{name} is of ranked pairs; add --pairs ranked:METRIC" for name in _given(settings, OF_RANKED)]
    if metric not in ranked.METRICS:
        wrong.append(_unknown(settings, " or ".join(f"ranked:{name}" for name in ranked.METRICS)))
    if settings.chat not in (None, "none"):
        wrong.append(f"chat is {settings.chat}, which has nothing to do for ranked pairs; leave it out")
    if settings.samples < 2:
        wrong.append(f"samples is {settings.samples}; ranked pairs need at least 2 answers to a question")
    if metric == ranked.JUDGES and settings.judges == ["none"]:
        wrong.append("pairs is ranked:judges, and judges is none; name judges, or another metric")
    return wrong


def of_visual(settings: Settings) -> list[str]:
    """Return a sentence for each option of visual pairs that cannot apply."""
    given, wrong = _given(settings, ("symmetric", "healthy_noise", "balance")), []
    if given and not settings.makes_visual_pairs:
        wrong.append(f"{', '.join(given)}: there are no visual pairs; name a localizer, or leave it out")
    if settings.symmetric and settings.reversed:
        wrong.append("symmetric makes reversed pairs beside the others, and reversed makes them alone; leave out one")
    if settings.healthy_noise and (settings.noise_region == "image" or settings.noise == "crop"):
        wrong.append(
            "healthy_noise has the size of a lesion, but the whole image is noised; give --noise-region lesion"
        )
    if settings.healthy_noise and settings.chat == "none" and not settings.ranks:
        wrong.append("healthy_noise needs rejected responses, which a chat model writes; name one with --chat")
    return wrong


def refuse_no_target(settings: Settings) -> None:
    """Raise InputError where the pairs are made of answers of a target model, and none is named."""
    if settings.on_policy and settings.model is None:
        asked = f"--pairs {settings.pairs}" if settings.ranks else "--chosen corrected"
        raise InputError(
            f"{asked}: needs answers of a target model. Name it with --model: a Hub id, a folder or an endpoint."
        )


def _unknown(settings: Settings, known: str) -> str:
    return f"pairs is {settings.pairs!r}; use {known}"


def _given(settings: Settings, names: tuple[str, ...]) -> list[str]:
    """Return the names of options that do not have their defaults."""
    return [name for name in names if getattr(settings, name) != type(settings).__dataclass_fields__[name].default]
