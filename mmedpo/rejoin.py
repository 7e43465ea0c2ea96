"""From the published form of credentialed data back to its pairs, on a machine that has the data.

The recorded settings are run again and the rows joined by id with the published weights and scores, which win. What a
machine does not have is not guessed: `rejoin.jsonl` says of each published row what became of it.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from mmedpo import builders, cards, credentialed, hub, schema
from mmedpo.audit import audit
from mmedpo.curation.hallucinate import NO_ANSWER
from mmedpo.curation.localize import Region
from mmedpo.curation.pipeline import curate_folder
from mmedpo.curation.rows import TEXT_PAIR, Given
from mmedpo.curation.settings import Run, Settings
from mmedpo.errors import InputError
from mmedpo.publish import stripped
from mmedpo.samples import Box
from mmedpo.upstream import read_given, write_source
from mmedpo.workdir import SOURCE_FOLDER, output_folder, portable, read_json, versions, write_json

IDENTICAL = "identical"
DIFFERS = "rebuilt by the recipe, differs from the published row"
MISSING = "missing"
NOT_MADE = "the recipe makes no such pair of this source"
FILE = "rejoin.jsonl"
TOOLS = ("detector:", "medklip:")  # localizers that are models


@dataclass(frozen=True)
class Published:
    """The published form: its rows by id, and the manifest with the settings that made them."""

    repo: str
    revision: str | None
    manifest: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Any]]

    @property
    def builder(self) -> ModuleType | None:
        """The builder that read the source; None for a source folder."""
        name = self.manifest["source"].get("builder")
        return name and builders.load(name)

    def defaults(self) -> dict[str, Any]:
        """The recorded settings as options: models that would have to be asked are not, unless somebody names them."""
        recipe = dict(self.manifest["settings"])
        if unknown := recipe.keys() - {option.name for option in fields(Settings)}:
            raise InputError(
                f"{self.repo} was made with settings that this version does not know ({', '.join(sorted(unknown))}); "
                f"use mmedpo {self.manifest['versions'].get('mmedpo')}."
            )
        asked = {"model": None, "chat": _kept(recipe["chat"]), "judges": ["standin:strict"]}  # scores are published
        localizer = "boxes" if recipe["localizer"].startswith(TOOLS) else recipe["localizer"]
        return {**self.manifest["source"].get("options", {}), **recipe, **asked, "localizer": localizer}


def read(repo: str, revision: str | None = None) -> Published:
    """The published form in a dataset repository, or in a folder.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    from huggingface_hub import HfApi, hf_hub_download

    file = Path(repo) / "manifest.json"
    if not Path(repo).exists():
        with hub.in_words(f"{repo} cannot be read", reading=True):
            revision = HfApi().dataset_info(repo, revision=revision).sha
            file = Path(hf_hub_download(repo, "manifest.json", repo_type="dataset", revision=revision))
    manifest, rows = read_json(file), schema.load_split(repo, "train", revision=revision)
    if schema.DIGEST not in rows.column_names or "settings" not in manifest:
        raise InputError(
            f"{repo} is not the published form of credentialed data: it has no column {schema.DIGEST}, or its "
            "manifest.json no settings. A dataset with texts and images is used as it is."
        )
    return Published(repo, revision, manifest, {row["id"]: row for row in rows})


def _kept(chat: str) -> str:
    """The chat model's name, as what a cache holds of its answers; offline rules stay as they are."""
    scheme, _, rest = chat.partition(":")
    if scheme in ("http", "https") or chat.startswith("endpoint#"):
        return f"cache:{chat.partition('#')[2]}"
    return f"cache:{rest.partition('@')[0]}" if scheme in ("hub", "local") else chat


def rejoin(published: Published, settings: Settings, run: Run, options: Any, command: str = "") -> dict[str, Any]:
    """Rebuild the pairs of `published` from `settings.source` into `run.output`, a dataset folder with `rejoin.jsonl`.

    Args:
        settings: `Published.defaults`, and what was named on this machine.
        options: of the builder.

    Returns:
        The manifest; its "rejoined" counts the rows by what became of them.

    Raises:
        InputError: the source is not as its builder knows it, or no row could be rebuilt.
    """
    cache = run.cache or run.output.resolve().parent / "calls.sqlite"
    if settings.chat.startswith("cache:") and not settings.makes_visual_pairs and not cache.exists():
        raise InputError(
            f"There is no cache of calls at {cache}, from which wrong answers could come. Name one with --cache, or "
            f"the models to ask again with --chat (it was {published.manifest['chat_model']}) and --model."
        )
    record = {**settings.record(), **asdict(options), "repo": published.repo, "revision": published.revision}
    record = {key: str(value) if isinstance(value, Path) else value for key, value in record.items()}
    with output_folder(run.output, record, run.resume) as folder:
        given = _read_source(published, settings, options, folder / SOURCE_FOLDER)
        curate_folder(
            settings, folder, command, run.limits, cache, given=_with_published(given, published, settings),
            third_parties=run.send_credentialed_data_to_third_parties,
        )  # fmt: skip
        counts, states = _join(published, folder, settings.shard_size)
        if not counts:
            raise InputError(f"No row of {published.repo} could be rebuilt: {dict(states.most_common())}.")
        shutil.rmtree(folder / SOURCE_FOLDER, ignore_errors=True)
        manifest = {
            **published.manifest, "command": command, "versions": versions(), "counts": dict(counts),
            "rejoined": {"from": portable(published.repo), "revision": published.revision, **states},
        }  # fmt: skip
        write_json(folder / "manifest.json", manifest)
        write_json(folder / "audit.json", audit(str(folder), name=run.output.name))
        cards.write_dataset_card(folder)
    return manifest


