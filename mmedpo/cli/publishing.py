"""Commands that publish, and that rebuild pairs from their published form."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmedpo.cli.shared import PARSED, ThirdParties, app, command_line, console, parsed, print_notices, print_table
from mmedpo.errors import InputError, Stopped
from mmedpo.runs import options
from mmedpo.runs.terminal import plain

if TYPE_CHECKING:
    from mmedpo.hub.build import Build
    from mmedpo.hub.publish import Publication


@app.command(epilog="Example: mmedpo publish runs/pairs someone/vqa-rad-mmedpo --fill license=cc0-1.0")
def publish(
    folder: Annotated[Path, typer.Argument(help="Finished dataset, adapter or metric folder.")],
    repo: Annotated[str, typer.Argument(help="Repository on the Hub: owner/name, or a name of yours.")],
    adapter: Annotated[bool, typer.Option("--adapter", help="FOLDER is an adapter or model of mmedpo train.")] = False,
    metric: Annotated[bool, typer.Option("--metric", help="FOLDER is a metric, such as eval/med_vqa.")] = False,
    public: Annotated[
        bool,
        typer.Option(
            "--public", help="Make a new repository public, once confirmed; an existing one keeps its visibility."
        ),
    ] = False,
    tag: Annotated[
        str | None, typer.Option("--tag", help="Tag of this version. Default: the next of v1, v2, ...")
    ] = None,
    fill: Annotated[
        list[str] | None, typer.Option("--fill", help="KEY=TEXT for an open field of the card; repeatable.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Answer yes to all questions.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be uploaded.")] = False,
    third_parties: ThirdParties = False,
) -> None:
    """Publish a dataset (or adapter, or metric) on the Hub: privately, in one commit, with a tag for the version.

    The same content is never sent twice. Edits of the card, here or on the Hub, are kept. Of restricted
    data only ids, weights, scores and settings are published (docs/restricted.md).
    """
    from mmedpo.hub.publish import publish as run

    if adapter and metric:
        raise InputError("--adapter and --metric exclude each other; FOLDER is one of them.")
    kind = "adapter" if adapter else "metric" if metric else "dataset"
    done = run(
        folder, repo, kind, public=public, tag=tag, fill=answers(fill or []), dry_run=dry_run, confirm=asker(yes),
        third_parties=third_parties,
    )  # fmt: skip
    print_publication(done, dry_run)
    if public and done.visibility == "private":
        console.print(f"{done.repo_id} existed before and stays private. Change that in its settings on the Hub.")


def answers(fill: Sequence[str]) -> dict[str, str]:
    """Return the values of --fill by field; raise InputError for one without a value."""
    said = dict(answer.partition("=")[::2] for answer in fill)
    if empty := [key for key, answer in said.items() if not answer.strip()]:
        raise InputError(f"--fill {empty[0]!r} has no value; give KEY=TEXT, as in --fill license=cc0-1.0.")
    return said


def asker(yes: bool) -> Callable[[str], bool] | None:
    """Return the function that asks at the terminal; None without a terminal. With `yes` it agrees unasked."""

    def ask(question: str) -> bool:
        try:
            return typer.confirm(plain(question))
        except typer.Abort:  # Ctrl-C, Ctrl-D
            raise Stopped("Nothing was sent.") from None

    if yes:
        return lambda question: True
    return ask if sys.stdin.isatty() else None


def prepare_built(built: Build) -> None:
    """Prepare --publish of build, before the work."""
    from mmedpo.hub.publish import prepare as run

    answers(built.fill)
    run(str(built.publish))
    if asker(built.yes) is None:
        console.print(
            "There is no terminal to ask at: open fields of the card will prevent the publication. Give --fill for "
            "each, or --yes.", soft_wrap=True,
        )  # fmt: skip


def publish_built(built: Build) -> None:
    """Publish the dataset of build; the error of a failure says that the dataset itself is complete."""
    from mmedpo.hub.publish import publish as run

    folder, repo, third_parties = built.output, str(built.publish), built.third_parties
    try:
        done = run(folder, repo, fill=answers(built.fill), confirm=asker(built.yes), third_parties=third_parties)
    except (InputError, Stopped) as error:
        command = shlex.join(["mmedpo", "publish", str(folder), repo, *([options.FLAG] if third_parties else [])])
        raise type(error)(
            f"The dataset is complete in {folder}, but was not published. {error}\n"
            f'Publish it with: {command} [--fill KEY="..."]'
        ) from error
    print_publication(done)


def prepare(repo: str, training: dict[str, Any], token: str | None) -> None:
    """Prepare push_to_hub of train, before the training."""
    from mmedpo.hub.publish import prepare as run

    run(repo, "adapter", training, token=token)


def push(folder: Path, repo: str, token: str | None, third_parties: bool) -> None:
    """Publish the result of train. It asks nothing after hours of work; open fields of the card are listed."""
    from mmedpo.hub.publish import publish as run

    print_publication(run(folder, repo, "adapter", confirm=lambda _: True, token=token, third_parties=third_parties))


def print_publication(done: Publication, dry_run: bool = False) -> None:
    from mmedpo.hub.publish.show import lines

    for line in lines(done, dry_run):
        console.print(line, soft_wrap=True)


@app.command(
    **PARSED, epilog="Example: mmedpo rejoin someone/mimic-cxr-weights --source data/mimic-cxr-jpg --output runs/pairs"
)
def rejoin(
    context: typer.Context,
    repo: Annotated[str | None, typer.Argument(metavar="REPO", help="Hub dataset, or a folder.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit.")] = None,
) -> None:
    """Rebuild pairs of restricted data from their published form, on a machine that has the data.

    Runs the recorded settings again on --source and joins the rows by id with the published weights. Rejected responses
    come from the cache of calls (--cache), or from the models of --model and --chat. Takes all options of curate.
    """
    from mmedpo.curation.settings import Run, Settings
    from mmedpo.hub import rejoin as rejoining

    if repo is None or repo.startswith("-"):
        console.print(context.get_help())
        if repo != "--help":
            raise InputError("mmedpo rejoin needs the published dataset, a Hub id or a folder, as its first argument.")
        return
    published = rejoining.read(repo, revision)
    options, defaults = published.options, published.defaults()
    settings, run, own = parsed(context, Settings, Run, options, name=repo, defaults=defaults)
    manifest = rejoining.rejoin(published, settings, run, own, command_line())
    states = {name: count for name, count in manifest["rejoined"].items() if isinstance(count, int)}
    print_table([["published rows", "count"], *([name, str(count)] for name, count in states.items())])
    console.print(f"{run.output}: row by row in {rejoining.FILE}.", soft_wrap=True)
    print_notices(manifest)
