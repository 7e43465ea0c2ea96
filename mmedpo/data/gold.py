"""Doubtful gold answers, which repeat the question or decline to answer. They are counted, never dropped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from mmedpo.data.text import carries, folded, words

REPEATS, DECLINES = "repeats the question", "declines to answer"
FEWEST_WORDS = 3  # of a question, before a longer answer counts as repeating it ("Pneumothorax?" may be answered so)
_VERB = "(tell|say|answer|determine|provide|help|assist)"  # not "see": "I cannot see a mass" is an answer
_CANNOT = r"(can ?not|can't|could not|couldn't)"
_REFUSAL = re.compile(  # beginnings of refusals, by people and chat models, also in reports
    rf"((i am|i'm) )?(sorry|an ai\b|(unable|not able) to {_VERB})|as an ai\b|i {_CANNOT} {_VERB}"
    rf"|i (do not|don't) know\b|th(e|is) question {_CANNOT} be answered|no answer\b"
)
_ENOUGH = r"(not enough|insufficient|no) (information|data|context|details?)"
_SHOWN = (
    "(images?|pictures?|photo(graph)?s?|figures?|scans?|x-?rays?|radiographs?|slides?|reports?|text|information|data)"
)
_UNKNOWN = re.compile(  # whole answers
    r"((it is|it's|i am|i'm|there is) )?(not (sure|known|specified|stated|given|available|applicable|certain|mentioned"
    r"|provided|reported|determined|determinable|determinate)"
    rf"|(not possible|impossible) to {_VERB}|un(known|specified|answerable|determined|sure|certain)|indetermina(te|ble)"
    rf"|{_CANNOT} (be (determined|said|answered|assessed)|{_VERB})|(do not|don't) know|no idea|n\.?/?a\.?"
    rf"|{_ENOUGH}( (is )?(given|provided|available))?( to {_VERB})?)"
    rf"( (from|in|on|by|with|based on) (the|th(is|ese)) ((given|provided|available) )?{_SHOWN}( alone)?)?"
)


def doubt(question: str, answer: str) -> str | None:
    """Return `REPEATS` or `DECLINES` for a doubtful answer, else None."""
    asked, answered = words(question), words(answer)
    if asked and (asked == answered or (len(asked) >= FEWEST_WORDS and carries(answer, question))):
        return REPEATS
    text = folded(answer).strip(" .!?\"'")
    if _REFUSAL.match(text) or _UNKNOWN.fullmatch(text):
        return DECLINES
    return None


def doubts(pairs: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Count the doubtful (question, answer) pairs by reason."""
    found = Counter(doubt(question, answer) for question, answer in pairs)
    return {reason: found[reason] for reason in (REPEATS, DECLINES) if found[reason]}


def notice(name: str, found: dict[str, int]) -> str | None:
    """Return a notice about the doubtful gold answers of the source `name`, or None."""
    if not found:
        return None
    told = ", ".join(f"{reason} ({count:,})" for reason, count in found.items())
    return (
        f"{name}: gold answers that may not be answers: {told}. They are kept. Correct or remove these rows if needed."
    )
