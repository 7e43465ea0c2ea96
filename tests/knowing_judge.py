"""A judge that knows the pairs of the judge check, for loopback servers and as a chat model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from mmedpo.curation import judge_check
from mmedpo.models.chat import ChatReply, ChatRequest

SEVERITY = {(one.question, one.rejected): severity for severity, one in judge_check.pairs()}
SCORES = {"critical": 0.9, "moderate": 0.6, "wording only": 0.2, "absurd": 0.0}  # "not wrong" has none


def judgement(severity: str) -> str:
    """Return a reply for a pair of this severity."""
    return json.dumps({"rationale": severity, "wrong": severity in SCORES, "score": SCORES.get(severity, 0.0)})


def known(prompt: str) -> str:
    """Return the right reply to a judge's prompt about one of the pairs; it ignores what other judges said."""
    question, _, rejected = prompt.split("Now judge this case:\n\n")[1].splitlines()[:3]
    return judgement(SEVERITY[question.removeprefix("Question: "), rejected.removeprefix("Response: ")])


class Judge:
    """Chat model that answers by `answer`, a function of the pair's severity."""

    revision = None

    def __init__(self, answer: Callable[[str], str | None], name: str = "a") -> None:
        self.name, self.answer, self.asked = name, answer, 0

    def complete(self, requests: Iterable[ChatRequest]) -> list[ChatReply]:
        replies = [self._reply(SEVERITY[one.variables["question"], one.variables["rejected"]]) for one in requests]
        self.asked += len(replies)
        return replies

    def _reply(self, severity: str) -> ChatReply:
        text = self.answer(severity)
        return (
            ChatReply(failure="HTTP 503") if text is None else ChatReply(text, prompt_tokens=90, completion_tokens=10)
        )
