"""Commands that evaluate models and compare evaluations."""

from __future__ import annotations

import functools
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from mmedpo.cli.evaluation_options import Asked, Clinical, Judging, judging_by, questions_asked, sharing
from mmedpo.cli.shared import (
    PARSED,
    ImageFolders,
    Limit,
    Marked,
    OfficialSplit,
    Output,
    Resume,
    Seed,
    SkipFaulty,
    Split,
    app,
    command_line,
    console,
    parsed,
    print_metrics,
    print_table,
    print_written,
)
from mmedpo.data import credentialed
from mmedpo.data.text import number_of
from mmedpo.errors import InputError
from mmedpo.runs import writable
from mmedpo.runs.options import LENGTHS


@app.command(
    **PARSED,
    epilog="Example: mmedpo evaluate --model org/model --adapter runs/adapter --source data/vqa-rad --split test "
    "--output runs/eval",
)
def evaluate(context: typer.Context) -> None:
    """Ask a model the questions of a source or of a preference dataset, and score its answers.

    Takes --config FILE.yaml and any of the options below. Where the model runs on this machine, --tasks shares the
    questions between its GPUs. A model behind an endpoint is sent questions and images, and judges (--judges) texts; no
    other is.
    """
    from mmedpo.curation.marked_noise import MarkedNoise
    from mmedpo.evaluation.measures import measure
    from mmedpo.evaluation.settings import Run, Settings

    settings, run = parsed(context, Settings, Run)
    noise = MarkedNoise(settings.seed)
    results = measure(settings, run, command_line(), noise, noise.record())
    print_metrics(results)
    print_written(run.output)


@app.command(epilog="Example: mmedpo questions --source data/vqa-rad --split test --output runs/questions.jsonl")
@sharing(asked=questions_asked)
def questions(
    output: Annotated[Path, typer.Option("--output", help="File to write (JSON lines); it must not exist.")],
    asked: Asked,
) -> None:
    """Write the questions that evaluate would ask, for predictions made elsewhere, which score takes.

    Each line has id, question, image_id (the path of its image below the source) and the gold answer as reference.
    """
    from mmedpo.evaluation import questions as asking
    from mmedpo.evaluation.contents import keep

    writable.check(output)
    found = asking.read(asked)
    if found.note:
        console.print(found.note, soft_wrap=True)
    if found.marked:
        console.print(f"{found.record['source']} is restricted data: do not pass the file on.", soft_wrap=True)
    writable.make(output.parent)
    keep(found.rows(), output)
    shown = {one for asked in found.questions for one in asked.image_digests or [asked.image_digest]}  # copies are one
    console.print(f"{output}: {number_of(len(found.questions), 'questions')} about {number_of(len(shown), 'images')}.")


@app.command(epilog="Example: mmedpo score runs/eval --vqa-protocol paper --output runs/eval-paper")
@sharing(asked=questions_asked, judging=judging_by)
def score(
    output: Output,
    run: Annotated[Path | None, typer.Argument(help="Finished evaluation, to score under other protocols.")] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            help='Or predictions made elsewhere: lines of {"id", "prediction"}, or {"question_id", "text"}.',
        ),
    ] = None,
    vqa_protocol: Annotated[
        str | None,
        typer.Option(
            "--vqa-protocol",
            help="strict, paper, llava_med, or judge (needs --judges). Default: strict, or the run's.",
        ),
    ] = None,
    report_protocol: Annotated[
        str | None,
        typer.Option(
            "--report-protocol", help="coco, r2gen, r2gen_mimic, paper or huggingface. Default: coco, or the run's."
        ),
    ] = None,
    meteor_variant: Annotated[
        str | None, typer.Option("--meteor-variant", help="METEOR of reports. Default: the protocol's own.")
    ] = None,
    clinical: Clinical = None,
    name: Annotated[str | None, typer.Option("--name", help="Name in comparisons. Default: the output's.")] = None,
    *,
    asked: Asked,
    judging: Judging,
) -> None:
    """Score answers without a model: those of a finished evaluation, or predictions made elsewhere.

    Clinical scores that a finished evaluation has are kept, and those of --clinical added.
    """
    from mmedpo.evaluation import rescore

    chosen: dict[str, Any] = {
        "vqa_protocol": vqa_protocol,
        "report_protocol": report_protocol,
        "meteor_variant": meteor_variant,
    }
    chosen |= {"clinical": clinical or None}
    record = {"name": name or output.name, "command": command_line()}
    print_metrics(rescore.main(run, predictions, asked, chosen, output, record, judging))
    print_written(output)


