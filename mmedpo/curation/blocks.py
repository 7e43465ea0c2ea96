"""`Curation`: one curation as its tasks get it, and its working folder, which is all that they share.

`blocks/00012.pickle` has the samples of a block, `results/00012.journal` what the steps found for them,
`calls/00003.journal` the calls of a task, and `weighed/00001.pickle` the pairs of a shard of the dataset.
"""

from __future__ import annotations

import hashlib
import pickle
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmedpo.curation import masking
from mmedpo.curation.noise import Noise
from mmedpo.curation.plan import Plan, noise_of, open_plan
from mmedpo.curation.rows import Precomputed
from mmedpo.curation.settings import Settings
from mmedpo.data.samples import Sample
from mmedpo.data.sources import Source
from mmedpo.models.chat.limits import Budget, Limits
from mmedpo.runs.journal import Journal, Part
from mmedpo.runs.json_files import read_object, sha256
from mmedpo.runs.ledger import Ledger, Overlay
from mmedpo.runs.run_folder import BLOCKS, CALLS, MASKED, RESULTS
from mmedpo.runs.writable import write_whole

BLOCK = 256  # samples that a task takes and a step records at a time
STEPS = ("mask", "sample", "dispute", "locate", "judge")
MODELS = "models.json"  # in BLOCKS: facts about the opened models, for the manifest
LAYOUT = "layout"  # in BLOCKS: digest of the ids of RESULTS, in their order
COPY = "cache.sqlite"  # in CALLS: the cache of calls as tasks on other machines read it
OLD, NEW = "results.old", "results.new"

Results = Mapping[str, Part]  # of a block, by step
Group = Mapping[str, "Parts"]  # of several blocks, by step


