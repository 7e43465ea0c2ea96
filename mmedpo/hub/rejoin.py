"""Rebuild the pairs of a restricted dataset from its published form, on a machine that has the data.

The recorded settings run again. Rows are joined by id with the published weights and scores, which take precedence.
Missing rows are not guessed: `rejoin.jsonl` records the state of each published row.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from mmedpo import schema
from mmedpo.curation.hallucinate import NO_ANSWER
from mmedpo.curation.localize import NOT_FOUND, Region, regions_record
from mmedpo.curation.rows import TEXT_PAIR, Precomputed
from mmedpo.curation.run import of_models
from mmedpo.curation.settings import Run, Settings
from mmedpo.curation.weigh import NothingMade
from mmedpo.data import credentialed, hub, loading, shards
from mmedpo.data.samples import Box
from mmedpo.errors import InputError
from mmedpo.hub import builders, cards
from mmedpo.hub.build import make_dataset, recorded_options
from mmedpo.hub.publish import stripped
from mmedpo.hub.publish.files import File
from mmedpo.report.notices import standins
from mmedpo.runs.json_files import read_json
from mmedpo.runs.provenance import portable
from mmedpo.runs.run_folder import SOURCE_FOLDER, output_folder

IDENTICAL = "identical"
DIFFERS = "rebuilt by the recipe, differs from the published row"
MISSING = "missing"
NOT_MADE = "the recipe makes no such pair of this source"
FILE = "rejoin.jsonl"
SHOWN_IDS = 3
EVERY_PIXEL = 2**31 - 1  # older versions drew noise for each pixel
MAKERS = ("target_model", "chat_model", "judges", "panel", "localizer", "calls", "versions")  # keys of a manifest


@dataclass(frozen=True)
class Published:
    """The published form: its rows by id, and the manifest with the settings that made them."""

    repo: str
    revision: str | None
    manifest: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Any]]

    @cached_property
    def builder(self) -> ModuleType | None:
        """The builder that read the source; None for a source folder."""
        name = self.manifest["source"].get("builder")
        return name and builders.load(name)

    def defaults(self) -> dict[str, Any]:
        """Return the recorded settings as options, without models that would have to be called."""
        recipe = dict(self.manifest["settings"])
        if unknown := recipe.keys() - {option.name for option in fields(Settings)}:
            raise InputError(
                f"{self.repo} was made with settings that this version does not know ({', '.join(sorted(unknown))}). "
                f"Use mmedpo {self.manifest['versions'].get('mmedpo')}."
            )
        for place in ("source", "image_folders"):
            recipe.pop(place, None)
        recipe.setdefault("noise_pixels", EVERY_PIXEL)
        recipe.setdefault("noise_per", "row")  # as in older versions
        brings = self.builder and self.builder.HAS_PAIRS
        asked = {
            "model": None, "chat": None if brings else _kept(recipe["chat"]), "judges": [] if brings else ["none"],
            "weights": "none",  # scores and weights are published
        }  # fmt: skip
        localizer = "boxes" if recipe["localizer"].startswith(stripped.TOOLS) else recipe["localizer"]
        # The manifest is untrusted: take no run option and no path from it.
        own = {option.name for option in fields(self.options) if "Path" not in str(option.type)}
        chosen = {name: str(value) for name, value in self.manifest["source"].get("options", {}).items() if name in own}
        return {**chosen, **recipe, **asked, "localizer": localizer}

    @property
    def options(self) -> Any:
        """The dataclass of the builder's own options."""
        return builders.options_of(self.builder) if self.builder else builders.Options


def read(repo: str, revision: str | None = None) -> Published:
    """Return the published form in a dataset repository or folder.

    Raises:
        InputError: it cannot be read, or is no published form.
    """
    from huggingface_hub import hf_hub_download

    file = Path(repo) / "manifest.json"
    if not Path(repo).exists():
        with hub.in_words(f"{repo} cannot be read", reading=True):
            revision = hub.commit_of(repo, revision)
            file = Path(hf_hub_download(repo, "manifest.json", repo_type="dataset", revision=revision))
    manifest, rows = read_json(file), loading.load_split(repo, "train", revision=revision)
    if schema.DIGEST not in rows.column_names or "settings" not in manifest:
        raise InputError(
            f"{repo} is not the published form of restricted data: it has no column {schema.DIGEST}, or its "
            "manifest.json no settings. A dataset with texts and images needs no rejoin."
        )
    published = Published(repo, revision, manifest, {row["id"]: row for row in rows})
    try:
        published.defaults()
        standins(manifest)
        json.dumps(manifest, allow_nan=False)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # the manifest may be from anybody
        raise InputError(
            f"{repo}: its manifest.json differs from what `mmedpo publish` writes ({type(error).__name__}: {error}). "
            "Ask its owner to publish it again."
        ) from None
    return published


