"""The parameters of a chat completion request in the forms that an endpoint takes."""

from __future__ import annotations

import re
from asyncio import Lock
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from typing import Any, Protocol

from mmedpo.models.chat import ChatReply
from mmedpo.models.chat.transport import Kind, NoAnswer

Fields = dict[str, Any]
Form = Callable[[Any], Fields]
Forms = dict[str, int]  # by parameter, a place in `FORMS`

# By parameter, in the order they are tried. What is left out is left to the endpoint; the longest length never is.
FORMS: dict[str, tuple[tuple[str, Form], ...]] = {
    "max_tokens": (
        ("max_tokens", lambda value: {"max_tokens": value}),
        ("max_completion_tokens", lambda value: {"max_completion_tokens": value}),  # OpenAI's o-series and later
    ),
    # As OpenAI and vLLM ask for structured output, then as TGI does; the answer's form is in the prompt too.
    "response_format": (
        ("json_schema", lambda schema: {"response_format": {
            "type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True},
        }}),
        ("json_object", lambda schema: {"response_format": {"type": "json_object", "value": schema}}),
        ("none", lambda schema: {}),
    ),
    "temperature": (("temperature", lambda value: {"temperature": value}), ("none", lambda value: {})),
    "seed": (("seed", lambda value: {"seed": value}), ("none", lambda value: {})),
}  # fmt: skip
# What is wrong with the name of `max_tokens`, and not with the number.
_UNSUPPORTED = re.compile(
    r"unsupported|not? (?:be )?support|un(?:known|recogni[sz]ed|expected)|extra|permitted|use 'max_completion_tokens'",
    re.IGNORECASE,
)


class Send(Protocol):
    """Sends a request with these fields, or a trivial one (`probe`); raises NoAnswer."""

    async def __call__(self, fields: Fields, probe: bool = False) -> ChatReply: ...


class Parameters:
    """The forms in use with one endpoint: found once, and shared by all clients that ask it.

    A refusal changes them only where the same request, or a trivial one, is then taken. So a request that is refused
    for itself (too long, say) changes nothing.

    Attributes:
        forms: in use.
        taken: parameters that the endpoint is known to take in these forms.
        left_out: those that it is known to refuse in every form.
    """

    def __init__(self) -> None:
        self.forms: Forms = dict.fromkeys(FORMS, 0)
        self.taken: set[str] = set()
        self.left_out: list[str] = []
        self._told: set[str] = set()

    async def ask(self, values: Mapping[str, Any], send: Send, searching: Lock) -> ChatReply:
        """The reply to a request with the `values` of parameters, in the first forms that the endpoint takes.

        Args:
            searching: held while forms are looked for; other requests wait for what is found.

        Raises:
            NoAnswer: there is none, in whatever form.
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
        """Those of `left_out` that this has not returned before."""
        new = [name for name in self.left_out if name not in self._told]
        self._told |= set(new)
        return new

    async def _search(self, forms: Forms, values: Mapping[str, Any], send: Send, refusal: NoAnswer) -> ChatReply:
        """First what errors name, then the forms of structured output, then by trivial requests."""
        first, first_refusal = forms, refusal
        excused = set(self.taken)  # what was taken before is not what is wrong now
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
        """The reply to a request in these forms, or its refusal; raises NoAnswer of any other kind."""
        try:
            reply = await send(_fields(forms, values))
        except NoAnswer as error:
            if not _refused(error):
                raise
            return error
        self._remember(forms, values)
        return replace(reply, sent=_sent(forms, values))

    async def _probed(self, forms: Forms, values: Mapping[str, Any], send: Send) -> Forms | None:
        """The forms in which a trivial request is taken, with as few parameters left out as can be; None if in none."""

        async def takes(trial: Forms) -> bool:
            try:
                await send(_fields(trial, values), probe=True)
            except NoAnswer as error:
                if _refused(error):
                    return False
                if error.kind is not Kind.REFUSED:
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
        """The fields of a request for the `values` of parameters, in the forms in use."""
        return _fields(self.forms, values)

    def _remember(self, forms: Forms, values: Mapping[str, Any]) -> None:
        self.forms |= {name: max(forms[name], self.forms[name]) for name in values}  # never back, whatever comes late
        self.taken |= values.keys()
        self.left_out = [name for name, place in self.forms.items() if FORMS[name][place][0] == "none"]


def _refused(error: NoAnswer) -> bool:
    return error.kind is Kind.REFUSED and bool(error.status)


def _fields(forms: Forms, values: Mapping[str, Any]) -> Fields:
    """The fields of a request for the `values` of parameters."""
    made = [FORMS[name][forms[name]][1](value) for name, value in values.items()]
    return {name: value for part in made for name, value in part.items()}


def _sent(forms: Forms, values: Mapping[str, Any]) -> Fields:
    """For records: the fields as they were sent, of structured output the kind alone ("none": not asked for)."""
    short = {name: value for name, value in values.items() if name != "response_format"}
    kind = FORMS["response_format"][forms["response_format"]][0]
    return _fields(forms, short) | ({"response_format": kind} if "response_format" in values else {})


def _blamed(said: str, forms: Forms, values: Mapping[str, Any], excused: Set[str]) -> str | None:
    """The parameter that an error's words name and that has another form."""
    for name in (name for name in values if name not in excused):
        named = re.search(rf"\b{name}\b", said) is not None
        if name == "max_tokens":
            named = named and _UNSUPPORTED.search(said) is not None
        if named and forms[name] + 1 < len(FORMS[name]):
            return name
    return None