@dataclass(frozen=True)
class Curation:
    """A curation with its samples in blocks on disk. Its functions may be called in any process that sees the files.

    Attributes:
        folder: working folder.
        source: without its samples.
        precomputed: without what belongs to samples, which is in the blocks.
        limits: of all tasks together.
        cache: file of answered calls, shared with other runs.
        below_bar: "stop" or "go" (`judge_check.before_run`).
        questions: number of samples.
        facts: of the manifest, known before the steps.
        one_machine: all tasks run on one, and so may write to one cache of calls.
    """

    folder: Path
    settings: Settings
    source: Source
    precomputed: Precomputed
    limits: Limits
    cache: Path
    below_bar: str
    questions: int
    facts: Mapping[str, Any]
    one_machine: bool = True

    @property
    def noise(self) -> Noise | None:
        """Noise of the visual pairs; None where none are made."""
        return noise_of(self.settings) if self.settings.makes_visual_pairs else None

    @property
    def blocks(self) -> int:
        return -(-self.questions // BLOCK)

    def size(self, number: int) -> int:
        """Return the number of samples of a block."""
        return min(BLOCK, self.questions - number * BLOCK)

    @contextmanager
    def opened(self, rank: int, tasks: int) -> Iterator[Plan]:
        """Yield the plan with its models, for one of `tasks` tasks."""
        with ExitStack() as stack:
            own = stack.enter_context(closing(self.of_task(rank)))
            file = self.cache if self.one_machine else self.folder / CALLS / COPY
            cache = stack.enter_context(closing(Ledger(file, frozen=not self.one_machine)))
            calls = cache if self.one_machine else Overlay(own.part("calls"), cache)
            yield open_plan(self.settings, self.source, Budget(self.limits.share(tasks)), calls, own.part("used"))

    def of_task(self, rank: int) -> Journal:
        """Return the journal of a task, of its calls; only that task may write to it."""
        return Journal(self.folder / CALLS / f"{rank:05d}.journal")

    def keep_calls(self) -> None:
        """Move the answers that tasks on other machines got to the cache of calls."""
        for file in sorted((self.folder / CALLS).glob("*.journal")):
            with closing(Journal(file)) as journal, closing(Ledger(self.cache)) as cache:
                part = journal.part("calls")
                keys = list(part)
                for start in range(0, len(keys), BLOCK):
                    cache.update({key: part[key] for key in keys[start : start + BLOCK]})
                part.drop(keys)

    def copy_calls(self) -> None:
        """Give tasks on other machines a copy of the cache of calls, since other runs may write to it meanwhile."""
        copy = self.folder / CALLS / COPY
        copy.unlink(missing_ok=True)
        copy.parent.mkdir(exist_ok=True)
        if self.cache.exists():
            with closing(Ledger(self.cache)) as cache:
                cache.copy(copy)

    def used(self) -> Iterator[dict[str, Any]]:
        """Yield what was spent on each answered request of the run, once."""
        seen = set()
        for file in sorted((self.folder / CALLS).glob("*.journal")):
            with closing(Journal(file)) as journal:
                part = journal.part("used")
                for key in part:
                    if key not in seen:
                        seen.add(key)
                        yield part[key]

    def samples(self, number: int) -> Sequence[Sample]:
        """Return the samples of a block, as in the source."""
        with _block_file(self.folder, number).open("rb") as file:
            pickle.load(file)  # what is precomputed
            found: Sequence[Sample] = pickle.load(file)
        return found

    def journal(self, number: int) -> Journal:
        """Return the journal of a block; only the task of the block may write to it."""
        return Journal(_results_file(self.folder, number))

    @contextmanager
    def results(self, number: int) -> Iterator[Results]:
        """Yield the results of a block by step."""
        with closing(self.journal(number)) as journal:
            yield by_step(journal)

    @contextmanager
    def group(self, numbers: Sequence[int]) -> Iterator[tuple[list[Sample], Group]]:
        """Yield the samples of several blocks, and the results of these blocks as those of one."""
        with ExitStack() as stack:
            samples: list[Sample] = []
            own: dict[str, Results] = {}
            for number in numbers:
                block, results = self.samples(number), stack.enter_context(self.results(number))
                samples += block
                own |= dict.fromkeys((one.id for one in block), results)
            yield samples, {step: Parts(own, step) for step in STEPS}

    def begin(self, number: int) -> None:
        """Prepare the results of a block: failures of an earlier start are forgotten, precomputed ones recorded."""
        with _block_file(self.folder, number).open("rb") as file:
            precomputed: Precomputed = pickle.load(file)
        with closing(self.journal(number)) as journal:
            journal.forget()
            parts = by_step(journal)
            parts["dispute"].update(precomputed.answers)
            parts["judge"].update({id: {"score": score} for id, score in precomputed.scores.items()})
            parts["locate"].update(precomputed.regions)

    def items(self, step: str) -> Iterator[tuple[str, Any]]:
        """Yield sample ids and what a step found, over all blocks in order."""
        for number in range(self.blocks):
            with self.results(number) as results:
                yield from ((id, results[step][id]) for id in results[step])

    def values(self, step: str) -> Iterator[Any]:
        return (value for _, value in self.items(step))

    def masked(self, samples: Sequence[Sample], results: Results | Group) -> list[Sample]:
        """Return the samples as all steps see them: text burnt into images is black, images of text alone are gone."""
        if not self.settings.mask_text:
            return list(samples)
        folder = self.folder / MASKED
        return [seen for one in samples if (seen := masking.masked(one, results["mask"][one.id], folder))]

    def models(self) -> dict[str, Any]:
        """Return the facts about the opened models that `ask` recorded."""
        return read_object(self.folder / BLOCKS / MODELS)

    def state(self) -> str:
        """Return a digest of the samples and of all results."""
        files = (file(self.folder, number) for number in range(self.blocks) for file in (_block_file, _results_file))
        return hashlib.sha256("".join(sha256(file) for file in files if file.exists()).encode()).hexdigest()


class Parts:
    """A step's results of several blocks, each in the journal of its block; methods as `Part`."""

    def __init__(self, own: Mapping[str, Results], step: str) -> None:
        self._own, self.step = own, step

    def __contains__(self, id: str) -> bool:
        return id in self._own[id][self.step]

    def __getitem__(self, id: str) -> Any:
        return self._own[id][self.step][id]

    def get(self, id: str) -> Any:
        return self._own[id][self.step].get(id)

    def update(self, values: Mapping[str, Any], keep: bool = True) -> None:
        by_block: dict[Part, dict[str, Any]] = {}
        for id, value in values.items():
            by_block.setdefault(self._own[id][self.step], {})[id] = value
        for part, those in by_block.items():
            part.update(those, keep)


def write_blocks(
    folder: Path, samples: Sequence[Sample], precomputed: Precomputed, gone: Mapping[str, Collection[str]]
) -> None:
    """Write the samples in blocks. Results of an earlier start go with their samples.

    Args:
        gone: ids, by step, of results that no longer count.
    """
    blocks = [samples[start : start + BLOCK] for start in range(0, len(samples), BLOCK)]
    layout = hashlib.sha256(repr([one.id for one in samples]).encode()).hexdigest()
    known = folder / BLOCKS / LAYOUT
    if (folder / OLD).exists() and not (folder / RESULTS).exists():
        (folder / OLD).rename(folder / RESULTS)  # after a kill between two renames
    if (folder / RESULTS).exists() and (any(gone.values()) or not known.exists() or known.read_text() != layout):
        _regroup(folder, blocks, gone)
    (folder / BLOCKS).mkdir(exist_ok=True)
    for number, block in enumerate(blocks):
        parts = precomputed.of(one.id for one in block), block
        write_whole(_block_file(folder, number), b"".join(map(pickle.dumps, parts)))
    write_whole(known, layout.encode())


def _regroup(folder: Path, blocks: Sequence[Sequence[Sample]], gone: Mapping[str, Collection[str]]) -> None:
    """Give each block the results of its samples, wherever they were; those in `gone` are left out."""
    place = {sample.id: number for number, block in enumerate(blocks) for sample in block}
    for left in (folder / OLD, folder / NEW):
        shutil.rmtree(left, ignore_errors=True)
    for file in sorted((folder / RESULTS).glob("*.journal")):
        with closing(Journal(file)) as before:
            before.forget()
            for step, found in by_step(before).items():
                kept: dict[int, dict[str, Any]] = {}
                for id in found:
                    if id in place and id not in gone.get(step, ()):
                        kept.setdefault(place[id], {})[id] = found[id]
                for number, values in kept.items():
                    with closing(Journal(folder / NEW / _results_file(folder, number).name)) as after:
                        after.part(step).update(values)
    (folder / NEW).mkdir(exist_ok=True)
    (folder / RESULTS).rename(folder / OLD)
    (folder / NEW).rename(folder / RESULTS)
    shutil.rmtree(folder / OLD)


def by_step(journal: Journal) -> Results:
    """Return the parts of a block's journal."""
    return {step: journal.part(step) for step in STEPS}


def _block_file(folder: Path, number: int) -> Path:
    return folder / BLOCKS / f"{number:05d}.pickle"


def _results_file(folder: Path, number: int) -> Path:
    return folder / RESULTS / f"{number:05d}.journal"
