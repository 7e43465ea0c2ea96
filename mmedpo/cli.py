"""The command line. Each command only wires: it opens what its options name and calls one function.

Exit codes: 0 done, 2 bad input, 130 interrupted or budget spent, 1 anything else.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from mmedpo import credentialed
from mmedpo.errors import SHOWN_FAULTS, AlreadyFinished, Fault, InputError, Stopped

if TYPE_CHECKING:
    from mmedpo.publish import Publication

app = typer.Typer(
    help="Make medical vision-language models tell the truth about images: curate preference pairs, train, evaluate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console()
errors = Console(stderr=True)
FAULTS = Path("mmedpo-faults.jsonl")
SHORT = ("preview", "score", "compare", "publish")  # commands without --resume
SECRET = re.compile(r"(--[\w-]*(?:token|key))(?==|$)")  # options whose value is never recorded

# Commands with recipes: their options are the fields of dataclasses, parsed by TRL's parser.
PARSED: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True}, "add_help_option": False,
}  # fmt: skip

Output = Annotated[Path, typer.Option("--output", help="Folder to write; it must not exist.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run of the same command.")]
Split = Annotated[str | None, typer.Option("--split", help="Split of the source to use; all where not given.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use this many questions only (seeded choice).")]
Marked = Annotated[bool, typer.Option("--credentialed", help=credentialed.MARK_HELP)]
ThirdParties = Annotated[bool, typer.Option(credentialed.FLAG, help=credentialed.FLAG_HELP)]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything left to chance.")]
OfficialSplit = Annotated[
    bool, typer.Option("--official-split", help="Take the source's own split as it stands, even with shared images.")
]
SkipFaulty = Annotated[bool, typer.Option("--skip-faulty", help="Leave faulty rows of the source out, counted.")]


def _command() -> str:
    """The command line as it is recorded: without --resume, folders of this machine, and tokens."""
    from mmedpo.workdir import portable

    words: list[str] = []
    for word in sys.argv[1:]:
        if words and SECRET.fullmatch(words[-1]):
            words.append("(kept)")
        elif secret := SECRET.match(word):
            words += [secret[1]] if word == secret[1] else [f"{secret[1]}=(kept)"]
        elif word != "--resume":
            words.append(portable(word))
    return "mmedpo " + shlex.join(words)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Each option once, as it is typed; what must be given is said, and no default where there is none."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        shown.option_strings = [name for name in action.option_strings if "_" not in name]
        return super()._format_action_invocation(shown)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.required:
            return f"{action.help} (required)"
        return super()._get_help_string(action) if action.default not in (None, argparse.SUPPRESS) else action.help


def _parsed(context: typer.Context, *options: Any, name: str = "", defaults: Mapping[str, Any] | None = None) -> Any:
    """Instances of the dataclasses `options`, from the command line, the recipe that --config names, and `defaults`."""
    import yaml
    from trl import TrlParser

    command = f"mmedpo {context.info_name} {name}".rstrip()
    words = [part for word in context.args for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if "--help" in words:
        console.print(context.get_help())
    if words[-1:] == ["--config"]:
        raise InputError("--config needs a recipe after it, the path of a YAML file.")
    # Its own usage has a line for each option and comes with every fault.
    usage = f"{command} [--config RECIPE.yaml] [options], see --help"
    parser = TrlParser(list(options), prog=command, usage=usage, formatter_class=_Help)
    parser.set_defaults_with_config(**(defaults or {}))
    try:
        *parsed, unknown = parser.parse_args_and_config(words, return_remaining_strings=True)
    except InputError:
        raise
    except (ValueError, TypeError, OSError, yaml.YAMLError) as error:
        raise InputError(f"The settings of {command} cannot work: {error}") from error
    if unknown:
        raise InputError(
            f"{command} does not know {shlex.join(unknown)}. {command} --help lists its options; in a recipe they are "
            "spelt with _ instead of -."
        )
    return parsed


@app.command(
    **PARSED, epilog="Example: mmedpo curate --source data/vqa-rad --split train --localizer boxes --output runs/pairs"
)
def curate(context: typer.Context) -> None:
    """Build a preference dataset: wrong answers and noised lesions, weighted by clinical relevance.

    Takes --config FILE.yaml and any of the options below. Where models run in this process, several GPUs share the
    work: accelerate launch -m mmedpo.cli curate ...
    """
    from mmedpo.builders import make_dataset
    from mmedpo.curation.settings import Run, Settings
    from mmedpo.processes import Processes
    from mmedpo.workdir import output_folder

    settings, run = _parsed(context, Settings, Run)
    processes = Processes.here()
    with output_folder(run.output, settings.record(), run.resume, processes) as folder:
        manifest = make_dataset(settings, run, folder, _command(), processes)
    if manifest is not None:
        _print_made(run.output, manifest)


@app.command(
    **PARSED, epilog="Example: mmedpo build vqa_rad --model org/med-lvlm --output runs/vqa-rad/pairs --publish me/pairs"
)
def build(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="mmedpo build --help lists them.")] = None,
) -> None:
    """Build the preference dataset of a known data set: read, split, curate, audit, write, publish.

    Takes --config FILE.yaml and the options of curate; mmedpo build NAME --help says what the data is and lists them.
    """
    from mmedpo import builders
    from mmedpo.curation.settings import Settings
    from mmedpo.processes import Processes

    if name is None or name.startswith("-"):
        console.print(context.get_help())
        _print_table([["dataset", "what it is"], *map(list, builders.names().items())])
        if name != "--help":
            raise InputError("mmedpo build takes the name of a dataset first.")
        return
    builder = builders.load(name)
    if "--help" in context.args:
        console.print(escape(builder.__doc__ or ""), highlight=False, soft_wrap=True)
    options = getattr(builder, "Options", builders.Options)
    standard = builders.defaults(builder)
    settings, run, own = _parsed(context, Settings, builders.Build, options, name=name, defaults=standard)
    manifest = builders.build(builder, settings, run, own, _command())
    if manifest is not None:
        _print_made(run.output, manifest)
    if run.publish and Processes.here().first:
        _publish_built(run.output, run.publish, run.send_credentialed_data_to_third_parties)


@app.command(
    **PARSED, epilog="Example: mmedpo preview --source data/nih-bbox --localizer boxes --output runs/preview.png"
)
def preview(context: typer.Context) -> None:
    """Look before curating: a sheet of images, lesion masks and noised images.

    Takes the options of curate, of which those about the source, lesions and noise matter.
    """
    from mmedpo.curation.localize import open_localizer
    from mmedpo.curation.pipeline import open_source
    from mmedpo.curation.preview import sheet
    from mmedpo.curation.settings import Preview, Settings

    settings, run = _parsed(context, Settings, Preview)
    source = open_source(settings)
    localizer = open_localizer(settings.localizer, settings.query, settings.mask_rule, settings.threshold)
    reasons = sheet(
        source.samples, localizer, settings.corruption, settings.max_coverage, settings.seed, run.count, run.output
    )
    shown, *left_out = (f"{count} {reason}" for reason, count in reasons.items())
    console.print(f"{run.output}: {shown}; left out: {', '.join(left_out) or 'none'}.")
    if source.credentialed:
        console.print(f"{source.name} is credentialed data: the sheet shows its images. Do not pass it on.")


@app.command(epilog="Example: mmedpo audit runs/pairs --output runs/pairs-audit")
def audit(
    dataset: Annotated[str, typer.Argument(help="Preference dataset: a folder or a Hub id.")],
    output: Annotated[Path | None, typer.Option("--output", help="Folder for audit.json and audit.html.")] = None,
    resume: Resume = False,
    split: Annotated[str, typer.Option("--split", help="Split to audit.")] = "train",
) -> None:
    """Check a preference dataset: row faults, duplicates, weights, style differences between the sides."""
    from mmedpo import audit as audits
    from mmedpo.workdir import output_folder, write_json

    found = audits.audit(dataset, split)
    _print_table(audits.rows(found))
    if output is not None:
        with output_folder(output, {"dataset": dataset, "split": split}, resume) as folder:
            write_json(folder / "audit.json", found)
            (folder / "audit.html").write_text(audits.render(found), encoding="utf-8")
    if found["faults"]:
        raise InputError(f"{dataset} breaks the preference schema:", [Fault(**fault) for fault in found["faults"]])


@app.command(epilog="Example: mmedpo convert microsoft/llava-med-v1.5-mistral-7b --output models/llava-med")
def convert(
    source: Annotated[str, typer.Argument(help="Folder or Hub id of a checkpoint in the original LLaVA layout.")],
    output: Output,
    template: Annotated[
        str | None,
        typer.Option(
            "--template", help="mistral_instruct, vicuna_v1, llama3 or huatuo; the model type's own by default."
        ),
    ] = None,
    vision_tower: Annotated[
        str | None, typer.Option("--vision-tower", help="Folder or Hub id of the CLIP model, if it is not inside.")
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Of the checkpoint on the Hub.")] = None,
    resume: Resume = False,
) -> None:
    """Rewrite an original LLaVA checkpoint as a transformers model with processor and chat template."""
    from mmedpo.convert import convert as run

    done = run(source, output, template, vision_tower, revision, resume)
    console.print(
        f"{output}: {done.tensors} tensors; template {done.template}; <image> is token {done.image_token_id} "
        f"({done.rows_added} new rows)."
    )
    for name, reason in done.ignored.items():
        console.print(escape(f"left out {name}: {reason}"))


@app.command(
    **PARSED,
    epilog="Example: mmedpo train --config recipes/quickstart.yaml --output runs/adapter",
)
def train(context: typer.Context) -> None:
    """Train an adapter with clinically weighted preference optimization (the same as train.py).

    Takes --config FILE.yaml and any field of MMedPOConfig and TRL's ModelConfig; --help lists them all.
    """
    from mmedpo.cards import write_adapter_card
    from mmedpo.training import run

    if "--help" in context.args:
        console.print(context.get_help())
    run.main(context.args, _command(), write_adapter_card, _push)


@app.command(
    **PARSED,
    epilog="Example: mmedpo evaluate --model org/model --adapter runs/adapter --source data/vqa-rad --split test "
    "--output runs/eval",
)
def evaluate(context: typer.Context) -> None:
    """Ask a model the questions of a source or of a preference dataset, and score its answers.

    Takes --config FILE.yaml and any of the options below. Several GPUs share the work: accelerate launch -m mmedpo.cli
    evaluate ... A model behind an endpoint is sent questions and images; no other is.
    """
    from mmedpo.evaluation.measures import measure
    from mmedpo.evaluation.settings import Run, Settings

    settings, run = _parsed(context, Settings, Run)
    results = measure(settings, run, _command())
    if results is not None:  # the first process has them
        _print_metrics(results)


@app.command(epilog="Example: mmedpo score runs/eval --vqa-protocol paper --output runs/eval-paper")
def score(
    output: Output,
    run: Annotated[Path | None, typer.Argument(help="Finished evaluation, to score under other protocols.")] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help='Or predictions made elsewhere: lines of {"id", "prediction"}.')
    ] = None,
    source: Annotated[Path | None, typer.Option("--source", help="Source whose questions they answer.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Or the preference dataset.")] = None,
    split: Split = None,
    limit: Limit = None,
    seed: Seed = 0,
    official_split: OfficialSplit = False,
    skip_faulty: SkipFaulty = False,
    vqa_protocol: Annotated[str | None, typer.Option("--vqa-protocol", help="strict by default, or the run's.")] = None,
    report_protocol: Annotated[
        str | None, typer.Option("--report-protocol", help="coco by default, or the run's.")
    ] = None,
    meteor_variant: Annotated[
        str | None, typer.Option("--meteor-variant", help="By default the protocol's own.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name in comparisons; the output's by default.")] = None,
    marked: Marked = False,
) -> None:
    """Score answers without a model: those of a finished evaluation anew, or predictions made elsewhere."""
    from mmedpo.evaluation import rescore

    asked: dict[str, Any] = {
        "source": source, "dataset": dataset, "split": split, "official_split": official_split, "limit": limit,
        "seed": seed, "skip_faulty": skip_faulty, "marked": marked,
    }  # fmt: skip
    chosen = {"vqa_protocol": vqa_protocol, "report_protocol": report_protocol, "meteor_variant": meteor_variant}
    record = {"name": name or output.name, "command": _command()}
    _print_metrics(rescore.main(run, predictions, asked, chosen, output, record))


@app.command(epilog="Example: mmedpo compare runs/start runs/mmedpo --dataset runs/pairs --output runs/comparison")
def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Evaluation folders: the first is the baseline, the last what is compared.")
    ],
    output: Output,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            help="Preference dataset (folder or Hub id) to show, and to look for test images in (by default in the one "
            "that the last run was trained on, where it is at hand).",
        ),
    ] = None,
    training: Annotated[
        list[Path] | None, typer.Option("--training", help="Training folder whose curves to show; repeatable.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--source", help="The evaluated source: its images are put beside the answers.")
    ] = None,
    attention: Annotated[
        Path | None, typer.Option("--attention", help="Folder of attention pictures to show (attention.json).")
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(
            "--card", help="Adapter folder of the last run; its card, model-index and .eval_results are written."
        ),
    ] = None,
    seed: Seed = 0,
    third_parties: ThirdParties = False,
) -> None:
    """Compare evaluations: paired intervals, corrected permutation tests, groups, changed answers.

    Writes comparison.json, table.md, table.tex and report.html. The page holds questions and answers, and
    with --source, --attention or --dataset images: where the data is restricted, so is the page. Those of credentialed
    data are left out of it (docs/credentialed.md).
    """
    from mmedpo.evaluation import compare as comparing
    from mmedpo.publish.card import with_results
    from mmedpo.report import rows, write_report, write_tables
    from mmedpo.sources import read_source
    from mmedpo.wording import note
    from mmedpo.workdir import short_folder, write_json

    comparison = comparing.compare(runs, seed=seed, command=_command(), dataset=dataset, trainings=training or [])
    trainings = {folder.name: folder for folder in training or []}
    if len(trainings) < len(training or []):
        raise InputError("Two --training folders have one name, and the page could not tell them apart; rename one.")
    shown = read_source(source) if source else None
    images = {sample.id: sample.image for sample in shown.samples} if shown else {}
    if shown and shown.credentialed:
        comparison |= {"credentialed": True, "source": shown.name}
    changed, conflicts = with_results(card, comparison) if card else ({}, [])
    with short_folder(output) as folder:
        write_report(
            folder / "report.html", comparison, dataset, trainings, images=images, attention=attention,
            quotes=third_parties,
        )  # fmt: skip
        write_tables(comparison, folder)
        write_json(folder / "comparison.json", comparison)
    _print_table(rows(comparison))
    console.print(escape(note(comparison)), highlight=False)
    console.print(escape(f"{output}: {', '.join(sorted(file.name for file in output.iterdir()))}"), highlight=False)
    if card:
        for name, text in changed.items():
            (card / name).parent.mkdir(exist_ok=True)
            (card / name).write_text(text, encoding="utf-8")
        for line in [f"{card}: {', '.join(changed)}", *map(str, conflicts)]:
            console.print(escape(line), highlight=False, soft_wrap=True)
        if not any(name.startswith(".eval_results") for name in changed):
            console.print("No .eval_results: the evaluated source is no dataset on the Hub.", highlight=False)


@app.command(
    epilog="Example: mmedpo attention --model org/model --adapter runs/adapter --source data/nih-bbox --split test "
    "--limit 20 --output runs/attention"
)
def attention(
    model: Annotated[str, typer.Option("--model", help="Hub id or folder of the base model.")],
    adapter: Annotated[str, typer.Option("--adapter", help="Hub id or folder of an adapter on it.")],
    source: Annotated[Path, typer.Option("--source", help="Folder with a table of questions and its images.")],
    output: Output,
    model_revision: Annotated[
        str | None, typer.Option("--model-revision", help="Branch, tag or commit of the model on the Hub.")
    ] = None,
    adapter_revision: Annotated[
        str | None, typer.Option("--adapter-revision", help="Branch, tag or commit of the adapter on the Hub.")
    ] = None,
    split: Split = None,
    limit: Limit = None,
    answer: Annotated[
        str, typer.Option("--answer", help="Whose tokens attend: gold, or the model's own (greedy).")
    ] = "gold",
    layers: Annotated[
        str, typer.Option("--layers", help="Layers to average over, as in 0,16-31, counted from the input; or all.")
    ] = "all",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer in tokens.")] = 64,
    seed: Seed = 0,
    skip_faulty: SkipFaulty = False,
    resume: Resume = False,
    marked: Marked = False,
) -> None:
    """Show where a model's answers attend in the image, before and after training, and how much on the lesion.

    Only questions with lesion boxes are used, where the source has any. Attention is not an explanation, and averages
    of it are full of sinks: compare before and after, and read nothing into one map alone.
    """
    from mmedpo.evaluation import attention as attending
    from mmedpo.models import VisionLanguageModel
    from mmedpo.sources import limited, read_source, refuse_faults
    from mmedpo.workdir import output_folder

    settings = attending.Settings(answer, layers, max_new_tokens)
    asked = read_source(source, split, seed=seed, marked=marked)
    refuse_faults(asked, skip_faulty)
    if split and asked.note:
        console.print(asked.note.partition(" --official-split")[0], highlight=False, soft_wrap=True)
    with credentialed.quoting_nothing(asked.credentialed):
        samples = limited(attending.boxed(asked.samples), limit, seed)
    record = {
        "command": _command(), "source": asked.name, "split": split, "split_by": asked.split_by,
        "faulty_rows_skipped": len(asked.faults), **({"credentialed": True} if asked.credentialed else {}),
    }  # fmt: skip
    kept = {
        **record, **asdict(settings), "command": None, "model": model, "adapter": adapter, "limit": limit, "seed": seed,
        "model_revision": model_revision, "adapter_revision": adapter_revision,
    }  # fmt: skip
    with output_folder(output, kept, resume) as folder:
        adapted = VisionLanguageModel(model, adapter, model_revision, adapter_revision=adapter_revision)
        result = attending.compare_attention(adapted, samples, folder, settings, record, seed)
    _print_table(attending.rows(result))
    if not any(sample.boxes for sample in samples):
        console.print(f"No question of {asked.name} has a lesion box: there is nothing to say of the lesion.")
    console.print(f"{len(samples)} pictures in {output / 'pictures'}")


@app.command(epilog="Example: mmedpo publish runs/pairs someone/vqa-rad-mmedpo --fill license=cc0-1.0")
def publish(
    folder: Annotated[Path, typer.Argument(help="What to publish: a finished dataset, adapter or metric folder.")],
    repo: Annotated[str, typer.Argument(help="Repository on the Hub: owner/name, or a name of yours.")],
    adapter: Annotated[bool, typer.Option("--adapter", help="FOLDER is of mmedpo train.")] = False,
    metric: Annotated[bool, typer.Option("--metric", help="FOLDER is a metric, such as eval/med_vqa.")] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public; asks. An existing one stays as it is.")
    ] = False,
    tag: Annotated[str | None, typer.Option("--tag", help="Tag of this version; the next of v1, v2, ... else.")] = None,
    fill: Annotated[
        list[str] | None, typer.Option("--fill", help="KEY=TEXT for an open field of the card; repeatable.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Go on without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be uploaded.")] = False,
    third_parties: ThirdParties = False,
) -> None:
    """Publish a dataset (or adapter, or metric) on the Hub: privately, in one commit, with a tag for the version.

    The same content is never sent twice. What people wrote into the card, here or on the Hub, stays. Of credentialed
    data only ids, weights, scores and settings are published (docs/credentialed.md).
    """
    from mmedpo.publish import publish as run

    if adapter and metric:
        raise InputError("--adapter and --metric exclude each other; FOLDER is one of them.")
    answers = dict(answer.partition("=")[::2] for answer in fill or [])
    if empty := [key for key, answer in answers.items() if not answer.strip()]:
        raise InputError(f"--fill {empty[0]!r} says nothing; give KEY=TEXT, as in --fill license=cc0-1.0.")
    confirm = (lambda _: True) if yes else typer.confirm if sys.stdin.isatty() else None
    kind = "adapter" if adapter else "metric" if metric else "dataset"
    done = run(
        folder, repo, kind, public=public, tag=tag, fill=answers, dry_run=dry_run, confirm=confirm,
        third_parties=third_parties,
    )  # fmt: skip
    _print_publication(done, dry_run)
    if public and done.visibility == "private":
        console.print(f"{done.repo_id} was there already and stays private: change that in its settings on the Hub.")


def _publish_built(folder: Path, repo: str, third_parties: bool) -> None:
    """What build does with --publish; a dataset that is not published is whole all the same, which the fault says."""
    from mmedpo.publish import publish as run

    confirm = typer.confirm if sys.stdin.isatty() else None
    try:
        done = run(folder, repo, confirm=confirm, third_parties=third_parties)
    except (InputError, Stopped) as error:
        command = shlex.join(["mmedpo", "publish", str(folder), repo, *([credentialed.FLAG] if third_parties else [])])
        raise type(error)(
            f"The dataset is finished and whole in {folder}, but was not published. {error}\n"
            f'Publish it with: {command} [--fill KEY="..."]'
        ) from error
    _print_publication(done)


def _push(folder: Path, repo: str, public: bool, token: str | None, third_parties: bool) -> None:
    """What train does with push_to_hub: after hours of work nobody is asked; open fields are listed."""
    from mmedpo.publish import publish as run

    _print_publication(
        run(folder, repo, "adapter", public=public, confirm=lambda _: True, token=token, third_parties=third_parties)
    )


def _print_publication(done: Publication, dry_run: bool = False) -> None:
    from mmedpo.publish.show import lines

    for line in lines(done, dry_run):
        console.print(escape(line), highlight=False, soft_wrap=True)


@app.command(
    **PARSED, epilog="Example: mmedpo rejoin someone/mimic-cxr-weights --source data/mimic-cxr-jpg --output runs/pairs"
)
def rejoin(
    context: typer.Context,
    repo: Annotated[str | None, typer.Argument(metavar="REPO", help="Hub dataset, or a folder.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit.")] = None,
) -> None:
    """Rebuild pairs of credentialed data from their published form, on a machine that has the data.

    Runs the recorded settings again on --source and joins the rows by id with the published weights. Wrong answers come
    from the cache of calls (--cache), or from the models that --model and --chat name. Takes all options of curate.
    """
    from mmedpo import builders
    from mmedpo import rejoin as rejoining
    from mmedpo.curation.settings import Run, Settings

    if repo is None or repo.startswith("-"):
        console.print(context.get_help())
        if repo != "--help":
            raise InputError("mmedpo rejoin takes the published dataset first: a Hub id or a folder.")
        return
    published = rejoining.read(repo, revision)
    options = getattr(published.builder, "Options", builders.Options)
    settings, run, own = _parsed(context, Settings, Run, options, name=repo, defaults=published.defaults())
    manifest = rejoining.rejoin(published, settings, run, own, _command())
    states = {name: count for name, count in manifest["rejoined"].items() if isinstance(count, int)}
    _print_table([["published rows", "count"], *([name, str(count)] for name, count in states.items())])
    console.print(f"{run.output}: row by row in {rejoining.FILE}.", soft_wrap=True)


@app.command(epilog="Example: mmedpo quickstart --output runs/quickstart --seed 0")
def quickstart(
    output: Output = Path("runs/quickstart"),
    seed: Seed = 0,
    scale: Annotated[
        float, typer.Option("--scale", help="Shrinks corpus and training; results below 1 mean little.")
    ] = 1.0,
    all_arms: Annotated[bool, typer.Option("--all-arms", help="Also train each stage alone.")] = False,
    split: Annotated[str, typer.Option("--split", help="test, or validation while choosing settings.")] = "test",
    resume: Resume = False,
) -> None:
    """Run the whole job on phantoms: no network, no GPU, no account."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from mmedpo.quickstart import run

    table = run(output, _invoke, seed, scale, all_arms, split, resume)
    _print_table(table)
    console.print(f"Adapter, dataset, results and report: {output} (open {output / 'report.html'})")


