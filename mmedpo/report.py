"""The before/after report: one HTML file that explains itself, opens without a network and fits a phone.

It is made from recorded files alone: a comparison, and where given a dataset folder and training folders.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedpo import credentialed, images, schema
from mmedpo.audit import distributions, page
from mmedpo.cards import logged, notices, shown
from mmedpo.errors import InputError
from mmedpo.schema import message_text
from mmedpo.workdir import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAIRS_SHOWN = 3  # of each kind
PICTURE_SIDE = 512  # pixels; larger images are scaled down
SMALL_SIDE = 128  # pixels; smaller images are enlarged without smoothing
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#9a5b86", "#8a6d00", "#333333")
MARKERS = "osD^vP"
DASHES = ("-", "--", "-.", ":")
RUN_NAMES = {"start": "the starting model", "sft": "SFT", "dpo": "DPO", "mmedpo": "MMedPO"}
METRICS = {  # name: (label, which count of the comparison it was measured on)
    "overall_accuracy": ("All questions: right", ("closed", "open")),
    "closed_accuracy": ("Closed questions: right", ("closed",)),
    "open_exact_match": ("Open questions: exact match", ("open",)),
    "open_recall": ("Open questions: recall of words", ("open",)),
    "open_precision": ("Open questions: precision of words", ("open",)),
    "open_f1": ("Open questions: F1 of words", ("open",)),
    **{f"bleu_{n}": (f"Reports: BLEU-{n}", ("report",)) for n in range(1, 5)},
    "rouge_l": ("Reports: ROUGE-L", ("report",)),
    "meteor": ("Reports: METEOR", ("report",)),
}
CURVES = {
    "loss": "Training loss",
    "rewards/margins": "Reward margin",
    "rewards/accuracies": "Share of pairs ranked right",
}
SILENT = (
    "{} is credentialed data: this page shows no text and no image of it, since pages get passed on. "
    f"`mmedpo compare {credentialed.FLAG}` shows them."
)
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "mmedpo", "text.parse_math": False, "font.size": 10}


def write_report(
    output: Path,
    comparison: Mapping[str, Any],
    dataset: Path | None,
    trainings: Mapping[str, Path],
    commands: Sequence[str] = (),
    notes: Sequence[str] = (),
    quotes: bool = False,
) -> None:
    """Write the report of a comparison as one self-contained HTML file.

    Args:
        output: the file to write.
        comparison: what `comparison.json` holds.
        dataset: the preference dataset's folder; its rows and, where there is one, its `manifest.json` are read.
        trainings: name of a run -> its training folder; `trainer_state.json` and `training.json` are read.
        commands: commands to list; those that the files record where none are given.
        notes: sentences the reader should know, shown at the top.
        quotes: show texts and images of credentialed data too.

    Raises:
        InputError: a training folder without its two files, or a dataset folder that cannot be loaded.
    """
    trained = {name: read_json(folder / "training.json") for name, folder in trainings.items()}
    states = {name: read_json(folder / "trainer_state.json") for name, folder in trainings.items()}
    manifest = read_json(dataset / "manifest.json") if dataset and (dataset / "manifest.json").exists() else {}
    steps = [manifest, *trained.values(), comparison]
    silent = not quotes and (credentialed.first(steps) or (dataset and schema.credentialed_source(dataset)))
    if silent:
        comparison, notes = {**comparison, "examples": []}, [*notes, SILENT.format(silent)]
    html = page(
        "report.html.jinja",
        **{tool.__name__: tool for tool in (percent, points, interval, outcome, heading, run_name, shown)},
        summary=_summary(comparison),
        notices=[*notices(manifest, *trained.values()), *notes],
        comparison=comparison,
        main_run=_main_run(comparison),
        measured=list(_measured(comparison).values()),
        forest=_forest(comparison),
        curves=_curves({name: state.get("log_history", []) for name, state in states.items()}),
        trained=trained,
        manifest=manifest,
        commands=list(commands) or [step["command"] for step in steps if step.get("command")],
        versions=_versions(steps),
        **_dataset_parts(dataset, pairs=not silent),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(html, encoding="utf-8")


def percent(value: float | None) -> str:
    """0.7412 -> "74.1 %"."""
    return "not measured" if value is None else f"{100 * value:.1f} %"


def points(value: float) -> str:
    """A difference of shares in points with its sign: 0.051 -> "+5.1"."""
    return f"{100 * value:+.1f}".replace("-", "−") if value else "0.0"


def interval(cell: Mapping[str, Any]) -> str:
    """The interval of a cell's difference in points: "[+3.0, +7.2]"."""
    return f"[{points(cell['difference_low'])}, {points(cell['difference_high'])}]"


