"""Request parameters in the forms that an endpoint accepts."""

from __future__ import annotations

import re
import time
from asyncio import Lock
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import replace
from typing import Any, Protocol

from mmedpo.models.chat import ChatReply, ChatRequest
from mmedpo.models.chat.completion import Kind, NoAnswer

Fields = dict[str, Any]
Form = Callable[[Any], Fields]
Forms = dict[str, int]  # parameter: index in its `FORMS`

# Forms of each parameter in the order of trial; "none" leaves it to the endpoint, which max_tokens never is.
FORMS: dict[str, tuple[tuple[str, Form], ...]] = {
    "max_tokens": (
        ("max_tokens", lambda value: {"max_tokens": value}),
        ("max_completion_tokens", lambda value: {"max_completion_tokens": value}),  # OpenAI's o-series and later
    ),
    # Structured output of OpenAI and vLLM, then of TGI; the prompt describes the format too.
    "response_format": (
        ("json_schema", lambda schema: {"response_format": {
            "type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True},
        }}),
        ("json_schema without lengths", lambda schema: {"response_format": {  # OpenAI's own takes none
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": _without_lengths(schema), "strict": True},
        }}),
        ("json_object", lambda schema: {"response_format": {"type": "json_object", "value": schema}}),
        ("none", lambda schema: {}),
    ),
    "temperature": (("temperature", lambda value: {"temperature": value}), ("none", lambda value: {})),
    "seed": (("seed", lambda value: {"seed": value}), ("none", lambda value: {})),
    "n": (("n", lambda value: {"n": value}), ("none", lambda value: {})),
}  # fmt: skip
# Errors about the name `max_tokens`, not about its value.
_UNSUPPORTED = re.compile(
    r"unsupported|not? (?:be )?support|un(?:known|recogni[sz]ed|expected)|extra|permitted|use 'max_completion_tokens'",
    re.IGNORECASE,
)


