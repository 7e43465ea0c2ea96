"""Yes or no that an answer says, read against its question; rules only, in English, conservative where in doubt.

A plain yes or no counts first ("Yes, ..."). Without one the statements are read: words of the question that are stated
mean yes, negated ones no, and what excludes them (normal and abnormal, left and right) no.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Literal

from mmedpo.data import yes_no_words as known
from mmedpo.data.statements import (
    HEALTH,
    Asked,
    Segment,
    asked_by,
    rivals_of,
    statements,
    stem_of,
    stems_of,
)  # fmt: skip
from mmedpo.data.text import CLAUSE_STARTS, Polarity, plain, said, words

Reading = Literal["yes", "no", "both", "neither", "refused", "empty"]
_LABELS = re.compile(
    r"<\|?/?[a-z_]{1,20}\|?>|(?:^|\n|(?<=\? ))[^\w\n]{0,8}(?:assistant|answer|response|final answer)\W{0,3}:"
)
_OFFERED = re.compile(r"\b(?:yes|no)\W{0,3}(?:[/|,]|\bor\b)\W{0,3}(?:yes|no)\b")
_HEDGED = re.compile(r"\b(?:may|might|maybe|perhaps|possibl[ey]|probabl[ey]|likely|unlikely|could)\b")
# "yes", or a "no" that is no determiner: where there is none, `said` need not look.
_CANDIDATE = re.compile(rf"\byes\b|\bno\b(?! [a-z])|\bno (?:{'|'.join(sorted(CLAUSE_STARTS))})\b")
_WORD = {"yes": re.compile(r"\byes\b"), "no": re.compile(r"\bno\b")}
_OTHER = {"yes": _WORD["no"], "no": _WORD["yes"]}
_END = re.compile(r"[.;?!\n]")


def read(answer: str, question: str) -> Reading:
    """Return what an answer says to a yes/no question.

    A plain yes or no counts before a statement that contradicts it, unless it is hedged ("possibly yes") or declined
    ("No, I am unable to tell"). "both" also stands for statements that contradict each other.

    Example:
        >>> read("There is no sign of a fracture.", "Is there a fracture?"), read("It may be.", "Fracture?")
        ('no', 'neither')
        >>> read("I cannot give a yes or no answer.", "Is there a fracture?"), read("yes/no", "Is there a fracture?")
        ('refused', 'both')
    """
    text = _text(answer)
    word = _plain_word(text, question)
    if word != "neither":
        return word
    if known.DECLINES.search(text) and _declines(text, question):
        return "refused"
    asked = asked_by(question)
    found = "neither" if asked.negated else _statement(text, question, asked)
    return "refused" if found == "neither" and known.REMARKS.search(text) else found


def says(answer: str, question: str) -> Polarity | None:
    """Return the yes or no of `read`; None if there is none, or if the answer's statements contradict it.

    Example:
        >>> says("It appears normal.", "Does the brain look abnormal?"), says("Is it?", "Is there a fracture?")
        ('no', None)
        >>> says("Yes, there is no fracture.", "Is there a fracture?")
    """
    found = read(answer, question)
    if found not in ("yes", "no") or (
        not is_negated(question) and {"yes": "no", "no": "yes"}[found] == stated(answer, question)
    ):
        return None
    return "yes" if found == "yes" else "no"


def stated(text: str, question: str) -> Reading:
    """Return the yes or no of a text's statements without its plain words, as to the positive form of the question."""
    return _statement(_text(text), question, asked_by(question))


def is_negated(question: str) -> bool:
    """Return True for a question whose yes and no are ambiguous ("Is no lesion present?")."""
    return asked_by(question).negated


def is_echo(answer: str, question: str) -> bool:
    """Return True if an answer of several words is a piece of the question, word for word."""
    found = words(answer)
    return len(found) > 1 and f" {' '.join(found)} " in f" {' '.join(words(question))} "


def is_choice(question: str) -> bool:
    """Return True for a question that names its answers ("left or right?")."""
    return "or" in words(question)


def _text(answer: str) -> str:
    """Return the plain form in small letters, without tags, roles and labels."""
    text = plain(answer).casefold()
    return _LABELS.sub("\n", text) if ":" in text or "<" in text else text


