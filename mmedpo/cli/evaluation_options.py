"""Options shared by the commands of an evaluation: which questions, which judges, which clinical scores."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmedpo.cli.shared import ImageFolders, Limit, Marked, OfficialSplit, Seed, SkipFaulty, Split, ThirdParties
from mmedpo.runs.options import LENGTHS

if TYPE_CHECKING:
    from mmedpo.evaluation.asking import Judging
    from mmedpo.evaluation.questions import Asked
else:
    Asked = Judging = Any  # typer evaluates annotations when the command is made

Source = Annotated[Path | None, typer.Option("--source", help="Folder with a table of questions and its images.")]
Pairs = Annotated[
    str | None, typer.Option("--dataset", help="Or a preference dataset, folder or Hub id: its questions.")
]

Clinical = Annotated[
    list[str] | None,
    typer.Option(
        "--clinical",
        help="Clinical scores of reports: radgraph, chexbert (weights from the Hub) or severity (needs --judges). "
        "Repeatable, or joined by commas.",
    ),
]


def questions_asked(
    source: Source = None, dataset: Pairs = None, split: Split = None, limit: Limit = None, seed: Seed = 0,
    official_split: OfficialSplit = False, skip_faulty: SkipFaulty = False, marked: Marked = False,
    image_folders: ImageFolders = None,
) -> Asked:  # fmt: skip
    from mmedpo.evaluation import questions as asking

    return asking.Asked(
        source, dataset, split, limit, seed, official_split, skip_faulty, marked, tuple(image_folders or ())
    )


def judging_by(
    judges: Annotated[
        list[str] | None,
        typer.Option(
            "--judges",
            help="Chat models that judge answers, as evaluate takes them: texts are sent there, no images. Repeatable.",
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Cache of judges' answers. Default: calls.sqlite beside the output.")
    ] = None,
    max_reply_tokens: Annotated[
        int, typer.Option("--max-reply-tokens", min=1, max=LENGTHS[1], help="Longest reply of a judge in tokens.")
    ] = 2048,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Most concurrent calls of judges.")] = 8,
    max_calls: Annotated[
        int | None, typer.Option("--max-calls", min=1, help="Budget: stop after this many new calls.")
    ] = None,
    third_parties: ThirdParties = False,
) -> Judging:
    from mmedpo.evaluation import asking
    from mmedpo.models.chat.limits import Limits

    limits = Limits(concurrency, max_calls=max_calls)
    return asking.Judging(judges or (), cache, limits, max_reply_tokens, third_parties)


def sharing(**makers: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of `makers` to a command, which receives what they make as arguments of their names."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        shared = {name: inspect.signature(one, eval_str=True).parameters for name, one in makers.items()}

        @functools.wraps(command)
        def run(**given: Any) -> None:
            made = {name: makers[name](**{one: given.pop(one) for one in shared[name]}) for name in makers}
            command(**made, **given)

        every = {name: one for name, one in own.items() if name not in makers}
        for more in shared.values():
            every |= more
        named = [one.replace(kind=one.KEYWORD_ONLY) for one in every.values()]
        run.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in named}
        return run

    return add
