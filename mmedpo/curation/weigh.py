"""Second phase of a curation: pairs from the results of the steps, their weights, and which file gets which rows."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TextIO

from mmedpo import schema
from mmedpo.curation import (
    balance,
    corrected,
    hallucinate,
    judge_check,
    masking,
    ranked,
    relevance,
    rows,
    sampling,
    text_pairs,
    weights,
)
from mmedpo.curation.blocks import Curation
from mmedpo.curation.localize import read_regions
from mmedpo.curation.noiser import noised_shares
from mmedpo.curation.row_sizes import row_sizes
from mmedpo.data import shards
from mmedpo.data.text import number_of
from mmedpo.errors import InputError
from mmedpo.models.chat.cache import tally
from mmedpo.runs.formats import STANDIN
from mmedpo.runs.json_files import read_object, write_json
from mmedpo.runs.provenance import portable
from mmedpo.runs.run_folder import WEIGHED
from mmedpo.runs.writable import write_whole

FACTS = "facts.json"  # in WEIGHED: part of the manifest; written last
FAULTY_ROW = "faulty row of the source"
ONLY_TEXT = "the image shows text alone, which is masked"
# What a step does, for messages; rejects without a step are rows of the source.
DOING = {
    "dispute": "choosing rejected responses", "judge": "judging relevance", "locate": "locating lesions",
    "": "reading the source",
}  # fmt: skip
EXAMPLES = 3
PROMPTS = {
    "select": hallucinate.SELECT, "opposed": hallucinate.OPPOSED, "inject": hallucinate.INJECT,
    "flip": hallucinate.FLIP, "option": hallucinate.PICK, "judge": relevance.JUDGE,
}  # fmt: skip

ON_POLICY = {"ranked": ranked.RANKED, "correct": corrected.CORRECT}


class NothingMade(InputError):
    """Raised by a finished run that made no row."""


class Weighed(NamedTuple):
    """A future row: its pair, the block of its sample, and its weight."""

    pair: rows.Pair
    block: int
    weight: float


@dataclass
class Rejects:
    """Counts of rejects by reason, by task and reason, and by step and reason; the first one of each reason."""

    by_reason: Counter[str] = field(default_factory=Counter)
    by_task: dict[str, Counter[str]] = field(default_factory=dict)
    by_step: dict[str, Counter[str]] = field(default_factory=dict)
    first: dict[str, list[rows.Reject]] = field(default_factory=dict)

    def add(self, reject: rows.Reject) -> None:
        self.by_reason[reject.reason] += 1
        self.by_step.setdefault(reject.step, Counter())[reject.reason] += 1
        if reject.task:
            self.by_task.setdefault(reject.task, Counter())[reject.reason] += 1
        known = self.first.setdefault(reject.reason, [])
        if len(known) < EXAMPLES:
            known.append(reject)

    def examples(self) -> list[rows.Reject]:
        """Return `EXAMPLES` rejects, of different reasons as far as there are, the commonest first."""
        found = [self.first[reason] for reason, _ in self.by_reason.most_common()]
        turns = (known[turn] for turn in range(EXAMPLES) for known in found if turn < len(known))
        return list(islice(turns, EXAMPLES))


def weigh(curation: Curation, rank: int = 0, tasks: int = 1) -> None:
    """Pair up the results of all blocks, weigh the pairs, and write them by shard, `rejects.jsonl` and `FACTS`.

    Nothing is done where it is done already and no result was added since.

    Raises:
        NothingMade: every pair was rejected.
    """
    folder, state = curation.folder / WEIGHED, curation.state()
    if (folder / FACTS).exists() and read_object(folder / FACTS)["state"] == state:
        return
    for earlier in (folder, curation.folder / "data"):  # rows of other pairs
        shutil.rmtree(earlier, ignore_errors=True)
    folder.mkdir()
    rejects, file = Rejects(), curation.folder / "rejects.jsonl"
    settings = curation.settings
    with file.open("w", encoding="utf-8") as lines:
        pairs = _by_image(_accepted(_paired(curation), lines, rejects))
        if settings.balance == "answer":
            pairs = list(_accepted(balance.thin(pairs, settings.seed), lines, rejects))
        if settings.healthy_noise:
            located = dict(curation.items("locate"))
            pairs = list(_accepted(balance.with_controls(pairs, located, settings.seed), lines, rejects))
    if not pairs:
        raise NothingMade(_all_rejected_message(curation, rejects, file))
    found, normalization = weights.normalize(
        [pair.relevance for pair, _ in pairs], settings.weights, [pair.dispreference for pair, _ in pairs],
        settings.weights_over,
    )  # fmt: skip
    weighed = [Weighed(*pair, float(weight)) for pair, weight in zip(pairs, found, strict=True)]
    count = 0
    for count, rows_of_shard in enumerate(_in_shards(curation, weighed), 1):
        write_whole(shard_file(curation, count - 1), pickle.dumps(rows_of_shard))
    facts = _facts(curation, [pair for pair, _ in pairs], rejects, normalization)
    columns = {
        "options": any(pair.sample.options for pair, _ in pairs),
        "several": any(len(pair.sample.images) > 1 for pair, _ in pairs),
    }  # fmt: skip
    write_json(folder / FACTS, {"state": state, "shards": count, **columns, "manifest": facts})


def shard_file(curation: Curation, number: int) -> Path:
    return curation.folder / WEIGHED / f"{number:05d}.pickle"


def _in_shards(curation: Curation, weighed: Sequence[Weighed]) -> Iterator[Sequence[Weighed]]:
    """Yield the rows of each file."""
    if found := shards.repeats(lambda: (one.pair.id for one in weighed)):
        raise InputError(f"{number_of(len(found), 'ids')} of rows are repeated; change ids or source names:", found)
    visual = {one.pair.sample.id for one in weighed if one.pair.dispreference != rows.TEXT_PAIR}
    located = {id: region for id, region in curation.items("locate") if id in visual}
    sizes = row_sizes([one.pair for one in weighed], located, curation.noise, curation.settings.seed)
    rest = iter(weighed)
    for length in shards.cut(sizes, curation.settings.shard_size):
        yield [*islice(rest, length)]


def _paired(curation: Curation) -> Iterator[tuple[tuple[rows.Pair, int] | None, rows.Reject | None]]:
    """Yield each pair with the block of its sample, and the rejects."""
    faulty = (rows.Reject(fault.row, "", FAULTY_ROW, str(fault)) for fault in curation.source.faults)
    for reject in chain(curation.precomputed.rejects, faulty):
        yield None, reject
    least, symmetric = curation.settings.min_relevance, curation.settings.symmetric
    for number in range(curation.blocks):
        samples = curation.samples(number)
        with curation.results(number) as results:
            seen = curation.masked(samples, results)
            left = {one.id for one in samples} - {one.id for one in seen}
            for one in samples:
                if one.id in left:
                    yield None, rows.Reject(one.id, "", ONLY_TEXT, "", one.task)
            for pair, rejected in rows.pair_up(seen, results, curation.noise, least, symmetric):
                yield (pair, number) if pair else None, rejected


def _by_image(pairs: Iterable[tuple[rows.Pair, int]]) -> list[tuple[rows.Pair, int]]:
    """Return pairs about one image side by side, images in the order of their first pairs."""
    places: dict[str, int] = {}
    return sorted(pairs, key=lambda pair: places.setdefault(pair[0].sample.image_digest, len(places)))


def _accepted(
    made: Iterable[tuple[tuple[rows.Pair, int] | None, rows.Reject | None]], lines: TextIO, rejects: Rejects
) -> Iterator[tuple[rows.Pair, int]]:
    """Yield the pairs, write the rejects and count them."""
    for pair, reject in made:
        if pair is not None:
            yield pair
        if reject is not None:
            rejects.add(reject)
            lines.write(json.dumps(asdict(reject), ensure_ascii=False) + "\n")


def _facts(
    curation: Curation, pairs: Sequence[rows.Pair], rejects: Rejects, normalization: weights.Normalization
) -> dict[str, Any]:
    """Return the part of a manifest about who made and scored the rows, and how many."""
    settings, models = curation.settings, curation.models()
    target, spent = models["target_model"], tally(curation.used())
    judged = relevance.notes(curation.values("judge")) if models["judges"] else []
    record = normalization.record()
    sampled = sampling.notes(curation.values("sample")) if target["name"] else []
    record["notes"] += [*sampled, *judge_check.notes(models["judge_check"]), *judged]
    candidates = sampling.counted(curation.values("sample")) if target["name"] else None
    return {
        "target_model": {
            **{name: value for name, value in target.items() if name not in ("standin", "client")},
            **({"served": spent.get(target["client"], {}).get("served", [])} if "client" in target else {}),
        },
        **({"candidates": candidates} if candidates else {}),
        **({"selected": _selected(curation.values("dispute"))} if candidates and not settings.ranks else {}),
        **({"chosen": _chosen(curation, pairs)} if settings.on_policy else {}),
        **{name: models[name] for name in ("chat_model", "judges", "panel")},
        **({"judge_check": models["judge_check"]} if models["judge_check"] else {}),
        **{name: models[name] for name in ("localizer", "query", "mask_rule")},
        "noise": curation.noise and curation.noise.record(), "style": settings.style,
        "prompt_versions": {**PROMPTS, **(ON_POLICY if settings.on_policy else {})},
        "calls": {portable(name): found for name, found in spent.items()},
        "counts": dict(Counter(pair.dispreference for pair in pairs)),
        **({"controls": sum(pair.healthy is not None for pair in pairs)} if settings.healthy_noise else {}),
        "rejects": dict(rejects.by_reason.most_common()),
        "rejects_by_task": {
            task: dict(rejects.by_task[task].most_common()) for task in schema.TASKS if task in rejects.by_task
        },
        "standins": _standins(curation, pairs, models), "weights": record,
        "mask_coverage": _coverage(curation, pairs, models["max_coverage"]),
        **({"burnt_text": _burnt_text(curation, pairs)} if settings.mask_text else {}),
    }  # fmt: skip


def _all_rejected_message(curation: Curation, rejects: Rejects, file: Path) -> str:
    """Return the message of a run without a pair, by step; examples of restricted data are left out."""
    steps = [
        f"{DOING[step]} lost {found.total()} ({', '.join(f'{reason}: {n}' for reason, n in found.most_common())})"
        for step, found in rejects.by_step.items()
    ]
    shown = [] if curation.source.credentialed else rejects.examples()
    said = "; ".join(f"{one.id}: {one.detail[:160] or one.reason}" for one in shown)
    examples = f" Examples: {said}." if said else ""
    return (
        f"Every pair of {curation.source.name} was rejected: {'; '.join(steps)}.{examples} All are in {file}; correct "
        "what they list."
    )


def _selected(disputed: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return how often the chat model answered which candidate is wrong, found none, or needed not be asked."""
    found = Counter[str]()
    for value in disputed:
        none, version = bool(value.get("none_chosen")), value.get("prompt_version")
        found["none"] += none
        found["answered"] += none or version == hallucinate.SELECT
        found["not_asked"] += version == hallucinate.OPPOSED
    return {name: found[name] for name in ("answered", "none", "not_asked")}