def _read_source(published: Published, settings: Settings, options: Any, folder: Path) -> Given:
    """Have the builder write the source to `folder`, which `settings` then name; returns what came with it."""
    if published.builder is None:
        return Given()
    if not settings.source.exists():
        raise InputError(f"The source {settings.source} does not exist; name the folder of the data with --source.")
    items = published.builder.read(settings.source, options)
    write_source(items, builders.name_of(published.builder), folder, settings.skip_faulty, {})
    given, _ = read_given(folder, {})
    if folder.exists():
        settings.source = folder
        (folder / credentialed.MARKER).touch()
    if given.answers:
        settings.chat = "none"
    return given


def _with_published(given: Given, published: Published, settings: Settings) -> Given:
    """What the published rows say, known before: scores, and where a model found lesions that is not asked again."""
    recorded = published.manifest["settings"]["localizer"]
    scores, regions = {}, {}
    for row in published.rows.values():
        sample = row["provenance"]["sample_id"]
        if _kind(row) in (TEXT_PAIR, "reversed_noise"):
            scores[sample] = row["clinical_relevance"]
        if _kind(row) != TEXT_PAIR and recorded.startswith(TOOLS) and settings.localizer == "boxes":
            regions[sample] = _region(row, recorded).record()
    return replace(given, scores={**scores, **given.scores}, regions=regions)


def _kind(row: Mapping[str, Any]) -> str:
    return schema.DISPREFERENCES[row["dispreference"]]


def _region(row: Mapping[str, Any], localizer: str) -> Region:
    """A published row's boxes as its region; where a mask was, they are not enough."""
    made = row["provenance"]
    if made["mask_rule"] is not None:
        return Region(reason=f"its mask is not published: name {localizer.partition(':')[0]}:... with --localizer")
    boxes = tuple(Box(label="", **box) for box in made["boxes"] or [])
    return Region(boxes, confidence=row["clinical_relevance"], coverage=made["mask_coverage"])


def _join(published: Published, folder: Path, shard_size: str) -> tuple[Counter[str], Counter[str]]:
    """Put the published weights and scores into the rows that the recipe made, drop those that are not published, and
    write `rejoin.jsonl`. Returns the rows by kind, and the published rows by what became of them."""
    waiting, found = dict(published.rows), dict[str, str]()
    counts: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        for file in sorted(folder.glob("data/*.parquet")):
            for row in stripped.rows(file):
                if (known := waiting.pop(row["id"], None)) is not None:
                    found[row["id"]] = state = IDENTICAL if stripped.digest(row) == known[schema.DIGEST] else DIFFERS
                    counts[_kind(known)] += 1
                    yield _joined(row, known, state)

    joined = folder / "joined"
    schema.save(rows(), joined, shard_size=shard_size)
    shutil.rmtree(folder / "data")
    (joined / "data").rename(folder / "data")
    joined.rmdir()
    reasons = _reasons(folder / "rejects.jsonl")
    with (folder / FILE).open("w", encoding="utf-8") as lines:
        for id, row in published.rows.items():
            line = {"id": id, "dispreference": _kind(row), "state": found.get(id, MISSING)}
            if id in waiting:
                line["reason"] = reasons.get((row["provenance"]["sample_id"], _kind(row)), NOT_MADE)
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
    states = Counter({IDENTICAL: 0, DIFFERS: 0, MISSING: len(waiting)})
    states.update(found.values())
    return counts, states


def _joined(row: Mapping[str, Any], known: Mapping[str, Any], state: str) -> dict[str, Any]:
    """A rebuilt row with the published weight and scores; who made an identical one is known from there as well."""
    made = dict(row["provenance"])
    if state == IDENTICAL:
        judgements = known["provenance"]["judgements"]
        published = {name: value for name, value in known["provenance"].items() if name not in stripped.PARTS}
        made |= {**published, "judgements": judgements and [{**one, "rationale": None} for one in judgements]}
    return {**row, **{name: known[name] for name in stripped.COLUMNS}, "provenance": made}


def _reasons(rejects: Path) -> dict[tuple[str, str], str]:
    """Why the recipe made no pair, by sample and kind; no text of the data is quoted."""
    found = {}
    for reject in map(json.loads, rejects.read_text(encoding="utf-8").splitlines()):
        detail = f": {reject['detail']}" if reject["reason"] == NO_ANSWER else ""
        found[reject["id"], reject["dispreference"]] = reject["reason"] + detail
    return found