def outcome(cell: Mapping[str, Any]) -> str | None:
    """Is the difference's interval above zero ("better"), below ("worse") or around it ("open")? None without one."""
    if cell.get("difference") is None or cell.get("difference_low") is None or cell.get("difference_high") is None:
        return None
    return "better" if cell["difference_low"] > 0 else "worse" if cell["difference_high"] < 0 else "open"


def run_name(name: str) -> str:
    """How a run is called inside a sentence."""
    return RUN_NAMES.get(name, name)


def heading(name: str) -> str:
    """How a run is called where a sentence or a column begins."""
    return run_name(name)[:1].upper() + run_name(name)[1:]


def _main_run(comparison: Mapping[str, Any]) -> str | None:
    others = [name for name in comparison["runs"] if name != comparison["baseline"]]
    return "mmedpo" if "mmedpo" in others else others[-1] if others else None


def _measured(comparison: Mapping[str, Any]) -> dict[str, tuple[str, int, Mapping[str, Any]]]:
    """Label, sample count and cells by run of each metric, in the order of METRICS."""
    order = [*METRICS, *comparison["metrics"]]
    found = {}
    for name in sorted(comparison["metrics"], key=order.index):
        label, parts = METRICS.get(name, (name.replace("_", " "), ()))
        found[name] = (label, sum(comparison.get("n", {}).get(part, 0) for part in parts), comparison["metrics"][name])
    return found


def _summary(comparison: Mapping[str, Any]) -> list[str]:
    """The result in one sentence, and how far it can be trusted in another."""
    main, base = _main_run(comparison), comparison["baseline"]
    for name, (label, n, cells) in _measured(comparison).items():
        cell = cells.get(main, {}) if main else {}
        if main is None or outcome(cell) is None or cells.get(base, {}).get("value") is None:
            continue
        who, other = heading(main), run_name(base)
        did = f"answers {percent(cell['value'])} of {n:,} held-out questions right"
        if name != "overall_accuracy":
            did = f"reaches {percent(cell['value'])} in “{label}”" + (f" on {n:,} held-out samples" if n else "")
        change = f"{points(cell['difference'])} points {interval(cell)}"
        trust = {
            "better": "The 95 % interval of the difference lies above zero: the choice of test images alone is "
            "unlikely to explain the gain.",
            "worse": f"The 95 % interval of the difference lies below zero: {who} does worse than {other}, and the "
            "choice of test images alone is unlikely to explain it.",
            "open": f"The 95 % interval of the difference includes zero: this test does not show that {who} and "
            f"{other} differ.",
        }
        return [f"{who} {did}, {other} {percent(cells[base]['value'])}: {change}.", trust[outcome(cell) or "open"]]
    return ["Nothing here was measured on both a trained model and the model it is compared with."]


