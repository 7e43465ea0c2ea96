"""Options of an evaluation: `Settings` decide its results, `Run` its output and requests."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from mmedpo.data import credentialed, safe_paths
from mmedpo.evaluation.answering import Generation
from mmedpo.evaluation.asking import JUDGES, MAX_REPLY_TOKENS, Judging
from mmedpo.evaluation.contents import ModelSpec
from mmedpo.evaluation.metrics.reports.clinical import HELP as CLINICAL
from mmedpo.evaluation.questions import Asked
from mmedpo.evaluation.score import Scoring
from mmedpo.models.chat.limits import Calling
from mmedpo.models.chat.opening import names_endpoint
from mmedpo.models.generation import MAX_NEW_TOKENS, MAX_NEW_TOKENS_REPORT
from mmedpo.runs.executors import Spread
from mmedpo.runs.options import check_types, option, outside, refuse, unknown

STRICT = {
    "max_new_tokens": MAX_NEW_TOKENS, "max_new_tokens_report": MAX_NEW_TOKENS_REPORT, "temperature": 0.0,
    "vqa_protocol": "strict", "report_protocol": "coco",
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "strict": STRICT,
    # Settings of the MMedPO paper's evaluation and its released code.
    "paper": STRICT | {
        "max_new_tokens_report": 1024, "temperature": 0.2, "vqa_protocol": "paper", "report_protocol": "paper",
    },
}  # fmt: skip
Part = TypeVar("Part")
MEASURES = ("answers", "preference", "visual_reliance")
ONLY_ANSWERS = ("meteor_variant", "clinical", "judges")
UNUSED = {  # options without effect on a measure
    "preference": (*STRICT, *ONLY_ANSWERS),
    "visual_reliance": (*(name for name in STRICT if name != "max_new_tokens"), *ONLY_ANSWERS),
}


def _preset(name: str, help: str) -> Any:
    values = ", ".join(f"{preset}: {values[name]}" for preset, values in PRESETS.items())
    return option(None, f"{help} By preset ({values}).")


@dataclass
class Settings:
    """All that decides what an evaluation finds.

    Raises:
        InputError: options that are unknown, out of range or exclude each other; all of them are listed.
    """

    model: str = field(metadata={
        "help": "Hub id or folder of the (base) model; or http://host:port/v1#model, an OpenAI-compatible endpoint, or "
        "hub:org/model[@provider]: questions AND IMAGES (pixels, no file headers) are then sent there."
    })  # fmt: skip
    source: Path | None = field(default=None, metadata={"help": "Folder with a table of questions and its images."})
    image_folders: list[str] = field(default_factory=list, metadata={"help": safe_paths.HELP})
    dataset: str | None = option(None, "Or a preference dataset, folder or Hub id: its questions and chosen responses.")
    split: str | None = option(None, "Split to ask. Default: all of a source, the only split of a dataset.")
    adapter: str | None = option(None, "Hub id or folder of an adapter on the model.")
    model_revision: str | None = option(None, "Branch, tag or commit of the model on the Hub.")
    adapter_revision: str | None = option(None, "Branch, tag or commit of the adapter on the Hub.")
    dataset_revision: str | None = option(None, "Branch, tag or commit of the dataset on the Hub.")
    official_split: bool = option(
        False, "Take the source's own split as it stands, even where it has images or patients in several parts."
    )
    limit: int | None = option(None, "Ask this many questions only (seeded choice).")
    skip_faulty: bool = option(False, "Leave out and count faulty rows of the source.")
    credentialed: bool = option(False, credentialed.MARK_HELP)
    seed: int = option(0, "Seed of all random choices.")
    name: str | None = option(None, "Name in comparisons; the output folder's by default.")
    measure: str = option(
        "answers",
        "answers: compared with the gold answers. visual_reliance: loss when the image is blank, another patient's, or "
        "noised in the lesion that the source marks or the pair has. preference: of a dataset's pairs, the side with "
        "the higher likelihood.",
    )
    preset: str = option("strict", "Defaults of the options below: strict, or paper (the authors' protocol).")
    max_new_tokens: int | None = _preset("max_new_tokens", "Longest answer in tokens, except a report's.")
    max_new_tokens_report: int | None = _preset("max_new_tokens_report", "Longest report in tokens.")
    temperature: float | None = _preset("temperature", "0 is greedy.")
    vqa_protocol: str | None = _preset(
        "vqa_protocol",
        "Definitions of the scores of answers: strict, strict@3, paper, llava_med, or judge (needs judges).",
    )
    report_protocol: str | None = _preset(
        "report_protocol", "Definitions of the scores of reports: coco, r2gen, r2gen_mimic, paper or huggingface."
    )
    meteor_variant: str | None = option(None, "METEOR variant of reports; by default the report protocol's own.")
    clinical: list[str] = field(default_factory=list, metadata={"help": f"Clinical scores of reports: {CLINICAL}."})
    judges: list[str] = field(default_factory=list, metadata={"help": JUDGES})
    max_reply_tokens: int = option(MAX_REPLY_TOKENS, "Longest reply of a judge in tokens, with its thoughts.")
    batch_size: int = option(16, "Questions that a model in this process answers at once.")

    def __post_init__(self) -> None:
        check_types(self)
        wrong = unknown(self, {"measure": MEASURES, "preset": tuple(PRESETS)}) + self._unused()
        for name, value in PRESETS.get(self.preset, STRICT).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        wrong += outside(self) + self.scoring.judges_fault(self.judges)
        if (self.source is None) == (self.dataset is None):
            wrong.append("give either source or dataset, which hold the questions")
        if self.is_endpoint and (self.adapter or self.model_revision or self.adapter_revision):
            wrong.append("an endpoint takes no adapter and no revisions; set them where it is served")
        if self.measure == "preference" and (self.dataset is None or self.is_endpoint):
            wrong.append("preference needs a dataset's pairs and a model in this process")
        if self.measure == "visual_reliance" and self.is_endpoint:
            wrong.append("visual_reliance needs a model in this process")
        refuse(wrong)

    def _unused(self) -> list[str]:
        """Return a sentence for each option that would have no effect."""
        given = [name for name in UNUSED.get(self.measure, ()) if getattr(self, name) not in (None, [])]
        if self.measure in UNUSED and self.preset != "strict":
            given.append("preset")
        said = [f"measure {self.measure} does not use {', '.join(given)}"] if given else []
        if self.source is None:
            said += [f"{name} needs source" for name in ("skip_faulty", "official_split") if getattr(self, name)]
        elif self.dataset_revision:
            said.append("dataset_revision needs dataset")
        if self.official_split and self.split is None:
            said.append("official_split needs split")
        if self.adapter_revision and not self.adapter:
            said.append("adapter_revision needs adapter")
        return said

    @property
    def is_endpoint(self) -> bool:
        return names_endpoint(self.model)

    @property
    def model_spec(self) -> ModelSpec:
        """Names of the model in this process and its adapter."""
        return ModelSpec(self.model, self.adapter, self.model_revision, self.adapter_revision)

    @property
    def asked(self) -> Asked:
        return self._part(Asked)

    @property
    def generation(self) -> Generation:
        return self._part(Generation)

    @property
    def scoring(self) -> Scoring:
        return self._part(Scoring)

    def judging(self, run: Run) -> Judging:
        return Judging(self.judges, run.cache, run.limits, self.max_reply_tokens, run.third_parties)

    def _part(self, kind: type[Part]) -> Part:
        """Return the options that are fields of the dataclass `kind`."""
        return kind(**{one.name: getattr(self, one.name) for one in fields(kind)})  # type: ignore[arg-type]

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "source": self.source and str(self.source)}


@dataclass
class Run(Calling, Spread):
    """Output of an evaluation, limits of its endpoint, and its tasks; none of them changes an answer."""

    output: Path = field(metadata={"help": "Folder to write; it must not exist."})
    resume: bool = option(False, "Continue an interrupted run of the same command.")
    accept_unanswered: bool = option(False, "Score and count questions that an endpoint does not answer as ''.")
    cache: Path | None = field(
        default=None, metadata={"help": "Cache of the judges' answers. Default: calls.sqlite beside the output."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()
