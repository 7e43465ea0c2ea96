"""Shared code of the commands: the application, options, parsing of recipes, printed results."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from mmedpo.data import credentialed, safe_paths
from mmedpo.runs import options
from mmedpo.runs.options import INT32, SEEDS
from mmedpo.runs.terminal import Screen, plain

app = typer.Typer(
    help="Preference training of medical vision-language models: curate pairs, train, evaluate, publish.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"token_normalize_func": lambda word: word.replace("_", "-")},  # both spellings, as TRL's parser
)
console = Screen()
SECRET = re.compile(r"(--[\w-]*(?:token|key))(?==|$)")  # options whose values are not recorded

# Commands with recipes: their options are the fields of dataclasses, parsed by TRL's parser.
PARSED: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True}, "add_help_option": False,
}  # fmt: skip

Output = Annotated[Path, typer.Option("--output", help="Folder to write; it must not exist.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run of the same command.")]
Split = Annotated[str | None, typer.Option("--split", help="Split of the source to use; all if none is given.")]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, max=INT32, help="Use this many questions only (seeded choice).")
]
Marked = Annotated[bool, typer.Option("--credentialed", help=credentialed.MARK_HELP)]
ImageFolders = Annotated[list[Path] | None, typer.Option(safe_paths.OPTION, help=f"{safe_paths.HELP} Repeatable.")]
ThirdParties = Annotated[bool, typer.Option(options.FLAG, help=options.FLAG_HELP)]
Seed = Annotated[int, typer.Option("--seed", min=SEEDS[0], max=SEEDS[1], help="Seed of all random choices.")]
OfficialSplit = Annotated[
    bool, typer.Option("--official-split", help="Take the source's own split as it stands, even with shared images.")
]
SkipFaulty = Annotated[bool, typer.Option("--skip-faulty", help="Leave out and count faulty rows of the source.")]


def command_line() -> str:
    """Return the command line for records: without --resume, local folders and tokens."""
    from mmedpo.runs.provenance import portable

    words: list[str] = []
    for word in sys.argv[1:]:
        if words and SECRET.fullmatch(words[-1]):
            words.append("(kept)")
        elif secret := SECRET.match(word):
            words += [secret[1]] if word == secret[1] else [f"{secret[1]}=(kept)"]
        elif word != "--resume":
            words.append(portable(word))
    return "mmedpo " + shlex.join(words)


def parsed(
    context: typer.Context, *options: Any, name: str = "", defaults: Mapping[str, Any] | None = None,
    about: str | None = None,
) -> Any:  # fmt: skip
    """Return instances of the dataclasses `options`, from the command line, the recipe of --config, and `defaults`.

    `about` is the text of --help above the options; by default the command's help.
    """
    from mmedpo.runs import recipes

    if "--help" in context.args:
        console.print(about if about else context.get_help(), soft_wrap=True)
    return recipes.parse(context.args, options, f"mmedpo {context.info_name} {name}".rstrip(), defaults)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    table = Table(*(Column(plain(heading), overflow="fold") for heading in rows[0]))  # names differ at their ends
    for row in rows[1:]:
        table.add_row(*map(plain, row))
    console.print(table)


def print_notices(manifest: Mapping[str, Any]) -> None:
    """Print notes on the weights, and notices of stand-ins, phantoms and toy models."""
    from mmedpo.report.notices import notices

    for note in (manifest.get("weights") or {}).get("notes", []):
        console.print(f"Weights: {note}", soft_wrap=True)
    if said := notices(manifest):
        console.print(f"Not for real use. {' '.join(said)}", soft_wrap=True)


def print_written(output: Path) -> None:
    """Print the output folder and its content, as the last line of a command."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in output.iterdir() if entry.name[0] != ".")
    console.print(f"{output}: {', '.join(names)}", soft_wrap=True)


def print_metrics(results: dict[str, Any]) -> None:
    """Print the metrics of results.json, shares of unread answers, and warnings of few reports and of judges."""
    from mmedpo.evaluation.metrics import judged
    from mmedpo.evaluation.metrics.reports import variety
    from mmedpo.report import unread

    print_table([["metric", results["name"]], *([key, _shown(value)] for key, value in results["metrics"].items())])
    for said in unread.shares(results["metrics"]):
        console.print(said, soft_wrap=True)
    if variety.are_few(results["metrics"]):
        console.print(f"Warning: {variety.described(results['metrics'])}.", soft_wrap=True)
    for said in [*judged.summary(results), *(f"Warning: {one}" for one in judged.warnings(results))]:
        console.print(said, soft_wrap=True)


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