def _kept(chat: str) -> str:
    """Return the chat model's name in the form `cache:...`; stand-ins are unchanged."""
    scheme, _, rest = chat.strip().partition(":")
    if scheme.lower() in ("http", "https") or chat.startswith("endpoint#"):
        return f"cache:{chat.partition('#')[2]}"
    return f"cache:{rest.partition('@')[0]}" if scheme.lower() in ("hub", "local") else chat


def rejoin(published: Published, settings: Settings, run: Run, options: Any, command: str = "") -> dict[str, Any]:
    """Rebuild the pairs of `published` from `settings.source` into `run.output`, a dataset folder with `rejoin.jsonl`.

    Args:
        settings: `Published.defaults`, overridden by this machine's options.
        options: of the builder.

    Returns:
        The manifest; its "rejoined" counts the rows by state.

    Raises:
        InputError: the source does not have its builder's layout, or no row could be rebuilt.
    """
    cards.check_template("dataset")
    settings.credentialed = True  # the published form exists for restricted data only
    if (settings.chat or "").startswith("cache:") and not settings.makes_visual_pairs and not run.calls.exists():
        raise InputError(
            f"{run.calls}: there is no cache of calls to take rejected responses from. Name one with --cache, or the "
            f"models to call again with --chat (it was {published.manifest['chat_model']}) and --model."
        )
    record = recorded_options(settings, options, repo=published.repo, revision=published.revision)
    models = of_models(settings) if run.resume else None  # else computed after the source is read
    with output_folder(run.output, record, run.resume, contents=models) as folder:
        precomputed, about = _read_source(published, settings, options, folder)
        precomputed = _with_published(precomputed, published, settings)

        def join(made: dict[str, Any]) -> dict[str, Any]:
            counts, states = _join(published, folder, settings.shard_size)
            shutil.rmtree(folder / SOURCE_FOLDER, ignore_errors=True)
            return _manifest(made, published, precomputed, counts, states)

        try:
            manifest = make_dataset(
                settings, run, folder, command, models=models, precomputed=precomputed,
                about_source={**about, "credentialed": True}, complete=join,
            )  # fmt: skip
        except NothingMade:
            shutil.rmtree(folder)
            raise
    return manifest


def _manifest(
    made: Mapping[str, Any], published: Published, precomputed: Precomputed, counts: Counter[str], states: Counter[str]
) -> dict[str, Any]:
    """Return the manifest of this machine's run with the published facts in place of precomputed ones.

    These are judges, weights and, if precomputed, localizer and chat model. "rejoined" names the makers of the
    published rows.
    """
    before = published.manifest
    kept = ["judges", "panel", "weights", *(["judge_check"] if "judge_check" in before else [])]
    kept += ["localizer", "query"] if precomputed.regions else []
    kept += ["chat_model", "style", "prompt_versions"] if precomputed.answers else []
    settings = {name: before["settings"][name] for name in kept if name in before["settings"]}
    return {
        **made, **{name: before.get(name) for name in kept}, "settings": {**made["settings"], **settings},
        "standins": standins(before, made), "counts": dict(counts),
        "rejoined": {
            "from": portable(published.repo), "revision": published.revision,
            "made_by": {name: before.get(name) for name in MAKERS}, **states,
        },
    }  # fmt: skip


def _read_source(
    published: Published, settings: Settings, options: Any, folder: Path
) -> tuple[Precomputed, dict[str, Any]]:
    """Let the builder read the source; return precomputed results and facts for the manifest."""
    if published.builder is None:
        return Precomputed(), {}
    upstream = builders.open_upstream(published.builder, settings.source)
    return builders.read_upstream(published.builder, upstream, settings, options, folder)


def _with_published(precomputed: Precomputed, published: Published, settings: Settings) -> Precomputed:
    """Add the published rows' sample ids and scores to `precomputed`.

    Regions are added too, if a model found them that is not called again.
    """
    recorded = published.manifest["settings"]["localizer"]
    scores, regions, questions = {}, {}, set()
    for row in published.rows.values():
        sample = row["provenance"]["sample_id"]
        questions.add(sample)
        if _kind(row) in (TEXT_PAIR, "reversed_noise") and row["clinical_relevance"] is not None:
            scores[sample] = row["clinical_relevance"]
        if _kind(row) != TEXT_PAIR and recorded.startswith(stripped.TOOLS) and settings.localizer == "boxes":
            regions[sample] = _regions(row, recorded)
    return replace(precomputed, scores={**scores, **precomputed.scores}, regions=regions, questions=sorted(questions))


