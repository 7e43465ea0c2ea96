"""Clinical relevance of rejected responses, scored by a panel of judges.

Paper, section 3.2: the first judge scores the rejected response without the image. Each next judge sees the last score
and adopts it or gives its own, until all agree. Without agreement the mean of the score history counts. Later judges
tend to adopt the first score, so the result depends on their order; independent judges avoid that.

A judge may also find the response not wrong at all. A pair is kept only if more than half of the readable judgements
find it wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import mean
from typing import Any, TypedDict

from mmedpo import schema
from mmedpo.curation.prompts import echoes, render
from mmedpo.errors import InputError
from mmedpo.models.chat import WAITING, ChatModel, ChatReply, ChatRequest, parse_json
from mmedpo.runs.provenance import portable

JUDGE = "judge@2"
NO_SCORE = "no judge gave a readable score"
NOT_WRONG = "judged not wrong"
ROUNDING = 1e-9  # tolerance for decimal fractions as binary floats
LONGEST_RATIONALE = 500  # characters; it is part of later requests and of the row
MANY = 30  # rows after which a judge that knows one score, or a panel that always agrees, is noted
MODES = ("sequential", "independent")

STEPS = [tenth / 10 for tenth in range(11)]
_SCHEMA = {  # the rationale first, so that the score follows from it; servers ignore `minimum` and `maximum`
    "type": "object",
    "properties": {
        "rationale": {"type": "string", "maxLength": LONGEST_RATIONALE},
        "wrong": {"type": "boolean"},
        "score": {"type": "number", "enum": STEPS},
    },
    "required": ["rationale", "wrong", "score"],
    "additionalProperties": False,
}


Verdict = tuple[float | None, str]  # score and rationale, as in `Judgement`


class Judgement(TypedDict):
    """One judge's turn in a round, counted from 1.

    `score` is in [0, 1]. Where it is None, `rationale` begins with `schema.NOT_WRONG`, or has the reason why the reply
    could not be read.
    """

    round: int
    judge: str
    score: float | None
    rationale: str


@dataclass(frozen=True)
class Item:
    """A question, its gold answer and the rejected response to score."""

    question: str
    gold: str
    rejected: str


@dataclass(frozen=True)
class Relevance:
    """A panel's result.

    Attributes:
        score: in [0, 1]; None if no judge gave a readable one, or the response is judged not wrong.
        judgements: in the order they were made.
        agreed: all judges of one round gave scores within the tolerance, or all said "not wrong". That round alone
            then counts, and else all rounds; `score` is the mean.
        reason: why there is no score, or None.
    """

    score: float | None
    judgements: list[Judgement]
    agreed: bool
    reason: str | None = None


@dataclass
class _Discussion:
    item: Item
    judgements: list[Judgement] = field(default_factory=list)
    agreed: bool = False
    waits: bool = False  # for the result of a batch
    _verdicts: dict[str, Verdict] = field(default_factory=dict)  # by reply, in this round

    @cached_property
    def opening(self) -> ChatRequest:
        """Return the request of a judge who sees no other judgement."""
        return self._request(None)

    def request(self, mode: str) -> ChatRequest:
        shown = self.judgements if mode == "sequential" else []
        last = next((entry for entry in reversed(shown) if entry["score"] is not None or says_right(entry)), None)
        if last is None:
            return self.opening
        return self._request({
            "score": last["score"], "rationale": last["rationale"].removeprefix(schema.NOT_WRONG),
        })  # fmt: skip

    def _request(self, previous: dict[str, Any] | None) -> ChatRequest:
        item = self.item
        return render(
            JUDGE, _SCHEMA, readable=self._readable, question=item.question, gold=item.gold, rejected=item.rejected,
            previous=previous,
        )  # fmt: skip

    def _readable(self, text: str) -> bool:
        score, rationale = self._verdict(text)
        return score is not None or rationale.startswith(schema.NOT_WRONG)

    def _verdict(self, text: str) -> Verdict:
        if text not in self._verdicts:
            self._verdicts[text] = _read(text, self.opening.text)
        return self._verdicts[text]

    def hear(self, reply: ChatReply, number: int, judge: str) -> None:
        """Note the judgement in a reply."""
        none = None, f"no score: the judge did not answer ({reply.failure})"[:LONGEST_RATIONALE]
        score, rationale = none if reply.text is None else self._verdict(reply.text)
        self.judgements.append({"round": number, "judge": judge, "score": score, "rationale": rationale})
        self.waits |= reply.failure == WAITING

    def close_round(self, judges: int, tolerance: float) -> None:
        self._verdicts.clear()
        last = self.judgements[-judges:]
        given = [entry["score"] for entry in last if entry["score"] is not None]
        alike = len(given) == judges and max(given) - min(given) <= tolerance + ROUNDING
        self.agreed = alike or all(map(says_right, last))

    def result(self, judges: int) -> Relevance:
        if self.waits:
            return Relevance(None, self.judgements, agreed=False, reason=NO_SCORE)
        counted = self.judgements[-judges:] if self.agreed else self.judgements
        scores = [entry["score"] for entry in counted if entry["score"] is not None]
        right = sum(map(says_right, counted))
        if right and right >= len(scores):
            return Relevance(None, self.judgements, self.agreed, NOT_WRONG)
        if not scores:
            return Relevance(None, self.judgements, agreed=False, reason=NO_SCORE)
        return Relevance(mean(scores), self.judgements, self.agreed)


class Panel:
    """Judges who score in turn or independently.

    Args:
        judges: at least one, with different names, in the order of speaking.
        rounds: most rounds, at least 1; each judge speaks once per round. The paper has 5.
        tolerance: largest difference, in [0, 1], between scores that agree.
        mode: "sequential" is the paper's. In "independent" every judge scores once without seeing other scores; the
            result is the mean, and neither order nor `rounds` matters.

    Raises:
        InputError: judges of the same name.
    """

    def __init__(
        self, judges: Sequence[ChatModel], rounds: int = 5, tolerance: float = 0.0, mode: str = "sequential"
    ) -> None:
        names = [portable(judge.name) for judge in judges]
        if len(set(names)) < len(names):
            raise InputError(f"The judges are {', '.join(names)}; their names must differ: scores carry them.")
        self.judges = dict(zip(names, judges, strict=True))
        self.rounds, self.tolerance, self.mode = rounds, tolerance, mode

    def record(self) -> dict[str, Any]:
        return {"mode": self.mode, "rounds": self.rounds, "tolerance": self.tolerance}

    def score(self, items: Sequence[Item]) -> list[Relevance]:
        """Return one result per item, in order; each judge gets all open items of a round in one batch.

        Raises:
            InputError: a judge's `complete` raises it.
        """
        discussions = [_Discussion(item) for item in items]
        for number in range(1, (self.rounds if self.mode == "sequential" else 1) + 1):
            still_open = [discussion for discussion in discussions if not discussion.agreed and not discussion.waits]
            if not still_open:
                break
            for name, judge in self.judges.items():
                asked = [one for one in still_open if not one.waits or self.mode == "independent"]
                replies = judge.complete(discussion.request(self.mode) for discussion in asked) if asked else []
                for discussion, reply in zip(asked, replies, strict=True):
                    discussion.hear(reply, number, name)
            for discussion in still_open:
                discussion.close_round(len(self.judges), self.tolerance)
        return [discussion.result(len(self.judges)) for discussion in discussions]


def notes(results: Iterable[Mapping[str, Any] | None]) -> list[str]:
    """Return notes on judges that gave one score to all of `MANY` rows or more, and on a panel that agreed on all.

    Args:
        results: `Relevance` of each row as a mapping; None and results without judgements are not counted.
    """
    verdicts: dict[str, set[Any]] = {}
    rows, discussed, agreed = Counter[str](), 0, 0
    for result in results:
        judgements = (result or {}).get("judgements") or []
        for one in judgements:
            verdicts.setdefault(one["judge"], set()).add(NOT_WRONG if says_right(one) else one["score"])
        names = {one["judge"] for one in judgements}
        rows.update(names)
        discussed += len(names) > 1
        agreed += len(names) > 1 and result["agreed"] and judgements[-1]["round"] == 1  # type: ignore[index]
    found = []
    for name, given in verdicts.items():
        if rows[name] >= MANY and len(given - {None}) < 2:
            verdict = next(iter(given - {None}), "no readable score")
            found.append(f"The judge {name} gave all {rows[name]:,} rows the same ({verdict}): it tells no pair apart.")
    if discussed >= MANY and agreed == discussed:
        found.append(f"The judges agreed at once on all {discussed:,} rows: more than one of them added nothing.")
    return found


def says_right(judgement: Judgement) -> bool:
    """Return True where the judge found the response not wrong at all."""
    return judgement["score"] is None and judgement["rationale"].startswith(schema.NOT_WRONG)


def _read(text: str, prompt: str) -> Verdict:
    """Return the score and rationale in a reply's text; a rationale that is part of `prompt` is no score."""

    def judged(score: float | None, rationale: str) -> Verdict:
        return score, rationale[:LONGEST_RATIONALE]

    def no_score(why: str) -> Verdict:
        return judged(None, f"no score: {why} in {text[:200]!r}")

    answer = parse_json(text)
    if answer is None:
        return no_score("no JSON object")
    # JSON can hold a lone surrogate, which cannot be encoded as UTF-8.
    rationale = str(answer.get("rationale") or "").encode("utf-8", "replace").decode()
    if echoes(rationale, prompt):
        return no_score("the rationale is a placeholder or repeats the prompt")
    if str(answer.get("wrong")).casefold() in ("false", "no"):
        return judged(None, schema.NOT_WRONG + rationale)
    given = answer.get("score")
    try:
        score = float("nan" if isinstance(given, bool) else given)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return no_score(f"score {given!r:.40} is not a number")
    if not 0 <= score <= 1:
        return no_score(f"score {given!r:.40} is outside [0, 1]")
    return judged(score, rationale)
