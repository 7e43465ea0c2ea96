"""Results of a comparison for the Hub: `model-index` of a card and `.eval_results/*.yaml` of a repository."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedpo.errors import InputError
from mmedpo.report.tables import reading
from mmedpo.report.unread import share
from mmedpo.report.wording import (
    amount,
    change,
    counted,
    definitions,
    interval,
    main_run,
    note,
    ordered,
    p_text,
    percent,
    span,
    titled,
    without_texts,
)
from mmedpo.runs.json_files import sha256

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, EvalResultEntry

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def require_results_of(folder: Path, comparison: Mapping[str, Any]) -> None:
    """Raise InputError unless the comparison's last run evaluated the model or adapter in `folder`.

    The digest of the adapter's weights decides if it was recorded, else the name.
    """
    if count := comparison.get("seeds", {}).get(main_run(comparison)):
        raise InputError(
            f"{folder} is one adapter, and the last row of this comparison is a mean over {count} seeds. Compare its "
            "own evaluation, given last, for its card."
        )
    evaluated = evaluation(comparison)
    digest = evaluated.get("adapter_sha256")
    names = [Path(str(evaluated[key])).name for key in ("adapter", "model") if evaluated.get(key)]
    if digest and digest != adapter_sha256(folder):
        raise InputError(
            f"{folder} has other weights than the adapter that the last run evaluated ({', '.join(names)}, sha256 "
            f"{digest[:12]}...). Evaluate it again, or give the evaluated folder."
        )
    if not digest and folder.resolve().name not in names:
        raise InputError(
            f"{folder} is not what the last run evaluated ({', '.join(names) or 'not recorded'}). Give the run of this "
            "adapter last, or the evaluated folder."
        )


def adapter_sha256(folder: Path) -> str | None:
    """Return the SHA-256 of the adapter weights that PEFT loads from a folder; None if there are none."""
    from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME

    files = (folder / name for name in (ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME))
    return next((sha256(file) for file in files if file.exists()), None)


def record(comparison: Mapping[str, Any]) -> str:
    """Return the comparison as JSON without texts of test questions, to keep beside a model."""
    return json.dumps(without_texts(comparison), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def evaluation(comparison: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the record of the evaluation of the comparison's last run."""
    found: Mapping[str, Any] = comparison["evaluations"][main_run(comparison)]
    return found


def model_index(comparison: Mapping[str, Any]) -> list[EvalResult]:
    """Return the last run's values for a model card's header (`ModelCardData(eval_results=...)`)."""
    from huggingface_hub import EvalResult

    tested, run = evaluation(comparison), main_run(comparison)
    dataset, revision = _dataset(tested)
    return [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=tested.get("split"),
            dataset_revision=revision,
            metric_type=name,
            metric_name=titled(name, comparison),
            metric_value=round(comparison["metrics"][name][run]["value"], 6),
            metric_args=_measured(comparison, name),
        )
        for name in ordered(comparison["metrics"])
    ]


def hub_entries(comparison: Mapping[str, Any]) -> list[EvalResultEntry]:
    """Return the last run's values for `.eval_results/*.yaml`; empty if the test questions are not on the Hub.

    The Hub shows them on leaderboards of datasets registered as benchmarks; the metric's name is the task.
    """
    from huggingface_hub import EvalResultEntry

    tested, run = evaluation(comparison), main_run(comparison)
    dataset, revision = _dataset(tested)
    is_folder = tested.get("dataset") and not revision  # datasets on the Hub have a recorded commit
    if is_folder or not HUB_ID.fullmatch(dataset):
        return []
    split = f"split {tested.get('split')}, " if tested.get("split") else ""
    found = []
    for name in ordered(comparison["metrics"]):
        cell, size = comparison["metrics"][name][run], comparison["sizes"][name]
        unread = share(comparison, name, str(run))
        read = f"; {percent(unread)} of the answers could not be read" if unread is not None else ""
        ends = f"95 % interval [{cell['low']:.4f}, {cell['high']:.4f}]"
        notes = f"{split}{counted(size)}; {ends}{read}; {definitions(comparison)}"
        found.append(
            EvalResultEntry(
                dataset_id=dataset,
                dataset_revision=revision,
                task_id=name,
                value=round(cell["value"], 6),
                notes=notes,
            )
        )
    return found


def _dataset(tested: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the evaluated preference dataset and its commit on the Hub, or else the source."""
    if tested.get("dataset"):
        return str(tested["dataset"]), tested.get("dataset_revision")
    return str(tested["source"]), None


def hub_files(comparison: Mapping[str, Any]) -> dict[str, str]:
    """Return path -> text of the `.eval_results` file; empty as `hub_entries`."""
    import yaml
    from huggingface_hub import eval_result_entries_to_yaml

    entries = hub_entries(comparison)
    if not entries:
        return {}
    text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
    return {f".eval_results/{entries[0].dataset_id.replace('/', '_')}.yaml": text}


def card_part(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Return a comparison's part of a card: the test set, tables of strings, and the note below them."""
    base = comparison["baseline"]
    table = [["measure", "measured on", *comparison["runs"]]]
    for metric in ordered(comparison["metrics"]):
        cells = comparison["metrics"][metric]
        found = [_result(metric, cells[run], run == base) for run in comparison["runs"]]
        table.append([titled(metric, comparison), counted(comparison["sizes"][metric]), *found])
    return {
        "tested": evaluation(comparison),
        "main": main_run(comparison),
        "table": table,
        "reading": reading(comparison),
        "note": note(comparison),
    }


def _measured(comparison: Mapping[str, Any], name: str) -> dict[str, Any]:
    cell = comparison["metrics"][name][main_run(comparison)]
    found = {"low": cell["low"], "high": cell["high"], "unread": share(comparison, name, str(main_run(comparison)))}
    numbers = {key: round(value, 6) for key, value in found.items() if value is not None}
    return {**comparison["sizes"][name], **numbers, "definitions": dict(comparison.get("definitions", {}))}


def _result(metric: str, cell: Mapping[str, Any], is_base: bool) -> str:
    sd = f" ± {amount(metric, cell['sd'])}" if "sd" in cell else ""
    value = f"{amount(metric, cell['value'])}{sd} [{span(metric, cell)}]"
    if is_base:
        return value
    changed = f"{change(metric, cell['difference'])} {interval(metric, cell)}"
    return f"{value}; {changed}, {p_text(cell['p_adjusted'])}"
