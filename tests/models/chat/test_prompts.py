from itertools import product

import pytest

from mmedpo.curation.prompts import _PROMPTS
from mmedpo.models.chat.prompts import Prompts

TEXTS = ("", "5 % of {{ gold }}", "%(gold)s\n\n“quoted”")  # of the data: quoted as they are
TELLING = {
    "judge@2": {"previous": (None, {"score": 0.5, "rationale": "vague"}, {"score": None, "rationale": ""})},
    "inject@3": {
        "task": ("report", "open_vqa"), "style": ("free", "minimal"), "opposite": (None, "no"), "lines": (1, 3),
        "lengths": ((1, 4),), "most_changes": (2,), "fault": ("", "it is long"),
    },
    "select@3": {"candidates": (["a cyst"], ["a cyst", "two\nlines"]), "task": ("report", "open_vqa")},
    "option@1": {"others": (["a", "b"],)},
    "correct@1": {
        "task": ("report", "open_vqa"), "most_changes": (2, 3), "right": (None, "yes"), "fault": ("", "it is long"),
    },
}  # fmt: skip
QUOTED = ("question", "gold", "rejected", "response", "previous")


@pytest.mark.parametrize("prompt", TELLING)
def test_a_prompt_is_what_its_template_renders(prompt: str) -> None:
    template = _PROMPTS._environment.get_template(f"{prompt}.jinja")
    for values in product(*TELLING[prompt].values()):
        told = dict(zip(TELLING[prompt], values, strict=True))
        for text, images in product(TEXTS, ((), (b"png",))):
            variables = {name: f"{name}: {text}" for name in QUOTED} | told
            request = _PROMPTS.render(prompt, {}, images, **variables)
            assert request.text == template.render(variables, image=bool(images))
            assert request.variables == variables


def test_variables_that_a_template_only_quotes_share_its_rendering(tmp_path) -> None:
    (tmp_path / "a@1.jinja").write_text("{% if kind %}{{ kind }}: {% endif %}{{ text }}{{ text }}{{ count }}")
    prompts = Prompts(tmp_path)
    made = [prompts.render("a@1", {}, kind=kind, text=text, count=1).text for kind in ("x", "") for text in "ab"]
    assert made == ["x: aa1", "x: bb1", "aa1", "bb1"]
    assert len(prompts._frames) == 2
    with pytest.raises(KeyError):
        prompts.render("a@1", {}, kind="x", text="a")