def _chosen(curation: Curation, pairs: Sequence[rows.Pair]) -> dict[str, Any]:
    """Return how the chosen sides of text pairs were made, and who made them."""
    settings = curation.settings
    made = {pair.sample.id for pair in pairs if pair.dispreference == rows.TEXT_PAIR}
    sides = (value["chosen"] for id, value in curation.items("dispute") if id in made and value.get("chosen"))
    ranked_by = {"metric": settings.ranks, "min_gap": settings.min_gap, "length_ratio": settings.length_ratio}
    how = ranked_by if settings.ranks else {"max_changed": settings.max_changed}
    return {**how, **text_pairs.chosen_sides(sides)}


def _standins(curation: Curation, pairs: Sequence[rows.Pair], models: Mapping[str, Any]) -> list[str]:
    kinds = {pair.dispreference for pair in pairs}
    worded = {pair.sample.id for pair in pairs if pair.dispreference in (rows.TEXT_PAIR, schema.REVERSED[0])}
    makers = {value["made_by"] for id, value in curation.items("dispute") if id in worded}
    names: list[str] = []
    if text_pairs.TARGET_MODEL in makers:
        names.append(models["target_model"].get("standin", ""))
    if models["chat_model"] and makers - {hallucinate.FLIPPED}:
        names.append(models["chat_model"])
    if rows.TEXT_PAIR in kinds:
        names += models["judges"]
    if kinds - {rows.TEXT_PAIR}:
        names.append(models["localizer"])
    return [name for name in names if name.startswith(STANDIN)]


def _burnt_text(curation: Curation, pairs: Sequence[rows.Pair]) -> dict[str, Any]:
    used = {pair.sample.id for pair in pairs}
    samples = (one for number in range(curation.blocks) for one in curation.samples(number))
    found = dict(curation.items("mask"))
    return masking.record((one, found[one.id]) for one in samples if one.id in used)


def _coverage(curation: Curation, pairs: Sequence[rows.Pair], bound: float) -> dict[str, float] | None:
    visual = {pair.sample.id: len(pair.sample.images) for pair in pairs if pair.dispreference != rows.TEXT_PAIR}
    if not visual or curation.noise is None:
        return None
    located = (read_regions(found, visual[id]) for id, found in curation.items("locate") if id in visual)
    shares = [share for regions in located for share in noised_shares(curation.noise, regions)]
    return {"mean": fmean(shares), "max": max(shares), "bound": bound}