def _without_lengths(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {name: _without_lengths(value) for name, value in schema.items() if name != "maxLength"}
    return schema


class Send(Protocol):
    """Send a request with these fields, or a trivial one (`probe`). Raises NoAnswer."""

    async def __call__(self, fields: Fields, probe: bool = False) -> ChatReply: ...


class Parameters:
    """Forms of parameters that one endpoint accepts, found once and shared by its clients.

    Forms change only where the same request, or a trivial one, is then accepted. A request that is refused for another
    reason, such as its length, changes nothing.

    Attributes:
        forms: forms in use.
        taken: parameters that the endpoint has accepted in these forms.
        left_out: parameters that it refuses in every form, and "n" where it answers once all the same.
    """

    def __init__(self) -> None:
        self.forms: Forms = dict.fromkeys(FORMS, 0)
        self.taken: set[str] = set()
        self.left_out: list[str] = []
        self._told: set[str] = set()

    async def ask(self, values: Mapping[str, Any], send: Send, searching: Lock) -> ChatReply:
        """Return the reply to a request with parameter `values`, in the first forms that the endpoint accepts.

        Args:
            searching: lock held during a search; other requests wait for its result.

        Raises:
            NoAnswer: no form is accepted.
        """
        forms = dict(self.forms)
        answer = await self._tried(forms, values, send)
        if isinstance(answer, NoAnswer):
            async with searching:
                if self.forms != forms:  # found in the meantime
                    forms = dict(self.forms)
                    answer = await self._tried(forms, values, send)
                if isinstance(answer, NoAnswer):
                    answer = await self._search(forms, values, send, answer)
        return answer

    def news(self) -> list[str]:
        """Return the parameters in `left_out` that were not returned before."""
        new = [name for name in self.left_out if name not in self._told]
        self._told |= set(new)
        return new

    async def _search(self, forms: Forms, values: Mapping[str, Any], send: Send, refusal: NoAnswer) -> ChatReply:
        """Try other forms: of parameters that errors name, then of structured output, then by trivial requests."""
        first, first_refusal = forms, refusal
        excused = set(self.taken)  # a parameter accepted before is not the cause
        while name := _blamed(str(refusal), forms, values, excused):
            trial = {**forms, name: forms[name] + 1}
            answer = await self._tried(trial, values, send)
            if not isinstance(answer, NoAnswer):
                return answer
            if str(answer) == str(refusal):  # it was not this parameter
                excused.add(name)
            else:
                forms, refusal = trial, answer
        for place in range(forms["response_format"] + 1, len(FORMS["response_format"])):
            if "response_format" not in values or "response_format" in self.taken:
                break
            answer = await self._tried({**forms, "response_format": place}, values, send)
            if not isinstance(answer, NoAnswer):
                return answer
        found = None if values.keys() <= self.taken else await self._probed(first, values, send)
        if found is not None:
            self._remember(found, values)
        if found is None or found == first:
            raise first_refusal
        answer = await self._tried(found, values, send)
        if isinstance(answer, NoAnswer):
            raise answer
        return answer

    async def _tried(self, forms: Forms, values: Mapping[str, Any], send: Send) -> ChatReply | NoAnswer:
        """Return the reply in these forms, or the refusal. Raises NoAnswer of any other kind."""
        began = time.perf_counter()
        try:
            reply = await send(_fields(forms, values))
        except NoAnswer as error:
            if not _refused(error):
                raise
            return error
        if len(reply.samples) < values.get("n", 0):
            forms = {**forms, "n": 1}
        self._remember(forms, values)
        return replace(reply, sent=_sent(forms, values), seconds=time.perf_counter() - began)

    async def _probed(self, forms: Forms, values: Mapping[str, Any], send: Send) -> Forms | None:
        """Return accepted forms of a trivial request with the fewest parameters left out; None if there are none."""

        async def takes(trial: Forms) -> bool:
            try:
                await send(_fields(trial, values), probe=True)
            except NoAnswer as error:
                if _refused(error):
                    return False
                if error.kind is not Kind.BAD_REQUEST:
                    raise
            return True

        if await takes(forms):
            return forms
        bare = {name: len(known) - 1 for name, known in FORMS.items()}
        for place in range(len(FORMS["max_tokens"])):
            found = {**bare, "max_tokens": place}
            if await takes(found):
                break
        else:
            return None
        for name in (name for name in values if name != "max_tokens"):
            for place in range(bare[name]):
                if await takes({**found, name: place}):
                    found = {**found, name: place}
                    break
        return found

    def fields(self, values: Mapping[str, Any]) -> Fields:
        """Return the fields of a request with parameter `values`, in the forms in use."""
        return _fields(self.forms, values)

    def sent(self, values: Mapping[str, Any]) -> Fields:
        """Return those fields for records."""
        return _sent(self.forms, values)

    def go_on(self, refusals: Iterable[str]) -> None:
        """Take the next form of each parameter that a refusal names, as far as there is one."""
        for name in {_blamed(said, self.forms, FORMS, set()) for said in refusals} - {None}:
            self.forms[str(name)] += 1

    def _remember(self, forms: Forms, values: Mapping[str, Any]) -> None:
        self.forms |= {name: max(forms[name], self.forms[name]) for name in values}  # late replies change nothing back
        self.taken |= values.keys()
        self.left_out = [name for name, place in self.forms.items() if FORMS[name][place][0] == "none"]


def values_of(settings: Mapping[str, Any], request: ChatRequest) -> dict[str, Any]:
    """Return the parameter values of a request to a client with these settings."""
    several = request.samples if (request.samples or 1) > 1 else None
    own = {"max_tokens": request.max_tokens, "response_format": request.schema, "seed": request.seed, "n": several}
    return {**settings, **{name: value for name, value in own.items() if value is not None}}


def _refused(error: NoAnswer) -> bool:
    return error.kind is Kind.BAD_REQUEST and bool(error.status)


def _fields(forms: Forms, values: Mapping[str, Any]) -> Fields:
    """Return the fields of a request with parameter `values`."""
    made = [FORMS[name][forms[name]][1](value) for name, value in values.items()]
    return {name: value for part in made for name, value in part.items()}


def _sent(forms: Forms, values: Mapping[str, Any]) -> Fields:
    """Return the fields for records; structured output is reduced to its kind ("none": not requested)."""
    short = {name: value for name, value in values.items() if name != "response_format"}
    kind = FORMS["response_format"][forms["response_format"]][0]
    return _fields(forms, short) | ({"response_format": kind} if "response_format" in values else {})


def _blamed(said: str, forms: Forms, values: Mapping[str, Any], excused: Set[str]) -> str | None:
    """Return the parameter that an error message names, if it has another form."""
    for name in (name for name in values if name not in excused):
        named = re.search(rf"\b{name}\b", said) is not None
        if name == "max_tokens":
            named = named and _UNSUPPORTED.search(said) is not None
        if named and forms[name] + 1 < len(FORMS[name]):
            return name
    return None
