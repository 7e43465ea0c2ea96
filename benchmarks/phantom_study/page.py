"""Tables, picture and page of the study, from its JSON."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

from mmedpo.report.tables import Sheet, as_markdown
from phantom_study.analysis import DOSE, OUTCOMES

SHOWN = ("accuracy", "accuracy_critical", "bleu_1", "visual_reliance", "preferred")  # differences, where there are any


def write(found: dict[str, Any], folder: Path, part: str) -> None:
    """Write PART.md and PART.html of the results of a part, and dose_response.png of the main one."""
    tables, shown = [arms(found), everything(found)], ""
    if part == "main":
        tables.insert(0, primary(found))
        (folder / "dose_response.png").write_bytes(picture(found))
        source = base64.b64encode((folder / "dose_response.png").read_bytes()).decode()
        alt = "Gain of weighting over plain DPO by the judge's rank correlation with the truth"
        shown = f'<img alt="{alt}" src="data:image/png;base64,{source}">{dose(found)}'
    (folder / f"{part}.md").write_text("\n".join(map(as_markdown, tables)), encoding="utf-8")
    (folder / f"{part}.html").write_text(
        "<!doctype html><html lang=en><meta charset=utf-8><title>When does clinical weighting help?</title>"
        "<style>body{font:15px system-ui;margin:2rem auto;max-width:75rem;padding:0 1rem}"
        "table{border-collapse:collapse}td,th{padding:.25rem .6rem;border-bottom:1px solid #ccc;text-align:left}"
        "td{font-variant-numeric:tabular-nums;white-space:nowrap}"
        ".wide{overflow-x:auto}img{max-width:100%}</style><h1>When does clinical weighting help?</h1>"
        "<p>Phantoms and a model of half a million weights; nothing clinical. Method: docs/study.md.</p>"
        f"{shown}{''.join(map(as_html, tables))}</html>\n",
        encoding="utf-8",
    )


def points(known: dict[str, float]) -> str:
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * known[key] for key in ("mean", "low", "high")))


def primary(found: dict[str, Any]) -> Sheet:
    """Return the comparisons of the primary family, in points of importance-weighted accuracy."""
    same = {(row["arm"], row["control"]): row for row in found["primary_at_one_rate"]}
    lines = []
    for row in found["primary"]:
        pair = row["arm"], row["control"]
        rates = ", ".join(f"{found['arms'][name]['rate']:g}" for name in pair)
        starts = ", ".join(f"{100 * mean:+.1f}" for mean in row["by_start"].values())
        again = points(same[pair]) if pair in same and same[pair]["worlds"] == row["worlds"] else "not there yet"
        p = f"{row['p_holm']:.3f}" if "p_holm" in row else "once all are there"
        lines.append([*pair, str(row["worlds"]), rates, points(row), f"{row['p']:.3f}", p, starts, again])
    heading = ["arm", "against", "worlds", "rates", "difference [95 %]", "p", "p (Holm)", "by starting model"]
    note = "Points of importance-weighted accuracy."
    return Sheet("Primary family", [[*heading, "both at the rate of none"], *lines], note)


def arms(found: dict[str, Any]) -> Sheet:
    """Return each arm's main outcomes and differences to its control, at its own rate and at one rate."""
    lines = []
    for name, entry in found["arms"].items():
        cells = [name, entry.get("control", ""), f"{entry['worlds']}", f"{entry['rate']:g}" if "rate" in entry else ""]
        agreement = entry.get("agreement", {}).get("text")
        cells.append("" if agreement is None else f"{agreement:.2f}")
        known = entry["weighted_accuracy"]
        cells.append(f"{100 * known['mean']:.1f}" + ("" if known["sd"] is None else f" ± {100 * known['sd']:.1f}"))
        cells += [points(known[key]) if key in known else "" for key in ("to_control", "to_control_at_one_rate")]
        for outcome in SHOWN:
            known = entry[outcome]
            change = known.get("to_control_at_one_rate") or known.get("to_control")
            cells.append(f"{100 * known['mean']:.1f}" if change is None else points(change))
        lines.append(cells)
    heading = ["arm", "control", "worlds", "rate", "judge's rank correlation", "importance-weighted accuracy"]
    heading += ["to control", "at one rate", *(OUTCOMES[name][0] for name in SHOWN)]
    note = (
        "Per cent, and points to the control. One rate is that of none, for dpo arms of dpo none; the last columns are "
        "at it, where an arm was trained at it."
    )
    return Sheet("Arms", [heading, *lines], note)


