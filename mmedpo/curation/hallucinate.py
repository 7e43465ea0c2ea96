"""The hallucinated side of a text pair: the target model's worst answer, or a wrong one written for it.

The paper, section 3.1: a strong chat model compares sampled answers with the truth and picks the most hallucinated;
if none is clearly hallucinated it writes one from the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mmedpo.curation.prompts import render
from mmedpo.errors import InputError
from mmedpo.llm import ChatModel, ChatReply, ChatRequest, parse_json
from mmedpo.schema import text_fault
from mmedpo.text import words

SELECT = "select@1"
INJECT = "inject@1"
TARGET_MODEL = "target model"
KINDS = ("finding", "place", "diagnosis", "other")
NO_ANSWER = "the chat model did not answer"
UNREADABLE = "the chat model's answer could not be read"
DECLINED = "the chat model declined to write a wrong answer"
UNUSABLE = "the chat model wrote no usable wrong answer"
WRITING_ATTEMPTS = 2

Style = Literal["free", "match"]


@dataclass(frozen=True)
class Item:
    """One sample: `candidates` were sampled from the target model, `alternatives` are gold answers of other samples
    of the same task (read by offline stand-ins only). `task` is one of `schema.TASKS`."""

    question: str
    gold: str
    task: str
    candidates: Sequence[str] = ()
    alternatives: Sequence[str] = ()


@dataclass(frozen=True)
class Hallucination:
    """A dispreferred answer: `made_by` is "target model" or the chat model's name, `prompt_version` the prompt that
    chose or wrote it, `kind` one of `KINDS` in the chat model's opinion (None: it gave none)."""

    text: str
    made_by: str
    prompt_version: str
    kind: str | None = None


@dataclass(frozen=True)
class Rejection:
    """No dispreferred answer: `reason` is one of this module's four sentences (for counting), `detail` the case."""

    reason: str
    detail: str


Choice = Hallucination | Rejection


def length_range(gold: str) -> tuple[int, int]:
    """Fewest and most words a rejected answer in the style of `gold` has: within a factor of 2, or 2 words.

    Example: (1, 4) for a gold answer of 2 words, (5, 20) for one of 10.
    """
    count = len(words(gold))
    return max(1, min(count - 2, -(-count // 2))), max(count + 2, 2 * count)


def choose(chat: ChatModel, items: Sequence[Item], style: Style = "free") -> list[Choice]:
    """Choose or write a dispreferred answer for every item, in order; all items go to `chat` in at most 3 batches.

    Candidates that cannot be dispreferred (`schema.text_fault`) are never offered. `style="match"` also keeps the
    length of the gold answer (`length_range`), so that length alone does not tell the two sides apart.

    Raises:
        InputError: unknown style, or whatever `chat.complete` raises.
    """
    if style not in get_args(Style):
        raise InputError(f"style={style!r} is unknown; choose one of {', '.join(get_args(Style))}.")
    chosen = _select(chat, items, style)
    left = [i for i in range(len(items)) if i not in chosen]
    written = _inject(chat, [items[i] for i in left], style)
    chosen.update(zip(left, written, strict=True))
    return [chosen[i] for i in range(len(items))]


def _fault(item: Item, text: str, style: Style) -> str | None:
    fault = text_fault(item.gold, text, item.task)
    if fault is None and style == "match":
        (low, high), count = length_range(item.gold), len(words(text))
        if not low <= count <= high:
            return f"it has {count} words, and an answer in the style of the gold answer has {low} to {high}"
    return fault


def _select(chat: ChatModel, items: Sequence[Item], style: Style) -> dict[int, Choice]:
    """Decisions by item index; an item without usable or hallucinated candidates has none."""
    offered: dict[int, list[str]] = {}
    for i, item in enumerate(items):
        distinct = {candidate.strip().casefold(): candidate.strip() for candidate in item.candidates}
        usable = [candidate for candidate in distinct.values() if _fault(item, candidate, style) is None]
        if usable:
            offered[i] = usable
    decided: dict[int, Choice] = {}
    for i, reply in zip(offered, _complete(chat, [_selection(items[i], c) for i, c in offered.items()]), strict=True):
        answer = _read(reply)
        if isinstance(answer, Rejection):
            decided[i] = answer
            continue
        number = answer.get("choice")
        if isinstance(number, str) and number.strip().isdecimal():
            number = int(number)
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= len(offered[i]):
            decided[i] = Rejection(UNREADABLE, f"choice {number!r} is not a number from 0 to {len(offered[i])}")
        elif number > 0:
            decided[i] = Hallucination(offered[i][number - 1], TARGET_MODEL, SELECT, _kind(answer))
    return decided


def _inject(chat: ChatModel, items: Sequence[Item], style: Style) -> list[Choice]:
    choices: dict[int, Choice] = {}
    drafts = dict.fromkeys(range(len(items)), ("", ""))  # what was written before, and what is wrong with it
    for _ in range(WRITING_ATTEMPTS):
        asked, drafts = drafts, {}
        requests = [_injection(items[i], style, *draft) for i, draft in asked.items()]
        for i, reply in zip(asked, _complete(chat, requests), strict=True):
            answer = _read(reply)
            text = answer.get("answer") if isinstance(answer, dict) else None
            if isinstance(answer, Rejection):
                choices[i] = answer
            elif not isinstance(text, str):
                choices[i] = Rejection(UNREADABLE, f"answer {text!r} is not a text")
            elif not text.strip():
                choices[i] = Rejection(DECLINED, f"to the gold answer {items[i].gold!r}")
            elif fault := _fault(items[i], text, style):
                choices[i] = Rejection(UNUSABLE, fault)
                drafts[i] = (text, fault)
            else:
                choices[i] = Hallucination(text.strip(), chat.name, INJECT, _kind(answer))
    return [choices[i] for i in range(len(items))]


def _complete(chat: ChatModel, requests: list[ChatRequest]) -> list[ChatReply]:
    return chat.complete(requests) if requests else []


def _read(reply: ChatReply) -> dict[str, Any] | Rejection:
    if reply.text is None:
        return Rejection(NO_ANSWER, reply.failure or "")
    answer = parse_json(reply.text)
    return Rejection(UNREADABLE, f"no JSON object in {reply.text[:200]!r}") if answer is None else answer


def _kind(answer: dict[str, Any]) -> str | None:
    return answer["kind"] if answer.get("kind") in KINDS else None


def _answer_schema(**first: dict[str, Any]) -> dict[str, Any]:
    properties = {**first, "kind": {"type": "string", "enum": list(KINDS)}}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _selection(item: Item, candidates: list[str]) -> ChatRequest:
    schema = _answer_schema(choice={"type": "integer", "enum": list(range(len(candidates) + 1))})
    return render(SELECT, schema, question=item.question, gold=item.gold, task=item.task, candidates=candidates)


def _injection(item: Item, style: Style, previous: str, fault: str) -> ChatRequest:
    return render(
        INJECT,
        _answer_schema(answer={"type": "string"}),
        question=item.question,
        gold=item.gold,
        task=item.task,
        alternatives=item.alternatives,
        lengths=length_range(item.gold) if style == "match" else None,
        previous=previous,
        fault=fault,
    )
