"""Commands that run other commands: rounds of training, a table of methods, the quickstart."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from mmedpo.cli.shared import Output, Resume, Seed, ThirdParties, app, command_line, console, print_table, print_written
from mmedpo.errors import AlreadyFinished, InputError
from mmedpo.runs.device import release
from mmedpo.runs.options import COUNTS, INT32, SEEDS
from mmedpo.runs.terminal import plain

Config = Annotated[
    Path, typer.Option("--config", help="YAML with sections curate, train and evaluate: options of these commands.")
]
Model = Annotated[str, typer.Option("--model", help="Hub id or folder of the model that is trained.")]
SourceFolder = Annotated[Path, typer.Option("--source", help="Folder with a table of questions and its images.")]
Launch = Annotated[
    str | None,
    typer.Option(
        "--launch",
        help="Launcher of each training, such as 'accelerate launch --config_file recipes/accelerate/zero3.yaml'. Each "
        "command is then a process of its own. Default: all in this process.",
    ),
]


@app.command(
    epilog="Example: mmedpo rounds --config recipes/experiments/rounds.yaml --model org/model --source data/vqa-rad "
    "--rounds 3 --output runs/rounds"
)
def rounds(
    config: Config,
    model: Model,
    source: SourceFolder,
    output: Output,
    count: Annotated[int, typer.Option("--rounds", min=1, max=INT32, help="Most rounds; --resume may raise it.")] = 3,
    adapter: Annotated[
        str | None, typer.Option("--adapter", help="Adapter on the model to start from, such as a supervised one.")
    ] = None,
    reference: Annotated[
        str, typer.Option("--reference", help="Of each training: round, the model at its start; or first, the model.")
    ] = "round",
    stop: Annotated[
        str,
        typer.Option(
            "--stop",
            help="Stop where the metric falls from one round to the next: lower (at all), significant (with its whole "
            "95 % interval), or never.",
        ),
    ] = "lower",
    metric: Annotated[
        str | None, typer.Option("--metric", help="Metric that decides. Default: overall_accuracy, else rouge_l.")
    ] = None,
    launch: Launch = None,
    seed: Seed = 0,
    resume: Resume = False,
    third_parties: ThirdParties = False,
) -> None:
    """Train in rounds: curate from the current model, train, evaluate on the validation part, go on or stop."""
    from mmedpo.experiments import rounds as running
    from mmedpo.experiments.chain import Chain

    settings = running.Settings(model, source, adapter, reference, stop, metric, seed)
    chain = Chain(invoker(launch), resume, third_parties)
    print_table(running.run(config, output, settings, count, chain, command_line()))
    print_written(output)


@app.command(
    epilog="Example: mmedpo table1 --config recipes/experiments/table1-llava-med.yaml --model models/llava-med "
    "--source data/slake --seeds 3 --output runs/table1"
)
def table1(
    config: Annotated[
        Path, typer.Option("--config", help="YAML with sections curate, train, evaluate, datasets and arms.")
    ],
    model: Model,
    source: SourceFolder,
    output: Output,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=COUNTS[1], help="Trainings of each arm.")] = 3,
    launch: Launch = None,
    seed: Annotated[int, typer.Option("--seed", min=SEEDS[0], max=INT32, help="First seed of the trainings.")] = 0,
    resume: Resume = False,
    third_parties: ThirdParties = False,
) -> None:
    """Make a table of methods, as the paper's Table 1: datasets, arms over seeds, evaluations, one comparison."""
    from mmedpo.experiments import table1 as making
    from mmedpo.experiments.chain import Chain

    settings = making.Settings(model, source, list(range(seed, seed + seeds)))
    print_table(making.run(config, output, settings, Chain(invoker(launch), resume, third_parties), command_line()))
    print_written(output)


@app.command(epilog="Example: mmedpo quickstart --output runs/quickstart --seed 0")
def quickstart(
    output: Output = Path("runs/quickstart"),
    seed: Seed = 0,
    scale: Annotated[
        float, typer.Option("--scale", help="Size of corpus and training, in (0, 1]; below 1, results are unreliable.")
    ] = 1.0,
    all_arms: Annotated[bool, typer.Option("--all-arms", help="Also train on lesion pairs alone.")] = False,
    split: Annotated[
        str, typer.Option("--split", help="Evaluated split: test, or validation while choosing settings.")
    ] = "test",
    resume: Resume = False,
) -> None:
    """Run the whole job on phantoms: no network, no GPU, no account."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from mmedpo.experiments.chain import Chain
    from mmedpo.quickstart.demonstration import run

    table, reliance = run(output, Chain(invoke, resume), seed, scale, all_arms, split)
    print_table(table)
    console.print(reliance)
    console.print(f"Adapter, dataset, results and report: {output} (open {output / 'report.html'})")


def invoke(arguments: Sequence[str]) -> None:
    """Run one command line in this process; a finished one is skipped."""
    typed, sys.argv[1:] = sys.argv[1:], list(arguments)
    console.rule(plain(command_line()), align="left")
    try:
        if app(list(arguments), standalone_mode=False) == 130:  # typer's code for Ctrl-C
            raise KeyboardInterrupt
    except AlreadyFinished as finished:
        console.print(str(finished))
    finally:
        sys.argv[1:] = typed
        release()


def invoker(launch: str | None) -> Any:
    """Return a function that runs one command line: in this process, or each in one of its own with a launcher."""
    if launch is None:
        return invoke
    try:
        words = shlex.split(launch)
    except ValueError as error:
        raise InputError(f"--launch {launch!r} cannot be read ({error}).") from None
    if not words:
        raise InputError("--launch is empty. Name a launcher, such as 'accelerate launch', or leave it out.")
    if shutil.which(words[0]) is None:
        raise InputError(f"--launch: there is no command {words[0]!r}. Install it, or give its path.")
    return partial(launched, words)


def launched(launcher: Sequence[str], arguments: Sequence[str]) -> None:
    """Run one command line in a process of its own, which gets this one's SIGTERM; a training by the launcher."""
    console.rule(plain(shlex.join(["mmedpo", *arguments])), align="left")
    begin = launcher if arguments[0] == "train" else [sys.executable, "-P"]
    process = subprocess.Popen([*begin, "-m", "mmedpo.cli", *arguments])

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the terminal sent it to the command too
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if code:
        console.print(f"mmedpo {arguments[0]} ended with code {code}; --resume goes on from there.")
        raise SystemExit(code if code > 0 else 128 - code)
