"""The options of a curation: what decides what it makes, and how it runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

from mmedpo import credentialed
from mmedpo.curation import hallucinate, noise, relevance, weights
from mmedpo.curation.localize import FORMS
from mmedpo.curation.rows import Noise
from mmedpo.errors import InputError
from mmedpo.llm.limits import Limits
from mmedpo.schema import SHARD_SIZE, shard_bytes
from mmedpo.workdir import portable

CHATS = (
    "standin:NAME, http://host:port/v1#model, hub:org/model[@provider], local:org/model, or cache:model (nobody: "
    "what the cache holds of its answers)"
)


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


def _check_types(options: Any) -> None:
    """Raise InputError if a field has not its type: TRL's parser takes what a recipe says as it is."""
    wrong = []
    for name, kind in get_type_hints(type(options)).items():
        value = getattr(options, name)
        if kind == list[str]:
            value = [value] if isinstance(value, str) else value
            setattr(options, name, value)
            fits = isinstance(value, list) and all(isinstance(entry, str) for entry in value)
        else:
            fits = isinstance(value, float | int if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            wrong.append(f"{name} is {value!r}; it must be of type {getattr(kind, '__name__', kind)}")
    if wrong:
        raise InputError("These settings cannot work: " + "; ".join(wrong) + ".")


@dataclass
class Settings:
    """All that decides what a curation makes.

    Raises:
        InputError: an unknown name or a number out of range; all of them are listed.
    """

    source: Path = field(metadata={"help": "Folder with a table of questions and its images."})
    split: str | None = _option(None, "Split of the source to use; all where not given.")
    limit: int | None = _option(None, "Use this many questions only (seeded choice).")
    license: str = _option("unknown", "Licence of the source, where its rows do not say.")
    source_name: str | None = _option(None, "The source's name in ids and records, where its rows do not say.")
    credentialed: bool = _option(False, credentialed.MARK_HELP)
    skip_faulty: bool = _option(False, "Leave faulty rows of the source out, counted.")
    seed: int = _option(0, "Seed of everything left to chance.")
    model: str | None = _option(None, "Target Med-LVLM to sample wrong answers from: a Hub id or a folder.")
    samples: int = _option(4, "Answers sampled from the target a question (N).")
    temperature: float = _option(1.0, "Temperature of those samples.")
    batch_size: int = _option(8, "Questions that a model in this process answers at once.")
    chat: str = _option("standin:rules", f"Chat model that picks or writes wrong answers: {CHATS}, or none.")
    style: str = _option(
        "match", "Wrong answers: match (length and form of the gold one), minimal (few edits) or free."
    )
    show_images: bool = _option(False, "Let that chat model look at the image too.")
    judges: list[str] = field(
        default_factory=lambda: ["standin:strict", "standin:lenient", "standin:lexical"],
        metadata={"help": f"Chat models that score clinical relevance, in the order of speaking: {CHATS}."},
    )
    panel: str = _option("sequential", "sequential: each judge sees the last score; or independent.")
    rounds: int = _option(5, "Most rounds that judges may take to agree.")
    tolerance: float = _option(0.0, "Largest difference of scores that agree.")
    weights: str = _option("rescale", "From scores to weights: rescale, literal, raw or none.")
    weights_over: str = _option("merged", "Normalise over all pairs (merged) or each kind for itself (kind).")
    localizer: str = _option("boxes", f"Where lesions come from: {FORMS}.")
    query: str = _option("disease", "What a tool is asked for: a text, xray=opacity,ct=lesion, or question.")
    threshold: float = _option(0.1, "Least confidence of a detection.")
    mask_rule: str = _option("quantile:0.8", "From heat map to mask: quantile:0.8 (hottest fifth), otsu or fixed:0.5.")
    max_coverage: float = _option(0.6, "Largest share of the image that a lesion may cover.")
    noise: str = _option("diffusion", f"What hides the lesion: {', '.join(noise.METHODS)}.")
    noise_step: int = _option(800, "Diffusion step k, 1 to 1000.")
    noise_edge: int = _option(0, "Width of the mask's feathered edge in pixels; 0 is a hard edge.")
    noise_region: str = _option("lesion", "lesion, or image: all of it, found or not.")
    shard_size: str = _option(SHARD_SIZE, "Bytes of images in a Parquet file; small ones make new versions cheap.")
    reversed: bool = _option(False, "On the noised image, prefer the wrong answer to the gold one.")

    def __post_init__(self) -> None:
        _check_types(self)
        self.judges = [name.strip() for given in self.judges for name in given.split(",")]
        names: dict[str, Sequence[str]] = {
            "style": get_args(hallucinate.Style), "panel": get_args(relevance.Mode), "noise": noise.METHODS,
            "noise_region": ("lesion", "image"), "weights": weights.METHODS, "weights_over": ("merged", "kind"),
        }  # fmt: skip
        shard_bytes(self.shard_size)
        wrong = [
            f"{name} is {given!r}; use one of {', '.join(known)}"
            for name, known in names.items()
            if (given := getattr(self, name)) not in known
        ]
        ranges: dict[str, tuple[float, float]] = {
            "limit": (1, math.inf), "samples": (1, math.inf), "temperature": (0, math.inf), "batch_size": (1, math.inf),
            "rounds": (1, math.inf), "tolerance": (0, 1), "threshold": (0, 1), "max_coverage": (0, 1),
            "noise_step": (1, noise.STEPS), "noise_edge": (0, math.inf),
        }  # fmt: skip
        wrong += [
            f"{name} is {given}; it must be at least {low}" + (f" and at most {high}" if high < math.inf else "")
            for name, (low, high) in ranges.items()
            if (given := getattr(self, name)) is not None and not low <= given <= high
        ]
        if self.samples > 1 and self.temperature == 0:
            wrong.append(f"{self.samples} samples at temperature 0 would all be equal; raise the temperature")
        if self.chat == "none" and (not self.makes_visual_pairs or self.reversed):
            wrong.append("without a chat model there are no wrong answers, and nothing else was asked for")
        if wrong:
            raise InputError("These settings cannot work: " + "; ".join(wrong) + ".")

    @property
    def corruption(self) -> Noise:
        return Noise(self.noise, self.noise_step, self.noise_edge, self.noise_region, self.reversed)

    @property
    def makes_visual_pairs(self) -> bool:
        return self.localizer != "none" or self.corruption.whole

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "source": str(self.source)}

    def recipe(self) -> dict[str, Any]:
        """The settings that make the same of the same source on another machine, which names the source itself."""
        settings = {name: value for name, value in asdict(self).items() if name != "source"}
        return settings | {
            "model": self.model and portable(self.model), "chat": portable(self.chat),
            "judges": [portable(judge) for judge in self.judges], "localizer": portable(self.localizer),
        }  # fmt: skip


