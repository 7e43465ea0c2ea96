"""Report page of a comparison: one self-contained HTML file that opens offline and fits a phone.

It is made of recorded files only: a comparison and optionally a dataset, training folders, test images and attention
pictures.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmedpo.data import consent, credentialed, origin
from mmedpo.report import charts, pictures, unread, wording
from mmedpo.report.audit import page
from mmedpo.report.notices import notices
from mmedpo.report.tables import group_note, reading, rows, write_tables
from mmedpo.runs import options
from mmedpo.runs.json_files import read_json

__all__ = ["reading", "rows", "write_report", "write_tables"]

SCRIPT = Path(__file__).parent / "templates" / "report.js"
TOOLS = (
    *(wording.amount, wording.change, wording.counted, wording.heading, wording.interval, wording.label),
    *(wording.ordered, wording.outcome, wording.percent, wording.run_name, wording.span, wording.titled),
    *(wording.verdict, wording.shown),
)
OUTCOMES = {  # of an example: (short, in words)
    "gained": ("▲ gained", "wrong before, right now"),
    "lost": ("▼ lost", "right before, wrong now"),
    "higher": ("▲ higher", "a higher score than before"),
    "lower": ("▼ lower", "a lower score than before"),
    "both_wrong": ("✗ both wrong", "wrong before and now"),
    "both_right": ("✓ both right", "right before and now"),
    "equal": ("○ equal", "the same score"),
}
NAMES = {name: short for name, (short, _) in OUTCOMES.items()} | {
    "closed_vqa": "closed question", "open_vqa": "open question", "report": "report",
    "choice_vqa": "multiple choice",
}  # fmt: skip
FILTERS = {"outcome": "What changed", "task": "Task", "question_type": "Kind of question", "organ": "Organ",
           "modality": "Modality"}  # fmt: skip

SILENT = (
    f"{{}} is restricted data: this page shows no text and no image of it. `mmedpo compare {options.FLAG}` shows them."
)


def write_report(
    output: Path,
    comparison: Mapping[str, Any],
    dataset: str | None,
    trainings: Mapping[str, Path],
    commands: Sequence[str] = (),
    notes: Sequence[str] = (),
    images: Mapping[str, Sequence[Path]] | None = None,
    attention: Path | None = None,
    quotes: bool = False,
) -> dict[str, Any]:
    """Write the report of a comparison as one self-contained HTML file.

    Args:
        output: file to write.
        comparison: content of `comparison.json`.
        dataset: preference dataset, a folder or Hub id; its rows and, in a folder, its `manifest.json` are read.
        trainings: name of a run -> its training folder; `trainer_state.json` and `training.json` are read.
        commands: commands to list; by default those that the files record.
        notes: sentences shown at the top.
        images: question id -> image files, shown beside the first examples.
        attention: folder with `attention.json` and its pictures.
        quotes: show texts and images of restricted data too.

    Returns:
        Record of the restricted data that the page shows; empty where it shows none.

    Raises:
        InputError: a training folder without its two files, a dataset that cannot be loaded, images of other
            questions, or an attention folder that cannot be shown.
    """
    trained = {name: read_json(folder / "training.json") for name, folder in trainings.items()}
    states = {name: read_json(folder / "trainer_state.json") for name, folder in trainings.items()}
    manifest = origin.dataset_manifest(dataset, None) if dataset and Path(dataset).exists() else {}
    trained_on = [one["manifest"] or {} for training in trained.values() for one in origin.trained_datasets(training)]
    evaluations = comparison.get("evaluations", {})
    steps = [manifest, *trained.values(), *evaluations.values(), comparison]
    looked = pictures.attention(attention, [*evaluations.values()])
    source, sent = _credentialed(steps, dataset, attention), dict[str, Any]()
    silent = None if quotes else source
    if source and quotes:
        sent = consent.record(
            [output.name], questions=len(comparison.get("examples", ())), images=bool(images or looked)
        )
        consent.announce(source, [output.name], "texts and images of examples")
    if silent:
        comparison, images, notes = wording.without_texts(comparison), {}, [*notes, SILENT.format(silent)]
        evaluations, looked = comparison["evaluations"], looked and {**looked, "samples": []}
    script = SCRIPT.read_text(encoding="utf-8")
    html = page(
        "report.html.jinja",
        **{tool.__name__: tool for tool in (*TOOLS, named)},
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        summary=wording.summary(comparison),
        notices=[
            *notices(manifest, *trained.values(), *trained_on, *evaluations.values()),
            *_seen(comparison),
            *notes,
            *unread.warnings(comparison),
            *(f"{said}." for said in comparison.get("templates", ())),
        ],
        comparison=comparison,
        main_run=wording.main_run(comparison),
        note=wording.note(comparison),
        reading=unread.tables(comparison),
        styled=unread.styled(comparison),
        groups=_groups(comparison),
        forests=charts.forests(comparison),
        spreads=charts.distributions(comparison),
        outcomes=OUTCOMES,
        filters=_filters(comparison.get("examples", ())),
        thumbnails=pictures.thumbnails(comparison.get("examples", ()), images or {}),
        attention=looked,
        curves=charts.curves({name: state.get("log_history", []) for name, state in states.items()}),
        trained=trained,
        manifest=manifest,
        evaluations=evaluations,
        commands=list(commands) or list(dict.fromkeys(step["command"] for step in steps if step.get("command"))),
        versions=_versions(steps),
        **pictures.dataset_parts(dataset, pairs=not silent),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(html, encoding="utf-8")
    return sent


def _credentialed(steps: Sequence[Mapping[str, Any]], dataset: str | None, attention: Path | None) -> str | None:
    """Return the first restricted source of the page's content, or None."""
    recorded = [*steps, *([read_json(attention / "attention.json")] if attention else [])]
    return credentialed.first(recorded) or (origin.credentialed_source(dataset) if dataset else None)


def named(value: str) -> str:
    """Return the page's name of a recorded value."""
    return NAMES.get(value, value)


def _seen(comparison: Mapping[str, Any]) -> list[str]:
    """Return a warning where the training data holds test images or patients."""
    found = comparison.get("seen_in_training") or {}
    if not found.get("images") and not found.get("patients"):
        return []
    return [f"{wording.seen(comparison)} Results on images that were seen say little about new ones."]


def _groups(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one block for each grouping: title, note, and rows by metric and group."""
    blocks = []
    for column, groups in comparison.get("groups", {}).items():
        names = wording.ordered({name: None for found in groups.values() for name in found["metrics"]})
        tables = {
            name: [(group, found["sizes"][name], found["metrics"][name], unread.styled(found))
                   for group, found in groups.items() if name in found["metrics"]]
            for name in names
        }  # fmt: skip
        blocks.append(
            {
                "title": wording.GROUPINGS.get(column, column),
                "note": group_note(comparison, column),
                "tables": tables,
                "reading": unread.tables(comparison, column),
            }
        )
    return blocks


def _filters(examples: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, list[tuple[str, int]]]]:
    """Return (column, label, [(value, count)]) of each column in which the examples differ."""
    found = []
    for column, title in FILTERS.items():
        counts: dict[str, int] = {}
        for example in examples:
            if example.get(column):
                counts[example[column]] = counts.get(example[column], 0) + 1
        if len(counts) > 1:
            found.append((column, title, list(counts.items())))
    return found


def _versions(steps: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return each package's version; several where the recorded steps differ."""
    found: dict[str, dict[str, None]] = {}
    for step in steps:
        for package, version in step.get("versions", {}).items():
            found.setdefault(package, {})[version] = None
    return {package: ", ".join(versions) for package, versions in found.items()}