def _svg(draw: Callable[[Axes], None], height: float) -> str:
    """A chart as a data URI; its text stays text, so that the reader's own fonts are used."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(4.8, height), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def _forest(comparison: Mapping[str, Any]) -> str | None:
    """Differences to the baseline with their intervals, one row a metric, one mark a run."""
    runs = [name for name in comparison["runs"] if name != comparison["baseline"]]
    rows = [
        (label, {run: cells[run] for run in runs if outcome(cells.get(run, {}))})
        for label, _, cells in _measured(comparison).values()
    ]
    rows = [(label, cells) for label, cells in rows if cells]
    if not rows:
        return None

    def draw(axes: Axes) -> None:
        axes.axvline(0, color="#555555", linewidth=1)
        for number, run in enumerate(runs):
            at = [
                y + min(0.22, 0.7 / len(runs)) * (number - (len(runs) - 1) / 2)
                for y, (_, cells) in enumerate(rows)
                if run in cells
            ]
            cells = [cells[run] for _, cells in rows if run in cells]
            x = [100 * cell["difference"] for cell in cells]
            low = [100 * (cell["difference"] - cell["difference_low"]) for cell in cells]
            high = [100 * (cell["difference_high"] - cell["difference"]) for cell in cells]
            look: dict[str, Any] = {
                "fmt": MARKERS[number % len(MARKERS)],
                "color": COLOURS[number % len(COLOURS)],
                "markersize": 5,
            }
            axes.errorbar(x, at, xerr=[low, high], label=heading(run), capsize=2, **look)
        axes.set_yticks(range(len(rows)), [label.replace(": ", ":\n") for label, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("points")
        if len(runs) > 1:
            axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=3, frameon=False)

    return _svg(draw, 1.1 + len(rows) * (0.4 + 0.12 * len(runs)))


def _curves(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, str]]:
    """One chart for each logged value that any training has, one line a training."""
    charts = []
    for key, title in CURVES.items():
        lines = {name: logged(history, key) for name, history in histories.items()}
        lines = {name: entries for name, entries in lines.items() if entries}

        def draw(axes: Axes, key: str = key, lines: Mapping[str, Sequence[Mapping[str, Any]]] = lines) -> None:
            for number, (name, entries) in enumerate(lines.items()):
                look: dict[str, Any] = {
                    "color": COLOURS[number % len(COLOURS)],
                    "linestyle": DASHES[number % len(DASHES)],
                }
                steps = [entry.get("step", place) for place, entry in enumerate(entries)]
                axes.plot(steps, [entry[key] for entry in entries], label=heading(name), **look)
            axes.set_xlabel("step")
            axes.legend(frameon=False)

        if lines:
            charts.append({"title": title, "src": _svg(draw, 2.8)})
    return charts


def _dataset_parts(folder: Path | None, pairs: bool = True) -> dict[str, Any]:
    """A few pairs of each kind, unless `pairs` is false, and the weights by kind; empty without a dataset."""
    if folder is None:
        return {"pairs": {}, "weights": None}
    splits = schema.load_splits(str(folder))
    dataset = schema.undecoded(splits.get("train", next(iter(splits.values()))))
    kinds = dataset.features["dispreference"]
    places: dict[str, list[int]] = {name: [] for name in kinds.names}
    for place, kind in enumerate(dataset["dispreference"]):
        places[kinds.int2str(kind)].append(place)
    weights = dataset.select_columns("weight")["weight"][:]
    return {
        "pairs": {name: [_pair(dataset[place]) for place in _spread(found)] for name, found in places.items() if pairs},
        "weights": distributions({name: [weights[place] for place in found] for name, found in places.items()}),
    }


def _spread(places: Sequence[int]) -> list[int]:
    """Up to PAIRS_SHOWN of `places`, evenly spaced, so that nobody chose them."""
    step = max(1, len(places) // PAIRS_SHOWN)
    return list(places[step // 2 :: step][:PAIRS_SHOWN])


def _pair(row: Mapping[str, Any]) -> dict[str, Any]:
    made = row["provenance"]
    hidden = (row["rejected_images"] or [None])[0]
    return {
        **{side: message_text(row[side]) for side in ("prompt", "chosen", "rejected")},
        **{name: row[name] for name in ("id", "weight", "clinical_relevance")},
        "made": made,
        "picture": _picture(row["images"][0], made["boxes"] or []),
        "hidden": _picture(hidden, []) if hidden else None,
    }


def _picture(image: Mapping[str, Any], boxes: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """An image as a data URI of at most PICTURE_SIDE pixels a side, with its boxes; None if it cannot be decoded."""
    try:
        picture = images.open_rgb(image["bytes"] or Path(image["path"]))
    except InputError:
        return None
    width, height = picture.size
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    file = io.BytesIO()
    small = max(width, height) <= SMALL_SIDE
    picture.save(file, format="PNG" if small else "JPEG", quality=85)
    source = f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"src": source, "width": width, "height": height, "small": small, "boxes": boxes}


def _versions(steps: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Each package's version; several where the recorded steps ran with different ones."""
    found: dict[str, dict[str, None]] = {}
    for step in steps:
        for package, version in step.get("versions", {}).items():
            found.setdefault(package, {})[version] = None
    return {package: ", ".join(versions) for package, versions in found.items()}
