"""Drops of accuracy and likelihood; the golden cases are in eval/visual_reliance."""

import math

import pytest

from mmedpo.errors import InputError
from mmedpo.evaluation.metrics import visual_reliance
from mmedpo.evaluation.metrics.visual_reliance import COLUMNS, CORRECT, LOGPS

SAMPLE = dict.fromkeys(CORRECT, 1) | dict.fromkeys(LOGPS, -1.0)


def test_scores_hold_each_view_and_what_it_lacks_of_the_original():
    found = visual_reliance.score({**SAMPLE, "correct_blank": 0, "logps_blank": -3.5})
    assert (found["correct"], found["correct_blank"], found["drop_correct_blank"]) == (1.0, 0.0, 1.0)
    assert (found["logps_blank"], found["drop_logps_blank"], found["drop_logps_swapped"]) == (-3.5, 2.5, 0.0)


def test_a_report_has_no_correctness():
    found = visual_reliance.score({**SAMPLE, **dict.fromkeys(CORRECT)})
    assert not any("correct" in name for name in found)
    assert "accuracy_original" not in visual_reliance.aggregate([found])


def test_every_metric_is_about_what_it_names():
    names = [metric.name for metric in visual_reliance.metrics()]
    assert len(set(names)) == len(names) == 14
    found = visual_reliance.compute({name: [value] for name, value in SAMPLE.items()}, return_scores=True)
    assert set(names) <= set(found)
    assert found["scores"] == [visual_reliance.score(SAMPLE)]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"correct_blank": 0.5}, "index 0 [correct_blank]: must be 1 or 0, or None for a report, got 0.5"),
        ({"correct_blank": "yes"}, "index 0 [correct_blank]: must be 1 or 0"),
        ({"correct_blank": math.nan}, "index 0 [correct_blank]: must be 1 or 0"),
        ({"correct_blank": None}, "index 0 [correct_*]: is known for some views only"),
        ({"logps_swapped": math.nan}, "index 0 [logps_swapped]: is not a finite number"),
        ({"logps_swapped": None}, "index 0 [logps_swapped]: is not a finite number"),
        ({"logps_swapped": 0.7}, "above 0"),
        ({"logps_grey": -1.0}, "unknown: logps_grey"),
    ],
)
def test_bad_input_is_refused_by_name(changed, named):
    with pytest.raises(InputError) as refused:
        visual_reliance.score({**SAMPLE, **changed})
    assert named in str(refused.value)


def test_columns_and_protocols_must_be_known_and_complete():
    whole = {name: [SAMPLE[name]] for name in COLUMNS}
    with pytest.raises(InputError, match="missing: correct_original; unknown: none"):
        visual_reliance.compute({name: column for name, column in whole.items() if name != "correct_original"})
    with pytest.raises(InputError, match="2 logps_blank"):
        visual_reliance.compute({**whole, "logps_blank": [-1.0, -1.0]})
    with pytest.raises(InputError, match="choose one of: strict"):
        visual_reliance.compute(whole, protocol="paper")
