"""Offline stand-ins for chat models: fixed word rules for tests, trials and work without network.

They read a request's `variables`, never its text or image. They know a few dozen radiology words and no medicine. Their
names begin with "standin:", so that every dataset made with them shows it.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from functools import partial
from heapq import nsmallest
from typing import Any, Literal

from mmedpo.curation.answer_checks import answer_fault, in_case_of, in_form_of
from mmedpo.curation.corrected import correction_fault
from mmedpo.curation.text_pairs import OPPOSITE
from mmedpo.data.samples import Sample
from mmedpo.data.text import CLAUSE_STARTS, folded, polarity, unit_interval, words
from mmedpo.models.chat import ChatModel, ChatReply, ChatRequest

Difference = Literal["polarity", "finding", "side", "other", "wording"]
SHOWN = 12  # alternatives offered to a question
COMPARED = 512  # most answers of one length; more would make the work quadratic in the size of the source

# A word is replaced by the next of its row.
FINDING_ROWS = (
    ("ct", "mri", "x-ray", "ultrasound"),
    ("axial", "coronal", "sagittal"),
    ("effusion", "consolidation", "atelectasis", "pneumothorax", "edema", "pneumonia", "opacity"),
    ("effusions", "consolidations", "opacities", "infiltrates"),
    ("nodule", "mass", "cyst", "abscess", "calcification", "fracture"),
    ("nodules", "masses", "cysts", "abscesses", "calcifications", "fractures"),
    ("infarct", "hemorrhage", "tumor"),
    ("infarcts", "hemorrhages", "tumors"),
    ("lung", "heart", "liver", "spleen", "kidney", "pancreas", "stomach", "bladder", "brain"),
    ("lungs", "kidneys"),
    ("frontal", "temporal", "parietal", "occipital"),
    ("hyperintense", "hypointense"),
    ("hyperdense", "hypodense"),
    ("normal", "abnormal"),
    ("acute", "chronic"),
)
SIDE_ROWS = (
    ("left", "right"),
    ("upper", "lower"),
    ("anterior", "posterior"),
    ("superior", "inferior"),
    ("medial", "lateral"),
    ("apical", "basal"),
    ("bilateral", "unilateral"),
)
NEGATIONS = frozenset({"no", "not", "without"})
TENTHS = {  # scores of the judges by difference
    "strict": {"polarity": 9, "finding": 8, "side": 7, "other": 4, "wording": 2},
    "lenient": {"polarity": 8, "finding": 6, "side": 5, "other": 3, "wording": 1},
}


def _successors(rows: Sequence[Sequence[str]]) -> dict[str, str]:
    return {word: row[(i + 1) % len(row)] for row in rows for i, word in enumerate(row)}


FINDINGS, SIDES = _successors(FINDING_ROWS), _successors(SIDE_ROWS)


def difference(gold: str, rejected: str) -> Difference:
    """Return how a rejected response differs from the gold answer, as the first kind that applies."""
    said, wrong = set(words(gold)), set(words(rejected))
    if polarity(gold) and polarity(rejected) and polarity(gold) != polarity(rejected):
        return "polarity"
    if (said & wrong) - NEGATIONS and said & FINDINGS.keys() == wrong & FINDINGS.keys():
        denials = [sum(word in NEGATIONS for word in words(text)) for text in (gold, rejected)]
        if denials[0] != denials[1]:
            return "polarity"
    if (wrong & FINDINGS.keys()) - said:
        return "finding"
    if (wrong & SIDES.keys()) - said:
        return "side"
    return "wording" if said & wrong else "other"


class Pool:
    """Gold answers of one task, alternatives for each other; indexed by their number of words.

    Args:
        answers: gold answers of all samples of the task; duplicates count once.
        seed: orders answers whose lengths are equally near.
    """

    def __init__(self, answers: Iterable[str], seed: int) -> None:
        self.seed = seed
        self._by_length: dict[int, list[tuple[str, str]]] = {}
        for answer in sorted(set(answers)):
            self._by_length.setdefault(len(words(answer)), []).append((answer, folded(answer)))

    def nearest(self, sample: Sample) -> list[str]:
        """Return at most `SHOWN` other answers, nearest length first and ties in seeded order."""
        length, gold = len(words(sample.answer)), folded(sample.answer)

        def rank(answer: str) -> float:
            return unit_interval("alternative", self.seed, sample.id, answer)

        distances: dict[int, list[int]] = {}
        for other in self._by_length:
            distances.setdefault(abs(other - length), []).append(other)
        found: list[str] = []
        for distance in sorted(distances):
            others = (answer for other in distances[distance] for answer in self._of(other, sample, gold))
            found += nsmallest(SHOWN, others, key=rank)
            if len(found) >= SHOWN:
                break
        return found[:SHOWN]

    def _of(self, length: int, sample: Sample, gold: str) -> Iterator[str]:
        """Yield answers of `length` words that differ from `gold`; start at a seeded place if there are many."""
        known = self._by_length[length]
        begin = int(unit_interval("place", self.seed, sample.id) * len(known)) if len(known) > COMPARED else 0
        for number in range(begin, begin + min(len(known), COMPARED)):
            answer, plain = known[number % len(known)]
            if plain != gold:
                yield answer


class StandInChat:
    """Stand-in that chooses and writes rejected responses.

    `select` takes the first candidate wrong in polarity, finding or side; `option` such an option, or the first.
    `inject` makes the smallest edit that the style allows (`answer_checks.answer_fault`): it swaps yes/no, side and
    finding words (one word in the style "minimal"), adds or removes a denial, or takes the other gold answer closest in
    length. In the style "free" a short answer becomes a sentence. `correct` takes over as many differences from the
    gold answer as may change, from the left. Both decline ("answer": "") if no rule fits.
    """

    name = "standin:rules"
    revision: str | None = "1"

    def complete(self, requests: Iterable[ChatRequest]) -> list[ChatReply]:
        rules = {"select": _select, "inject": _inject, "option": _option, "correct": _correct}
        return [_reply(request, rules) for request in requests]


class StandInJudge:
    """Stand-in that scores by the kind of difference, in steps of 0.1, and finds every response wrong.

    It adopts a previous score within 0.1 of its own, and else meets it half way. "strict" and "lenient" have a fixed
    score for each kind. "lexical" gives 0.1 for mere wording and 0.2 to 0.9 for others, by the share of words that are
    the gold answer's, since a near miss misleads most.
    """

    revision: str | None = "1"

    def __init__(self, rule: Literal["strict", "lenient", "lexical"]) -> None:
        self.name, self.rule = f"standin:{rule}", rule

    def complete(self, requests: Iterable[ChatRequest]) -> list[ChatReply]:
        return [_reply(request, {"judge": self._judge}) for request in requests]

    def _judge(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        kind = difference(variables["gold"], variables["rejected"])
        lexical = self.rule == "lexical"
        own = _lexical(kind, variables["gold"], variables["rejected"]) if lexical else TENTHS[self.rule][kind]
        rationale = f"{self.name} gives {own / 10} for a difference in {kind}"
        if variables["previous"] is None or variables["previous"]["score"] is None:
            return _scored(own, rationale)
        last = round(variables["previous"]["score"] * 10)
        if abs(own - last) <= 1:
            return _scored(last, f"{rationale}; {last / 10} is close enough")
        meeting = (own + last + (own > last)) // 2  # rounds towards its own score
        return _scored(meeting, f"{rationale}; half way to it from {last / 10}")


STANDINS: dict[str, Callable[[], ChatModel]] = {
    "standin:rules": StandInChat,
    "standin:strict": partial(StandInJudge, "strict"),
    "standin:lenient": partial(StandInJudge, "lenient"),
    "standin:lexical": partial(StandInJudge, "lexical"),
}


def _scored(tenths: int, rationale: str) -> dict[str, Any]:
    return {"rationale": rationale, "wrong": True, "score": tenths / 10}


def _lexical(kind: Difference, gold: str, rejected: str) -> int:
    if kind == "wording":
        return 1
    said, wrong = set(words(gold)) - {"yes", "no"}, set(words(rejected)) - {"yes", "no"}
    return 2 + 7 * len(said & wrong) // max(len(said), len(wrong)) if said or wrong else 9


def _reply(request: ChatRequest, rules: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]]) -> ChatReply:
    rule = rules.get(request.prompt.partition("@")[0])
    if rule is None:
        return ChatReply(failure=f"this stand-in has rules for {', '.join(rules)} and not for {request.prompt}")
    return ChatReply(text=json.dumps(rule(request.variables)))


def _select(variables: Mapping[str, Any]) -> dict[str, Any]:
    for number, candidate in enumerate(variables["candidates"], start=1):
        kind = difference(variables["gold"], candidate)
        if kind in ("polarity", "finding", "side"):
            return {"choice": number, "kind": "place" if kind == "side" else "finding"}
    return {"choice": 0, "kind": "other"}


def _option(variables: Mapping[str, Any]) -> dict[str, Any]:
    found = _select({**variables, "candidates": variables["others"]})
    return {**found, "choice": found["choice"] or 1}


def _inject(variables: Mapping[str, Any]) -> dict[str, Any]:
    gold, task, style = variables["gold"], variables["task"], variables["style"]
    for edit in _edits(variables):
        text = _sentence(edit) if style == "free" and task != "report" and edit != gold else edit
        if text != variables["previous"] and answer_fault(variables["question"], gold, text, task, style) is None:
            return {"answer": text, "kind": "place" if difference(gold, text) == "side" else "finding"}
    return {"answer": "", "kind": "other"}


def _correct(variables: Mapping[str, Any]) -> dict[str, Any]:
    own, gold = variables["response"], variables["gold"]
    said, right = own.split(), words(gold)
    places = [place for place, word in enumerate(said) if words(word)]  # marks between words stay
    alike = SequenceMatcher(None, [said[place].strip(".,;:").lower() for place in places], right, autojunk=False)
    differences = [one for one in alike.get_opcodes() if one[0] != "equal"]
    texts = [_flip(own)]
    for count in range(len(differences), 0, -1):
        made = list(said)
        for _, start, end, first, last in reversed(differences[:count]):
            at = places[start] if start < len(places) else len(said)
            made[at : places[end - 1] + 1 if end > start else at] = right[first:last]
        texts.append(" ".join(made))
    for text in (in_form_of(own, text) for text in texts):
        about = (variables["question"], gold, own, text, variables["task"], variables["share"])
        if text != variables["previous"] and correction_fault(*about) is None:
            return {"answer": text}
    return {"answer": ""}


def _edits(variables: Mapping[str, Any]) -> Iterator[str]:
    gold, task = variables["gold"], variables["task"]
    most = 1 if variables["style"] == "minimal" else 0  # 0: all
    yield _deny(gold) if task == "report" else _flip(gold)
    yield _swap(gold, SIDES, most)
    yield _swap(gold, FINDINGS, most)
    yield _deny(gold)
    # The checksum spreads equally long alternatives over the questions, the same way in every run.
    yield from sorted(
        (text for text in variables["alternatives"]() if bool(polarity(text)) == bool(polarity(gold))),
        key=lambda text: (
            abs(len(words(text)) - len(words(gold))),
            zlib.crc32(f"{variables['question']}\n{gold}\n{text}".encode()),
        ),
    )


def _sentence(answer: str) -> str:
    """Return a short answer as an assistant would say it: "Left lung" gives "The image shows left lung."."""
    if words(answer) in (["yes"], ["no"]):
        return f"{answer.strip(' .')}, the image {'shows' if polarity(answer) == 'yes' else 'does not show'} that."
    return answer if polarity(answer) or answer.endswith(".") else f"The image shows {in_form_of('a', answer)}."


def _swap(text: str, successors: Mapping[str, str], most: int) -> str:
    """Replace the first `most` words that have a successor (0: all of them)."""
    known = "|".join(sorted(map(re.escape, successors), key=len, reverse=True))
    return re.sub(
        rf"(?<![\w-])({known})(?![\w-])",
        lambda match: in_case_of(match.group(), successors[match.group().lower()]),
        text,
        count=most,
        flags=re.IGNORECASE,
    )


def _flip(text: str) -> str:
    """Negate an answer that opens with yes or no: "Yes, there is a nodule" gives "No, there is no nodule"."""
    match = re.match(r"(\W*)(yes|no)\b(\W*)(.*)", text, re.IGNORECASE | re.DOTALL)
    if match is None:
        return text
    before, head, between, rest = match.groups()
    head = in_case_of(head, OPPOSITE[head.lower()])
    denied = _deny(rest)
    if rest and denied == rest:
        return before + head  # a rest that is not negated would contradict the new head
    return before + head + between + denied


_DENIALS = (
    (re.compile(r"\b(there) is no(?= [aeiou])", re.IGNORECASE), r"\1 is an"),
    (re.compile(r"\b(there) is no\b", re.IGNORECASE), r"\1 is a"),
    (re.compile(r"\b(there) are no\b", re.IGNORECASE), r"\1 are"),
    (re.compile(r"\b(is|are|was|were|does|do|can) not\b", re.IGNORECASE), r"\1"),
    (re.compile(r"\b(there) (is|are)(?: an?| some)?\b", re.IGNORECASE), r"\1 \2 no"),
    (re.compile(r"\b(is|are|was|were|does|do|can)\b", re.IGNORECASE), r"\1 not"),
)


def _deny(text: str) -> str:
    """Negate the first statement that a pattern fits, or affirm it if it was a denial; else return `text`."""
    if (opening := re.match(r"(No )(\w+)", text)) and opening[2].lower() not in CLAUSE_STARTS:  # "No mass is seen."
        return text[3].upper() + text[4:]
    for pattern, replacement in _DENIALS:
        if pattern.search(text):
            return pattern.sub(replacement, text, count=1)
    match = re.search(r"(^|[.:]\s+)No (\w)", text)
    if match is None:
        return text
    return text[: match.start()] + match.group(1) + match.group(2).upper() + text[match.end() :]
