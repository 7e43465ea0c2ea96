"""Rejected responses of text pairs: a sampled answer of the target model, or one written by a chat model.

Paper, section 3.1: a strong chat model compares sampled answers with the gold answer and picks the most hallucinated.
If none is clearly hallucinated, it writes one from the gold answer. Styles keep length and form from telling the two
sides apart. In the authors' released data rejected responses are about five times as long. With options, another
option is rejected.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from typing import Any

from mmedpo.curation.answer_checks import (
    STYLES,
    answer_fault,
    gold_says,
    in_case_of,
    in_form_of,
    longest,
)
from mmedpo.curation.prompts import render
from mmedpo.curation.text_pairs import NO_ANSWER, OPPOSITE, TARGET_MODEL, Choice, Hallucination, Item, Rejection
from mmedpo.data.choices import asserted
from mmedpo.data.samples import Sample
from mmedpo.data.text import folded, plain, unit_interval, words
from mmedpo.models.chat import ChatModel, ChatReply, ChatRequest, parse_json
from mmedpo.runs.provenance import portable

__all__ = ["NO_ANSWER", "STYLES", "TARGET_MODEL", "Choice", "Hallucination", "Item", "Rejection", "Writer", "flip"]

SELECT, INJECT, FLIP, OPPOSED = "select@3", "inject@3", "flip@1", "opposed@1"
SAID, PICK, ONLY, DRAWN = "said_option@1", "option@1", "only_option@1", "drawn_option@1"  # of questions with options
FLIPPED, OPTION = "flip", "options"
SHOWN = 200  # characters of a reply in the detail of a reject
KINDS = ("finding", "place", "diagnosis", "other")
UNREADABLE = "the chat model's answer could not be read"
DECLINED = "the chat model declined to write a wrong answer"
UNUSABLE = "the chat model wrote no usable wrong answer"
ALL_RIGHT = "the chat model found that every other option may be correct"
WRITING_ATTEMPTS = 2
Make = Callable[[], ChatRequest]  # a request is made when it can be sent


@dataclass(frozen=True)
class Writer:
    """Chat model that picks or writes rejected responses, shown the images if `show_images`.

    Styles:
        match: as long as the gold answer (`length_range`), with as many lines and the same form (`in_form_of`). Plain
            yes or no is flipped without a request.
        minimal: as match, with at most `most_changes` words of the gold answer changed.
        free: a whole sentence of any length, as in the authors' released data.
    """

    chat: ChatModel
    style: str = "match"
    show_images: bool = False

    def wants(self, sample: Sample) -> bool:
        """Return True where candidates of the target model are needed."""
        return self.style == "free" or flip(sample.answer) is None

    def choose(self, items: Sequence[Item]) -> list[Choice]:
        """Choose or write a rejected response for every item, in order, with at most three batches of requests.

        Unusable candidates (`answer_fault`) are never offered. Where the gold answer says yes or no, the first
        candidate that says the opposite is taken without a request. An unusable written response is requested again.

        Raises:
            InputError: `chat.complete` raises it.
        """
        chosen = _other_options(self.chat, {i: item for i, item in enumerate(items) if item.options})
        if self.style != "free":
            flipped = {i: flip(item.gold) for i, item in enumerate(items) if item.task != "report" and i not in chosen}
            chosen |= {i: Hallucination(text, FLIPPED, FLIP) for i, text in flipped.items() if text is not None}
        picked, none = select_wrong(self.chat, {i: item for i, item in enumerate(items) if i not in chosen}, self.style)
        chosen |= picked
        chosen |= _inject(self.chat, {i: item for i, item in enumerate(items) if i not in chosen}, self.style)
        return [replace(chosen[i], none_chosen=True) if i in none else chosen[i] for i in range(len(items))]


def flip(gold: str) -> str | None:
    """Return the opposite of an answer that is only yes or no, in its form ("Yes." gives "No."); else None."""
    said = words(gold)
    if said not in (["yes"], ["no"]):
        return None
    return re.sub(r"\w+", lambda match: in_case_of(match.group(), OPPOSITE[said[0]]), plain(gold))


def _other_options(chat: ChatModel, items: Mapping[int, Item]) -> dict[int, Choice]:
    """Return another option: the only one, the target's most frequent, the chat model's, or a drawn one."""
    chosen: dict[int, Choice] = {}
    asked: dict[int, Make] = {}
    rest = {i: [option for option in item.options if folded(option) != folded(item.gold)] for i, item in items.items()}
    for i, item in items.items():
        others = rest[i]
        said = (asserted(text, item.options, item.question, lettered=True) for text in item.candidates)
        named = [item.options[place] for place in said if isinstance(place, int) and item.options[place] in others]
        if len(others) == 1:
            chosen[i] = Hallucination(others[0], OPTION, ONLY)
        elif named:
            chosen[i] = Hallucination(Counter(named).most_common(1)[0][0], TARGET_MODEL, SAID)
        else:
            told = {"question": item.question, "gold": item.gold, "others": others}
            schema, readable = _choice_schema(len(others)), partial(_is_choice, len(others))
            asked[i] = partial(render, PICK, schema, item.images, readable, **told)
    for i, (answer, reply) in ask(chat, asked).items():
        others = rest[i]
        number = _number(answer, len(others)) if isinstance(answer, dict) else None
        if isinstance(answer, Rejection) and answer.reason != UNREADABLE:
            chosen[i] = answer
        elif number == 0:
            chosen[i] = Rejection(ALL_RIGHT, beginning(reply))
        elif number and isinstance(answer, dict):
            chosen[i] = Hallucination(others[number - 1], portable(chat.name), PICK, _kind(answer))
        else:
            place = int(unit_interval("option", items[i].key, items[i].question) * len(others))
            chosen[i] = Hallucination(others[place], OPTION, DRAWN)
    return chosen


def in_style(item: Item, text: str, style: str) -> str:
    return text.strip() if style == "free" else in_form_of(item.gold, text)


def select_wrong(chat: ChatModel, items: Mapping[int, Item], style: str) -> tuple[dict[int, Choice], set[int]]:
    """Return decisions by item index, and the items of whose candidates the chat model found none wrong.

    Items without a usable or hallucinated candidate have no decision.
    """
    offered: dict[int, list[str]] = {}
    for i, item in items.items():
        styled = (in_style(item, candidate, style) for candidate in item.candidates)
        distinct = {folded(text): text for text in styled}.values()
        offered[i] = [text for text in distinct if fault_of(item, text, style) is None]
    decided: dict[int, Choice] = {
        i: Hallucination(candidates[0], TARGET_MODEL, OPPOSED)
        for i, candidates in offered.items()
        if candidates and gold_says(items[i].question, items[i].gold, items[i].task)
    }
    asked = {i: partial(_selection, items[i], texts) for i, texts in offered.items() if texts and i not in decided}
    none: set[int] = set()
    for i, (answer, reply) in ask(chat, asked).items():
        number = _number(answer, len(offered[i])) if isinstance(answer, dict) else None
        if isinstance(answer, Rejection):
            decided[i] = answer
        elif number is None:
            decided[i] = Rejection(UNREADABLE, f"no choice from 0 to {len(offered[i])} in {beginning(reply)}")
        elif number:
            decided[i] = Hallucination(offered[i][number - 1], TARGET_MODEL, SELECT, _kind(answer))
        else:
            none.add(i)
    return decided, none


def _number(answer: Mapping[str, Any], most: int) -> int | None:
    given = str(answer.get("choice")).strip()
    return int(given) if given in [str(number) for number in range(most + 1)] else None


def fault_of(item: Item, text: str, style: str, told: str = "") -> str | None:
    """Return what `answer_fault` finds; `told` is the fault of an earlier text, which was part of the prompt."""
    instructions = f"{_blank(style=style, **item.form)}\n{told}"
    return answer_fault(item.question, item.gold, text, item.task, style, instructions)


def _inject(chat: ChatModel, items: Mapping[int, Item], style: str) -> dict[int, Choice]:
    """Return a written response or a rejection for every item."""
    choices: dict[int, Choice] = {}
    made_by = portable(chat.name)
    drafts = dict.fromkeys(items, ("", ""))  # previous response and its fault
    for _ in range(WRITING_ATTEMPTS):
        told, drafts = drafts, {}
        asked = {i: partial(_injection, items[i], style, *draft) for i, draft in told.items()}
        for i, (answer, reply) in ask(chat, asked).items():
            item, written = items[i], answer.get("answer") if isinstance(answer, dict) else None
            if isinstance(answer, Rejection):
                choices[i] = answer
            elif not isinstance(written, str):
                choices[i] = Rejection(UNREADABLE, f"no text as answer in {beginning(reply)}")
            elif not folded(written):
                choices[i] = Rejection(DECLINED, f"to the gold answer {item.gold!r}")
            else:
                # JSON can hold a lone surrogate, which cannot be encoded as UTF-8.
                text = in_style(item, written.encode("utf-8", "replace").decode(), style)
                choices[i] = Hallucination(text, made_by, INJECT, _kind(answer))
                fault = fault_of(item, text, style, told[i][1])
                if len(written) >= longest(item.gold, item.form["lengths"], style):
                    fault = "it breaks off at the most characters that it may have"
                if fault:
                    choices[i], drafts[i] = Rejection(UNUSABLE, f"{fault}: {beginning(text)}"), (text, fault)
    return choices


def ask(chat: ChatModel, requests: Mapping[int, Make]) -> dict[int, tuple[dict[str, Any] | Rejection, str]]:
    """Return each reply's JSON object, or why there is none, and its text."""
    replies = chat.complete(make() for make in requests.values()) if requests else []
    return {i: (_read(reply), reply.text or "") for i, reply in zip(requests, replies, strict=True)}


