"""Rejected responses of text pairs: a sampled answer of the target model, or one written by a chat model.

Paper, section 3.1: a strong chat model compares sampled answers with the gold answer and picks the most hallucinated.
If none is clearly hallucinated, it writes one from the gold answer. Styles keep length and form from telling the two
sides apart. In the authors' released data rejected responses are about five times as long.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmedpo.curation.prompts import render
from mmedpo.data import placeholders
from mmedpo.data.text import folded, plain, words
from mmedpo.models.chat import ChatModel, ChatReply, ChatRequest, parse_json
from mmedpo.runs.provenance import portable
from mmedpo.schema import text_fault

SELECT, INJECT, FLIP = "select@2", "inject@2", "flip@1"
TARGET_MODEL, FLIPPED = "target model", "flip"
KINDS = ("finding", "place", "diagnosis", "other")
NO_ANSWER = "the chat model did not answer"
UNREADABLE = "the chat model's answer could not be read"
DECLINED = "the chat model declined to write a wrong answer"
UNUSABLE = "the chat model wrote no usable wrong answer"
WRITING_ATTEMPTS = 2
OPPOSITE = {"yes": "no", "no": "yes"}
FULL_STOPS = ".。।۔"
STYLES = ("match", "minimal", "free")


@dataclass(frozen=True)
class Item:
    """One sample whose rejected response is wanted.

    Attributes:
        task: one of `schema.TASKS`.
        candidates: answers sampled from the target model.
        alternatives: returns gold answers of other samples of the task; only offline stand-ins ask for them.
        image: an encoded image file to show to the chat model, or None.
    """

    question: str
    gold: str
    task: str
    candidates: Sequence[str] = ()
    alternatives: Callable[[], Iterable[str]] = tuple
    image: bytes | None = None


@dataclass(frozen=True)
class Hallucination:
    """A rejected response.

    Attributes:
        made_by: "target model", "flip" or the chat model's name.
        prompt_version: the prompt or rule that chose or wrote it.
        kind: one of `KINDS`, as the chat model classified it; None if it did not.
    """

    text: str
    made_by: str
    prompt_version: str
    kind: str | None = None


@dataclass(frozen=True)
class Rejection:
    """A missing rejected response: `reason` is one of this module's four constants, `detail` the case."""

    reason: str
    detail: str


Choice = Hallucination | Rejection


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

    def choose(self, items: Sequence[Item]) -> list[Choice]:
        """Choose or write a rejected response for every item, in order, with at most three batches of requests.

        Unusable candidates (`answer_fault`) are never offered. An unusable written response is requested once more.

        Raises:
            InputError: `chat.complete` raises it.
        """
        chosen: dict[int, Choice] = {}
        if self.style != "free":
            flipped = {i: flip(item.gold) for i, item in enumerate(items) if item.task != "report"}
            chosen |= {i: Hallucination(text, FLIPPED, FLIP) for i, text in flipped.items() if text is not None}
        for step in (_select, _inject):
            chosen |= step(self.chat, {i: item for i, item in enumerate(items) if i not in chosen}, self.style)
        return [chosen[i] for i in range(len(items))]


def flip(gold: str) -> str | None:
    """Return the opposite of an answer that is only yes or no, in its form ("Yes." gives "No."); else None."""
    said = words(gold)
    if said not in (["yes"], ["no"]):
        return None
    return re.sub(r"\w+", lambda match: in_case_of(match.group(), OPPOSITE[said[0]]), plain(gold))


def in_case_of(pattern: str, word: str) -> str:
    """Return the lower-case `word` in upper case, capitalised or unchanged, as `pattern` is."""
    if pattern.isupper() and len(pattern) > 1:
        return word.upper()
    return word.capitalize() if pattern[:1].isupper() else word


def in_form_of(gold: str, text: str) -> str:
    """Return `text` in the form of `gold`.

    The form is the surrounding white space, the case of the first letter (acronyms keep theirs) and the final full
    stop. Runs of spaces become one space unless `gold` has such runs.
    """
    before, answer, stop, after = _parts(gold)
    body = _parts(text)[1]
    if not re.search(r"[^\S\n]{2}", answer):
        body = re.sub(r"[^\S\n]+", " ", body)
    first = body.split(maxsplit=1)[0] if body else ""
    if answer[:1].isupper():
        body = body[:1].upper() + body[1:]
    elif answer[:1].islower() and not (first.isupper() and len(first) > 1):
        body = body[:1].lower() + body[1:]
    return before + body + stop + after


def _parts(text: str) -> tuple[str, str, str, str]:
    """Return leading white space, the answer, its final full stops and trailing white space."""
    head = text.lstrip()
    answer = head.rstrip()
    body = answer.rstrip(FULL_STOPS)
    return text[: len(text) - len(head)], body, answer[len(body) :], head[len(answer) :]


