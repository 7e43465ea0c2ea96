"""Prompts of a batch: their tokens, and the images that they are about, each distinct one processed once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Literal

import torch

from mmedpo.data import placeholders
from mmedpo.data.images import digest, open_rgb
from mmedpo.models.answers import LOOK_AHEAD, TOKENS, Tokens, filler, padded, read_prompts
from mmedpo.models.chat_template import Shown, listed, render

Share = Literal["images", "prompt", ""]
LESS: dict[Share, tuple[Share, str]] = {  # what is shared where this is wrong, and what is apart then
    "images": ("prompt", "questions about one image"), "prompt": ("", "answers to one question")
}  # fmt: skip
TOLERANCE = {"exact": 1e-4, "rounded": 5e-2}  # relative to the largest number: float32; lower precision

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompts:
    """Prompts of a batch; those about one image have one trunk, which holds its image tokens.

    Attributes:
        share: as in `read`.
        samples: number of answers to each prompt.
        tokens: tokens of each prompt.
        owners: number of each prompt's trunk, from 0 in the order in which they occur first.
        trunks: what all prompts of an owner begin with.
        pixels: model inputs of the images, one for each trunk.
        filler: token id of the padding.
        questions: of `ask`, kept only where they may be read again: images are large.
    """

    share: Share
    samples: int
    tokens: Sequence[Tokens]
    owners: Sequence[int]
    trunks: Sequence[Tokens]
    pixels: dict[str, torch.Tensor]
    filler: int
    questions: Sequence[tuple[Shown, str]] = ()

    @property
    def longest(self) -> int:
        """Number of tokens of the longest prompt."""
        return max(map(length, self.tokens))

    def part(self, places: slice) -> Prompts:
        """Return these prompts alone, with the trunks of all."""
        return replace(self, tokens=self.tokens[places], owners=self.owners[places], questions=())

    @cached_property
    def tails(self) -> list[int]:
        """Number of tokens of each prompt after its trunk."""
        return [length(own) - length(self.trunks[i]) for own, i in zip(self.tokens, self.owners, strict=True)]

    @property
    def kind(self) -> frozenset[str]:
        """What the prompts hold that may be computed wrongly: several trunks, of unequal length, that prompts go on."""
        held = {
            "trunks": len(self.trunks) > 1, "lengths": len({*map(length, self.trunks)}) > 1, "tails": any(self.tails),
        }  # fmt: skip
        return frozenset(name for name, there in held.items() if there)

    @property
    def few(self) -> list[int]:
        """Places of some `questions` of the same `kind`: the shortest and the longest about at most three images.

        Their prompts go on longest after the trunk, and least; the third is most unlike the first in size and trunk.
        """
        own: list[list[int]] = [[] for _ in self.trunks]
        for place, owner in enumerate(self.owners):
            own[owner].append(place)
        tails = [max(self.tails[place] for place in places) for places in own]
        first = max(range(len(own)), key=lambda owner: (tails[owner], len(own[owner])))
        others = [owner for owner in range(len(own)) if owner != first] or [first]

        def unlike(owner: int) -> Any:
            shown = (listed(self.questions[own[number][0]][0]) for number in (owner, first))
            one, other = ([image.size for image in images] for images in shown)
            return one != other, abs(length(self.trunks[owner]) - length(self.trunks[first]))

        def order(place: int) -> Any:
            return length(self.tokens[place]), self.tokens[place]["input_ids"], place

        chosen = {first, min(others, key=tails.__getitem__), max(others, key=unlike)}
        return sorted({pick(own[owner], key=order) for owner in chosen for pick in (min, max)})

    @property
    def repeated(self) -> bool:
        """True where a trunk is needed more than once."""
        return bool(self.share) and len(self.trunks) < self.samples * len(self.tokens)


class Sharing:
    """What prompts of a model may share: verified at the first batch of its kind, and less where that is wrong.

    Attributes:
        share: argument of `read`.
    """

    def __init__(self, processor: Any, called: str) -> None:
        apart = type(processor).__name__ in LOOK_AHEAD or _asks_first(processor)
        self.share: Share = "prompt" if apart else "images"
        self._called = called
        self._verified: set[frozenset[str]] = set()  # values of `Prompts.kind`; what is verified stays shared

    def ask(self, processor: Any, questions: Sequence[tuple[Shown, str]], samples: int) -> Prompts:
        """Return `ask` of these questions with the present `share`; they keep `questions` until it is verified."""
        made = ask(processor, questions, self.share, samples)
        return replace(made, questions=questions) if self._doubtful(made) else made

    def _doubtful(self, prompts: Prompts) -> bool:
        return prompts.repeated and not any(prompts.kind <= kind for kind in self._verified)

    def verified(
        self, prompts: Prompts, again: Callable[[], Prompts], differs: Callable[[Prompts], str | None]
    ) -> Prompts:
        """Return the prompts, with fewer trunks shared where the model computes those wrongly; logs a warning once.

        Args:
            again: reads the prompts again with the present `share`.
            differs: returns why trunks of prompts cannot be shared, or None.
        """
        while self._doubtful(prompts):
            if prompts.share == self.share:  # else read ahead, before another batch was verified
                reason = differs(prompts)
                if reason is None:
                    self._verified.add(prompts.kind)
                    break
                self.share, apart = LESS[prompts.share]
                log.warning("%s: %s share nothing; results are the same, but slower: %s.", self._called, apart, reason)
            prompts = again()
        return prompts


def difference(expected: torch.Tensor, found: torch.Tensor, dtype: torch.dtype) -> str | None:
    """Return by how much numbers of a model of this dtype differ, relative to the largest; None within rounding."""
    largest = ((expected - found).abs().max() / expected.abs().max().clamp(min=1)).item()
    tolerance = TOLERANCE["exact" if dtype == torch.float32 else "rounded"]
    return None if largest <= tolerance else f"numbers differ by {largest:.1e} relative, more than {tolerance:.0e}"


def ask(processor: Any, questions: Sequence[tuple[Shown, str]], share: Share, samples: int) -> Prompts:
    """Return questions, each with its image or list of images, as prompts in the model's chat template."""
    images = [listed(shown) for shown, _ in questions]
    texts = [render(processor, text, len(own)) for own, (_, text) in zip(images, questions, strict=True)]
    return read(processor, texts, images, share, samples)


