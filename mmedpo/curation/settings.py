"""Options of a curation: `Settings` decide the result, `Run` how it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mmedpo.curation import corrected, hallucinate, judge_check, noise, pair_options, ranked, relevance, weights
from mmedpo.curation.localize import FORMS, MOST_COVERAGE
from mmedpo.curation.standins import STANDINS, StandInChat
from mmedpo.data import credentialed, safe_paths
from mmedpo.data.shards import SHARD_SIZE, shard_bytes
from mmedpo.errors import InputError
from mmedpo.models.chat.limits import Calling, Limits
from mmedpo.models.chat.opening import names_endpoint, separated
from mmedpo.models.generation import MAX_NEW_TOKENS, MAX_NEW_TOKENS_REPORT
from mmedpo.runs import writable
from mmedpo.runs.executors import Spread
from mmedpo.runs.options import check_types, option, outside, refuse, unknown
from mmedpo.runs.provenance import portable

CHATS = (
    "http://host:port/v1#model, hub:org/model[@provider], local:org/model, cache:model (cached answers "
    "only), standin:NAME (offline word rules, for trials)"
)
UNNAMED = (
    f"{{}}: required. Give what {{}}: {CHATS}, or none. For a trial without models: --chat standin:rules --judges "
    "standin:strict standin:lenient standin:lexical."
)


@dataclass
class Settings:
    """All options that decide the result of a curation.

    Raises:
        InputError: unknown names or numbers out of range; all of them are listed.
    """

    source: Path = field(metadata={"help": "Folder with a table of questions and its images."})
    image_folders: list[str] = field(default_factory=list, metadata={"help": safe_paths.HELP})
    split: str | None = option(None, "Split of the source to use; all if none is given.")
    official_split: bool = option(False, "Take the source's own split as it stands, even with shared images.")
    limit: int | None = option(None, "Use this many questions only (seeded choice).")
    license: str = option("unknown", "Licence of the source, for rows without one.")
    source_name: str | None = option(None, "Name of the source in ids and records, for rows without one.")
    credentialed: bool = option(False, credentialed.MARK_HELP)
    skip_faulty: bool = option(False, "Leave out and count faulty rows of the source.")
    mask_text: bool = option(
        False, "Black out text burnt into images, for both sides and all models; needs mmedpo[text]."
    )
    seed: int = option(0, "Seed of all random choices.")
    model: str | None = option(
        None,
        "Target Med-LVLM to sample rejected responses from: a Hub id, a folder, or behind an endpoint "
        "http://host:port/v1#model or hub:org/model[@provider].",
    )
    adapter: str | None = option(
        None, "Hub id or folder of a PEFT adapter on the target in this process: to curate from an aligned model."
    )
    samples: int = option(4, "Answers sampled from the target model for each question (N).")
    temperature: float = option(1.0, "Temperature of those samples.")
    max_new_tokens: int = option(MAX_NEW_TOKENS, "Longest sample in tokens, except a report's.")
    max_new_tokens_report: int = option(MAX_NEW_TOKENS_REPORT, "Longest sampled report in tokens.")
    batch_size: int = option(8, "Questions that a model in this process answers at once.")
    chat: str | None = option(None, f"Chat model that picks or writes rejected responses: {CHATS}, or none. Required.")
    max_reply_tokens: int = option(512, "Longest reply of a chat model or judge in tokens, with its thoughts.")
    pairs: str = option(
        "hallucinated",
        "Text pairs: hallucinated (the gold answer against one that the chat model picks or writes) or ranked:METRIC "
        "(best against worst of the target's samples, by their scores against the gold answer), METRIC one of "
        f"{', '.join(ranked.METRICS)}.",
    )
    chosen: str = option(
        "gold",
        "Chosen side of text pairs: gold, or corrected (the target's own wrong answer with the smallest correction "
        "that makes it true; gold where none can be used).",
    )
    max_changed: float = option(
        0.5, f"Largest share of the words of an answer that a correction changes; {corrected.ALWAYS} words may change."
    )
    min_gap: float = option(0.0, "Ranked pairs: least difference of both scores; equal ones never make a pair.")
    length_ratio: float = option(
        2.0, f"Ranked pairs: words of the longer side over the shorter's, at most; {ranked.LEEWAY} more are allowed."
    )
    style: str = option("match", "Rejected: match (length and form of the gold one), minimal (few edits) or free.")
    show_images: bool = option(False, "Send the image to that chat model too.")
    judges: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"Chat models that score clinical relevance, in their order: {CHATS}, or none, which "
            "needs --weights none. Required."
        },
    )
    panel: str = option("sequential", "sequential: each judge sees the last score; or independent.")
    rounds: int = option(5, "Most rounds that judges may take to agree.")
    tolerance: float = option(0.0, "Largest difference of scores that agree.")
    min_relevance: float = option(0.0, "Least clinical relevance of a pair; those below it are rejects.")
    weights: str = option("rescale", "From scores to weights: rescale, literal, raw or none.")
    weights_over: str = option("kind", "Rescale each kind of pair apart (kind), or all pairs together (merged).")
    localizer: str = option("boxes", f"Where lesions come from: {FORMS}.")
    query: str = option("disease", "Query of the localizer: a text, xray=opacity,ct=lesion, or question.")
    threshold: float = option(0.1, "Least confidence of a detection.")
    mask_rule: str = option("quantile:0.8", "From heat map to mask: quantile:0.8 (hottest fifth), otsu or fixed:0.5.")
    max_coverage: float = option(MOST_COVERAGE, "Largest share of the image that a lesion may cover.")
    noise: str = option("diffusion", f"Noise on the lesion: {', '.join(noise.METHODS)}.")
    noise_step: int = option(800, "Diffusion step k, 1 to 1000.")
    noise_edge: int = option(0, "Width of the mask's feathered edge in pixels; 0 is a hard edge.")
    noise_pixels: int | None = option(
        None,
        "Longer side of the image as the model sees it: noise is drawn in its pixels; at least 32. Default: the "
        "target model's own, else 336.",
    )
    noise_region: str = option("lesion", "lesion, or image: the whole image, with or without a lesion.")
    noise_per: str = option(
        "image", "image: questions about one image and region share a noised image; row: each has its own."
    )
    noise_images: str = option(
        "lesion", "Of several images a question, those with a lesion (lesion), or all: one without as a whole."
    )
    shard_size: str = option(SHARD_SIZE, "Bytes of images in a Parquet file; small files make new versions cheap.")
    reversed: bool = option(False, "On the noised image, prefer the rejected response to the gold answer.")
    symmetric: bool = option(False, "Visual pairs and beside each its reversed one.")
    healthy_noise: bool = option(
        False, "Beside each text pair the same on the image with noise of a lesion's size on a healthy place."
    )
    balance: str = option(
        "none",
        "answer: of visual pairs about yes/no questions, as many for yes as for no; others are rejects. Or none.",
    )

    def __post_init__(self) -> None:
        check_types(self)
        self.judges = [name for given in self.judges for name in separated(given)]
        names: dict[str, Sequence[str]] = {
            "style": hallucinate.STYLES, "panel": relevance.MODES, "noise": noise.METHODS,
            "noise_region": ("lesion", "image"), "noise_per": noise.PER, "noise_images": noise.IMAGES,
            "weights": weights.METHODS, "weights_over": weights.OVER, "chosen": ("gold", "corrected"),
            "balance": pair_options.BALANCES,
        }  # fmt: skip
        shard_bytes(self.shard_size)
        wrong = unknown(self, names) + outside(self) + pair_options.contradictions(self)
        if self.ranks:
            self.chat = "none"
        wrong += pair_options.of_visual(self)
        if self.samples > 1 and self.temperature == 0:
            wrong.append(f"{self.samples} samples at temperature 0 would be equal; raise the temperature")
        if self.adapter and self.local_model is None:
            wrong.append(
                f"the adapter {self.adapter} needs --model, its base model in this process; behind an endpoint the "
                "adapter has a name of its own: --model http://host:port/v1#name"
            )
        if self.chat == "none" and not self.ranks and (not self.makes_visual_pairs or self.reversed or self.symmetric):
            wrong.append("without a chat model there are no rejected responses, which these settings need")
        if "none" in self.judges and len(self.judges) > 1:
            wrong.append(f"judges are {', '.join(self.judges)}; leave out none, or the others")
        if self.chat in STANDINS and self.chat != StandInChat.name:
            wrong.append(f"chat is {self.chat}, which only judges; use {StandInChat.name}")
        if StandInChat.name in self.judges:
            scoring = ", ".join(name for name in STANDINS if name != StandInChat.name)
            wrong.append(f"judges hold {StandInChat.name}, which only writes; use {scoring}")
        if self.makes_text_pairs and self.judges == ["none"] and self.weights != "none":
            wrong.append(
                "without judges rejected responses have no clinical relevance; name judges, or give --weights none "
                "(every weight is 1: plain DPO)"
            )
        if self.min_relevance and self.judges == ["none"]:
            wrong.append("without judges pairs have no relevance to hold against --min-relevance; name judges")
        refuse(wrong)

    @property
    def ranks(self) -> str:
        """Metric that ranks the samples; "" for hallucinated pairs."""
        return self.pairs.partition(":")[2]

    @property
    def on_policy(self) -> bool:
        """True if the chosen side of text pairs may be in the target model's own words."""
        return bool(self.ranks) or self.chosen != "gold"

    @property
    def local_model(self) -> str | None:
        """The target model if it runs in this process."""
        return None if self.model is None or names_endpoint(self.model) else self.model

    @property
    def makes_visual_pairs(self) -> bool:
        return self.localizer != "none" or self.noise_region == "image" or self.noise == "crop"

    @property
    def makes_text_pairs(self) -> bool:
        return bool(self.ranks or self.writers)

    @property
    def asked(self) -> list[str]:
        """Names of all models that are asked, as options name them."""
        target = [self.model] if self.model and self.makes_text_pairs else []
        return [self.chat or "none", *self.judges, *target]

    @property
    def writers(self) -> list[str]:
        """The chat model that picks or writes rejected responses, if there is one."""
        return [] if self.chat in (None, "none") else [str(self.chat)]

    @property
    def shows_images(self) -> bool:
        """True if images leave for an endpoint."""
        return self.show_images or (self.makes_text_pairs and self.model is not None and self.local_model is None)

    @property
    def scorers(self) -> list[str]:
        """Judges of rejected responses; none if this curation writes no such responses."""
        return self.judges if self.makes_text_pairs and self.judges != ["none"] else []

    def refuse_unnamed(self) -> None:
        """Raise InputError unless a chat model and judges are named, and the target whose answers make the pairs."""
        pair_options.refuse_no_target(self)
        unjudged = not self.judges and (self.chat != "none" or self.ranks)
        missing = {
            "--chat": "picks or writes rejected responses" if self.chat is None else "",
            "--judges": "scores their clinical relevance" if unjudged else "",
        }
        if options := [option for option, task in missing.items() if task]:
            raise InputError(UNNAMED.format(" and ".join(options), " and what ".join(filter(None, missing.values()))))

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "source": str(self.source)}

    def recipe(self) -> dict[str, Any]:
        """Return the portable settings: they give the same result on another machine that names the source."""
        settings = {name: value for name, value in asdict(self).items() if name not in ("source", "image_folders")}
        return settings | {
            "model": self.model and portable(self.model), "adapter": self.adapter and portable(self.adapter),
            "chat": self.chat and portable(self.chat),
            "judges": [portable(judge) for judge in self.judges], "localizer": portable(self.localizer),
        }  # fmt: skip


