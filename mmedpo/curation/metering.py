"""Meter of a plan: the requests that its steps send and the time that they take, also with rules in place of models."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

from mmedpo.curation.hallucinate import Writer
from mmedpo.curation.plan import Plan
from mmedpo.curation.ranked import Ranker
from mmedpo.curation.relevance import Panel
from mmedpo.curation.sampling import EndpointSampler
from mmedpo.curation.settings import Settings
from mmedpo.curation.standins import Pool, StandInChat, StandInJudge
from mmedpo.data.samples import Sample
from mmedpo.models.chat import ChatModel, ChatReply, ChatRequest
from mmedpo.models.thoughts import Answer
from mmedpo.runs.formats import STANDIN
from mmedpo.runs.provenance import portable
from mmedpo.schema import TASKS

CHARACTERS = 4  # of a token, where no model counts them
REJECT, JUDGE, CHECK = "rejected responses", "relevance", "judge check"
SAMPLE, LOCATE = "sampling the target", "locating lesions"
COUNTS = ("calls", "prompt_tokens", "completion_tokens", "seconds")

Line = tuple[str, str]  # step and model


@dataclass(frozen=True)
class Call:
    """One distinct request: its line, question and gold answer, `COUNTS`, and tokens of its longest reply."""

    line: Line
    about: tuple[str, str]
    counts: tuple[float, ...]
    longest: float


class Meter:
    """Counts the requests of a plan, an equal one once, and times its parts.

    Attributes:
        calls: by all that decides the answer.
        concurrency: of each paid model.
        seconds: by kind of work.
        checking: True while judges are checked.
    """

    def __init__(self) -> None:
        self.calls: dict[Any, Call] = {}
        self.concurrency: dict[str, int] = {}
        self.seconds: dict[str, float] = defaultdict(float)
        self.checking = False

    def on(self, plan: Plan) -> Plan:
        """Return the plan with its parts measured."""
        more: dict[str, Any] = {"localizer": _Timed(plan.localizer, {"locate": LOCATE}, self.seconds)}
        if isinstance(plan.sampler, EndpointSampler):
            more["sampler"] = replace(plan.sampler, chat=self._paid(plan.sampler.chat, SAMPLE))
        elif plan.sampler is not None:
            more["sampler"] = _Timed(plan.sampler, {"load": "loading", "sample": SAMPLE}, self.seconds)
        if isinstance(plan.writer, Writer):
            more["writer"] = replace(plan.writer, chat=self._paid(plan.writer.chat, REJECT))
        if plan.panel is not None:
            judges = [self._paid(judge, JUDGE) for judge in plan.panel.judges.values()]
            more["panel"] = Panel(judges, plan.panel.rounds, plan.panel.tolerance, plan.panel.mode)
        if isinstance(plan.writer, Ranker):
            more["writer"] = replace(plan.writer, panel=more.get("panel"))
        return replace(plan, **more)

    def _paid(self, chat: ChatModel, step: str) -> ChatModel:
        name = chat.paid if isinstance(chat, _Ruled) else chat.name
        if name.startswith(STANDIN):
            return chat
        self.concurrency[portable(name)] = getattr(getattr(chat, "chat", chat), "concurrency", 1)
        return _Metered(chat, (step, portable(name)), self)

    def note(self, line: Line, request: ChatRequest, reply: ChatReply) -> None:
        unknown = 0.0 if reply.text is None else math.nan
        numbers = [getattr(reply, name) for name in COUNTS[1:]]
        counts = (1.0, *(unknown if number is None else float(number) for number in numbers))
        about = request.variables["question"], request.variables["gold"]
        call = Call((CHECK, line[1]) if self.checking else line, about, counts, _longest(request))
        self.calls.setdefault((line[1], request.prompt, request.text, *request.image_digests, request.seed), call)


class _Metered:
    """Chat model whose calls a meter notes."""

    def __init__(self, chat: ChatModel, line: Line, meter: Meter) -> None:
        self.name, self.revision = chat.name, chat.revision
        self._chat, self._line, self._meter = chat, line, meter

    def complete(self, requests: Iterable[ChatRequest]) -> list[ChatReply]:
        requests, began = list(requests), time.perf_counter()
        replies = self._chat.complete(requests)
        self._meter.seconds[CHECK if self._meter.checking else JUDGE] += time.perf_counter() - began
        for request, reply in zip(requests, replies, strict=True):
            self._meter.note(self._line, request, reply)
        return replies


class _Timed:
    """A part of a plan; the time of its methods is added to `seconds` by kind of work."""

    def __init__(self, part: Any, kinds: Mapping[str, str], seconds: dict[str, float]) -> None:
        self._part, self._kinds, self._seconds = part, kinds, seconds

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        if name not in self._kinds:
            return found

        def timed(*given: Any) -> Any:
            began = time.perf_counter()
            result = found(*given)
            self._seconds[self._kinds[name]] += time.perf_counter() - began
            return result

        return timed


class _Ruled:
    """Offline rules in place of the model `paid`; tokens are characters / `CHARACTERS`."""

    def __init__(self, rules: ChatModel, paid: str, name: str) -> None:
        self.name, self.revision, self.paid, self._rules = name, rules.revision, paid, rules

    def complete(self, requests: Iterable[ChatRequest]) -> list[ChatReply]:
        requests, found = list(requests), []
        for request, reply in zip(requests, self._rules.complete(requests), strict=True):
            said = sum(len(answer.text or "") for answer in (reply, *reply.samples))
            sent = len(request.text)
            found.append(replace(reply, prompt_tokens=sent // CHARACTERS, completion_tokens=said // CHARACTERS))
        return found


class _GoldAnswers:
    """Gold answers of other questions in place of the target model's samples."""

    name = f"{STANDIN}gold"
    revision: str | None = None

    def __init__(self, samples: Sequence[Sample], seed: int) -> None:
        pools = {task: Pool((one.answer for one in samples if one.task == task), seed) for task in TASKS}
        self._others = {(one.prompt, one.answer): pools[one.task].nearest(one) or [one.answer] for one in samples}

    def complete(self, requests: Iterable[ChatRequest]) -> list[ChatReply]:
        return [ChatReply("", samples=tuple(map(Answer, self._drawn(request)))) for request in requests]

    def _drawn(self, request: ChatRequest) -> Iterable[str]:
        others = self._others[request.variables["question"], request.variables["gold"]]
        return islice(cycle(others), request.samples)