def _read(reply: ChatReply) -> dict[str, Any] | Rejection:
    if reply.text is None and reply.cut:
        return Rejection(str(reply.failure), f"it begins {beginning(reply.said or reply.raw or '')}")
    if reply.text is None:
        return Rejection(NO_ANSWER, reply.failure or "")
    answer = parse_json(reply.text)
    return Rejection(UNREADABLE, f"no JSON object in {beginning(reply.text)}") if answer is None else answer


def beginning(text: str) -> str:
    return f"{text[:SHOWN]!r}"


def _kind(answer: Mapping[str, Any]) -> str | None:
    return answer["kind"] if answer.get("kind") in KINDS else None


def _answer_schema(**first: dict[str, Any]) -> dict[str, Any]:
    properties = {**first, "kind": {"type": "string", "enum": list(KINDS)}}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _selection(item: Item, candidates: list[str]) -> ChatRequest:
    shown = {"question": item.question, "gold": item.gold, "task": item.task, "candidates": candidates}
    count = len(candidates)
    return render(SELECT, _choice_schema(count), item.images, partial(_is_choice, count), **shown)


@cache
def _choice_schema(most: int) -> dict[str, Any]:
    return _answer_schema(choice={"type": "integer", "enum": list(range(most + 1))})


def _is_choice(most: int, text: str) -> bool:
    return _number(parse_json(text) or {}, most) is not None


def _injection(item: Item, style: str, previous: str, fault: str) -> ChatRequest:
    schema = _text_schema(longest(item.gold, item.form["lengths"], style))
    return render(
        INJECT, schema, item.images, has_answer, **item.form, style=style,
        question=item.question, gold=item.gold, alternatives=item.alternatives, previous=previous, fault=fault,
    )  # fmt: skip


@cache
def _text_schema(longest: int) -> dict[str, Any]:
    return _answer_schema(answer={"type": "string", "maxLength": longest})


def has_answer(text: str) -> bool:
    """Return True for a reply with a text as "answer"."""
    return isinstance((parse_json(text) or {}).get("answer"), str)


@lru_cache(maxsize=4096)
def _blank(**form: Any) -> str:
    """Return the prompt that asks for a rejected response, without the texts of the data."""
    return render(INJECT, {}, question="", gold="", previous="", fault="", **form).text
