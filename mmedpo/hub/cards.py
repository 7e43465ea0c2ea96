"""Dataset and adapter cards for the Hub, filled from recorded files alone.

Facts that only a person knows stay visibly open in the card as "[More information needed: ...]".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from mmedpo.data import burnt_text, credentialed, licenses, origin
from mmedpo.errors import InputError
from mmedpo.hub import results
from mmedpo.report import chosen, curves
from mmedpo.report.markup import closed, code, inline
from mmedpo.report.notices import notices
from mmedpo.report.wording import shown
from mmedpo.runs import formats, packaged
from mmedpo.runs.json_files import read_json

if TYPE_CHECKING:
    from huggingface_hub import CardData
    from jinja2 import Environment, Template

P = ParamSpec("P")
MACHINE_FOLDERS = re.compile(r"(?<![^\s='\"])[/~][^\s'\"]*/(?=[^\s/'\"])")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
GENERATED = ".mmedpo/card.md"  # the card without later edits, to find what a person changed
SAID_OF_DATA = ("source", "counts")  # keys that every manifest has
COMPARISON = "comparison.json"


@dataclass(frozen=True)
class Published:
    """Facts of a published dataset that its card needs.

    Attributes:
        picture: file name of the picture.
        configs, dataset_info: of the card's header; they describe the Parquet files.
        burnt_text: text in the images, as far as it was looked for (docs/files.md).
    """

    repo_id: str
    picture: str
    configs: Sequence[Mapping[str, Any]]
    dataset_info: Mapping[str, Any]
    burnt_text: Mapping[str, Any] | None = None


def _of_records(make: Callable[Concatenate[Path, P], str]) -> Callable[Concatenate[Path, P], str]:
    """Raise an error of the card of `folder` as InputError: a recorded value has another type than mmedpo writes."""

    @wraps(make)
    def made(folder: Path, *args: P.args, **kwargs: P.kwargs) -> str:
        from jinja2 import UndefinedError

        try:
            return make(folder, *args, **kwargs)
        except InputError:
            raise
        except (TypeError, ValueError, AttributeError, LookupError, UndefinedError) as error:
            raise InputError(
                f"The card of {folder} cannot be written, since a recorded value has another type than mmedpo writes "
                f"({error}). Copy or download the folder again."
            ) from error

    return made


@_of_records
def dataset_card(folder: Path, audit: Mapping[str, Any] | None = None, published: Published | None = None) -> str:
    """Return the README.md of a dataset folder, from its `manifest.json` and, if present, `audit.json`.

    Args:
        audit: replaces the recorded one.
        published: for the card on the Hub; None for the folder's own.

    Raises:
        InputError: the manifest is missing or has another format, or a template is missing.
    """
    manifest = _manifest(folder)
    if audit is None and (folder / "audit.json").exists():
        audit = _recorded(folder / "audit.json", "mmedpo.audit/1")
    return _of_dataset("dataset.md.jinja", "MMedPO preference pairs", manifest, published, audit)


@_of_records
def stripped_card(folder: Path, published: Published) -> str:
    """Return the README.md of a restricted dataset's published form, from `manifest.json`; raise as `dataset_card`."""
    return _of_dataset("stripped.md.jinja", "MMedPO weights for preference pairs", _manifest(folder), published)