def _invoke(arguments: Sequence[str]) -> None:
    """Run one command line inside this process, as if it had been typed; a finished one is passed over."""
    typed, sys.argv[1:] = sys.argv[1:], list(arguments)
    console.rule(escape(_command()), align="left")
    try:
        if app(list(arguments), standalone_mode=False) == 130:  # typer's own word for Ctrl-C
            raise KeyboardInterrupt
    except AlreadyFinished as finished:
        console.print(str(finished))
    finally:
        sys.argv[1:] = typed


def _print_made(output: Path, manifest: Mapping[str, Any]) -> None:
    """What a curation made, and what it left out."""
    if manifest["source"].get("credentialed"):
        console.print(f"{manifest['source']['name']} is credentialed data: docs/credentialed.md.", soft_wrap=True)
    rejects, source = manifest["rejects"], manifest["source"]
    counts = ", ".join(f"{count} {kind}" for kind, count in manifest["counts"].items())
    read = f"{source['rows']} rows read, {source['questions']} questions taken: " if "rows" in source else ""
    console.print(f"{output}: {read}{counts}; {sum(rejects.values())} rejected (see rejects.jsonl).", soft_wrap=True)
    if rejects:
        _print_table([["left out because", "count"], *([reason, str(count)] for reason, count in rejects.items())])


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    table = Table(*(Column(heading, overflow="fold") for heading in rows[0]))  # names differ at their ends
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)