def _plain_word(text: str, question: str) -> Reading:
    """Return the plain yes or no, "both", "refused", "empty", or "neither" where the statements must be read."""
    place = _CANDIDATE.search(text)
    if place is None:
        return "neither" if any(map(str.isalnum, text)) else "empty"
    opening = place.start() < 3 and not any(map(str.isalnum, text[: place.start()]))
    word: Reading = "yes" if place[0] == "yes" else "no"
    if not opening or _OTHER[word].search(text, place.end()):
        word = said(text)
        if word == "neither":
            return word
        rest, offers = _OFFERED.subn(" ", text)
        if offers:  # the question's or prompt's options, repeated
            word, text = said(rest), rest
        if word in ("both", "neither"):
            return _beside_options(text, question) if offers else "both"
        place = _WORD[word].search(text)
        if place is None:  # it was found in other letters
            return word
    if decline := known.DECLINES.search(text, place.end(), place.end() + 60):
        near = decline.start() - place.end() < 12 and "but" not in text[place.end() : decline.start()]
        weak = decline.group().startswith(("insufficient", "not enough", "no "))  # "no, insufficient signs of it"
        if near and not weak and _declines(decline.group(), question):
            return "refused"
    if _HEDGED.search(text):
        sentence = _END.split(text[: place.start()])[-1] + _END.split(text[place.start() :])[0]
        found = {*words(sentence)}
        if _HEDGED.search(text, place.start() - len(sentence), place.start()) or not found - known.HEDGES - known.EMPTY:
            return "neither"
    return word


def _beside_options(text: str, question: str) -> Reading:
    """Return what is said beside the options "yes or no", "both" if nothing is."""
    if _declines(text, question) or known.REMARKS.search(text):
        return "refused"
    found = _statement(text, question, asked_by(question))
    return "both" if found == "neither" else found


def _declines(text: str, question: str) -> bool:
    """Return True where a text declines to answer; "cannot be evaluated" may be the answer itself."""
    asked = {stem_of(word) for word in words(question)}
    return any(stem_of(found.group().split()[-1]) not in asked for found in known.DECLINES.finditer(text))


def _statement(text: str, question: str, asked: Asked) -> Reading:
    """Return the yes or no of a text's statements, "both" where they contradict each other, or "neither"."""
    if not asked.stems or (len(text) < len(question) + 2 and _repeats(text, question, asked)):
        return "neither"
    votes: set[str | None] = set()
    earlier: set[str] = set()  # stated words that a statement may go on about
    seen: set[str] = set()
    denied: set[str] = set()
    empty = True
    for segment in statements(text, asked):
        raw = {word for word, _ in segment}
        hedges = (raw & known.HEDGES).difference(
            asked.words, ["could"] if "not" in raw else [], [] if "or" in raw else ["either"]
        )
        if hedges:
            empty, earlier = False, set()
            continue
        found = {stem_of(word): negated for word, negated in segment if word not in known.MUTE}
        if asked.without:
            found = {stem: negated is not (stem in asked.without) for stem, negated in found.items()}
        empty = empty and not found
        place = asked.stems - asked.core
        if segment[0][0] == "not" and place and place <= found.keys() and asked.core <= earlier:
            votes.add("no")  # "Contrast is in the stomach, but not in the colon."
        if segment[0][0] not in known.CONTINUES or any(found.values()):
            earlier = set()
        votes.add(_vote(segment, raw, found, asked, earlier))
        earlier |= {stem for stem, negated in found.items() if not negated}
        seen |= earlier
        denied |= {stem for stem, negated in found.items() if negated}
    if empty:
        return _brief(text)
    if asked.choice:
        if asked.choice <= denied - seen:
            return "no" if "yes" not in votes else "neither"
        return "yes" if asked.stems <= seen - denied and not any(map(rivals_of, asked.choice)) else "neither"
    if asked.heads & seen and len(words(text)) == 1:
        return "yes"  # "Midline."
    if "yes somewhere" in votes:  # "There is a mass, but not in the liver."
        votes.add("no" if denied & asked.stems - asked.core else None if denied & asked.stems else "yes")
    votes -= {None, "yes somewhere"}
    if len(votes) == 2 and asked.health and known.SIDES & seen:
        votes = {"no" if asked.health == "normal" else "yes"}  # one side is normal and the other is not
    if len(votes) == 1:
        return "yes" if "yes" in votes else "no"
    return "both" if votes else "neither"


def _repeats(text: str, question: str, asked: Asked) -> bool:
    """Return True for an answer that only repeats words of the question."""
    found = words(text)
    if len(found) == 1:
        return (asked.presence or not known.PRESENCE.isdisjoint(asked.words)) and stem_of(found[0]) in asked.stems
    return is_echo(text, question) and words(question) != ["do", *found]


