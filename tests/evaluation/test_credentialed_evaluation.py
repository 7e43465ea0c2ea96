"""Evaluations of restricted data: whom they ask, what their records, messages and pages say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, ChatServer
from PIL import Image
from typer.testing import CliRunner

from mmedpo import cli
from mmedpo.data.credentialed import FLAG
from mmedpo.errors import InputError
from mmedpo.evaluation.compare import compare
from mmedpo.evaluation.measures import measure
from mmedpo.evaluation.questions import Asked, open_split, read
from mmedpo.evaluation.settings import Run, Settings
from mmedpo.hub import results
from mmedpo.report import write_report
from mmedpo.runs.json_files import read_json, write_json

MakeSource = Callable[..., Path]
SECRET = "Secretcell"
ROWS = [
    {"id": f"q{number}", "image": image, "question": f"Is {SECRET} {number} ill?", "answer": "yes"}
    for number, image in enumerate(("a.png", "b.png"))
]


def run(*words: object) -> Any:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def predictions(folder: Path, *answers: Any) -> Path:
    file = folder / "said.jsonl"
    file.write_text("".join(json.dumps({"id": f"q{i}", "prediction": said}) + "\n" for i, said in enumerate(answers)))
    return file


@pytest.fixture
def scored(make_source: MakeSource, tmp_path: Path) -> Path:
    """`start` and `after`: the scores of two files of predictions on a source that the command marked."""
    source = make_source(ROWS)
    for name, answers in {"start": ("no", "no"), "after": ("yes", "no")}.items():
        asked = ("--predictions", predictions(tmp_path, *answers), "--source", source)
        done = run("score", *asked, "--credentialed", "--output", tmp_path / name)
        assert done.exit_code == 0, done.output
        # As a model's evaluation has it.
        prompt = {"example": f"user: {ROWS[0]['question']}", "chat_template_sha256": "0"}
        write_json(tmp_path / name / "results.json", read_json(tmp_path / name / "results.json") | {"prompt": prompt})
    return tmp_path


def test_scores_keep_the_mark(scored):
    assert read_json(scored / "start" / "results.json")["credentialed"] is True
    assert run("score", scored / "start", "--vqa-protocol", "paper", "--output", scored / "anew").exit_code == 0
    assert read_json(scored / "anew" / "results.json")["credentialed"] is True


def test_of_predictions_that_do_not_fit_nothing_is_quoted(make_source, tmp_path):
    words = ("score", "--predictions", predictions(tmp_path, [SECRET], "no"), "--source", make_source(ROWS))
    assert SECRET in str(run(*words, "--output", tmp_path / "plain").exception)
    quiet = run(*words, "--credentialed", "--output", tmp_path / "quiet").exception
    assert isinstance(quiet, InputError) and SECRET not in str(quiet) and "q0 [prediction]" in str(quiet)


def test_of_questions_that_cannot_be_scored_nothing_is_quoted(make_source, tmp_path):
    source = make_source([{**ROWS[0], "answer": "***"}])
    (source / "CREDENTIALED").touch()
    said = run("score", "--predictions", predictions(tmp_path, "x"), "--source", source, "--output", tmp_path / "o")
    assert "q0 [answer]: has no words" in str(said.exception) and "not shown: restricted data" in str(said.exception)


def test_what_is_kept_beside_a_model_holds_numbers_alone(scored):
    comparison = compare([scored / "start", scored / "after"], resamples=10)
    assert comparison["credentialed"] is True and SECRET in json.dumps(comparison["examples"])
    kept = json.loads(results.record(comparison))
    assert SECRET not in json.dumps(kept)
    assert kept["evaluations"]["start"]["prompt"] == {"example": None, "chat_template_sha256": "0"}
    assert kept["metrics"] == comparison["metrics"] and kept["credentialed"] is True
    assert "Secret" not in json.dumps([vars(entry) for entry in results.model_index(comparison)])


def test_a_comparison_shows_texts_and_images_only_with_the_flag(scored):
    words = ("compare", scored / "start", scored / "after", "--source", scored / "source")
    for name, more in {"quiet": (), "open": (FLAG,)}.items():
        assert run(*words, *more, "--output", scored / name).exit_code == 0
    pages = {name: (scored / name / "report.html").read_text() for name in ("quiet", "open")}
    assert "Evaluation of" in pages["quiet"]
    assert SECRET not in pages["quiet"] and 'class="thumbnail' not in pages["quiet"]
    assert SECRET in pages["open"] and 'class="thumbnail' in pages["open"]
    for name in ("table.md", "table.tex"):
        assert SECRET not in (scored / "quiet" / name).read_text()


def test_the_source_of_the_images_marks_a_comparison_too(scored):
    for name in ("start", "after"):
        record = read_json(scored / name / "results.json")
        write_json(
            scored / name / "results.json", {key: value for key, value in record.items() if key != "credentialed"}
        )
    words = ("compare", scored / "start", scored / "after", "--source", scored / "source")
    assert run(*words, "--output", scored / "plain").exit_code == 0
    (scored / "source" / "CREDENTIALED").touch()
    assert run(*words, "--output", scored / "quiet").exit_code == 0
    assert SECRET in (scored / "plain" / "report.html").read_text()
    assert SECRET not in (scored / "quiet" / "report.html").read_text()
    assert read_json(scored / "quiet" / "comparison.json")["credentialed"] is True


def test_attention_pictures_are_on_a_page_only_with_the_flag(scored):
    folder = scored / "maps"
    folder.mkdir()
    Image.new("RGB", (64, 32)).save(folder / "x.png")
    sample = {"id": "q0", "question": f"Is {SECRET} ill?", "picture": "x.png"}
    summary = {"on_image": {"start": {"value": 0.25, "low": 0.2, "high": 0.3}}}
    record = {"format": "mmedpo.attention/1", "source": "clinic", "samples": [sample], "summary": summary}
    comparison = compare([scored / "start", scored / "after"], resamples=10)
    left_out = ("credentialed", "source", "examples", "evaluations")
    free = {key: value for key, value in comparison.items() if key not in left_out}

    def page(marked: bool, quotes: bool = False) -> str:
        write_json(folder / "attention.json", {**record, "credentialed": marked})
        write_report(scored / "page.html", free, None, {}, attention=folder, quotes=quotes)
        return (scored / "page.html").read_text()

    quiet = page(marked=True)
    assert SECRET not in quiet and 'class="attention"' not in quiet
    assert "clinic is restricted data" in quiet and "25.0" in quiet  # numbers stay
    for shown in (page(marked=False), page(marked=True, quotes=True)):
        assert SECRET in shown and 'class="attention"' in shown


def test_a_box_outside_its_image_is_not_quoted(make_source, tmp_path):
    box = {"label": SECRET, "x": 900, "y": 900, "width": 5, "height": 5}
    words = ("attention", "--model", "m", "--adapter", "a", "--source", make_source([{**ROWS[0], "boxes": [box]}]))
    assert SECRET in str(run(*words, "--output", tmp_path / "maps").exception)
    quiet = str(run(*words, "--credentialed", "--output", tmp_path / "maps").exception)
    assert SECRET not in quiet and "q0 [boxes]" in quiet


def test_a_dataset_is_marked_by_its_manifest_or_the_caller(preferences, tmp_path):
    assert not read(Asked(dataset=str(preferences))).marked
    assert open_split(Asked(dataset=str(preferences), credentialed=True))[1]["credentialed"] is True
    marked = Path(shutil.copytree(preferences, tmp_path / "marked"))
    manifest = read_json(marked / "manifest.json")
    write_json(marked / "manifest.json", {**manifest, "source": {**manifest["source"], "credentialed": True}})
    assert read(Asked(dataset=str(marked))).marked
    away = "http://models.invalid:9/v1#target"
    with pytest.raises(InputError, match=f"Nothing was sent: phantom is restricted data.*{FLAG}"):
        measure(Settings(away, dataset=str(marked)), Run(tmp_path / "out"))


def test_what_an_endpoint_quotes_is_not_said(make_source, tmp_path):
    source = make_source(ROWS)
    with ChatServer() as here:
        here.answer = lambda received: Answer(f"I cannot answer this: {received.text}", 422)
        said = {}
        for marked in (False, True):
            settings = Settings(f"{here.url}#target", source=source, credentialed=marked)
            with pytest.raises(InputError, match="HTTP 422") as raised:
                measure(settings, Run(tmp_path / str(marked)))
            said[marked] = str(raised.value)
        assert here.received
    assert SECRET in said[False] and SECRET not in said[True]


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    folder = tmp_path_factory.mktemp("adapter")
    base = AutoModelForImageTextToText.from_pretrained(tiny_model)
    get_peft_model(base, LoraConfig(r=1, target_modules=["q_proj"])).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("trained", ["model", "adapter", None])
def test_answers_of_a_model_that_was_trained_on_restricted_data_are_marked(
    corpus, tiny_model, adapter, tmp_path, caplog, trained
):
    model, tuned = (Path(shutil.copytree(one, tmp_path / one.name)) for one in (tiny_model, adapter))
    named = {"model": model / "config.json", "adapter": tuned / "training.json"}
    if trained:
        file = named[trained]
        write_json(file, (read_json(file) if file.exists() else {}) | {"credentialed_source": "clinic"})
    words = {"model": str(model), "adapter": str(tuned), "source": corpus, "split": "test", "limit": 1}
    lengths = {"max_new_tokens": 1, "max_new_tokens_report": 1}
    made = measure(Settings(**words, **lengths), Run(output=tmp_path / "out"))
    assert made is not None and made.get("credentialed") == (True if trained else None)
    assert ("which was trained on clinic" in caplog.text) == bool(trained)
    shown = run("attention", *(f"--{name}={value}" for name, value in words.items()), "--max-new-tokens", "1",
                "--output", tmp_path / "shown")  # fmt: skip
    assert shown.exit_code == 0, shown.output
    assert read_json(tmp_path / "shown" / "attention.json").get("credentialed") == (True if trained else None)
