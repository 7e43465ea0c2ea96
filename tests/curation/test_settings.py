"""The options of a curation: what is allowed, that every fault is listed, and that a recipe's types are checked."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from mmedpo.curation.noise import Noise
from mmedpo.curation.plan import noise_of
from mmedpo.curation.settings import Preview, Run, Settings
from mmedpo.errors import InputError
from mmedpo.models.chat.limits import Limits
from mmedpo.runs import recipes

SOURCE, OUTPUT = Path("source"), Path("out")


def test_defaults_are_the_documented_method() -> None:
    settings = Settings(SOURCE)
    assert (settings.style, settings.panel, settings.rounds) == ("match", "sequential", 5)
    assert (settings.weights, settings.weights_over) == ("rescale", "kind")
    assert noise_of(settings) == Noise("diffusion", 800, 0, "lesion", reversed=False)
    assert (settings.chat, settings.judges, settings.model) == (None, [], None)  # nobody is asked unnamed
    assert (settings.localizer, settings.query, settings.max_coverage) == ("boxes", "disease", 0.6)
    assert settings.makes_visual_pairs


@pytest.mark.parametrize("options", [Settings, Run, Preview])
def test_every_option_has_help(options: type) -> None:
    assert [field.name for field in fields(options) if field.init and not field.metadata.get("help")] == []


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("style", "long", "style is 'long'; use one of match, minimal, free"),
        ("panel", "jury", "panel is 'jury'; use one of sequential, independent"),
        ("noise", "blur", "noise is 'blur'; use one of diffusion, gaussian, black, crop"),
        ("noise_region", "lung", "noise_region is 'lung'; use one of lesion, image"),
        ("weights", "zscore", "weights is 'zscore'; use one of rescale, literal, raw, none"),
        ("weights_over", "task", "weights_over is 'task'; use one of kind, merged"),
        ("limit", 0, "limit is 0; it must be at least 1"),
        ("rounds", 0, "rounds is 0; it must be at least 1"),
        ("tolerance", 1.1, "tolerance is 1.1; it must be at least 0 and at most 1"),
        ("threshold", -1, "threshold is -1; it must be at least 0 and at most 1"),
        ("max_coverage", 60, "max_coverage is 60; it must be at least 0 and at most 1"),
        ("noise_step", 1001, "noise_step is 1001; it must be at least 1 and at most 1000"),
        ("noise_edge", 2**31, "noise_edge is 2147483648; it must be at least 0 and at most 2147483647"),
        ("noise_pixels", 31, "noise_pixels is 31; it must be at least 32"),
        ("noise_pixels", 2**31, "noise_pixels is 2147483648; it must be at least 32 and at most 2147483647"),
        ("temperature", math.inf, "temperature is inf; it must be a finite number"),
        ("temperature", 101.0, "temperature is 101.0; it must be at least 0 and at most 100"),
        ("max_new_tokens", 2**20 + 1, "max_new_tokens is 1048577; it must be at least 1 and at most 1048576"),
        ("rounds", 10_001, "rounds is 10001; it must be at least 1 and at most 10000"),
        ("limit", 10**18, "limit is 1000000000000000000; it must be at most 9007199254740992"),
        ("seed", 2**32, "seed is 4294967296; it must be at least 0 and at most 4294967295"),
    ],
)
def test_value_out_of_range_is_refused_with_the_range(name: str, value: Any, sentence: str) -> None:
    with pytest.raises(InputError) as raised:
        Settings(SOURCE, **{name: value})
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"noise_step": 1, "limit": 1, "samples": 1, "temperature": 0, "rounds": 1, "tolerance": 1, "threshold": 0},
        {"noise_step": 1000, "threshold": 1, "max_coverage": 1, "tolerance": 0, "noise_edge": 0},
        {"max_coverage": 0, "limit": None, "split": None, "model": None},
        {"noise_edge": 2**31 - 1, "noise_pixels": 2**31 - 1, "seed": 2**32 - 1},
    ],
)
def test_values_at_the_ends_of_their_ranges_are_allowed(settings: dict[str, Any]) -> None:
    Settings(SOURCE, **settings)


def test_all_faults_are_listed_together() -> None:
    with pytest.raises(InputError) as raised:
        Settings(SOURCE, style="long", limit=0, noise_step=0, tolerance=2)
    assert all(f"{name} is " in str(raised.value) for name in ("style", "limit", "noise_step", "tolerance"))


def test_several_samples_need_a_temperature() -> None:
    with pytest.raises(InputError, match="4 samples at temperature 0 would be equal; raise the temperature"):
        Settings(SOURCE, temperature=0)
    Settings(SOURCE, temperature=0, samples=1)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"localizer": "boxes"}, True),
        ({"localizer": "none"}, False),
        ({"localizer": "none", "noise_region": "image"}, True),
        ({"localizer": "none", "noise": "crop"}, True),  # without regard to any lesion
        ({"localizer": "boxes", "reversed": True}, False),  # which needs a wrong answer
    ],
)
def test_without_a_chat_model_something_else_must_be_made(options: dict[str, Any], allowed: bool) -> None:
    if allowed:
        assert Settings(SOURCE, chat="none", **options).makes_visual_pairs
        return
    with pytest.raises(InputError, match="without a chat model there are no rejected responses"):
        Settings(SOURCE, chat="none", **options)


@pytest.mark.parametrize(
    ("named", "missing"),
    [
        ({}, "--chat and --judges: required. Give what picks or writes rejected responses and what"),
        ({"chat": "standin:rules"}, "--judges: required. Give what scores their clinical"),
        ({"judges": ["standin:strict"]}, "--chat: required. Give what picks or writes"),
        ({"judges": ["none"], "weights": "none"}, "--chat: required"),
        ({"chat": "none"}, None),  # and nothing to be judged
        ({"chat": "standin:rules", "judges": ["none"], "weights": "none"}, None),
    ],
)
def test_who_makes_and_who_judges_wrong_answers_must_be_named(named: dict[str, Any], missing: str | None) -> None:
    settings = Settings(SOURCE, **named)
    if missing is None:
        settings.refuse_unnamed()
        return
    with pytest.raises(InputError) as raised:
        settings.refuse_unnamed()
    forms = ("http://host:port/v1#model", "hub:org/model", "local:org/model", "standin:rules", "standin:strict", "none")
    assert str(raised.value).startswith(missing) and all(form in str(raised.value) for form in forms)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"weights": "rescale"}, "without judges rejected responses have no clinical relevance"),
        ({"weights": "raw"}, "name judges, or give --weights none"),
        ({"weights": "none"}, None),
        ({"weights": "rescale", "chat": "none"}, None),  # visual pairs have the localizer's confidence
        ({"judges": ["none", "standin:strict"], "weights": "none"}, "judges are none, standin:strict; leave out none"),
        (
            {"judges": ["standin:rules"]},
            "judges hold standin:rules, which only writes; use standin:strict, standin:lenient",
        ),
        ({"chat": "standin:strict", "weights": "none"}, "chat is standin:strict, which only judges; use standin:rules"),
    ],
)
def test_without_judges_nothing_is_weighted(options: dict[str, Any], sentence: str | None) -> None:
    given = {"chat": "standin:rules", "judges": ["none"], **options}
    if sentence is None:
        assert Settings(SOURCE, **given).scorers == []
        return
    with pytest.raises(InputError, match=re.escape(sentence)):
        Settings(SOURCE, **given)


@pytest.mark.parametrize(
    ("given", "judges"),
    [
        (["a", "b"], ["a", "b"]),
        (["a,b", "c"], ["a", "b", "c"]),
        (["a, b"], ["a", "b"]),
        ("a,b", ["a", "b"]),  # one text, as a recipe may have it
    ],
)
def test_judges_are_a_list_or_names_with_commas(given: Any, judges: list[str]) -> None:
    assert Settings(SOURCE, judges=given).judges == judges


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("source", "folder", "source is 'folder'; it must be of type Path"),
        ("split", True, "split is True; it must be of type str | None"),
        ("chat", False, """str | None (YAML takes no, off, yes and on for truth values: write the text in quotes,"""),
        ("judges", False, """it must be of type list (YAML takes no, off, yes and on for truth values"""),
        ("limit", 1.5, "limit is 1.5; it must be of type int | None"),
        ("samples", [1, 2], "samples is [1, 2]; it must be of type int"),
        ("samples", None, "samples is None; it must be of type int"),
        ("skip_faulty", 1, "skip_faulty is 1; it must be of type bool"),
        ("judges", ["a", 2], "judges is ['a', 2]; it must be of type list"),
    ],
)
def test_value_of_another_type_is_refused(name: str, value: Any, sentence: str) -> None:
    with pytest.raises(InputError) as raised:
        Settings(**{"source": SOURCE, name: value})
    assert sentence in str(raised.value)


def test_whole_numbers_are_numbers() -> None:
    assert Settings(SOURCE, temperature=1, max_coverage=1).temperature == 1


def test_record_is_json_and_makes_the_same_settings() -> None:
    settings = Settings(SOURCE, split="train", judges=["a,b"], reversed=True, tolerance=0.25)
    record = json.loads(json.dumps(settings.record()))
    assert Settings(**{**record, "source": Path(record["source"])}) == settings


def test_run_has_the_limits_of_its_calls() -> None:
    assert Run(OUTPUT).limits == Limits(8, None, None, None)
    assert Run(OUTPUT, concurrency=4, requests_per_minute=60, max_calls=9, max_tokens=99).limits == Limits(4, 60, 9, 99)
    with pytest.raises(InputError, match="max_calls is '9'; it must be of type int"):
        Run(OUTPUT, max_calls="9")  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 51, -1])
def test_sheet_shows_1_to_50_images(count: int) -> None:
    with pytest.raises(InputError, match=f"--count is {count}; a sheet shows 1 to 50 images"):
        Preview(Path("out.png"), count=count)
    assert (Preview(Path("out.png"), count=1).count, Preview(Path("out.png"), count=50).count) == (1, 50)


def parsed(words: Iterable[str]) -> Settings:
    settings, _ = recipes.parse([*words, "--output", "out"], [Settings, Run], "mmedpo curate")
    return settings


def test_recipe_and_command_line_give_the_same_settings_and_the_latter_wins(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("source: data\nsamples: 2\njudges: [a, b]\nskip_faulty: true\nmax_coverage: 1\nnoise_step: 900\n")
    words = shlex.split("--source data --samples 2 --judges a b --skip-faulty --max-coverage 1 --noise-step 900")
    assert parsed(["--config", str(recipe)]) == parsed(words)
    assert parsed(["--config", str(recipe), "--samples", "7", "--judges", "c"]) == parsed(
        [*words, "--samples", "7", "--judges", "c"]
    )


@pytest.mark.parametrize("name", ["out.jpg", "out", "out.pdf"])
def test_a_sheet_is_a_png_file(name: str) -> None:
    with pytest.raises(InputError, match=r"Give a name that ends with \.png"):
        Preview(Path(name))


def test_a_cache_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    """Also of stand-ins, which are not cached."""
    for kind in (Run, Preview):
        with pytest.raises(InputError, match="is a folder"):
            kind(tmp_path / "out.png", cache=tmp_path)
