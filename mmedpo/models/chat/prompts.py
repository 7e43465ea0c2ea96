"""Versioned prompts, one Jinja file each; changed wording is a new version, so that old results stay explained."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedpo.models.chat import ChatRequest
from mmedpo.runs.json_files import sha256

if TYPE_CHECKING:
    from jinja2 import Environment


PLAIN = re.compile(r"\{\{ (\w+) \}\}")
MOST_FRAMES = 256


class Prompts:
    """Prompt templates of a folder, `NAME@VERSION.jinja`.

    A template is filled once for the variables that decide about its text; those that it only quotes are put in later.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._deciding: dict[str, list[str]] = {}  # variables by prompt
        self._frames: dict[tuple[str, bool, str], list[str]] = {}  # texts, and between them names of quoted variables

    @cached_property
    def _environment(self) -> Environment:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        return Environment(
            loader=FileSystemLoader(self.folder), auto_reload=False, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip

    def contents(self) -> str:
        """Return the SHA-256 (hexadecimal) of all prompts and their names."""
        files = sorted(self.folder.glob("*.jinja"))
        return hashlib.sha256("\n".join(f"{file.name} {sha256(file)}" for file in files).encode()).hexdigest()

    def render(
        self, prompt: str, schema: dict[str, Any], images: Sequence[bytes] = (), readable: Callable[[str], bool] = bool,
        **variables: Any,
    ) -> ChatRequest:  # fmt: skip
        """Fill the template `prompt` ("judge@2") with `variables`; a missing variable raises.

        `images`, encoded image files, go with the request; the template sees only whether there is one. `readable` is
        the request's.
        """
        if prompt not in self._deciding:
            self._deciding[prompt] = self._variables(prompt)
        about = prompt, bool(images), repr([variables[name] for name in self._deciding[prompt]])
        if about not in self._frames:
            if len(self._frames) == MOST_FRAMES:
                self._frames.clear()
            self._frames[about] = self._frame(prompt, bool(images), variables)
        parts = self._frames[about].copy()
        parts[1::2] = [str(variables[name]) for name in parts[1::2]]
        return ChatRequest(prompt, variables, "".join(parts), tuple(images), schema, readable)

    def _variables(self, prompt: str) -> list[str]:
        """Return the variables that a template does not only quote, `{{ name }}`."""
        from jinja2.meta import find_undeclared_variables

        source = (self.folder / f"{prompt}.jinja").read_text(encoding="utf-8")
        return sorted(find_undeclared_variables(self._environment.parse(PLAIN.sub("", source))) - {"image"})

    def _frame(self, prompt: str, image: bool, variables: Mapping[str, Any]) -> list[str]:
        quoted = {name: f"\0{name}\0" for name in variables.keys() - set(self._deciding[prompt])}
        text: str = self._environment.get_template(f"{prompt}.jinja").render({**variables, **quoted}, image=image)
        return re.split(rf"\0({'|'.join(quoted)})\0", text) if quoted else [text]