def read(
    processor: Any, texts: Sequence[str], images: Sequence[Sequence[Any]], share: Share, samples: int = 1
) -> Prompts:
    """Return the prompts of a batch; each distinct list of images is processed once.

    Args:
        texts: rendered prompts.
        images: images of each prompt, for `open_rgb`.
        share: prompts have one trunk where their `trunks` are equal.
        samples: number of answers to each prompt.
    """
    opened = {id(image): open_rgb(image) for shown in images for image in shown}
    names = {key: digest(image) for key, image in opened.items()} if share else {}
    shown = [tuple(names.get(id(image)) for image in own) for own in images]
    owners = numbered(trunks(processor, texts, shown, share))
    tokens, pixels = read_once(processor, texts, [[opened[id(image)] for image in own] for own in images], owners)
    return Prompts(share, samples, tokens, owners, _begun(tokens, owners), pixels, filler(processor))


def trunks(processor: Any, texts: Sequence[str], shown: Sequence[Hashable], share: Share) -> list[Hashable]:
    """Return what names the beginning of each prompt that its row shares: `shown`, which names its images, and a text.

    Args:
        share: prompts share their images and all up to the end of the last image ("images"), images and the whole
            prompt ("prompt"), or nothing ("").
    """
    if not share:
        return [*range(len(texts))]
    ends = [_image_end(processor, text) if share == "images" else None for text in texts]
    return [(own, text[:end]) for own, text, end in zip(shown, texts, ends, strict=True)]


