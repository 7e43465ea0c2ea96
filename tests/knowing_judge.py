"""A judge that knows the pairs of the judge check, for loopback servers and as a chat model; a writer beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable

from chat_server import Received

from mmedpo.curation import judge_check
from mmedpo.models.chat import ChatReply, ChatRequest

FINDINGS = ("nodule", "mass", "effusion", "fracture", "cyst")
SEVERITY = {(one.question, one.rejected): severity for severity, one in judge_check.pairs()}
SCORES = {"critical": 0.9, "moderate": 0.6, "wording only": 0.2, "absurd": 0.0}  # "not wrong" has none


def judgement(severity: str) -> str:
    """Return a reply for a pair of this severity."""
    return json.dumps({"rationale": severity, "wrong": severity in SCORES, "score": SCORES.get(severity, 0.0)})


def known(prompt: str) -> str:
    """Return the right reply to a judge's prompt about one of the pairs; it ignores what other judges said."""
    question, _, rejected = prompt.split("Now judge this case:\n\n")[1].splitlines()[:3]
    return judgement(SEVERITY[question.removeprefix("Question: "), rejected.removeprefix("Response: ")])


def digest(received: Received) -> str:
    """Return what names a request."""
    return hashlib.sha256(json.dumps(received.body, sort_keys=True).encode()).hexdigest()


def written_or_judged(received: Received, scores: int) -> str:
    """Return an answer that depends on the request alone; judges of questions "What is at" disagree about some."""
    text, name = received.text, digest(received)
    if "Now judge this case" not in text:
        return json.dumps({"answer": f"right upper {FINDINGS[int(name[:4], 16) % 5]} {name[:4]}", "kind": "finding"})
    if "Question: What is at" in text:
        return json.dumps({"rationale": name, "wrong": True, "score": int(name[:4], 16) % scores / 10})
    return known(text)


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
