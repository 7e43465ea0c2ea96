"""Tables of a comparison: rows for a terminal, Markdown, and LaTeX (booktabs)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from mmedpo.report import unread
from mmedpo.report.markup import inline
from mmedpo.report.wording import GROUPINGS, counted, method, note, ordered, p_text, run_name, titled, variant

VALUE = ("value", "low", "high")
DIFFERENCE = ("difference", "difference_low", "difference_high")
LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "−": "$-$", "±": r"$\pm$", "·": r"$\cdot$",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}  # fmt: skip
LATEX_HEAD = (
    "% Needs \\usepackage{booktabs,longtable} and, in pdfLaTeX, \\usepackage[T1]{fontenc}.\n"
    "% Names outside Latin script need LuaLaTeX or XeLaTeX with a font that has them.\n"
)


@dataclass(frozen=True)
class Sheet:
    """Table with its rows, headings first, and the note below it."""

    title: str
    rows: list[list[str]]
    note: str


def rows(comparison: Mapping[str, Any]) -> list[list[str]]:
    """Return the metrics as a table of strings, headings first.

    A row for each metric and run has values with 95 % intervals and corrected p-values.
    """
    return [_headings(comparison), *_once(_by_metric(comparison, comparison["metrics"]), 1)]


def sheets(comparison: Mapping[str, Any]) -> list[Sheet]:
    """Return the main table and one for each grouping."""
    base = run_name(comparison["baseline"])
    sizes = ", ".join(
        f"{titled(name, comparison)} ({counted(size)})" for name, size in comparison.get("sizes", {}).items()
    )
    found = [Sheet(f"Comparison with {base}", rows(comparison), f"{note(comparison)} Measured on: {sizes}.")]
    found += reading(comparison)
    for column, groups in comparison.get("groups", {}).items():
        title = f"Comparison with {base}, by {GROUPINGS.get(column, column)}"
        found.append(Sheet(title, _group_rows(comparison, column, groups), group_note(comparison, column)))
        found += reading(comparison, column)
    return found


def reading(comparison: Mapping[str, Any], column: str | None = None) -> list[Sheet]:
    """Return the tables of how answers were read, of all questions or by group (`unread.tables`)."""
    return [Sheet(title, _once(rows, 1), " ".join(said)) for title, rows, said in unread.tables(comparison, column)]


def group_note(comparison: Mapping[str, Any], column: str) -> str:
    """Return the note of a table of groups."""
    return f"{method(comparison, column)} Groups with few images are not tested."


def markdown(comparison: Mapping[str, Any]) -> str:
    """Return all tables as a Markdown document."""
    return "\n".join(as_markdown(sheet) for sheet in sheets(comparison))


def latex(comparison: Mapping[str, Any]) -> str:
    """Return all tables as LaTeX with names escaped."""
    main, *by_group = sheets(comparison)
    return LATEX_HEAD + "\n".join([as_latex(main, floats=True), *(as_latex(sheet, floats=False) for sheet in by_group)])


def write_tables(comparison: Mapping[str, Any], folder: Path) -> None:
    """Write table.md and table.tex into `folder`."""
    (folder / "table.md").write_text(markdown(comparison), encoding="utf-8")
    (folder / "table.tex").write_text(latex(comparison), encoding="utf-8")


def _headings(comparison: Mapping[str, Any]) -> list[str]:
    base, sd = comparison["baseline"], " ± sd" if comparison.get("seeds") else ""
    return ["metric", "run", f"value{sd} [95 % interval]", f"difference to {base}", "p (Holm)"]


def _by_metric(comparison: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[list[str]]:
    table = []
    for metric in ordered(metrics):
        for run in comparison["runs"]:
            entry = metrics[metric][run]
            p = p_text(entry["p_adjusted"]).removeprefix("p ").removeprefix("= ") if "p_adjusted" in entry else ""
            value, seeds = in_brackets(entry, VALUE), comparison.get("seeds", {}).get(run)
            if "sd" in entry:
                value = value.replace(" ", f" ± {entry['sd']:.3f} ", 1)
            named = f"{run} ({seeds} seeds)" if seeds else run
            table.append([metric + variant(metric, comparison), named, value, in_brackets(entry, DIFFERENCE, "+"), p])
    return table


def _once(table: Sequence[list[str]], columns: int) -> list[list[str]]:
    """Return the table with the first `columns` cells of a row blank where they repeat the row above."""
    shown = []
    for above, row in pairwise([[], *table]):
        same = next((place for place in range(columns) if above[: place + 1] != row[: place + 1]), columns)
        shown.append([""] * same + row[same:])
    return shown


def in_brackets(entry: Mapping[str, Any], keys: Sequence[str], sign: str = "") -> str:
    """Return the numbers of a cell at these keys: "0.712 [0.650, 0.771]"."""
    rounded = [round(entry[key], 3) or 0.0 for key in keys if key in entry]
    numbers = [f"{number:{sign if number else ''}.3f}" for number in rounded]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]" if len(numbers) == 3 else "".join(numbers)


def _group_rows(comparison: Mapping[str, Any], column: str, groups: Mapping[str, Any]) -> list[list[str]]:
    table = []
    for group, found in groups.items():
        shown = f"{group} ({counted(found['n'])})"
        table += [[shown, *row] for row in _by_metric(comparison, found["metrics"])]
    return [[GROUPINGS.get(column, column), *_headings(comparison)], *_once(table, 2)]


def as_markdown(sheet: Sheet) -> str:
    """Return a table as Markdown."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(inline, cells))} |"

    first, *others = sheet.rows
    lines = [f"## {inline(sheet.title)}", "", line(first), "|---" * len(first) + "|", *map(line, others)]
    return "\n".join([*lines, "", inline(sheet.note), ""])


def as_latex(sheet: Sheet, floats: bool) -> str:
    """Return a table as LaTeX, as a float or over pages."""
    first, *others = sheet.rows
    caption, columns = f"\\caption{{{latex_text(sheet.title)}}}", "l" * len(first)
    head = ["\\toprule", f"{' & '.join(map(latex_text, first))} \\\\", "\\midrule"]
    body = [*(f"{' & '.join(map(latex_text, cells))} \\\\" for cells in others), "\\bottomrule"]
    note = f"\\noindent\\parbox{{\\linewidth}}{{\\footnotesize {latex_text(sheet.note)}}}"
    if floats:
        table = [f"\\begin{{tabular}}{{{columns}}}", *head, *body, "\\end{tabular}"]
        lines = ["\\begin{table}", "\\centering\\small", caption, *table, "", "\\smallskip", note, "\\end{table}"]
    else:
        table = [f"\\begin{{longtable}}{{{columns}}}", f"{caption} \\\\", *head, "\\endhead", *body, "\\end{longtable}"]
        lines = ["{\\small", *table, "}", note]
    return "\n".join([*lines, ""])


def latex_text(text: str) -> str:
    """Return text escaped for LaTeX, without control characters and line ends; minus signs of numbers in math mode."""
    words = " ".join("".join(letter for letter in text if letter.isprintable() or letter.isspace()).split())
    escaped = "".join(LATEX.get(letter, letter) for letter in words)
    escaped = re.sub(r"(?<![\w.])([+-])(?=\d)", r"$\1$", escaped)
    return (
        f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped
    )  # a bracket after the end of a row would be its option
