"""Commands about reviews of a dataset by people."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mmedpo.cli.shared import Output, Seed, app, command_line, console, print_notices, print_written
from mmedpo.data.text import number_of
from mmedpo.errors import InputError

VerdictFile = Annotated[
    Path | None, typer.Option("--verdicts", help="File of verdicts. Default: DATASET.verdicts.jsonl beside it.")
]
Order = Annotated[
    str, typer.Option("--order", help="Shown first: dataset, random, disagreement (of judges), weight, warnings.")
]
Kind = Annotated[list[str] | None, typer.Option("--kind", help="Show this kind of pair only; repeatable.")]
Task = Annotated[list[str] | None, typer.Option("--task", help="Show this task only; repeatable.")]
First = Annotated[int | None, typer.Option("--first", min=1, help="Show this many pairs only.")]


@app.command(epilog="Example: mmedpo review runs/pairs --order disagreement --first 200")
def review(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder.")],
    verdicts: VerdictFile = None,
    order: Order = "dataset",
    kind: Kind = None,
    task: Task = None,
    first: First = None,
    blind: Annotated[bool, typer.Option("--blind", help="Hide which side is chosen; their order is random.")] = False,
    seed: Seed = 0,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; another than this machine's needs "
                                      "a password in MMEDPO_REVIEW_PASSWORD.")] = "127.0.0.1",
    report: Annotated[
        Path | None, typer.Option("--report", help="Write a page about the verdicts to this new folder; serve nothing.")
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8765,
) -> None:  # fmt: skip
    """Show pairs to clinicians in a browser, one a screen, and keep their verdicts. Nothing leaves this machine."""
    from mmedpo.data import origin
    from mmedpo.review import agreement
    from mmedpo.review.pairs import Pairs
    from mmedpo.review.report import write
    from mmedpo.review.verdicts import Verdicts, beside, counted

    pairs = Pairs(dataset)
    file = Verdicts(verdicts or beside(dataset))
    if report is not None:
        given = agreement.reviewed(pairs, file)
        found = write(pairs, given, report, command_line(), seed)
        console.print(f"{report / 'review.html'}: {counted(given)} on {found['seen']:,} of {len(pairs):,} pairs")
        return
    try:
        from mmedpo.review.server import PASSWORD, Review, serve
    except ModuleNotFoundError as error:
        raise InputError(f"The page is served with {error.name}: pip install 'mmedpo[review]'.") from None
    places = pairs.chosen(order, kind or (), task or (), first, seed)
    made = Review(pairs, places, file, blind, seed, origin.credentialed_source(dataset))

    def ready(address: str) -> None:
        console.print(f"{len(places):,} of {len(pairs):,} pairs at {address} (Ctrl-C ends)", soft_wrap=True)
        console.print(f"{file.file}: {counted(file.all())}", soft_wrap=True)

    file.check()  # before anybody works for nothing
    try:
        serve(made, host, port, os.environ.get(PASSWORD), ready)
    except KeyboardInterrupt:
        console.print(f"{file.file}: {counted(file.all())}", soft_wrap=True)


@app.command(epilog="Example: mmedpo apply runs/pairs --output runs/pairs-reviewed")
def apply(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder that was reviewed.")],
    output: Output,
    verdicts: VerdictFile = None,
) -> None:
    """Write a new version of a dataset by its reviewers' verdicts: rejects, edits, relevance, weights anew."""
    from mmedpo.review import apply as run
    from mmedpo.review.agreement import reviewed
    from mmedpo.review.pairs import Pairs
    from mmedpo.review.verdicts import Verdicts, beside

    pairs, file = Pairs(dataset), verdicts or beside(dataset)
    if not file.exists():
        raise InputError(f"{file} does not exist. Review the dataset first: mmedpo review {dataset}")
    given = Verdicts(file)
    manifest = run.apply(pairs, reviewed(pairs, given), given, output, command_line())
    found = manifest["review"]
    seen = f"{found['seen']:,} of {found['rows']:,} pairs seen by {number_of(found['reviewers'], 'reviewers')}"
    did = f"{found['rejected']:,} left out, {found['edited']:,} edited, {found['relevance']:,} with their relevance"
    console.print(f"{seen}: {did}.", soft_wrap=True)
    for reason, count in found["left_out"].items():
        console.print(f"Left out: {number_of(count, 'verdicts')} {reason}.", soft_wrap=True)
    print_notices(manifest)
    print_written(output)


@app.command(epilog="Example: mmedpo exchange runs/pairs --to label-studio --output runs/tasks")
def exchange(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder.")],
    to: Annotated[str | None, typer.Option("--to", help="Write pairs for this tool: label-studio or argilla.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Folder to write; it must not exist.")] = None,
    export: Annotated[
        Path | None, typer.Option("--from", help="JSON export of either tool, whose annotations become verdicts.")
    ] = None,
    verdicts: VerdictFile = None,
    order: Order = "dataset",
    kind: Kind = None,
    task: Task = None,
    first: First = None,
    seed: Seed = 0,
) -> None:
    """Take pairs to Label Studio or Argilla, and verdicts back, where a hospital reviews with a tool of its own."""
    from mmedpo.data import origin
    from mmedpo.review import exchange as run
    from mmedpo.review.pairs import Pairs
    from mmedpo.review.verdicts import Verdicts, beside, counted

    if (to is None) == (export is None) or (to is not None and output is None):
        raise InputError("Give either --to TOOL with --output FOLDER, or --from FILE.")
    pairs = Pairs(dataset)
    if export is not None:
        found, undecided = run.verdicts(pairs, export)
        file = Verdicts(verdicts or beside(dataset))
        console.print(f"{file.file}: {file.append(found):,} new of {counted(found)}", soft_wrap=True)
        if undecided:
            console.print(f"Left out: {number_of(undecided, 'annotations')} skipped or without a decision.")
    elif to is not None and output is not None:
        places = pairs.chosen(order, kind or (), task or (), first, seed)
        run.export(pairs, places, to, output)
        print_written(output)
        if name := origin.credentialed_source(dataset):
            said = (
                "is restricted data, and the texts and images are inside. Import them only into a server of your own."
            )
            console.print(f"{name} {said}", soft_wrap=True)
