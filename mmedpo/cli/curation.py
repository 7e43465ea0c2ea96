"""Commands that build and check preference datasets."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmedpo.cli.publishing import prepare_built, publish_built
from mmedpo.cli.shared import (
    PARSED,
    Resume,
    app,
    command_line,
    console,
    parsed,
    print_notices,
    print_table,
    print_written,
)
from mmedpo.data.text import number_of
from mmedpo.errors import AlreadyFinished, Fault, InputError

if TYPE_CHECKING:
    from mmedpo.curation.estimate import Estimate
    from mmedpo.curation.settings import Run, Settings
    from mmedpo.report.audit import Texts
    from mmedpo.runs.ledger import Ledger

NOWHERE = Path()  # source and output of --check-judges


@app.command(
    **PARSED,
    epilog="Example: mmedpo curate --config recipes/curate/air_gapped.yaml --source data/clinic --output runs/pairs",
)
def curate(context: typer.Context) -> None:
    """Build a preference dataset: rejected responses and noised lesions, weighted by clinical relevance.

    Takes --config FILE.yaml and any of the options below. Where models run on this machine, --tasks shares the work
    between its GPUs; --executor takes tasks to Ray or Slurm (recipes/cluster).
    """
    from mmedpo.curation.estimate import estimate
    from mmedpo.curation.run import check_finished, of_models
    from mmedpo.curation.settings import Run, Settings
    from mmedpo.hub.build import make_dataset
    from mmedpo.runs.executors import submitted
    from mmedpo.runs.run_folder import output_folder, scratch_folder, working_folder

    settings, run = parsed(context, Settings, Run, defaults=_checking(context))
    if run.check_judges:
        _check_judges(settings, run)
        return
    settings.refuse_unnamed()
    if run.estimate:
        with scratch_folder(run.output.resolve()) as folder:
            _print_estimate(estimate(settings, run, folder))
        return
    run.resume |= submitted(working_folder(run.output), run)
    models = of_models(settings) if run.resume else None  # else after the source was read
    try:
        with output_folder(run.output, settings.record(), run.resume, contents=models) as folder:
            manifest = make_dataset(settings, run, folder, command_line(), models)
    except AlreadyFinished:
        check_finished(settings, run.output, run.calls)
        raise
    _print_made(run.output, manifest)
    print_notices(manifest)


@app.command(
    **PARSED,
    epilog="Example: mmedpo build vqa_rad --config recipes/curate/vqa_rad.yaml --output runs/pairs --publish me/pairs",
)
def build(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="mmedpo build --help lists them.")] = None,
) -> None:
    """Build the preference dataset of a known data set: read, split, curate, audit, write, publish.

    Takes --config FILE.yaml and the options of curate; mmedpo build NAME --help says what the data is and lists them.
    """
    from mmedpo.curation.settings import Settings
    from mmedpo.hub import builders
    from mmedpo.hub.build import Build, estimate_build, write_source
    from mmedpo.hub.build import build as build_dataset

    if name is None or name.startswith("-"):
        console.print(context.get_help())
        print_table([["dataset", "what it is"], *map(list, builders.names().items())])
        if name != "--help":
            raise InputError("mmedpo build needs the name of a dataset as its first argument.")
        return
    builder = builders.load(name)
    options = builders.options_of(builder)
    standard = {**builders.defaults(builder), **_checking(context)}
    settings, run, own = parsed(context, Settings, Build, options, name=name, defaults=standard, about=builder.__doc__)
    if run.check_judges:
        _check_judges(settings, run)
        return
    if run.source_only:
        _print_source(run.output, write_source(builder, settings, run, own))
        return
    if run.estimate:
        _print_estimate(estimate_build(builder, settings, run, own))
        return
    prepare = partial(prepare_built, run) if run.publish else None
    manifest = build_dataset(builder, settings, run, own, command_line(), prepare)
    if manifest is not None:
        _print_made(run.output, manifest)
    if run.publish:
        publish_built(run)
    if manifest is not None:
        print_notices(manifest)


@app.command(
    **PARSED, epilog="Example: mmedpo preview --source data/nih-bbox --localizer boxes --output runs/preview.png"
)
def preview(context: typer.Context) -> None:
    """Look before curating: a sheet of images, lesion masks and noised images, also as the model sees them.

    Takes the options of curate, of which those about the source, lesions and noise matter, and --model: its processor.
    """
    from mmedpo.curation.masking import Masker
    from mmedpo.curation.plan import localizer_of, noise_of, open_source, with_noise_pixels
    from mmedpo.curation.preview import sheet
    from mmedpo.curation.settings import Preview, Settings
    from mmedpo.data.burnt_text import Finder
    from mmedpo.models.vision_language import load_processor

    settings, run = parsed(context, Settings, Preview)
    if not settings.makes_visual_pairs:
        raise InputError("--localizer none finds no lesions to show. Give another localizer, or --noise-region image.")
    processor = settings.local_model and load_processor(settings.local_model).image_processor
    settings = with_noise_pixels(settings, processor, console.print)
    source = open_source(settings, cache=run.calls)
    with tempfile.TemporaryDirectory() as masked:
        mask = Masker(Path(masked), Finder()) if settings.mask_text else None
        samples = filter(None, map(mask, source.samples)) if mask else source.samples
        reasons = sheet(
            samples, localizer_of(settings), noise_of(settings), settings.seed, run.count, run.output, processor
        )
    for notice in (*source.notices, source.split_notice):
        console.print(notice, soft_wrap=True)
    shown, *left_out = (f"{count} {reason}" for reason, count in reasons.items())
    console.print(f"{run.output}: {shown}; left out: {', '.join(left_out) or 'none'}.")
    if source.credentialed:
        console.print(f"{source.name} is restricted data: the sheet shows its images. Do not pass it on.")


@app.command(epilog="Example: mmedpo audit runs/pairs --output runs/pairs-audit")
def audit(
    dataset: Annotated[str, typer.Argument(help="Preference dataset: a folder, a Hub id, or a file of rows.")],
    output: Annotated[Path | None, typer.Option("--output", help="Folder for audit.json and audit.html.")] = None,
    resume: Resume = False,
    split: Annotated[str, typer.Option("--split", help="Split to audit.")] = "train",
    beside: Annotated[
        list[Path] | None,
        typer.Option("--beside", help="Audited folder of another dataset, whose style scores are shown beside."),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Look for text burnt into the images: about 2 s each; needs mmedpo[text].")
    ] = False,
) -> None:
    """Check a preference dataset: row faults, duplicates, weights, style differences between the sides."""
    from mmedpo.models.fingerprint import dataset_contents, file_contents
    from mmedpo.report import audit as audits
    from mmedpo.runs import writable
    from mmedpo.runs.json_files import write_json
    from mmedpo.runs.ledger import Ledger
    from mmedpo.runs.run_folder import output_folder

    compared = audits.others(beside or [])
    if output is not None:
        writable.check(output, resume)
    with ExitStack() as stack:
        folder, texts = None, None
        if output is not None:
            settings = {"dataset": dataset, "split": split, **({"text": True} if text else {})}
            settings |= {"beside": [*map(str, beside)]} if beside else {}
            file = Path(dataset)
            contents = {"dataset": file_contents(file) if file.is_file() else dataset_contents(dataset, {split})}
            folder = stack.enter_context(output_folder(output, settings, resume, contents=contents))
        if text:
            texts = _texts(dataset, stack.enter_context(closing(Ledger(folder / "text.ledger"))) if folder else None)
        found = audits.audit(dataset, split, texts=texts)
        found |= {"beside": compared} if compared else {}
        print_table([*audits.rows(found), *(texts.listed() if texts else [])])
        if folder is not None:
            write_json(folder / "audit.json", found)
            (folder / "audit.html").write_text(audits.render(found, texts), encoding="utf-8")
    if output is not None:
        print_written(output)
    if found["faults"]:
        raise InputError(f"{dataset} breaks the preference schema:", [Fault(**fault) for fault in found["faults"]])


def _print_source(output: Path, counts: Counter[str]) -> None:
    """Print the numbers of rows read and left out."""
    read = counts.pop("read")
    console.print(f"{output}: {number_of(read, 'rows')} read, {number_of(read - counts.total(), 'questions')} written.")
    if counts:
        print_table([["left out because", "count"], *([reason, str(count)] for reason, count in counts.most_common())])


def _checking(context: typer.Context) -> dict[str, Path]:
    """Return defaults of what --check-judges does not need, where it is typed."""
    typed = any(word.partition("=")[0].replace("_", "-") == "--check-judges" for word in context.args)
    return {"source": NOWHERE, "output": NOWHERE} if typed else {}


def _check_judges(settings: Settings, run: Run) -> None:
    """Check the judges, with the cache of a run that writes to --output; raise InputError if they are below the bar."""
    from mmedpo.curation import judge_check
    from mmedpo.curation.run import check_judges

    checked = check_judges(settings, run.limits, run.cache if run.output == NOWHERE else run.calls)
    print_table(judge_check.table(checked))
    judge_check.refuse_below_bar(checked, run.judges_below_bar)
    console.print(f"Judges, on {judge_check.said(checked)}.", soft_wrap=True)


def _print_estimate(found: Estimate) -> None:
    from mmedpo.curation.estimate import sentences, table

    print_table(table(found))
    for said in sentences(found):
        console.print(said, soft_wrap=True)


def _texts(dataset: str, found: Ledger | None) -> Texts:
    """Return the search for text of audit; of restricted data it counts only."""
    from mmedpo.data import origin
    from mmedpo.data.burnt_text import Finder
    from mmedpo.report.audit import Texts

    if Path(dataset).is_file():
        raise InputError(f"{dataset} holds names of images: --text reads images that are inside a dataset.")
    return Texts(Finder(found), restricted=origin.credentialed_source(dataset) is not None)


def _print_made(output: Path, manifest: Mapping[str, Any]) -> None:
    """Print the numbers of rows and rejects of a curation."""
    from mmedpo.data.burnt_text import said
    from mmedpo.report import chosen

    if manifest["source"].get("credentialed"):
        console.print(f"{manifest['source']['name']} is restricted data: docs/restricted.md.", soft_wrap=True)
    rejects, source = manifest["rejects"], manifest["source"]
    counts = ", ".join(f"{count} {kind}" for kind, count in manifest["counts"].items())
    read = (
        f"{number_of(source['rows'], 'rows')} read, {number_of(source['questions'], 'questions')} taken: "
        if "rows" in source
        else ""
    )
    console.print(f"{output}: {read}{counts}; {sum(rejects.values())} rejected (see rejects.jsonl).", soft_wrap=True)
    if dropped := manifest.get("candidates", {}).get("left_out"):
        why = ", ".join(f"{reason} ({count})" for reason, count in dropped.items())
        of = manifest["candidates"]["sampled"]
        console.print(f"{sum(dropped.values())} of {of} samples did not become candidates: {why}.", soft_wrap=True)
    if found := manifest.get("burnt_text"):
        console.print(said(found), soft_wrap=True)
    if selected := manifest.get("selected"):
        none, answered = selected["none"], selected["answered"]
        share = f" ({none / answered:.0%})" if answered else ""
        console.print(
            f"The chat model found none of the samples wrong for {none} of {answered} questions{share}; for "
            f"{selected['not_asked']} more it was not asked, since a sample says the opposite.",
            soft_wrap=True,
        )
    for sentence in chosen.said(manifest["chosen"]) if "chosen" in manifest else ():
        console.print(sentence, soft_wrap=True)
    if rejects:
        tasks = manifest.get("rejects_by_task", {})
        print_table([
            ["left out because", *tasks, "count"],
            *(
                [reason, *(str(found.get(reason, 0)) for found in tasks.values()), str(count)]
                for reason, count in rejects.items()
            ),
        ])  # fmt: skip