@dataclass
class Run(Calling, Spread):
    """Output, endpoints and tasks of a curation; they do not change the result."""

    output: Path = field(metadata={"help": "Folder to write; it must not exist."})
    resume: bool = option(False, "Continue an interrupted run of the same command.")
    redo_changed: bool = option(False, "With --resume: curate again the questions that changed since the start.")
    cache: Path | None = field(
        default=None, metadata={"help": "Cache of answered calls. Default: calls.sqlite beside the output."}
    )
    check_judges: bool = option(
        False, "Only score the 40 built-in pairs of known severity, print the result and exit; needs --judges alone."
    )
    judges_below_bar: str = option(
        "stop", f"Judges whose panel has a Spearman under {judge_check.BAR} on those pairs: stop, or go on with a note."
    )

    batch_api: Path | None = field(
        default=None,
        metadata={"help": "Folder of batch files: requests to endpoints are written there for a provider's batch API, "
                  "which is cheaper, and their results read from there (docs/curation.md)."},
    )  # fmt: skip
    batch_upload: bool = option(
        False, "With --batch-api: upload its files to the batch API of each endpoint, and fetch results from there."
    )
    estimate: bool = option(
        False, "Only print what the curation would cost: calls, tokens, time, money. --output is not written."
    )
    estimate_questions: int = option(
        20, "With --estimate: ask this many questions, answers go to the cache; 0 measures prompts without a call."
    )
    price: list[str] = field(
        default_factory=list,
        metadata={"help": "With --estimate: MODEL=IN/OUT, the prices of a million tokens, such as med-70b=0.5/1.5."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(unknown(self, {"judges_below_bar": judge_check.POLICIES}) + outside(self))
        self.check()
        if self.cache and self.cache.is_dir():
            raise InputError(f"--cache {self.cache} is a folder. Give the name of a file in it.")
        if self.batch_api and self.output != Path() and self.batch_api.resolve().is_relative_to(self.output.resolve()):
            raise InputError(f"--batch-api {self.batch_api} lies in --output. Give a folder beside it.")
        if self.batch_api:
            writable.check_folder(self.batch_api, "--batch-api")
        elif self.batch_upload:
            raise InputError("--batch-upload has nothing to upload. Name the folder of batches with --batch-api.")
        if self.batch_api and self.tasks > 1:
            raise InputError(
                f"--batch-api writes one batch for all: {self.tasks} tasks cannot share it. Give --tasks 1."
            )
        if self.batch_api and self.estimate:
            raise InputError(
                "--estimate asks its questions at once. Leave out --batch-api; its prices are given by --price."
            )

    @property
    def limits(self) -> Limits:
        return replace(super().limits, batches=self.batch_api, upload_batches=self.batch_upload)

    @property
    def calls(self) -> Path:
        """File of answered calls."""
        return self.cache or self.output.resolve().parent / "calls.sqlite"


@dataclass
class Preview(Run):
    """Options of the sheet of pictures that is checked before a curation."""

    output: Path = field(metadata={"help": "PNG file to write; it must not exist."})
    count: int = option(8, "Images to show, 1 to 50.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.count <= 50:
            raise InputError(f"--count is {self.count}; a sheet shows 1 to 50 images.")
        if self.output.suffix.lower() != ".png":
            raise InputError(f"--output {self.output}: the sheet is a PNG file. Give a name that ends with .png.")
