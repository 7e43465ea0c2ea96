"""Gold answers that may be none: they repeat the question or decline to answer. They are counted, never dropped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from mmedpo.data.text import carries, folded, words

REPEATS, DECLINES = "repeats the question", "declines to answer"
FEWEST_WORDS = 3  # of a question that a longer answer repeats: "Pneumothorax?" may well be answered in a sentence
_VERB = "(tell|say|answer|determine|provide|help|assist)"  # not "see": "I cannot see a mass" is an answer
_CANNOT = r"(can ?not|can't|could not|couldn't)"
_REFUSAL = re.compile(  # how people and chat models begin an answer that is none, in a report too
    rf"((i am|i'm) )?(sorry|an ai\b|(unable|not able) to {_VERB})|as an ai\b|i {_CANNOT} {_VERB}"
    rf"|i (do not|don't) know\b|th(e|is) question {_CANNOT} be answered|no answer\b"
)
_ENOUGH = r"(not enough|insufficient|no) (information|data|context|details?)"
_SHOWN = (
    "(images?|pictures?|photo(graph)?s?|figures?|scans?|x-?rays?|radiographs?|slides?|reports?|text|information|data)"
)
_UNKNOWN = re.compile(  # a whole answer
    r"((it is|it's|i am|i'm|there is) )?(not (sure|known|specified|stated|given|available|applicable|certain|mentioned"
    r"|provided|reported|determined|determinable|determinate)"
    rf"|(not possible|impossible) to {_VERB}|un(known|specified|answerable|determined|sure|certain)|indetermina(te|ble)"
    rf"|{_CANNOT} (be (determined|said|answered|assessed)|{_VERB})|(do not|don't) know|no idea|n\.?/?a\.?"
    rf"|{_ENOUGH}( (is )?(given|provided|available))?( to {_VERB})?)"
    rf"( (from|in|on|by|with|based on) (the|th(is|ese)) ((given|provided|available) )?{_SHOWN}( alone)?)?"
)


def doubt(question: str, answer: str) -> str | None:
    """`REPEATS` or `DECLINES`, or None for an answer that says something."""
    asked, said = words(question), words(answer)
    if asked and (asked == said or (len(asked) >= FEWEST_WORDS and carries(answer, question))):
        return REPEATS
    text = folded(answer).strip(" .!?\"'")
    if _REFUSAL.match(text) or _UNKNOWN.fullmatch(text):
        return DECLINES
    return None


def doubts(pairs: Iterable[tuple[str, str]]) -> dict[str, int]:
    """How many of these (question, answer) pairs have each doubt."""
    found = Counter(doubt(question, answer) for question, answer in pairs)
    return {reason: found[reason] for reason in (REPEATS, DECLINES) if found[reason]}


def notice(name: str, found: dict[str, int]) -> str | None:
    """What a person should know of the doubtful gold answers of a source; None where there are none."""
    if not found:
        return None
    said = ", ".join(f"{reason} ({count:,})" for reason, count in found.items())
    return f"Gold answers of {name} that may be none: {said}. They are kept. Mend or remove the rows if that is wrong."
