"""Chat templates that do not end, or make a text without an end, are refused when their model is loaded."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import pytest

from mmedpo.errors import InputError
from mmedpo.models import chat_template
from mmedpo.models.vision_language import load_processor

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
GROWS = "{% set ns = namespace(text='x') %}{% for i in range(60) %}{% set ns.text = ns.text ~ ns.text %}{% endfor %}"
NESTS = "{% macro again(x) %}{{ again(x) }}{% endmacro %}{{ again(1) }}"
LONG = "{% for a in range(99999) %}{{ 'a line of text' }}{% endfor %}"
TEMPLATES = {
    "loops": (LOOPS, "did not finish within"),
    "grows": (GROWS, "did not finish within"),
    "nests": (NESTS, r"did not finish \(RecursionError\)"),
    "long": (LONG, "did not finish within|renders a question with more than 1,048,576 characters"),
    "multiplies": ("{{ 'x' * 3000000 }}", "did not finish within|renders a question with more than"),
    "beyond memory": ("{{ 'x' * 10 ** 15 }}", r"did not finish \(MemoryError\)"),
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_without_an_end_is_refused(tiny_model, tmp_path, kind, monkeypatch):
    template, why = TEMPLATES[kind]
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(template)
    monkeypatch.setattr(chat_template.check, "__defaults__", (1.0,))
    before, begun = sys.gettrace(), time.monotonic()
    with pytest.raises(InputError, match=f"chat template of .*model' ({why})"):
        load_processor(str(folder))
    assert time.monotonic() - begun < 30 and sys.gettrace() is before


def test_a_text_that_doubles_is_refused():
    def doubles() -> str:
        text = "x"
        for _ in range(60):
            text += text
        return text

    with pytest.raises(InputError, match="did not finish within"):
        chat_template.check("model", doubles)


def test_other_errors_are_left_to_the_caller():
    chat_template.check("model", lambda: str(1 / 0))
