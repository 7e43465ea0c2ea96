"""Corrected text pairs: the target model's own wrong answer against the smallest correction that makes it true.

Both sides are then in the model's own words, as in OPA-DPO (Yang et al. 2025, arXiv 2501.09695) and FiRe-MPO (arXiv
2606.12590), where a strong model edits what contradicts the gold answer and keeps the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

from mmedpo.curation.answer_checks import changes, copy_fault, gold_says, in_form_of
from mmedpo.curation.hallucinate import (
    UNREADABLE,
    WRITING_ATTEMPTS,
    Writer,
    ask,
    fault_of,
    has_answer,
    in_style,
    select_wrong,
)
from mmedpo.curation.prompts import render
from mmedpo.curation.text_pairs import GOLD, Choice, Chosen, Hallucination, Item, Rejection
from mmedpo.data import placeholders
from mmedpo.data.laterality import is_conflict
from mmedpo.data.normal_words import DENIED, content_words, normal_words
from mmedpo.data.samples import Sample
from mmedpo.data.text import NEGATIONS, folded, words
from mmedpo.data.yes_no import says
from mmedpo.models.chat import ChatModel, ChatRequest
from mmedpo.runs.provenance import portable
from mmedpo.schema import text_fault

CORRECT = "correct@1"
ALWAYS = 2  # words that a correction may change, however short the answer is
# Reasons for the gold answer as the chosen side.
OPTIONS = "of multiple choice the gold option is the correction"
NO_SAMPLE = "the target gave no answer that is wrong by its words"
RIGHT = "the chat model found none of the target's answers wrong"
NO_CORRECTION = "the correction could not be read, or was declined"
MANY = "the correction changes more words than --max-changed"
DISAGREES = "the correction does not say what the gold answer says"
UNFIT = "the correction is no chosen response"


@dataclass(frozen=True)
class Corrector(Writer):
    """Writer that also corrects the target's own wrong answer, which is then the rejected response, as it was said.

    Where no correction can be used, the gold answer is chosen: against the same wrong answer if it fits the style, and
    else against one that is written as by `Writer`.

    Attributes:
        max_changed: largest share of the answer's words that a correction changes; `ALWAYS` words may change.
    """

    max_changed: float = 0.5

    def wants(self, sample: Sample) -> bool:
        """Return True: what is corrected is the target's own answer."""
        return True

    def choose(self, items: Sequence[Item]) -> list[Choice]:
        """Return the pair of every item, in order.

        Raises:
            InputError: `chat.complete` raises it.
        """
        made: dict[int, Choice] = {i: Rejection(item.failed, "") for i, item in enumerate(items) if item.failed}
        gold = {i: OPTIONS for i, item in enumerate(items) if item.options and i not in made}
        rest = {i: item for i, item in enumerate(items) if i not in made and i not in gold}
        picked, none = select_wrong(self.chat, rest, "free")
        gold |= {i: RIGHT if i in none else NO_SAMPLE for i in rest if i not in picked}
        wrong = {i: choice for i, choice in picked.items() if isinstance(choice, Hallucination)}
        made |= picked
        for i, corrected in _correct(self.chat, rest, wrong, self.max_changed).items():
            if isinstance(corrected, str):
                gold[i] = corrected
            else:
                made[i] = corrected
        made |= self._against_gold({i: (items[i], wrong.get(i)) for i in gold}, gold)
        return [made[i] for i in range(len(items))]

    def _against_gold(
        self, items: Mapping[int, tuple[Item, Hallucination | None]], why: Mapping[int, str]
    ) -> dict[int, Choice]:
        """Return pairs of the gold answer for items with the target's wrong answer, if there is one."""
        made: dict[int, Choice] = {}
        for i, (item, wrong) in items.items():
            text = wrong and in_style(item, wrong.text, self.style)
            if wrong and text and fault_of(item, text, self.style) is None:
                made[i] = replace(wrong, text=text)
        written = {i: replace(item, candidates=item.candidates if item.options else ())
                   for i, (item, _) in items.items() if i not in made}  # fmt: skip
        made |= dict(zip(written, super().choose([*written.values()]) if written else [], strict=True))
        for i, choice in made.items():
            made[i] = choice = replace(choice, none_chosen=why[i] == RIGHT)
            if isinstance(choice, Hallucination):
                made[i] = replace(choice, chosen=Chosen(items[i][0].gold, GOLD, fallback=why[i], is_gold=True))
        return made


def most_changes(own: str, share: float) -> int:
    """Return the most words of an answer that its correction changes."""
    return max(ALWAYS, int(share * len(words(own))))