def _print_metrics(results: dict[str, Any]) -> None:
    _print_table([["metric", results["name"]], *([key, _shown(value)] for key, value in results["metrics"].items())])


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _keep_faults(faults: Sequence[Fault]) -> None:
    """Write all faults of an input, of which its message shows the first ones, to a file in the current folder."""
    try:
        FAULTS.write_text("".join(f"{json.dumps(asdict(fault), ensure_ascii=False)}\n" for fault in faults), "utf-8")
    except OSError as error:
        errors.print(f"They cannot all be written to {FAULTS}: {error.strerror}.", highlight=False)
    else:
        errors.print(f"All {len(faults)} are in {FAULTS}.", highlight=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; turns exceptions into messages and exit codes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # the commands show their own
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries, for whoever develops with them
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it, and it misses kernels for processors
    if argv is not None:
        sys.argv[1:] = argv
    try:
        app()
    except AlreadyFinished as finished:
        console.print(str(finished))
    except Stopped as stopped:
        errors.print(str(stopped), highlight=False, soft_wrap=True)
        raise SystemExit(130) from None
    except InputError as error:
        errors.print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        if len(error.faults) > SHOWN_FAULTS:
            _keep_faults(error.faults)
        raise SystemExit(2) from None
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != 130:
            raise
        kept = " What is finished is kept; run the same command with --resume to go on."
        errors.print("Interrupted." + kept * (sys.argv[1] not in SHORT))
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
