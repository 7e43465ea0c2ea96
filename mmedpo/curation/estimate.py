"""Cost of a curation before it is paid for: some questions go through all its steps, and what they cost is scaled.

Equal requests are asked once, so calls are scaled to the distinct questions of the source, and work of this machine to
all of them. Without asked questions, offline rules answer in the models' place, and the texts alone are measured.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmedpo.curation import hallucinate, judge_check
from mmedpo.curation.ask import record_models, run_steps
from mmedpo.curation.blocks import Curation, write_blocks
from mmedpo.curation.hallucinate import Writer
from mmedpo.curation.metering import (
    CHARACTERS,
    CHECK,
    COUNTS,
    JUDGE,
    LOCATE,
    REJECT,
    SAMPLE,
    Line,
    Meter,
    model_name,
    offline,
    under_rules,
)
from mmedpo.curation.plan import open_plan, open_source, with_noise_pixels
from mmedpo.curation.ranked import Ranker
from mmedpo.curation.rows import Precomputed
from mmedpo.curation.settings import Run, Settings
from mmedpo.curation.weigh import FACTS, NothingMade, weigh
from mmedpo.curation.write import write
from mmedpo.data import consent
from mmedpo.data.samples import Sample
from mmedpo.data.sources import limited
from mmedpo.data.text import number_of
from mmedpo.errors import InputError
from mmedpo.models.chat.limits import Budget
from mmedpo.runs.json_files import read_object
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.provenance import portable
from mmedpo.runs.run_folder import WEIGHED

log = logging.getLogger(__name__)
MEASURED = 100  # questions whose prompts are measured where none is asked
RESAMPLES = 2000
WRITE = "noise and writing"
ALL = ("all", "")

Range = tuple[float, float, float]  # value, low, high; NaN where unknown
Prices = dict[str, tuple[float, float]]  # by model, of a million tokens in and out


@dataclass(frozen=True)
class Estimate:
    """Cost of a whole curation.

    Attributes:
        questions, distinct: of the whole source; equal ones send equal requests.
        asked: questions that went through the steps; 0 if prompts alone were measured.
        new_calls: calls that the cache could not answer.
        lines: by step and model, and of `ALL`: ranges of `COUNTS`, and of "money" where prices were given.
        local: seconds of this machine by kind of work, without the loading of models.
        rows, size: of the dataset, the size in bytes; 0 where no row was made.
    """

    questions: int
    distinct: int
    asked: int
    new_calls: int
    lines: Mapping[Line, Mapping[str, Range]]
    local: Mapping[str, float] = field(default_factory=dict)
    rows: float = 0
    size: float = 0


def estimate(settings: Settings, run: Run, folder: Path, precomputed: Precomputed | None = None) -> Estimate:
    """Return the cost of a curation by `settings`, from `run.estimate_questions` of its questions (seeded choice).

    Answers go to the cache of `run`, where the curation finds them.

    Args:
        folder: scratch folder.
        precomputed: as for `curate_folder`.

    Raises:
        InputError: as `curate_folder`; a price has another form, or its model is not of this curation.
        Stopped: a budget of `run` is spent.
    """
    precomputed, prices, asked = precomputed or Precomputed(), prices_of(run.price), run.estimate_questions
    if not precomputed.answers:
        settings.refuse_unnamed()
    settings = with_noise_pixels(settings, say=log.warning)
    source = open_source(settings, precomputed.questions, run.calls)
    chosen = limited(source.samples, asked or MEASURED, settings.seed)
    if asked:
        consent.to_endpoints(
            source.name if source.credentialed else None, settings.asked, run.third_parties, len(chosen),
            settings.shows_images, source.marked_by,
        )  # fmt: skip
    meter, budget, made = Meter(), Budget(run.limits), 0
    named = settings if asked else replace(offline(settings), mask_text=False)
    write_blocks(folder, chosen, precomputed, {})
    curation = Curation(
        folder, named, replace(source, samples=[], faults=[]), Precomputed(), run.limits, run.calls,
        run.judges_below_bar, len(chosen), {},
    )  # fmt: skip
    with closing(Ledger(run.calls)) as cache, closing(curation.of_task(0)) as own:
        plan = open_plan(named, curation.source, budget, cache, own.part("used"))
        plan = meter.on(plan if asked else under_rules(plan, settings, chosen))
        if unknown := prices.keys() - meter.concurrency:
            raise InputError(
                f"--price names {', '.join(sorted(unknown))}, which this curation does not pay. Name one of "
                f"{', '.join(meter.concurrency) or 'no model'}."
            )
        if plan.panel and meter.concurrency:
            meter.checking = True
            judge_check.before_run(plan.panel, run.judges_below_bar) if asked else judge_check.check(plan.panel)
            meter.checking = False
        began = time.perf_counter()
        record_models(curation, plan)
        run_steps(curation, plan)
        with suppress(NothingMade):
            weigh(curation)
            write(curation)
            made = sum(read_object(folder / WEIGHED / FACTS)["manifest"]["counts"].values())
        rest = sum(seconds for kind, seconds in meter.seconds.items() if kind != CHECK)
        meter.seconds[WRITE] = time.perf_counter() - began - rest
    units = [_unit(sample, settings, plan.writer) for sample in source.samples]
    asked_units = [_unit(sample, settings, plan.writer) for sample in chosen]
    lines = _lines(meter, chosen, asked_units, Counter(units), settings, prices, bool(asked))
    found = Estimate(len(units), len(set(units)), asked and len(chosen), budget.calls, lines)
    if not asked:
        return found
    share = len(units) / len(chosen)
    size = sum(file.stat().st_size for file in (folder / "data").rglob("*.parquet"))
    local = {kind: share * meter.seconds[kind] for kind in (SAMPLE, LOCATE, WRITE) if meter.seconds[kind]}
    return replace(found, local=local, rows=share * made, size=share * size)


def prices_of(given: Sequence[str]) -> Prices:
    """Return prices of a million tokens, in and out, by model, from texts such as "med-70b=0.5/1.5".

    Raises:
        InputError: a text has another form.
    """
    found: Prices = {}
    for text in given:
        name, _, price = text.rpartition("=")
        try:
            sent, received = map(float, price.split("/"))
        except ValueError:
            sent = received = -1
        if not name or not 0 <= sent < math.inf or not 0 <= received < math.inf:
            raise InputError(
                f"--price {text}: not MODEL=IN/OUT. Give prices of a million tokens, such as med-70b=0.5/1.5."
            )
        found[portable(model_name(name))] = sent, received
    return found


def _unit(sample: Sample, settings: Settings, writer: Writer | Ranker | None) -> Any:
    """Return all of a question that decides its requests; its images only where a model sees it."""
    seen = (settings.show_images or settings.model is not None) and (writer is None or writer.wants(sample))
    return sample.task, sample.question, sample.answer, sample.options, sample.files if seen else None


def _lines(
    meter: Meter, chosen: Sequence[Sample], own: Sequence[Any], sizes: Counter[Any], settings: Settings,
    prices: Prices, asked: bool,
) -> dict[Line, dict[str, Range]]:  # fmt: skip
    """Return what the whole source costs; `own` are the units of `chosen`, `sizes` counts of all units."""
    owners: dict[tuple[str, str], dict[Any, None]] = defaultdict(dict)  # units by what their requests show
    for sample, unit in zip(chosen, own, strict=True):
        owners[sample.question, sample.answer][unit] = owners[sample.prompt, sample.answer][unit] = None
    lines = sorted({call.line for call in meter.calls.values()}, key=lambda line: (line[0] != CHECK, line))
    rounds = settings.rounds if settings.panel == "sequential" and len(settings.scorers) > 1 else 1
    most = {SAMPLE: settings.samples, REJECT: hallucinate.WRITING_ATTEMPTS, JUDGE: rounds, CHECK: rounds}
    shape = (2, len(lines), len(COUNTS))  # fewest and most
    each, fixed = {unit: np.zeros(shape) for unit in own}, np.zeros(shape)
    for call in meter.calls.values():
        place, turns, sent = lines.index(call.line), most[call.line[0]], call.counts[1]
        quoted = 0 if call.line[0] == SAMPLE else (turns - 1) * call.longest  # earlier replies in later prompts
        worst = (turns, turns * sent + quoted, turns * call.longest, math.nan)
        counts = np.array([call.counts, call.counts if asked else worst])
        if call.line[0] == CHECK:
            fixed[:, place] += counts
        else:
            for unit in (units := owners[call.about]):
                each[unit][:, place] += counts / len(units)
    costs, weights = np.stack([each[unit] for unit in own]), np.array([1 / sizes[unit] for unit in own])

    def total(places: np.ndarray) -> np.ndarray:
        scaled: np.ndarray = len(sizes) * np.tensordot(weights[places], costs[places], 1) / weights[places].sum()
        return _with_money(scaled + fixed, lines, meter.concurrency, prices)

    whole, drawn, ends = total(np.arange(len(own))), np.random.default_rng(settings.seed), (0.0, 1.0)
    values, draws = np.full_like(whole[0], math.nan), whole
    if asked:
        values, ends = whole[0], (0.025, 0.975)
        if len(own) < sizes.total():
            draws = np.stack([total(drawn.integers(len(own), size=len(own)))[0] for _ in range(RESAMPLES)])
    low, high = np.quantile(draws, ends, axis=0)
    ranges = np.stack([values, low, high], -1).tolist()
    found = {
        line: dict(zip((*COUNTS, "money"), map(tuple, of), strict=True))
        for line, of in zip([*lines, ALL], ranges, strict=True)
    }
    for line in found:
        if not prices or (line != ALL and line[1] not in prices):
            del found[line]["money"]
    return found


def _with_money(
    counts: np.ndarray, lines: Sequence[Line], concurrency: Mapping[str, int], prices: Prices
) -> np.ndarray:
    """Return counts [2, lines, `COUNTS`] with money behind them, seconds at the concurrency, and a line of sums."""
    price = np.array([prices.get(model, (0, 0)) for _, model in lines]).reshape(-1, 2) / 1e6
    counts[..., 3] /= np.array([concurrency[model] for _, model in lines])
    paid = np.where(price > 0, counts[..., 1:3] * price, 0)
    found = np.concatenate([counts, paid.sum(-1, keepdims=True)], -1)
    return np.concatenate([found, found.sum(-2, keepdims=True)], -2)


def table(found: Estimate) -> list[list[str]]:
    """Return the cost as rows of texts, headings first."""
    money = any("money" in counts for counts in found.lines.values())
    headings = ["step", "model", "calls", "tokens in", "tokens out", "time", *["money"] * money]
    rows = [
        [
            *line, *(_shown(counts[name], "{:,.0f}".format) for name in COUNTS[:3]),
            _shown(counts["seconds"], _duration),
            *[_shown(counts["money"], "{:,.2f}".format) if "money" in counts else "no price"] * money,
        ]
        for line, counts in found.lines.items()
    ]  # fmt: skip
    return [headings, *rows]


def sentences(found: Estimate) -> list[str]:
    """Return what the numbers of the table mean, and the work of this machine."""
    whole = f"{number_of(found.questions, 'questions')}, {found.distinct:,} of them with requests of their own"
    if not found.asked:
        return [
            f"{whole}. No model was asked: prompts of up to {MEASURED} questions are measured, at {CHARACTERS} "
            "characters a token, without images and thoughts. From: one round and short replies. To: all rounds and "
            "repetitions, with the longest replies that their schema allows."
        ]
    said = [
        f"{whole}. {found.asked:,} were asked with {number_of(found.new_calls, 'new calls')}; their answers are in the "
        "cache. Calls of the cache are counted too. Ranges: 95 % bootstrap intervals over the questions asked; what "
        "none of these met is not in them."
    ]
    if found.lines[ALL].get("money") and any("money" not in counts for counts in found.lines.values()):
        said.append("Money is that of the models with a price.")
    if not found.rows:
        return [*said, "None of them made a pair: run the command with --limit to see why."]
    spent = ", ".join(f"{kind} {_duration(seconds)}" for kind, seconds in found.local.items())
    return [
        *said,
        f"This machine: {spent}. Dataset: about {found.rows:,.0f} rows and {found.size / 1e6:,.1f} MB.",
    ]


def _shown(found: Range, as_text: Callable[[float], str]) -> str:
    value, low, high = (None if math.isnan(number) else as_text(number) for number in found)
    if low is None or high is None:
        return value or "unknown"
    if value is None:
        return low if low == high else f"{low} to {high}"
    return value if low == high else f"{value} ({low} to {high})"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"