@app.command(
    epilog="Example: mmedpo compare runs/start mmedpo=runs/mmedpo-0 mmedpo=runs/mmedpo-1 --output runs/comparison"
)
@sharing(judging=judging_by)
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Evaluation folders: the baseline first, the compared run last. NAME=FOLDER names a run; several of "
            "one name are a method's seeds, compared as one row."
        ),
    ],
    output: Output,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            help="Preference dataset (folder or Hub id) to show and to search for test images. Default of the search: "
            "the last run's training data, if available.",
        ),
    ] = None,
    training: Annotated[
        list[Path] | None, typer.Option("--training", help="Training folder whose curves are shown; repeatable.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--source", help="Evaluated source; its images are shown beside the answers.")
    ] = None,
    attention: Annotated[
        Path | None, typer.Option("--attention", help="Output folder of mmedpo attention, whose pictures are shown.")
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(
            "--card", help="Adapter folder of the last run; its card, model-index and .eval_results are written."
        ),
    ] = None,
    clinical: Clinical = None,
    seed: Seed = 0,
    image_folders: ImageFolders = None,
    *,
    judging: Judging,
) -> None:
    """Compare evaluations: paired intervals, corrected permutation tests, groups, changed answers.

    Writes comparison.json, table.md, table.tex and report.html. The page holds questions and answers, and
    with --source, --attention or --dataset images: where the data is restricted, so is the page. Those of restricted
    data are left out of it (docs/restricted.md).
    """
    from mmedpo.data.sources import read_source
    from mmedpo.evaluation import compare as comparing
    from mmedpo.evaluation import rescore
    from mmedpo.evaluation.asking import CALLS
    from mmedpo.hub.cards import check_template
    from mmedpo.hub.publish.card import with_results
    from mmedpo.report import reading, rows, write_report, write_tables
    from mmedpo.report.wording import note
    from mmedpo.runs.json_files import write_json
    from mmedpo.runs.run_folder import short_folder

    writable.check(output)
    if card:
        check_template("adapter")
        writable.check(card / ".new")
    if clinical:
        writable.make(output.parent)
    methods, folders = zip(*map(comparing.method_and_folder, runs), strict=True)
    with rescore.with_clinical(
        folders, clinical or (), replace(judging, cache=judging.cache or output.parent / CALLS)
    ) as scored:
        comparison = comparing.compare(
            scored, seed=seed, command=command_line(), dataset=dataset, trainings=training or [], methods=methods
        )
    trainings = {folder.name: folder for folder in training or []}
    if len(trainings) < len(training or []):
        raise InputError("Two --training folders have the same name. Rename one.")
    shown = read_source(source, image_folders=image_folders or ()) if source else None
    if shown:
        comparing.refuse_other_images(folders[-1], shown.samples, shown.name)
    images = {sample.id: sample.files for sample in shown.samples} if shown else {}
    if shown and shown.credentialed:
        comparison |= {"credentialed": True, "source": shown.name}
    changed, conflicts = with_results(card, comparison) if card else ({}, [])
    with short_folder(output) as folder:
        comparison |= write_report(
            folder / "report.html", comparison, dataset, trainings, images=images, attention=attention,
            quotes=judging.third_parties,
        )  # fmt: skip
        write_tables(comparison, folder)
        write_json(folder / "comparison.json", comparison)
    print_table(rows(comparison))
    console.print(note(comparison))
    for sheet in reading(comparison):
        print_table(sheet.rows)
        console.print(sheet.note)
    print_written(output)
    if card:
        for name, text in changed.items():
            (card / name).parent.mkdir(exist_ok=True)
            (card / name).write_text(text, encoding="utf-8")
        for line in [f"{card}: {', '.join(changed)}", *map(str, conflicts)]:
            console.print(line, soft_wrap=True)
        if not any(name.startswith(".eval_results") for name in changed):
            console.print("No .eval_results: the evaluated source is not a dataset on the Hub.")


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
    official_split: OfficialSplit = False,
    limit: Limit = None,
    answer: Annotated[
        str, typer.Option("--answer", help="Answer whose attention is shown: gold, or own (the model's greedy answer).")
    ] = "gold",
    layers: Annotated[
        str, typer.Option("--layers", help="Layers to average over, as in 0,16-31, counted from the input; or all.")
    ] = "all",
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, max=LENGTHS[1], help="Longest answer in tokens.")
    ] = 64,
    seed: Seed = 0,
    skip_faulty: SkipFaulty = False,
    resume: Resume = False,
    marked: Marked = False,
    image_folders: ImageFolders = None,
) -> None:
    """Show where a model's answers attend in the image, before and after training, and how much on the lesion.

    Only questions with lesion boxes are used, where the source has any. Attention is not an explanation, and averages
    of it contain sinks: compare before and after, and do not interpret a single map.
    """
    from mmedpo.data.sources import limited, mark, read_source, refuse_faults
    from mmedpo.evaluation import attention as attending
    from mmedpo.evaluation.contents import ModelSpec, still
    from mmedpo.models.refusals import drop_refused
    from mmedpo.models.vision_language import load_processor
    from mmedpo.runs.run_folder import output_folder

    writable.check(output, resume)
    settings = attending.Settings(answer, layers, max_new_tokens)
    asked = read_source(
        source, split, seed=seed, official_split=official_split, marked=marked, image_folders=image_folders or ()
    )
    refuse_faults(asked, skip_faulty)
    with credentialed.hiding_cells(asked.credentialed):
        asked.samples = attending.boxed(asked.samples)
    spec = ModelSpec(model, adapter, model_revision, adapter_revision)
    if evidence := spec.restricted_by():
        mark(asked, evidence)
    drop_refused(asked, load_processor(model, model_revision))
    refuse_faults(asked, skip_faulty)
    for notice in asked.notices + ([asked.note] if split and asked.note else []):
        console.print(notice, soft_wrap=True)
    samples = limited(asked.samples, limit, seed)
    record = {
        "command": command_line(), "source": asked.name, "split": split, "split_by": asked.split_by,
        "faulty_rows_skipped": len(asked.faults), **({"credentialed": True} if asked.credentialed else {}),
    }  # fmt: skip
    kept = {
        **record, **asdict(settings), "command": None, "model": model, "adapter": adapter, "limit": limit, "seed": seed,
        "official_split": official_split, "model_revision": model_revision, "adapter_revision": adapter_revision,
    }  # fmt: skip
    contents = spec.contents()
    with (
        still(output, functools.partial(attending.lines, samples)),
        output_folder(output, kept, resume, contents=contents) as folder,
    ):
        result = attending.compare_attention(spec.open(contents), samples, folder, settings, record, seed)
    print_table(attending.rows(result))
    if lost := result["summary"]["unanswered"]:
        advice = "They are left out of the means. Raise --max-new-tokens for unfinished thoughts."
        console.print(f"{lost} of {len(samples)} questions got no answer. {advice}", soft_wrap=True)
    if not any(sample.boxes for sample in samples):
        console.print(f"No question of {asked.name} has a lesion box, so attention on lesions is not measured.")
    print_written(output)