@dataclass
class Run:
    """Where a curation writes, and how it calls chat endpoints; nothing of it decides what is made."""

    output: Path = field(metadata={"help": "Folder to write; it must not exist."})
    resume: bool = _option(False, "Continue an interrupted run of the same command.")
    cache: Path | None = field(
        default=None, metadata={"help": "Answered calls, never paid twice; calls.sqlite beside the output by default."}
    )
    concurrency: int = _option(8, "Calls in flight at once, over all chat models.")
    requests_per_minute: int | None = _option(None, "Most requests a minute, over all chat models.")
    max_calls: int | None = _option(None, "Budget: stop after so many new calls.")
    max_tokens: int | None = _option(None, "Budget: stop after so many tokens of new calls.")
    send_credentialed_data_to_third_parties: bool = _option(False, credentialed.FLAG_HELP)

    def __post_init__(self) -> None:
        _check_types(self)

    @property
    def limits(self) -> Limits:
        return Limits(self.concurrency, self.requests_per_minute, self.max_calls, self.max_tokens)


@dataclass
class Preview(Run):
    """A sheet of pictures before a curation, with the curation's own options."""

    output: Path = field(metadata={"help": "PNG file to write; it must not exist."})
    count: int = _option(8, "Images to show, 1 to 50.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.count <= 50:
            raise InputError(f"--count is {self.count}; a sheet shows 1 to 50 images.")
