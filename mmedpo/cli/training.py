"""Commands that make models: conversion and training."""

from __future__ import annotations

from typing import Annotated

import typer

from mmedpo.cli.publishing import prepare, push
from mmedpo.cli.shared import PARSED, Output, Resume, app, command_line, console
from mmedpo.data.text import number_of


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
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit of the checkpoint on the Hub.")
    ] = None,
    resume: Resume = False,
) -> None:
    """Rewrite an original LLaVA checkpoint as a transformers model with processor and chat template."""
    from mmedpo.models.convert import convert as run

    done = run(source, output, template, vision_tower, revision, resume)
    console.print(
        f"{output}: {done.tensors} tensors; template {done.template}; <image> is token {done.image_token_id} "
        f"({done.rows_added} new rows)."
    )
    for name, reason in done.ignored.items():
        console.print(f"left out {name}: {reason}")


@app.command(epilog="Example: mmedpo merge runs/adapter --model org/model --output models/merged")
def merge(
    adapter: Annotated[str, typer.Argument(help="Folder or Hub id of a PEFT adapter.")],
    output: Output,
    model: Annotated[
        str | None, typer.Option("--model", help="Folder or Hub id of its base model; by default the one it names.")
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Of the merged weights: auto (the base's), float32, bfloat16 or float16.")
    ] = "auto",
    adapter_revision: Annotated[
        str | None, typer.Option("--adapter-revision", help="Branch, tag or commit of the adapter on the Hub.")
    ] = None,
    model_revision: Annotated[
        str | None, typer.Option("--model-revision", help="Branch, tag or commit of the model on the Hub.")
    ] = None,
) -> None:
    """Merge an adapter into its base model: a whole model with processor, as servers and further trainings take it."""
    from mmedpo.models.merge import merge as run

    done = run(adapter, output, model, dtype, adapter_revision, model_revision, command_line())
    console.print(f"{output}: {done.base} with {number_of(done.layers, 'layers')} merged, in {done.dtype}.")
    for said in done.notes:
        console.print(said, soft_wrap=True)


@app.command(
    **PARSED,
    epilog="Example: mmedpo train --config recipes/quickstart.yaml --output runs/adapter",
)
def train(context: typer.Context) -> None:
    """Train an adapter with clinically weighted preference optimization (the same as train.py).

    Takes --config FILE.yaml and any field of MMedPOConfig and TRL's ModelConfig; --help lists them all.
    """
    from mmedpo.hub.cards import check_template, write_adapter_card
    from mmedpo.training import run
    from mmedpo.training.outgoing import Push

    if "--help" in context.args:
        console.print(context.get_help())
    check_template("adapter")
    run.main(context.args, command_line(), write_adapter_card, Push(prepare, push))
