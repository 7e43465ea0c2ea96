"""The options of an evaluation: presets, and what cannot work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmedpo.errors import InputError
from mmedpo.evaluation.answering import Generation
from mmedpo.evaluation.measures import measure as evaluate
from mmedpo.evaluation.score import Scoring
from mmedpo.evaluation.settings import Run, Settings
from mmedpo.models.chat.limits import Limits


def settings(**changes: Any) -> Settings:
    return Settings(**{"model": "org/model", "source": Path("data"), **changes})


def test_defaults_are_those_of_the_parts():
    assert settings().generation == Generation()
    assert settings().scoring == Scoring()
    assert Run(Path("out")).limits == Limits()


def test_the_papers_preset_is_its_protocol_and_options_win_over_it():
    """PAPER: temperature 0.2, 64 new tokens for answers and 1024 for reports, seed 0."""
    paper = settings(preset="paper")
    assert paper.generation == Generation(64, 1024, 0.2, seed=0)
    assert (paper.vqa_protocol, paper.report_protocol, paper.meteor_variant) == ("paper", "paper", None)
    own = settings(preset="paper", temperature=0.0, vqa_protocol="strict")
    assert (own.generation.temperature, own.vqa_protocol, own.report_protocol) == (0.0, "strict", "paper")


def test_a_whole_number_from_a_recipe_is_a_temperature():
    assert settings(temperature=1).generation.temperature == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": None}, "either source or dataset"),
        ({"dataset": "org/pairs"}, "either source or dataset"),
        ({"preset": "lenient"}, "preset is 'lenient'; use one of strict, paper"),
        ({"measure": "beauty"}, "measure is 'beauty'; use one of answers"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"temperature": float("nan")}, "temperature is nan; it must be a finite number"),
        ({"temperature": float("inf")}, "temperature is inf; it must be a finite number"),
        ({"max_new_tokens": 2**21}, "max_new_tokens is 2097152; it must be at least 1 and at most 1048576"),
        ({"batch_size": 10_001}, "batch_size is 10001; it must be at least 1 and at most 10000"),
        ({"batch_size": "many"}, "batch_size is 'many'; it must be of type int"),
        ({"model": "http://localhost:8000/v1#m", "adapter": "runs/adapter"}, "an endpoint takes no adapter"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"seed": 2**32}, "seed is 4294967296; it must be at least 0 and at most 4294967295"),
        ({"official_split": True}, "official_split needs split"),
        ({"dataset_revision": "main"}, "dataset_revision needs dataset"),
        ({"adapter_revision": "main"}, "adapter_revision needs adapter"),
        ({"source": None, "dataset": "org/pairs", "skip_faulty": True}, "skip_faulty needs source"),
        ({"model": "hub:org/m", "model_revision": "main"}, "an endpoint takes no adapter"),
    ],
)
def test_what_cannot_work_is_said(changes, said):
    with pytest.raises(InputError, match=said):
        settings(**changes)


@pytest.mark.parametrize(
    ("measure", "given", "unused"),
    [
        ("preference", {"max_new_tokens": 64}, "max_new_tokens"),
        ("visual_reliance", {"temperature": 0.7, "vqa_protocol": "paper"}, "temperature, vqa_protocol"),
        ("visual_reliance", {"meteor_variant": "nltk_wordnet", "preset": "paper"}, "meteor_variant, preset"),
    ],
)
def test_an_option_that_the_measure_does_not_use_is_refused(measure, given, unused):
    about = {"source": None, "dataset": "org/pairs", "measure": measure}
    with pytest.raises(InputError, match=f"measure {measure} does not use {unused}"):
        settings(**about, **given)
    assert settings(**about).measure == measure


def test_visual_reliance_takes_the_length_of_answers():
    assert settings(source=None, dataset="d", measure="visual_reliance", max_new_tokens=7).max_new_tokens == 7


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(InputError, match=r"preset is 'x'.*limit is 0.*either source or dataset"):
        settings(preset="x", limit=0, dataset="org/pairs")


@pytest.mark.parametrize("measure", ["preference", "visual_reliance"])
@pytest.mark.parametrize("spread", [{"tasks": 2}, {"executor": "ray"}])
def test_only_answers_are_made_by_tasks(tmp_path, measure, spread):
    with pytest.raises(InputError, match=f"--measure {measure} runs in this process"):
        evaluate(settings(source=None, dataset="d", measure=measure), Run(tmp_path / "out", **spread))
    assert not list(tmp_path.iterdir())
