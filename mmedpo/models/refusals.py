"""Texts and images that a model's processor refuses, found before generation or training."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from mmedpo.data import credentialed, placeholders
from mmedpo.data.sources import Source
from mmedpo.errors import Fault, InputError
from mmedpo.models.chat_template import lacks_first_token, render

Size = tuple[int, int]  # width and height in pixels
Sizes = tuple[Size, ...]  # of all images in one prompt
Asked = tuple[str, Mapping[str, str], Mapping[str, Sizes]]  # id, texts and images by column


def faults(processor: Any, asked: Iterable[Asked]) -> list[Fault]:
    """Return a fault for each text with an image token and each image size that the processor refuses.

    The processor is tried on blank images; None checks texts only. If it accepts the extreme sizes (`extremes`), the
    sizes between are taken to be accepted too.

    Raises:
        InputError: a prompt has several images, and the model takes one.
    """
    rows = list(asked)
    own = getattr(processor, "image_token", None)
    found = [
        Fault(id_, column, said)
        for id_, texts, _ in rows
        for column, text in texts.items()
        if (said := placeholders.fault(text, own))
    ]
    shown = {sizes for _, _, images in rows for sizes in images.values() if sizes}
    refused = {}
    _refuse_several(processor, max(shown, key=lambda sizes: (len(sizes), sizes), default=()))
    if any(len(sizes) > 1 for sizes in shown) or any(_refusal(processor, sizes) for sizes in extremes(shown)):
        refused = {sizes: said for sizes in shown if (said := _refusal(processor, sizes))}
    return found + [
        Fault(id_, column, refused[sizes])
        for id_, _, images in rows
        for column, sizes in images.items()
        if sizes in refused
    ]


def drop_refused(source: Source, processor: Any) -> None:
    """Remove samples that a model's processor refuses from a source, and add their faults to it."""
    asked = (
        (one.id, {"question": one.prompt}, {"image": tuple(image.size for image in one.images)})
        for one in source.samples
    )
    refused = faults(processor, asked)
    source.faults += credentialed.without_cells(refused) if source.credentialed else refused
    ids = {fault.row for fault in refused}
    source.samples = [sample for sample in source.samples if sample.id not in ids]


def prompt_tokens(processor: Any, prompt: str, sizes: Sizes) -> int:
    """Return the number of tokens of a rendered prompt with images of these sizes.

    Raises:
        InputError: the processor refuses the images; the message is the sentence of a fault.
    """
    from PIL import Image

    try:
        made = processor(
            text=[prompt],
            images=[[Image.new("RGB", size) for size in sizes]],
            padding=False,
            add_special_tokens=lacks_first_token(processor.tokenizer, prompt),
        )
    except Exception as error:  # processors raise errors of any type
        raise InputError(
            f"refused by the model's processor ({str(error).rstrip('.')}); crop or pad the image, or drop the row"
        ) from error
    return len(made["input_ids"][0])


def _refusal(processor: Any, sizes: Sizes) -> str | None:
    try:
        prompt_tokens(processor, render(processor, "?", len(sizes)), sizes)
    except InputError as error:
        return str(error)
    return None


def _refuse_several(processor: Any, sizes: Sizes) -> None:
    """Raise InputError where the processor takes the first of these images, but not all, or leaves the others out."""
    if processor is None or len(sizes) < 2:
        return
    try:
        alone = prompt_tokens(processor, render(processor, "?", 1), sizes[:1])
    except InputError:  # the fault of that image
        return
    try:
        if prompt_tokens(processor, render(processor, "?", len(sizes)), sizes) > alone:
            return
        said = f"{type(processor).__name__} leaves the others out"
    except InputError as error:
        said = str(error).partition(";")[0]
    raise InputError(
        f"Questions have up to {len(sizes)} images, and the model takes one ({said}). Name a model that takes several, "
        "or give data with one image a question."
    )


def extremes(shown: Collection[Sizes]) -> set[Sizes]:
    """Return the members with the widest, highest, most and least elongated, largest and smallest images."""
    measures = (
        lambda size: size[0], lambda size: size[1], lambda size: size[0] / size[1], lambda size: size[0] * size[1],
    )  # fmt: skip
    alone = [(size, sizes) for sizes in shown for size in sizes]
    return {pick(alone, key=lambda one: measure(one[0]))[1] for measure in measures for pick in (min, max) if alone}
