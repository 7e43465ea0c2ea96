"""Versioned prompts, one Jinja file each; changed wording is a new version, so that old results stay explained."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedpo.models.chat import ChatRequest
from mmedpo.runs.json_files import sha256

if TYPE_CHECKING:
    from jinja2 import Environment


class Prompts:
    """Prompt templates of a folder, `NAME@VERSION.jinja`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

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
        text = self._environment.get_template(f"{prompt}.jinja").render(variables, image=bool(images))
        return ChatRequest(prompt, variables, text, tuple(images), schema, readable)