def correction_fault(
    question: str, gold: str, own: str, text: str, task: str, share: float, instructions: str = ""
) -> tuple[str, str] | None:
    """Return why `text` cannot be the correction of `own`, as (reason, sentence), or None if it can.

    Args:
        instructions: words of the prompt that asked for it, which it must not repeat.
    """
    if folded(text) == folded(own):
        return DISAGREES, "it is the wrong answer, unchanged"
    if (changed := changes(own, text)) > (most := most_changes(own, share)):
        return MANY, f"it changes {changed} words of the model's answer, and at most {most} may change"
    if fault := _disagreement(question, gold, own, text, task):
        return DISAGREES, fault
    held = placeholders.fault(text)
    fault = f"the answer {held}" if held else text_fault(text, own, task) or copy_fault(own, text, instructions)
    return (UNFIT, fault) if fault else None


def _disagreement(question: str, gold: str, own: str, text: str, task: str) -> str | None:
    """Return why a text does not say what the gold answer says, as far as words show it."""
    if is_conflict(text, gold):
        return "it names another side than the correct answer"
    if task == "report":
        nearer = changes(gold, text) < changes(gold, own)
        return None if nearer else "it is no nearer to the words of the correct report than the wrong one"
    if right := gold_says(question, gold, task):
        found = says(text, question)
        return None if found == right else f"the correct answer says {right}, and this says {found or 'neither'}"
    every = normal_words(gold)
    said = [word for word in every if word not in {*NEGATIONS, "no"}] or every  # what is denied is marked
    missing = dict.fromkeys(word for word in content_words(said) or said if word not in normal_words(text))
    if missing:
        named = ", ".join(f"no {word.removeprefix(DENIED)}" if word.startswith(DENIED) else word for word in missing)
        return f"the correct answer says {named}, and this does not"
    kept = {*content_words(normal_words(own))} <= {*normal_words(text)}
    return "it still says all that the wrong answer says" if kept else None


def _correct(
    chat: ChatModel, items: Mapping[int, Item], wrong: Mapping[int, Hallucination], share: float
) -> dict[int, Choice | str]:
    """Return the pair with a correction of each wrong answer, a rejection to be asked again, or why there is none."""
    made: dict[int, Choice | str] = {}
    drafts = dict.fromkeys(wrong, ("", ""))  # previous correction and its fault
    for _ in range(WRITING_ATTEMPTS):
        told, drafts = drafts, {}
        asked = {i: partial(_correction, items[i], wrong[i].text, share, *draft) for i, draft in told.items()}
        for i, (answer, _) in ask(chat, asked).items():
            item, own = items[i], wrong[i]
            written = answer.get("answer") if isinstance(answer, dict) else None
            if isinstance(answer, Rejection) and answer.reason != UNREADABLE:
                made[i] = answer
            elif not isinstance(written, str) or not folded(written):
                made[i] = NO_CORRECTION
            else:
                # JSON can hold a lone surrogate, which cannot be encoded as UTF-8.
                text = in_form_of(own.text, written.encode("utf-8", "replace").decode())
                instructions = f"{_instructions(item.task, _right(item))}\n{told[i][1]}"
                fault = correction_fault(item.question, item.gold, own.text, text, item.task, share, instructions)
                if len(written) >= _longest(item, own.text):
                    fault = UNFIT, "it breaks off at the most characters that it may have"
                if fault:
                    made[i], drafts[i] = fault[0], (text, fault[1])
                else:
                    changed = changes(own.text, text)
                    chosen = Chosen(
                        text, portable(chat.name), CORRECT, changed, is_gold=folded(text) == folded(item.gold)
                    )
                    made[i] = replace(own, chosen=chosen)
    return made


def _right(item: Item) -> str | None:
    return gold_says(item.question, item.gold, item.task)


def _longest(item: Item, own: str) -> int:
    """Return the most characters of a correction, for the schema of the reply: generous, so that none is cut."""
    return max(64, 2 * len(own) + len(item.gold))


def _correction(item: Item, own: str, share: float, previous: str, fault: str) -> ChatRequest:
    schema = {
        "type": "object", "properties": {"answer": {"type": "string", "maxLength": _longest(item, own)}},
        "required": ["answer"], "additionalProperties": False,
    }  # fmt: skip
    return render(
        CORRECT, schema, item.images, has_answer, question=item.question, gold=item.gold, response=own, task=item.task,
        right=_right(item), most_changes=most_changes(own, share), share=share, previous=previous, fault=fault,
    )  # fmt: skip


@lru_cache(maxsize=64)
def _instructions(task: str, right: str | None) -> str:
    """Return the prompt that asks for a correction, without the texts of the data."""
    blank: dict[str, Any] = dict.fromkeys(("question", "gold", "response", "most_changes", "previous", "fault"), "")
    return render(CORRECT, {}, task=task, right=right, share="", **blank).text