def _vote(segment: Segment, raw: set[str], found: dict[str, bool], asked: Asked, earlier: set[str]) -> str | None:
    """Return the yes or no of one statement, or None."""
    about, subject = found.keys() - HEALTH, asked.stems - HEALTH
    organs, others = asked.stems & stems_of(known.ORGANS), found.keys() & stems_of(known.ORGANS)
    if organs and others and not organs & others:
        this = {segment[0][0], *asked.words[1:2]} <= {"this", "it"}  # "This is an MRI of the spine."
        return "no" if this and about & asked.stems and not any(found.values()) else None
    for stem in found.keys() & known.EXCLUDES.keys() - asked.stems:
        excluded = rivals_of(stem) & asked.stems
        if excluded and not excluded & found.keys() and not ("bilateral" in raw or "both" in raw):
            if found[stem]:
                return None
            if stem in known.SIDES and not asked.presence and (asked.health or asked.heads & stems_of(known.STATES)):
                return None  # "The right one is enlarged" is nothing about the left one
            sided = asked.presence and stem in known.SIDES
            same = asked.heads & found.keys() if sided else about & asked.stems
            apart = same or about <= {stem, *known.SCANS} or asked.stems <= excluded
            return "no" if apart else None
    vote = _by_health(raw, found, asked, about, subject)
    if vote or (asked.health and (found.keys() & HEALTH or (about and not subject))):
        return vote
    if raw & known.PART and any(word in known.PART and word not in asked.words for word, _ in segment[:-1]):
        return "no" if "both" in asked.words and about & asked.stems and not any(found.values()) else None
    if "than" in asked.words and "than" in raw and list(found) != [*filter(found.__contains__, asked.order)]:
        return None  # other things are compared
    named = {stem for stem, negated in found.items() if not negated}
    denied = {stem for stem, negated in found.items() if negated} & asked.stems
    if denied:
        heads = denied & (asked.core if raw & known.BACKWARD else asked.heads)
        before = [word for word, _ in segment]
        before = before[: next((i for i, word in enumerate(before) if stem_of(word) in heads), 0)]
        narrowed = known.OTHERS.difference(asked.words) & set(before)
        if asked.words[:1] in (("is",), ("are",)) and not asked.presence:
            narrowed |= {
                word
                for word, negated in segment[: len(before)]
                if negated and not word.endswith("ly") and word not in known.MUTE and stem_of(word) not in asked.stems
            }
        return "no" if heads and not narrowed else None
    if raw & {"bilateral", "both"}:
        named |= {"left", "right"}
    pronoun = segment[0][0] in known.CONTINUES and asked.words[1:2] not in (("this",), ("it",), ("these",))
    if pronoun and not asked.presence:
        named |= asked.core - asked.heads  # "It is enlarged."
    placed = bool(raw & known.PLACES)
    elsewhere = known.NEAR.difference(asked.words) & raw or (others - organs and not raw & {"and", "both", "or"})
    if organs - asked.core and elsewhere:
        return None  # "a mass above the kidney"
    if asked.stems <= named | earlier:
        return "yes"
    where = asked.words[:1] in (("is",), ("are",)) and not asked.presence and known.PRESENCE.isdisjoint(asked.words)
    plainly = not where and not placed and not others - organs and raw & (known.VERBS | known.PRESENCE)
    return "yes somewhere" if plainly and asked.core <= named else None


def _by_health(
    raw: set[str], found: dict[str, bool], asked: Asked, about: set[str], subject: frozenset[str]
) -> str | None:
    """Return the vote of normal and abnormal, and of findings that make something so."""
    named = not about or bool(about & subject)
    about = {stem for stem in about if not found[stem] or stem in stems_of(known.ORGANS) | subject}
    shared = not about or bool(about & subject)  # the same thing is spoken of
    for word in found.keys() & HEALTH:
        state = word if not found[word] else ("abnormal" if word == "normal" else "normal")
        if state == "normal" and raw & known.EXCEPT:
            return None  # "otherwise normal"
        anywhere = state == "abnormal" or word == "abnormal"  # "no abnormality in the lung"
        if asked.health and (shared or (not subject and anywhere)):
            return "yes" if state == asked.health else "no"
        if state == "normal" and named:
            place = asked.stems - asked.core
            if asked.stems & stems_of(known.STATES) or (
                place and place <= about and asked.core & stems_of(known.LESIONS)
            ):
                return "no"
    if asked.health and not any(found.values()):
        ill = ((shared or not subject) and found.keys() & stems_of(known.STATES)) or (
            subject <= about and found.keys() & stems_of(known.LESIONS) - asked.stems
        )
        return ("yes" if asked.health == "abnormal" else "no") if ill else None
    return None


def _brief(text: str) -> Reading:
    """Return the yes or no of an answer without content words: "It is not.", "None seen", "There is."."""
    listed = words(text)
    found = set(listed)
    denied = any(word.endswith("n't") for word in found)
    if found & known.HEDGES or not all(word.endswith("n't") for word in found - known.MUTE):
        return "neither"
    if known.NEGATIONS & found and {"yes", "no"} & found:
        return "neither"  # "not yes"
    if found & (known.FORWARD | known.BACKWARD | known.FALSE) or denied:
        judged = found & (
            known.PRESENCE | known.ASKS | known.BACKWARD | known.FALSE | {"none", "it", "nope", "on", "in"}
        )
        return "no" if judged else "neither"
    affirmed = {" ".join(pair) for pair in pairwise(listed)} & known.AFFIRMED or (found and found <= known.AFFIRMING)
    return "yes" if affirmed else "neither"
