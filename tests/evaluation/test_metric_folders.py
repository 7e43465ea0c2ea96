"""The metric folders in `eval/`: loaded as users load them, with no network, against their golden cases."""

import doctest
import importlib
import json
import runpy
import socket
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import yaml

import mmedpo
from mmedpo.errors import InputError
from mmedpo.evaluation.metrics import med_vqa

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(path for path in (ROOT / "eval").iterdir() if (path / "cases.json").exists())
CASES = [
    pytest.param(folder.name, case, id=f"{folder.name}-{number}")
    for folder in FOLDERS
    for number, case in enumerate(json.loads((folder / "cases.json").read_text(encoding="utf-8")))
]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """evaluate.load from the repository's root, with no network and a cache of its own."""
    import evaluate

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a metric folder reached for the network"))
        cache = tmp_path_factory.mktemp("metrics")
        yield lambda name: evaluate.load(f"eval/{name}", cache_dir=str(cache))


@pytest.mark.parametrize(("name", "case"), CASES)
def test_golden_cases(load, name, case):
    inputs = {key: value for key, value in case.items() if key not in ("why", "expected", "absent", "by_group")}
    found = load(name).compute(**inputs)
    assert {key: found[key] for key in case["expected"]} == pytest.approx(case["expected"], abs=1e-7), case["why"]
    assert not set(case.get("absent", ())) & set(found)
    for group, expected in case.get("by_group", {}).items():
        assert {key: found["by_group"][group][key] for key in expected} == pytest.approx(expected), case["why"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_documented_examples_hold(load, folder):
    texts = {"module": load(folder.name).inputs_description, "card": (folder / "README.md").read_text(encoding="utf-8")}
    for where, text in texts.items():
        examples = doctest.DocTestParser().get_doctest(text, {}, f"{folder.name} {where}", None, 0)
        assert examples.examples
        assert doctest.DocTestRunner().run(examples).failed == 0


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_card_and_files_are_those_of_a_space(folder):
    header = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert (header["title"], header["sdk"], header["app_file"]) == (folder.name, "gradio", "app.py")
    assert {"evaluate", "metric"} <= set(header["tags"])
    names = {path.name for path in folder.iterdir()}
    assert {f"{folder.name}.py", "README.md", "cases.json", "requirements.txt", "app.py"} <= names
    assert "__init__.py" not in names


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_page_scores_its_example_row(load, folder, monkeypatch):
    gradio = MagicMock()  # it is the Space's, and no dependency of the project
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    compute = runpy.run_path(str(folder / "app.py"))["compute"]
    headers = gradio.Dataframe.call_args.kwargs["headers"]
    row = gradio.Dataframe.call_args.args[0][0]
    expected = load(folder.name).compute(**dict(zip(headers, [[cell] for cell in row], strict=True)))
    assert compute([row, [""] * len(row)]) == expected
    gradio.Interface.return_value.launch.assert_called_once()


def test_the_protocol_is_passed_on_and_bad_input_is_one_clear_error(load):
    metric = load("med_vqa")
    columns = {"predictions": ["yes"], "references": ["yes"], "answer_types": ["closed"]}
    assert metric.compute(**columns, protocol="strict")["closed_accuracy"] == 1.0
    assert metric.compute(**columns, protocol="paper")["med_vqa_definition"] == "paper@1"
    with pytest.raises(InputError, match="choose one of: strict, strict@3, paper, llava_med"):
        load("med_vqa").compute(**columns, protocol="loose")
    for refused in ("report", "CLOSED-ENDED", ""):
        with pytest.raises(InputError, match="choose 'closed', 'choice' or 'open'"):
            load("med_vqa").compute(**{**columns, "answer_types": [refused]})


@pytest.mark.parametrize("spelt", ["CLOSED", "Open ", "closed_vqa", "OPEN_VQA"])
def test_answer_types_are_spelt_as_sources_spell_them(load, spelt):
    found = load("med_vqa").compute(predictions=["Yes."], references=["yes"], answer_types=[spelt])
    assert (found["n_closed"], found["n_open"]) == ((1, 0) if "closed" in spelt.lower() else (0, 1))
    assert found["overall_accuracy"] == 1.0
    assert ("verdict" in med_vqa.score("yes", "yes", spelt)) is ("closed" in spelt.lower())


def test_a_metric_is_loaded_by_the_name_that_the_package_gives():
    assert mmedpo.metric("preference") == str(ROOT / "eval" / "preference")
    with pytest.raises(InputError, match="Use one of med_vqa, preference, report_generation, visual_reliance"):
        mmedpo.metric("bleu")


@pytest.mark.parametrize(
    ("name", "changed", "error"),
    [
        ("med_vqa", {"predictions": [None]}, ValueError),
        ("med_vqa", {"predictions": [3]}, ValueError),
        ("med_vqa", {"predictions": ["yes", "no"]}, ValueError),
        ("med_vqa", {"references": [" . "]}, InputError),
        ("med_vqa", {"groups": [None]}, InputError),
        ("report_generation", {"references": [None]}, ValueError),
        ("report_generation", {"references": ["."]}, InputError),
        ("report_generation", {"clinical": "radgraph"}, InputError),
        ("preference", {"chosen_logps": ["a"]}, ValueError),
        ("preference", {"chosen_logps": None}, TypeError),
        ("preference", {"chosen_logps": [float("nan")]}, InputError),
        ("preference", {"chosen_logps": [None]}, InputError),
        ("visual_reliance", {"correct_blank": ["a"]}, ValueError),
        ("visual_reliance", {"logps_blank": [None]}, InputError),
    ],
)
def test_columns_are_refused_by_evaluate_and_all_else_by_the_project(load, name, changed, error):
    case = json.loads((ROOT / "eval" / name / "cases.json").read_text(encoding="utf-8"))[0]
    columns = {key: value[:1] for key, value in case.items() if isinstance(value, list) and key != "absent"}
    with pytest.raises(error):
        load(name).compute(**{**columns, **changed})


@pytest.mark.parametrize("name", ["metrics.closed", "metrics.report_generation", "statistics", "metrics.vqa_v2"])
def test_docstring_examples_hold(name):
    module = importlib.import_module(f"mmedpo.evaluation.{name}")
    found = doctest.testmod(module)
    assert found.attempted and not found.failed