def _kind(row: Mapping[str, Any]) -> str:
    return schema.DISPREFERENCES[row["dispreference"]]


def _regions(row: Mapping[str, Any], localizer: str) -> dict[str, Any]:
    """Return a published row's boxes as the record of its regions; if a mask was used, they do not suffice."""
    made = row["provenance"]
    if made["mask_rule"] is not None:
        reason = f"its mask is not published: name {localizer.partition(':')[0]}:... with --localizer"
        return Region(reason=reason).record()
    boxes = [Box(label="", **box) for box in made["boxes"] or []]
    places = made.get("box_images") or [0] * len(boxes)
    found = [
        Region(
            tuple(box for box, number in zip(boxes, places, strict=True) if number == place),
            confidence=row["clinical_relevance"], coverage=made["mask_coverage"],
        )
        for place in range(max(places, default=0) + 1)
    ]  # fmt: skip
    return regions_record([one if one.boxes else replace(one, reason=NOT_FOUND) for one in found])


def _join(published: Published, folder: Path, shard_size: str) -> tuple[Counter[str], Counter[str]]:
    """Put published weights and scores into the rebuilt rows, drop unpublished rows and write `rejoin.jsonl`.

    Returns:
        Rows by kind, and published rows by state.

    Raises:
        NothingMade: no rebuilt row is published.
    """
    waiting, found = dict(published.rows), dict[str, str]()
    counts: Counter[str] = Counter()
    made: list[str] = []

    def rows() -> Iterator[dict[str, Any]]:
        for file in sorted(folder.glob("data/*.parquet")):
            for row in File(file).rows():
                made.append(row["id"])
                if (known := waiting.pop(row["id"], None)) is not None:
                    found[row["id"]] = state = IDENTICAL if stripped.digest(row) == known[schema.DIGEST] else DIFFERS
                    counts[_kind(known)] += 1
                    yield _joined(row, known, state)

    joined = folder / "joined"
    shards.save(rows(), joined, shard_size=shard_size)
    shutil.rmtree(folder / "data")
    (joined / "data").rename(folder / "data")
    joined.rmdir()
    reasons = _reasons(folder / "rejects.jsonl")
    missing = Counter(reasons.get((row["provenance"]["sample_id"], _kind(row)), NOT_MADE) for row in waiting.values())
    if not found:
        reason, count = missing.most_common(1)[0]
        raise NothingMade(
            f"No row of {published.repo} could be rebuilt from this source. All {len(waiting)} are missing, {count} of "
            f"them because: {reason}. Published ids: {_some(waiting)}; ids made here: {_some(made)}. Check that it is "
            "the same data in the same layout."
        )
    with (folder / FILE).open("w", encoding="utf-8") as lines:
        for id, row in published.rows.items():
            line = {"id": id, "dispreference": _kind(row), "state": found.get(id, MISSING)}
            if id in waiting:
                line["reason"] = reasons.get((row["provenance"]["sample_id"], _kind(row)), NOT_MADE)
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
    states = Counter({IDENTICAL: 0, DIFFERS: 0, MISSING: len(waiting)})
    states.update(found.values())
    return counts, states


def _some(ids: Collection[str]) -> str:
    more = ", ..." if len(ids) > SHOWN_IDS else ""
    return ", ".join(list(ids)[:SHOWN_IDS]) + more


def _joined(row: Mapping[str, Any], known: Mapping[str, Any], state: str) -> dict[str, Any]:
    """Return a rebuilt row with the published weight and score; an identical one gets the provenance too."""
    made = dict(row["provenance"])
    if state == IDENTICAL:
        kept, judgements = {*stripped.PARTS, *schema.SEVERAL}, known["provenance"]["judgements"]
        published = {name: value for name, value in known["provenance"].items() if name not in kept}
        made |= {**published, "judgements": judgements and [{**one, "rationale": None} for one in judgements]}
    columns = {name: known[name] for name in stripped.COLUMNS}
    return {**row, **columns, "license": credentialed.marked(known["license"]), "provenance": made}


def _reasons(rejects: Path) -> dict[tuple[str, str], str]:
    """Return the reasons for missing pairs, by sample and kind; texts of the data are not quoted."""
    found = {}
    for reject in map(json.loads, rejects.read_text(encoding="utf-8").splitlines()):
        detail = f": {reject['detail']}" if reject["reason"] == NO_ANSWER else ""
        found[reject["id"], reject["dispreference"]] = reject["reason"] + detail
    return found
