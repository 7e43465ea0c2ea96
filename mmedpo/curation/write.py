"""Third phase of a curation: the rows of the weighed pairs, with their images, a file a shard."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from rich.progress import track

from mmedpo.curation import rows
from mmedpo.curation.blocks import Curation, Results, by_step
from mmedpo.curation.weigh import FACTS, Weighed, shard_file
from mmedpo.data import shards
from mmedpo.runs.journal import Journal
from mmedpo.runs.json_files import read_object
from mmedpo.runs.run_folder import WEIGHED

SPLIT = "train"
OPEN = 32  # blocks whose results are open at once


def write(curation: Curation, rank: int = 0, tasks: int = 1) -> None:
    """Write every `tasks`-th shard of the dataset from `rank` on; one that is written already stays.

    Raises:
        InputError: rows break a rule.
    """
    facts = read_object(curation.folder / WEIGHED / FACTS)
    makers, count = _makers(curation, facts["manifest"], facts["several"]), facts["shards"]
    for number in track(range(rank, count, tasks), "Noise and rows", disable=tasks > 1):
        weighed: list[Weighed] = pickle.loads(shard_file(curation, number).read_bytes())
        with closing(_Opened(curation)) as results:
            pairs = ((one.pair, one.weight, results(one.block)) for one in weighed)
            made = rows.dataset_rows(pairs, makers, facts["options"])
            shards.write(made, curation.folder, SPLIT, number, count)


def _makers(curation: Curation, made: Mapping[str, Any], several: bool) -> rows.Makers:
    target = curation.models()["sampled_by"]
    return rows.Makers(
        target, made["target_model"]["revision"], made["localizer"], made["mask_rule"], curation.noise,
        curation.settings.seed, "chosen" in made, several,
    )  # fmt: skip


class _Opened:
    """Results of blocks, the last `OPEN` of which stay open."""

    def __init__(self, curation: Curation) -> None:
        self._curation, self._held = curation, OrderedDict[int, Journal]()

    def __call__(self, number: int) -> Results:
        journal = self._held.setdefault(number, self._curation.journal(number))
        self._held.move_to_end(number)
        if len(self._held) > OPEN:
            self._held.popitem(last=False)[1].close()
        return by_step(journal)

    def close(self) -> None:
        for journal in self._held.values():
            journal.close()