def _of_dataset(
    template: str, title: str, manifest: Mapping[str, Any], published: Published | None,
    audit: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    rows = sum(manifest["counts"].values())
    return _fill(
        template,
        _dataset_metadata(f"{title} from {manifest['source']['name']}", rows, published),
        manifest=manifest,
        audit=audit,
        rows=rows,
        published=published,
        credentialed=credentialed.first([manifest]),
        licences=licenses.said(manifest["source"]),
        burnt_text=burnt_text.said(manifest.get("burnt_text") or (published.burnt_text if published else None)),
        notices=notices(manifest),
        chosen=chosen.said(manifest["chosen"]) if "chosen" in manifest else [],
    )


def _dataset_metadata(name: str, rows: int, published: Published | None) -> CardData:
    from huggingface_hub import DatasetCardData

    # Cards of folders have no `configs`; with them `datasets` caches by name and loads rows of an older dataset.
    files: Any = {"configs": published.configs, "dataset_info": published.dataset_info} if published else {}
    return DatasetCardData(
        pretty_name=name,
        task_categories=["visual-question-answering", "image-text-to-text"],
        tags=["mmedpo", "preference", "dpo", "medical", "trl"],
        size_categories=[next((name for limit, name in SIZES if rows < limit), "n>1M")],
        **files,
    )


def write_dataset_card(folder: Path) -> None:
    """Write README.md (and `GENERATED`) into a dataset folder; raises as `dataset_card`."""
    _write(folder, dataset_card(folder))


def write_adapter_card(folder: Path) -> None:
    """Write README.md, `GENERATED` and, if steps were logged, curves.png into a training folder.

    Raises:
        InputError: as `adapter_card`.
    """
    curves.draw(read_json(folder / "trainer_state.json").get("log_history", []), folder / curves.PICTURE)
    _write(folder, adapter_card(folder))


def _write(folder: Path, card: str) -> None:
    (folder / GENERATED).parent.mkdir(exist_ok=True)
    for name in ("README.md", GENERATED):
        (folder / name).write_text(card, encoding="utf-8")


def results_files(folder: Path, comparison: Mapping[str, Any]) -> dict[str, str]:
    """Return the files that a comparison changes in the training folder of its last run: path -> text.

    They are the card with results and `model-index`, the comparison without texts of test questions, and, if those are
    a dataset on the Hub, `.eval_results/*.yaml`. Nothing is written.

    Raises:
        InputError: as `adapter_card`, or the last run did not evaluate the model in `folder`.
    """
    results.require_results_of(folder, comparison)
    card = adapter_card(folder, comparison)
    return {"README.md": card, COMPARISON: results.record(comparison), **results.hub_files(comparison)}


@_of_records
def adapter_card(folder: Path, comparison: Mapping[str, Any] | None = None) -> str:
    """Return the README.md of a training folder, from its `training.json` and `trainer_state.json`.

    Args:
        comparison: its results; by default those of the folder's `comparison.json`, if present.

    Raises:
        InputError: a file is missing or of another format; a template is missing.
    """
    if comparison is None and (folder / COMPARISON).exists():
        comparison = _recorded(folder / COMPARISON, formats.COMPARISON)
    training = _recorded(folder / "training.json", "mmedpo.training/1", "model", "dataset", "config")
    history = read_json(folder / "trainer_state.json").get("log_history", [])
    base, datasets = hub_id(training["model"], training.get("model_is_local")), origin.trained_datasets(training)
    name = folder.resolve().name.removesuffix(".partial")
    return _fill(
        "adapter.md.jinja",
        _adapter_metadata(training, base, datasets, name, comparison),
        training=training,
        name=name,
        **(results.card_part(comparison) if comparison else {}),
        objective=_objective(training),
        taught="the gold answers of a source" if "gold_answer" in (training.get("rows") or {}) else "preference pairs",
        base=base,
        datasets=[{**one, "terms": licenses.terms(one["manifest"])} for one in datasets],
        is_adapter=_is_adapter(training),
        curves=curves.summaries(history),
        picture=curves.PICTURE if (folder / curves.PICTURE).exists() else None,
        credentialed=credentialed.first([training]),
        notices=notices(training, *(one["manifest"] or {} for one in datasets)),
    )


def _adapter_metadata(
    training: Mapping[str, Any], base: str | None, data: list[Any], name: str, comparison: Mapping[str, Any] | None
) -> CardData:
    from huggingface_hub import ModelCardData

    is_adapter = _is_adapter(training)
    return ModelCardData(
        base_model=base,
        base_model_relation="adapter" if is_adapter and base else None,
        datasets=[id for one in data if (id := hub_id(one["name"], one["is_local"]))] or None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["mmedpo", "dpo", "preference", "medical", "trl"],
        model_name=name if comparison else None,
        eval_results=results.model_index(comparison) if comparison else None,
    )


def _is_adapter(training: Mapping[str, Any]) -> bool:
    return bool(training["lora"].get("use_peft") or training.get("adapter")) if "lora" in training else True


def _objective(training: Mapping[str, Any]) -> str:
    losses = training["config"].get("loss_type") or ["sigmoid"]
    losses = [losses] if isinstance(losses, str) else losses
    others = [name for name in losses if name != "sft"]
    if losses == ["sft"]:
        return "by supervised learning on the chosen sides alone, without a preference loss"
    if not training["config"].get("weighted", True):
        said = "with plain DPO, its weights switched off (the control arm of an MMedPO run)"
    elif training.get("weights", {}).get("sd") == 0:
        said = "with MMedPO's objective, but all weights are equal: it is plain DPO times a constant"
    else:
        said = "with the clinically weighted objective of MMedPO"
    said += f" (loss {' + '.join(others)})" if others != ["sigmoid"] else ""
    return said + (", plus the likelihood of the preferred answers" if "sft" in losses else "")


def hub_id(name: Any, is_local: bool | None = None) -> str | None:
    """Return `name` if it can be a Hub id (owner/name), else None.

    Args:
        is_local: `name` was a folder when used; None checks whether it is one now.
    """
    text = str(name["name"]) if isinstance(name, Mapping) else str(name)
    local = Path(text).exists() if is_local is None else is_local
    return text if results.HUB_ID.fullmatch(text) and not local else None


def _manifest(folder: Path) -> Any:
    origin.dataset_manifest(str(folder), None)  # checks its types
    return _recorded(folder / "manifest.json", "mmedpo.manifest/1", *SAID_OF_DATA)


def _recorded(path: Path, kind: str, *keys: str) -> Any:
    """Return a recorded JSON object of the format `kind` with these keys; raise InputError otherwise."""
    record = read_json(path)
    found = record.get("format") if isinstance(record, dict) else None
    if found != kind:
        raise InputError(f"{path} has the format {found!r}; this version reads {kind!r}. Run the step again.")
    if missing := [key for key in keys if key not in record]:
        raise InputError(f"{path} has no entry {', '.join(missing)}. Run the step again.")
    return record


def cell(value: Any) -> str:
    """Return a recorded value as text for a Markdown table cell or line."""
    return inline(shown(value))


def _code(value: Any) -> str:
    """Return a recorded value as text for a code span."""
    return code(shown(value))


def _command(text: Any) -> str:
    """Return a recorded command as a line of a code block, without folders of this machine."""
    line = closed(" ".join(str(text).replace("```", "'''").split()))
    return MACHINE_FOLDERS.sub("…/", line)


def _number(value: Any, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else "not recorded"


def _share(value: Any) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, (int, float)) else "not recorded"


def check_template(name: str) -> None:
    """Raise InputError if the template "dataset" or "adapter" cannot be read; called before long work."""
    _template(f"{name}.md.jinja")


def _fill(template: str, metadata: CardData, **context: Any) -> str:
    return _template(template).render(metadata=closed(metadata.to_yaml()), **context).rstrip("\n") + "\n"


def _template(name: str) -> Template:
    from jinja2 import TemplateError

    folder = packaged.folder("model_cards")
    try:
        return _environment(folder).get_template(name)
    except (TemplateError, OSError) as error:
        raise InputError(
            f"{folder / name}: the card's template cannot be read ({error}). Install mmedpo again."
        ) from error


@cache
def _environment(folder: Path) -> Environment:
    """Return an environment that compiles each template of a folder once, and again where its file changed."""
    from jinja2 import ChainableUndefined, Environment, FileSystemLoader

    class NotRecorded(ChainableUndefined):
        def __str__(self) -> str:
            return "not recorded"

    env = Environment(
        loader=FileSystemLoader(folder),
        undefined=NotRecorded,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    env.filters.update(cell=cell, code=_code, quoted=json.dumps, command=_command, number=_number, share=_share)
    return env