def numbered(keys: Sequence[Hashable]) -> list[int]:
    """Return a number for each key, from 0 in the order in which distinct ones occur first."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def read_once(
    processor: Any, texts: Sequence[str], images: Sequence[Sequence[Any]], lists: Sequence[int]
) -> tuple[list[Tokens], dict[str, torch.Tensor]]:
    """Return the tokens of each rendered prompt, and the model inputs of each list of images, which is processed once.

    Args:
        images: RGB images of each prompt.
        lists: equal numbers for equal images, as `numbered`.
    """

    def processed(places: list[int]) -> tuple[list[Tokens], dict[str, torch.Tensor]]:
        return read_prompts(processor, [texts[i] for i in places], [images[i] for i in places])

    @cache
    def head_of(place: int) -> Tokens | None:
        return _head(processor, texts[place], known[lists[place], texts[place]])

    first = [lists.index(number) for number in range(max(lists) + 1)]
    begun, pixels = processed(first)
    known = {(lists[i], texts[i]): tokens for i, tokens in zip(first, begun, strict=True)}
    alike: dict[Hashable, int] = {}  # prompts with one list of images and one text before their end
    for place in [*first, *range(len(texts))]:
        text = texts[place]
        begins = alike.setdefault((lists[place], text[: _image_end(processor, text)]), place)
        if (lists[place], text) in known:
            continue
        if begins != place and (head := head_of(begins)):
            tail = _tail(processor, text)
            known[lists[place], text] = {
                name: [*has, *(tail if name == "input_ids" else [0] * len(tail))] for name, has in head.items()
            }
        else:
            known[lists[place], text] = processed([place])[0][0]
    return [known[key] for key in zip(lists, texts, strict=True)], pixels


def _asks_first(processor: Any) -> bool:
    """Return True where the chat template writes the question before its image."""
    question, written = "Is there an effusion?", ""
    with suppress(Exception):  # reported where a question is asked
        written = render(processor, question)
    return question in written[: _image_end(processor, written)]


def _image_end(processor: Any, text: str) -> int:
    return placeholders.last_end(text, getattr(processor, "image_token", None))


def _tail(processor: Any, text: str) -> list[int]:
    """Return the tokens of a rendered prompt after its image, read after a special token as there."""
    tokenizer = processor.tokenizer
    after = text[_image_end(processor, text) :]
    before = tokenizer.convert_ids_to_tokens(filler(processor))
    ids: list[int] = tokenizer(before + after, add_special_tokens=False)["input_ids"]
    return ids[1:]


def _head(processor: Any, text: str, prompt: Tokens) -> Tokens | None:
    """Return a prompt without its `_tail`; None where the processor does not just put image tokens before that."""
    special, tail = processor.tokenizer.added_tokens_decoder, _tail(processor, text)
    ids, end = prompt["input_ids"], length(prompt) - len(tail)
    types = (values[end:] for name, values in prompt.items() if name != "input_ids")
    before = [special.get(token) for token in (ids[end - 1], filler(processor))]
    apart = end > 0 and all(before) and before[0].rstrip == before[1].rstrip  # spaces behind them
    if not apart or ids[end:] != tail or any(map(any, types)):
        return None
    return {name: values[:end] for name, values in prompt.items()}


def left_padded(prompts: Sequence[Tokens], filler: int) -> dict[str, torch.Tensor]:
    """Return model inputs of prompts with padding before them."""
    longest = max(map(length, prompts))
    return rows(prompts, [longest - length(prompt) for prompt in prompts], [0] * len(prompts), filler)


def rows(prompts: Sequence[Tokens], left: Sequence[int], right: Sequence[int], filler: int) -> dict[str, torch.Tensor]:
    """Return model inputs of prompts with so much padding before them, and their last token so often behind them."""

    def row(values: list[int], before: int, after: int, fill: int) -> list[int]:
        return [fill] * before + values + values[-1:] * after

    sides = [*zip(prompts, left, right, strict=True)]
    return {
        name: padded([row(own[name], before, after, filler * (name == "input_ids")) for own, before, after in sides])
        for name in TOKENS
        if name in prompts[0]
    } | {"attention_mask": padded([row([1] * length(own), before, after, 0) for own, before, after in sides])}


def _begun(prompts: Sequence[Tokens], owners: Sequence[int]) -> list[Tokens]:
    """Return what all prompts of each owner begin with."""
    own: list[list[Tokens]] = [[] for _ in range(max(owners) + 1)]
    for prompt, owner in zip(prompts, owners, strict=True):
        own[owner].append(prompt)
    return [_common(prompts) for prompts in own]


def _common(prompts: Sequence[Tokens]) -> Tokens:
    """Return what all prompts begin with."""
    columns = [[*zip(*prompt.values(), strict=True)] for prompt in (min(prompts, key=length), *prompts)]
    until = next((i for i, tokens in enumerate(zip(*columns, strict=False)) if len(set(tokens)) > 1), len(columns[0]))
    return {name: values[:until] for name, values in prompts[0].items()}


def length(prompt: Tokens) -> int:
    """Return the number of tokens of a prompt."""
    return len(prompt["input_ids"])
