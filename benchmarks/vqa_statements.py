"""Statements from yes/no questions, by turning the question round: independent of the rules that read answers.

"Is there X?" becomes "There is X." and "There is no X."; "Is the X Y?" "The X is Y." and "The X is not Y.".
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Words that a predicate begins with, if it is not the last word alone.
_PREDICATES = frozenset((
    "within", "present", "visible", "visualized", "seen", "obscured", "clearly", "well", "well-defined", "less",
    "wider", "abnormally", "normal", "showing", "taken", "safe", "consistent", "highlighted", "be", "cause", "given",
))  # fmt: skip
_VERBS = "show|look|appear|represent|have|receive"
_DETERMINERS = frozenset(("the", "a", "an", "these", "this"))

STYLES = {  # of an answer that says the word, and without the sentence mark of the statement
    "the statement": "{said}.",
    "yes or no and the statement": "{word}, {lower}.",
    "in lower case": "{lower}",
    "after what the image shows": "The image shows that {lower}.",
    "after a role": "Assistant: {said}.",
    "before an explanation": "{said}. The image is of good quality.",
    "in a tag": "<answer>{said}</answer>",
    "after a label": "**Answer:** {said}\n\nRead with care.",
    "after a reason": "Based on the image, {lower}.",
    "as a belief": "I believe that {lower}.",
}
HEDGES = {
    "I cannot determine": "I cannot determine whether {lower}.",
    "it is possible": "It is possible that {lower}.",
    "it is unclear": "It is unclear if {lower}.",
    "yes or no": "yes or no",
    "the offered options": "[yes, no]",
    "unable to provide": "I am unable to provide a definitive yes or no answer.",
}


class Statements(NamedTuple):
    """What a question asks, stated and denied, in lower case."""

    yes: str
    no: str


def statements(question: str) -> Statements | None:
    """Return the statements that a yes/no question asks about; None if it cannot be turned round."""
    text = " ".join(question.strip(" ?").split())
    text = text[:1].lower() + text[1:]
    if found := re.fullmatch(r"(is|are) there ((?:an? |any )?)(.+)", text):
        verb, article, thing = found.groups()
        return Statements(f"there {verb} {article if article != 'any ' else ''}{thing}", f"there {verb} no {thing}")
    if found := re.fullmatch(r"(?:can|do) you (see|evaluate) (.+)", text):
        return Statements(f"you can {found[1]} {found[2]}", f"you cannot {found[1]} {found[2]}")
    if found := re.fullmatch(r"evidence of (.+)", text):
        return Statements(f"there is evidence of {found[1]}", f"there is no evidence of {found[1]}")
    auxiliary, _, rest = text.partition(" ")
    if found := re.fullmatch(rf"(.+?) ({_VERBS}) (.+)", rest) if auxiliary in ("does", "do", "did") else None:
        subject, verb, thing = found.groups()
        past = {"does": "has" if verb == "have" else f"{verb}s", "do": verb, "did": f"{verb}d"}[auxiliary]
        return Statements(f"{subject} {past} {thing}", f"{subject} {auxiliary} not {verb} {thing}")
    heads = rest.split(" ")
    if (
        auxiliary not in ("is", "are", "was", "can", "has")
        or " and is " in rest
        or heads[0] == "anything"
        or "is" in heads
    ):
        return None
    first = 2 if heads[0] in _DETERMINERS else 1
    if heads[0] in ("this", "these") and heads[1] not in ("image", "patient", "modality"):
        split = 1
    elif heads[:3] == ["the", "image", "of"]:
        split = 2
    else:
        split = next((i for i in range(first, len(heads)) if heads[i] in _PREDICATES), len(heads) - 1)
    subject, predicate = " ".join(heads[:split]), " ".join(heads[split:])
    return Statements(f"{subject} {auxiliary} {predicate}", f"{subject} {auxiliary} not {predicate}") if split else None


def answers(question: str, word: str, styles: dict[str, str]) -> dict[str, str]:
    """Return the answers that say `word` to the question, by style; none if it cannot be turned round."""
    found = statements(question)
    if found is None:
        return {}
    lower = found.yes if word == "yes" else found.no
    said = lower[:1].upper() + lower[1:]
    return {style: form.format(word=word.capitalize(), said=said, lower=lower) for style, form in styles.items()}