def everything(found: dict[str, Any]) -> Sheet:
    """Return the means of all outcomes."""
    lines = []
    for name, entry in found["arms"].items():
        cells = [name]
        for outcome, (_, factor) in OUTCOMES.items():
            digits = 1 if factor == 100 else 3
            cells.append(f"{factor * entry[outcome]['mean']:.{digits}f}" if outcome in entry else "")
        lines.append(cells)
    heading = ["arm", *(heading for heading, _ in OUTCOMES.values())]
    return Sheet("All outcomes", [heading, *lines], "Means over worlds, each arm at its own rate.")


def dose(found: dict[str, Any]) -> str:
    """Return what the lines of the picture say."""
    said = []
    rates = {"dose_at_one_rate": "all at the rate of none", "dose": "each at its own rate"}
    for key, method in [(rate, method) for rate in rates for method in found[rate]]:
        line = found[key][method]
        if not line:
            continue
        end = "no break-even is read, since the slope is not shown to be above 0"
        if known := line.get("break_even"):
            inside = 0 <= known["mean"] <= 1
            place = f"{known['mean']:.2f} [{known['low']:.2f}, {known['high']:.2f}]" if inside else "outside 0 to 1"
            end = f"break-even at a rank correlation of {place}"
        change = f"{points(line['slope'])} points from shuffled to oracle"
        said.append(f"<p><b>{method}</b>, {rates[key]}: {change}; {end}.</p>")
    return "".join(said)


def picture(found: dict[str, Any]) -> bytes:
    """Return the dose-response picture: gain over plain DPO by the judge's rank correlation with the truth."""
    from matplotlib.figure import Figure

    from mmedpo.data.plots import PALETTE, saved

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    labels = {"rescale": "rescale: weights 0.75 to 1.25", "strong": "strong: weights 0 to 2"}
    panels = {"dose_at_one_rate": "all at the learning rate of plain DPO", "dose": "each arm at its own learning rate"}
    for axes, (key, title) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        axes.axhline(0, color="#7a7a7a", linewidth=1)
        for place, (method, label) in enumerate(labels.items()):
            if not (line := found[key].get(method)):
                continue
            for number, (judge, known) in enumerate(line["gains"].items()):
                x = known["agreement"] + (place - 0.5) * 0.03
                bars = [[100 * (known["mean"] - known["low"])], [100 * (known["high"] - known["mean"])]]
                form = {"fmt": "o" if judge in DOSE else "s", "capsize": 3, "label": "" if number else label}
                axes.errorbar(x, 100 * known["mean"], bars, color=PALETTE[place], **form)
                if not place:
                    axes.annotate(judge, (x, 1.01), xycoords=("data", "axes fraction"), rotation=60, fontsize="small")
            ends = [100 * (line["at_0"]["mean"] + line["slope"]["mean"] * x) for x in (0, 1)]
            axes.plot([0, 1], ends, color=PALETTE[place], linewidth=1, alpha=0.6)
        axes.set(xlabel="judge's rank correlation with the truth", xlim=(-1.15, 1.15))
        axes.set_title(title, y=1.17, fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("gain over plain DPO, points")
    if figure.axes[0].get_legend_handles_labels()[0]:
        figure.axes[0].legend(frameon=False, loc="lower left")
    return saved(figure, dpi=110)


def as_html(sheet: Sheet) -> str:
    heading, *lines = sheet.rows
    head = "".join(f"<th>{html.escape(cell)}" for cell in heading)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in line) for line in lines)
    table = f"<div class=wide><table><tr>{head}{body}</table></div>"
    return f"<h2>{html.escape(sheet.title)}</h2>{table}<p>{html.escape(sheet.note)}</p>"