def under_rules(plan: Plan, settings: Settings, samples: Sequence[Sample]) -> Plan:
    """Return the plan with rules in place of the models that `settings` name; equal judges agree at once."""
    if plan.writer is None:
        return plan
    sampler = None
    if settings.model is not None:
        gold = _GoldAnswers(samples, settings.seed)
        sampler = EndpointSampler(
            settings.model, settings.samples, settings.max_new_tokens, settings.max_new_tokens_report, settings.seed,
            gold if settings.local_model else _Ruled(gold, model_name(settings.model), gold.name),
        )  # fmt: skip
    judges = [_Ruled(StandInJudge("strict"), name, name) for name in map(model_name, settings.scorers)]
    panel = Panel(judges, settings.rounds, settings.tolerance, settings.panel) if judges else None
    if isinstance(plan.writer, Ranker):
        return replace(plan, sampler=sampler, writer=replace(plan.writer, panel=panel), panel=panel)
    rules = _Ruled(plan.writer.chat, model_name(settings.chat or ""), plan.writer.chat.name)
    return replace(plan, sampler=sampler, writer=replace(plan.writer, chat=rules), panel=panel)


def offline(settings: Settings) -> Settings:
    """Return the settings of text pairs alone, with rules in place of models."""
    rules = StandInChat.name if settings.writers else settings.chat
    judges = ["standin:strict"] if settings.scorers else settings.judges
    texts: Any = {"localizer": "none", "noise": "diffusion", "noise_region": "lesion", "reversed": False}
    return replace(settings, model=None, adapter=None, chat=rules, judges=judges, **texts)


def model_name(spec: str) -> str:
    """Return the name that the client of a chat model has."""
    if "#" in spec:
        return spec.rpartition("#")[2]
    scheme, _, name = spec.partition(":")
    return name.partition("@")[0] if scheme in ("hub", "local", "cache") else spec


def _longest(request: ChatRequest) -> float:
    """Return the tokens of the longest reply: as its schema allows, or else of one sample."""
    if request.schema is None:
        return request.max_tokens or 0
    found = 0
    for name, value in request.schema.get("properties", {}).items():
        enumerated = max((len(str(one)) for one in value.get("enum", ())), default=5)
        found += len(name) + 6 + value.get("maxLength", enumerated)
    return found / CHARACTERS