def length_range(gold: str) -> tuple[int, int]:
    """Return the fewest and most words of a rejected response: within a factor of 2, or 2 words, of `gold`.

    Example: (1, 4) for a gold answer of 2 words, (5, 20) for one of 10.
    """
    count = len(words(gold))
    return max(1, min(count - 2, -(-count // 2))), max(count + 2, 2 * count)


def lines(text: str) -> int:
    """Return the number of lines of `text`, blank lines between others included."""
    return 1 + text.strip().count("\n")


def most_changes(gold: str) -> int:
    """Return the most words that a minimal edit of `gold` changes: a quarter of them, but at least 2."""
    return max(2, len(words(gold)) // 4)


def changes(gold: str, text: str) -> int:
    """Return the word-level edit distance between `gold` and `text`; 0 if at most the form differs."""
    from nltk.metrics.distance import edit_distance

    return edit_distance(words(gold), words(text))


def answer_fault(gold: str, text: str, task: str, style: str) -> str | None:
    """Return why `text` cannot be the rejected response to `gold` in this style, or None if it can."""
    held = placeholders.fault(text)
    fault = f"the rejected answer {held}" if held else text_fault(gold, text, task)
    if fault or style == "free":
        return fault
    (low, high), count = length_range(gold), len(words(text))
    if not low <= count <= high:
        return f"it has {count} words, and an answer in the style of the gold answer has {low} to {high}"
    if lines(text) != lines(gold):
        return f"it has {lines(text)} lines, and the gold answer has {lines(gold)}"
    if style == "minimal" and (changed := changes(gold, text)) > most_changes(gold):
        return f"it changes {changed} words of the gold answer, and at most {most_changes(gold)} may change"
    return None


def _styled(item: Item, text: str, style: str) -> str:
    return text.strip() if style == "free" else in_form_of(item.gold, text)


def _select(chat: ChatModel, items: Mapping[int, Item], style: str) -> dict[int, Choice]:
    """Return decisions by item index; items without a usable or hallucinated candidate are absent."""
    offered: dict[int, list[str]] = {}
    for i, item in items.items():
        styled = (_styled(item, candidate, style) for candidate in item.candidates)
        distinct = {folded(text): text for text in styled}.values()
        offered[i] = [text for text in distinct if answer_fault(item.gold, text, item.task, style) is None]
    asked = {i: _selection(items[i], candidates) for i, candidates in offered.items() if candidates}
    decided: dict[int, Choice] = {}
    for i, answer in _ask(chat, asked).items():
        if isinstance(answer, Rejection):
            decided[i] = answer
            continue
        numbers = [str(number) for number in range(len(offered[i]) + 1)]
        number = str(answer.get("choice")).strip()
        if number not in numbers:
            decided[i] = Rejection(UNREADABLE, f"choice {number!r:.200} is not a number from 0 to {numbers[-1]}")
        elif number != "0":
            decided[i] = Hallucination(offered[i][int(number) - 1], TARGET_MODEL, SELECT, _kind(answer))
    return decided


def _inject(chat: ChatModel, items: Mapping[int, Item], style: str) -> dict[int, Choice]:
    """Return a written response or a rejection for every item."""
    choices: dict[int, Choice] = {}
    drafts = dict.fromkeys(items, ("", ""))  # previous response and its fault
    for _ in range(WRITING_ATTEMPTS):
        asked, drafts = {i: _injection(items[i], style, *draft) for i, draft in drafts.items()}, {}
        for i, answer in _ask(chat, asked).items():
            item, written = items[i], answer.get("answer") if isinstance(answer, dict) else None
            if isinstance(answer, Rejection):
                choices[i] = answer
            elif not isinstance(written, str):
                choices[i] = Rejection(UNREADABLE, f"answer {written!r:.200} is not a text")
            elif not folded(written):
                choices[i] = Rejection(DECLINED, f"to the gold answer {item.gold!r}")
            else:
                # JSON can hold a lone surrogate, which cannot be encoded as UTF-8.
                text = _styled(item, written.encode("utf-8", "replace").decode(), style)
                choices[i] = Hallucination(text, portable(chat.name), INJECT, _kind(answer))
                if fault := answer_fault(item.gold, text, item.task, style):
                    choices[i], drafts[i] = Rejection(UNUSABLE, fault), (text, fault)
    return choices


def _ask(chat: ChatModel, requests: Mapping[int, ChatRequest]) -> dict[int, dict[str, Any] | Rejection]:
    replies = chat.complete(list(requests.values())) if requests else []
    return {i: _read(reply) for i, reply in zip(requests, replies, strict=True)}


def _read(reply: ChatReply) -> dict[str, Any] | Rejection:
    if reply.text is None:
        return Rejection(NO_ANSWER, reply.failure or "")
    answer = parse_json(reply.text)
    return Rejection(UNREADABLE, f"no JSON object in {reply.text[:200]!r}") if answer is None else answer


def _kind(answer: Mapping[str, Any]) -> str | None:
    return answer["kind"] if answer.get("kind") in KINDS else None


def _answer_schema(**first: dict[str, Any]) -> dict[str, Any]:
    properties = {**first, "kind": {"type": "string", "enum": list(KINDS)}}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _selection(item: Item, candidates: list[str]) -> ChatRequest:
    schema = _answer_schema(choice={"type": "integer", "enum": list(range(len(candidates) + 1))})
    shown = {"question": item.question, "gold": item.gold, "task": item.task, "candidates": candidates}
    return render(SELECT, schema, item.image, **shown)


def _injection(item: Item, style: str, previous: str, fault: str) -> ChatRequest:
    opening = "" if item.task == "report" else next(iter(words(item.gold)), "")
    return render(
        INJECT, _answer_schema(answer={"type": "string"}), item.image, question=item.question, gold=item.gold,
        task=item.task, alternatives=item.alternatives, opposite=OPPOSITE.get(opening), style=style,
        lengths=length_range(item.gold), lines=lines(item.gold), most_changes=most_changes(item.gold),
        previous=previous, fault=fault,
    )  # fmt: skip
