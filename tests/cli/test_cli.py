"""The command line: exit codes, messages that say what to do, and no half-written output."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, ChatServer
from standins import WORDS

from mmedpo import cli

MakeSource = Callable[..., Path]
Run = Callable[..., tuple[int, str]]
COMMANDS = ("curate", "preview", "audit", "train", "evaluate", "score", "compare", "quickstart")


def says(output: str, *phrases: object) -> bool:
    """Whether all phrases are in an output, wherever the terminal's width broke its lines."""
    return all("".join(str(phrase).split()) in "".join(output.split()) for phrase in phrases)


def left_behind(tmp_path: Path) -> list[str]:
    return [entry.name for entry in tmp_path.iterdir() if entry.name.startswith("out")]


def test_help_needs_no_heavy_library() -> None:
    script = (
        "import runpy, sys\n"
        "sys.argv = ['mmedpo', '--help']\n"
        "try:\n    runpy.run_module('mmedpo.cli', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'numpy', 'PIL'} & sys.modules.keys()), file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "curate" in found.stdout
    assert found.stderr.strip() == "[]"


@pytest.mark.parametrize("spelt", ["--vision-tower", "--vision_tower"])
def test_options_are_taken_in_both_spellings(run: Run, spelt: str, tmp_path: Path) -> None:
    code, output = run("convert", tmp_path / "absent", spelt, "tower", "--output", tmp_path / "out")
    assert code == 2
    assert says(output, f"{tmp_path / 'absent'} cannot be read")


# Bad inputs beside those of tests/golden/refusals.py. {corpus}, {tiny}, {pairs}, {here} are folders.


def row(**changes: Any) -> dict[str, Any]:
    return {"id": "q1", "image": "a.png", "question": "Is there a nodule?", "answer": "yes", **changes}


CURATE = f"curate {shlex.join(WORDS)} --source {{corpus}} --split preference --limit 4 --output {{here}}/out"
EVALUATE = "evaluate --source {corpus} --split test --limit 4 --output {here}/out --model"


@pytest.mark.parametrize(
    ("line", "phrases"),
    [
        (f"{CURATE} --localizer medklip:{{here}}/nowhere", ["nowhere is not a folder", "checkpoint and descriptions"]),
        (f"{CURATE} --concurrency 0", ["concurrency is 0; it must be at least 1"]),
        (f"{CURATE} --sampels 3 stray", ["mmedpo curate: unknown options --sampels 3 stray", "mmedpo curate --help"]),
        (f"{CURATE} --config", ["--config needs a recipe after it"]),
        ("train --config {here}/torn", ["torn: cannot be read (Is a directory)"]),
        ("train --max_steps 1.5", ["--max-steps", "invalid int value: '1.5'"]),
        ("attention --seed -1", ["'--seed'", "or equal to 0"]),
        (f"compare --seed {2**32}", ["'--seed'", "or equal to 4294967295"]),
        (f"{EVALUATE} {{tiny}} --adapter {{here}}/nowhere", ["The adapter", "nowhere' cannot be read"]),
        (f"{EVALUATE} {{tiny}} --temperature -1", ["temperature is -1.0; it must be at least 0"]),
        (f"{EVALUATE} http://localhost:9/v1#m --adapter {{here}}/a", ["an endpoint takes no adapter"]),
        (f"{EVALUATE} http://127.0.0.1:9/v1#m", ["127.0.0.1:9", "does not answer", "Start the server"]),
        (
            "evaluate --dataset {corpus} --split test --model {tiny} --output {here}/out",
            ["is not a preference dataset"],
        ),
        ("audit {here}/torn --output {here}/out", ["torn' cannot be loaded as a dataset"]),
    ],
)
def test_bad_input_exits_with_2_and_leaves_nothing(
    run: Run, corpus: Path, tiny_model: Path, preferences: Path, tmp_path: Path, line: str, phrases: list[str]
) -> None:
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 torn")
    words = line.format(corpus=corpus, tiny=tiny_model, pairs=preferences, here=tmp_path).split()
    code, output = run(*words)
    assert code == 2
    assert says(output, *phrases)
    assert left_behind(tmp_path) == []


def test_faults_that_do_not_fit_the_screen_are_all_in_the_file_that_the_message_names(
    run: Run, make_source: MakeSource, tmp_path: Path
) -> None:
    rows = [row(id=str(i), image=f"missing-{i}.png", task=f"kind {i}") for i in range(100)]
    source = make_source([row(id="good"), *rows])
    code, output = run("curate", *WORDS, "--source", source, "--output", tmp_path / "out")
    assert code == 2 and says(output, "Faulty rows in source: 100.", "... and 180 more")
    assert says(output, "All 200 faults are in mmedpo-faults.jsonl")
    lines = (tmp_path / "mmedpo-faults.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["row"] for line in lines] == [f"samples.jsonl:{i // 2 + 2}" for i in range(200)]
    assert says(output, json.loads(lines[0])["value"]) and not says(output, json.loads(lines[-1])["value"])
    assert left_behind(tmp_path) == []
    code, output = run("curate", *WORDS, "--source", source, "--output", tmp_path / "out", "--skip-faulty")
    assert code == 0 and says(output, "1 hallucinated_response", "201 rejected (see rejects.jsonl)")  # and no box
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert len({reject["id"] for reject in rejects if reject["reason"] == "faulty row of the source"}) == 100


def test_faults_stay_on_the_screen_where_no_file_can_be_written(
    run: Run, make_source: MakeSource, tmp_path: Path
) -> None:
    (tmp_path / "mmedpo-faults.jsonl").mkdir()
    source = make_source([row(id=str(i), answer="") for i in range(30)])
    code, output = run("curate", *WORDS, "--source", source, "--output", tmp_path / "out")
    assert code == 2 and says(output, "... and 10 more", "cannot be written to mmedpo-faults.jsonl: Is a directory")


@pytest.mark.parametrize(
    ("option", "sent", "phrases"),
    [
        ("--chat", Answer(status=404, body=b"<html>", headers={"Content-Type": "text/html"}), ["HTTP 404", "/v1"]),
        ("--chat", Answer("no such key", 401), ["refuses", "MMEDPO_API_KEY"]),
        ("--judges", Answer(status=404, body=b"{}"), ["asked for the model 'm'", "Check the URL"]),
    ],
)
def test_endpoint_that_is_no_chat_endpoint_exits_with_2_and_its_name(
    run: Run, corpus: Path, chat_server: ChatServer, tmp_path: Path, option: str, sent: Answer, phrases: list[str]
) -> None:
    chat_server.answer = lambda received: sent
    words = ("--source", corpus, "--split", "preference", "--limit", 4, "--output", tmp_path / "out")
    code, output = run("curate", *WORDS, *words, option, f"{chat_server.url}#m")
    assert code == 2 and says(output, chat_server.url, *phrases)
    assert left_behind(tmp_path) == []


def test_one_key_for_two_hosts_is_refused_before_anything_is_sent(
    run: Run, corpus: Path, chat_server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMEDPO_API_KEY", "sk-of-which")
    words = ("--source", corpus, "--split", "preference", "--limit", 4, "--output", tmp_path / "out")
    models = ("--chat", f"{chat_server.url}#m", "--judges", "https://judges.invalid/v1#m")
    code, output = run("curate", *words, *models)
    assert code == 2 and says(output, "MMEDPO_API_KEY__JUDGES_INVALID", "MMEDPO_API_KEY__127_0_0_1___")
    assert not chat_server.received and "sk-of" not in output and left_behind(tmp_path) == []


def test_spent_budget_exits_with_130_and_a_resumed_run_goes_on(
    run: Run, corpus: Path, chat_server: ChatServer, tmp_path: Path
) -> None:
    chat_server.answer = lambda received: Answer('{"score": 0.5, "rationale": ""}', usage=(9, 1))
    words = ("--source", corpus, "--split", "preference", "--limit", 6, "--output", tmp_path / "out")
    judged = ("--judges", f"{chat_server.url}#m", "standin:strict", "--rounds", 1, "--judges-below-bar", "go")
    code, output = run("curate", *WORDS, *words, *judged, "--max-calls", 42)
    assert code == 130 and says(output, "--max-calls 42", "run the same command with --resume")
    assert left_behind(tmp_path) == ["out.partial"] and len(chat_server.received) == 42
    code, output = run("curate", *WORDS, *words, *judged, "--max-calls", 99, "--resume")
    assert code == 0 and left_behind(tmp_path) == ["out"]
    assert len(chat_server.received) == 40 + 6  # each pair of the check and each question was judged once


def test_faulty_dataset_is_audited_listed_and_refused(run: Run, preferences: Path, tmp_path: Path) -> None:
    from datasets import Dataset, load_dataset

    from mmedpo import schema

    rows = schema.undecoded(load_dataset(str(preferences), split="train")).to_list()[:3]
    rows[1]["weight"] = math.nan
    rows[2]["id"] = rows[0]["id"]
    (tmp_path / "faulty" / "data").mkdir(parents=True)
    dataset = Dataset.from_list(rows, features=schema.FEATURES)
    dataset.to_parquet(tmp_path / "faulty" / "data" / "train-00000-of-00001.parquet")
    code, output = run("audit", tmp_path / "faulty", "--output", tmp_path / "out")
    assert code == 2
    assert says(output, "faulty breaks the preference schema") and says(output, "[weight]: is not a number")
    faults = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))["faults"]
    assert {(fault["row"], fault["column"]) for fault in faults} == {(rows[1]["id"], "weight"), (rows[0]["id"], "id")}


def test_a_resumed_audit_refuses_a_dataset_that_was_replaced(run: Run, preferences: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    pairs, output = tmp_path / "pairs", tmp_path / "out"
    shutil.copytree(preferences, pairs)
    command = ["audit", pairs, "--output", output, "--resume"]
    assert run(*command)[0] == 0
    assert says(run(*command)[1], "nothing to resume")
    (shard,) = pairs.glob("data/train-*.parquet")
    Dataset.from_parquet(str(shard)).select(range(10)).to_parquet(shard)
    code, said = run(*command)
    assert code == 2 and says(said, "dataset", "was replaced under the same name", "start a new --output")


@pytest.mark.parametrize(
    "line",
    [
        f"curate {shlex.join(WORDS)} --source {{corpus}} --limit 4",
        "evaluate --source {corpus} --limit 4 --model {tiny}",
        "audit {pairs}",
        "compare {runs}/start {runs}/again",
    ],
)
def test_existing_output_is_refused_and_untouched(
    run: Run, corpus: Path, tiny_model: Path, preferences: Path, evaluations: Path, tmp_path: Path, line: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    words = line.format(corpus=corpus, tiny=tiny_model, pairs=preferences, runs=evaluations).split()
    code, output = run(*words, "--output", tmp_path / "out")
    assert code == 2
    assert says(output, tmp_path / "out", "exists already; choose another --output or remove it")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert left_behind(tmp_path) == ["out"]


@pytest.fixture(scope="module")
def evaluations(corpus: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished evaluations of the tiny model: `start` (greedy) and `again` (warm)."""
    from mmedpo.evaluation.answering import Generation, LocalModel
    from mmedpo.evaluation.predict import evaluate
    from mmedpo.evaluation.questions import Asked, read
    from mmedpo.models.vision_language import VisionLanguageModel

    folder, asked = tmp_path_factory.mktemp("evaluations"), read(Asked(corpus, split="test", limit=12))
    model = LocalModel(VisionLanguageModel(str(tiny_model)))
    for name, temperature in (("start", 0.0), ("again", 1.0)):
        (folder / name).mkdir()
        evaluate(lambda tasks: model, asked, folder / name, Generation(6, 6, temperature), record={"name": name})
    return folder


def test_curate_writes_a_dataset_with_its_card(run: Run, corpus: Path, tmp_path: Path) -> None:
    words = ("curate", *WORDS, "--source", corpus, "--split", "preference", "--limit", 6, "--output", tmp_path / "out")
    code, output = run(*words)
    assert code == 0 and says(output, "6 hallucinated_response", "lesion_noise", "rejected (see rejects.jsonl)")
    assert {"README.md", "data", "manifest.json", "rejects.jsonl"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }
    assert left_behind(tmp_path) == ["out"]
    code, output = run("audit", tmp_path / "out")
    assert code == 0
    code, output = run(*words, "--resume")
    assert code == 0 and says(output, "out is finished; nothing to resume")


@pytest.mark.parametrize(
    ("line", "missing"),
    [("build folder", "--chat and --judges"), ("build vqa_rad", "--chat and --judges"),
     ("curate --chat standin:rules", "--judges")],
)  # fmt: skip
def test_models_that_are_not_named_are_asked_for_before_anything_is_read(
    run: Run, tmp_path: Path, line: str, missing: str
) -> None:
    words = ("--source", tmp_path / "never-read", "--output", tmp_path / "out", "--license", "mit")
    code, output = run(*line.split(), *words)
    assert code == 2 and says(output, f"{missing}: required", "http://host:port/v1#model", "or none")
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(("words", "named"), [(WORDS, "standin:rules, standin:strict"), (("--chat", "none"), None)])
def test_the_last_line_says_that_stand_ins_made_rows(
    run: Run, make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...],
    named: str | None,
) -> None:  # fmt: skip
    monkeypatch.setattr("mmedpo.cli.shared.console.width", 500)  # a table's cells are on one line each
    source = make_source([row(boxes=[{"label": "nodule", "x": 4, "y": 4, "w": 8, "h": 8}])])
    # In this style a bare yes or no is written by the chat model too, not flipped.
    code, output = run("curate", *words, "--style", "free", "--source", source, "--output", tmp_path / "out")
    last = output.strip().split("\n")[-1]
    assert code == 0 and says(output, "Weights: lesion_noise: its only score is 1, so each weight is 1")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    first = card.split("# MMedPO preference pairs from source\n\n")[1].split("\n\n")[0]
    said = (last, first, run("audit", tmp_path / "out")[1])
    if named is None:
        assert not any("tand-in" in text for text in said)
        return
    assert all(text.startswith("Not for real use." if text is last else "**Not for real use.**") for text in said[:2])
    assert all(says(text, "stand-in") for text in said) and says(last, named) and says(first, named)
    assert says(said[2], "standin:rules", "standin:strict (1 row)", "lesion_noise: its only score is 1, so each")
    assert run("audit", tmp_path / "out", "--output", tmp_path / "out-audit")[0] == 0
    page = (tmp_path / "out-audit" / "audit.html").read_text(encoding="utf-8")
    assert says(page, "Not for real use.", "standin:strict (1 row)", "its only score is 1")


def test_recipe_gives_what_the_same_options_give_and_the_command_line_wins(
    run: Run, corpus: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "split: preference\nlimit: 9\nchat: standin:rules\njudges: standin:strict,standin:lenient\nseed: 3\n"
    )
    code, output = run("curate", f"--config={recipe}", "--limit", 4, "--source", corpus, "--output", tmp_path / "out-1")
    assert code == 0 and says(output, "4 hallucinated_response")
    words = shlex.split(
        "--split preference --limit 4 --chat standin:rules --judges standin:strict standin:lenient --seed 3"
    )
    assert run("curate", *words, "--source", corpus, "--output", tmp_path / "out-2")[0] == 0
    first, second = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("out-1", "out-2"))
    assert first.pop("command").startswith("mmedpo curate --config=recipe.yaml --limit 4")
    assert second.pop("command").startswith("mmedpo curate --split preference --limit 4")
    assert first == second and first["judges"] == ["standin:strict", "standin:lenient"]


def test_preview_writes_a_sheet_and_says_what_it_left_out(run: Run, corpus: Path, tmp_path: Path) -> None:
    from PIL import Image

    from mmedpo.data.sources import read_source

    (tmp_path / "recipe.yaml").write_text("split: preference\nconcurrency: 4\nnoise: black\n")  # as curate takes it
    words = ("--config", tmp_path / "recipe.yaml", "--source", corpus, "--output", tmp_path / "new" / "sheet.png")
    code, output = run("preview", *words, "--count", 50)
    samples = read_source(corpus, "preference").samples
    lesions = {sample.images[0].file for sample in samples if sample.boxes}
    healthy = {sample.images[0].file for sample in samples} - lesions
    assert code == 0 and says(output, f"{len(lesions)} shown; left out: {len(healthy)} no lesion was found.")
    height, width = Image.open(tmp_path / "new" / "sheet.png").size[::-1]
    assert height / len(lesions) == pytest.approx(width / 5 * 1.2, rel=0.01)  # five pictures a row
    code, output = run("preview", *words)
    assert code == 2 and says(output, "sheet.png exists already; choose another --output")


def test_evaluate_asks_an_endpoint_within_its_budget_and_score_takes_its_answers(
    run: Run, corpus: Path, preferences: Path, chat_server: ChatServer, tmp_path: Path
) -> None:
    chat_server.answer = lambda received: Answer("yes", usage=(9, 1))
    words = ("evaluate", "--model", f"{chat_server.url}#m", "--dataset", preferences, "--limit", 6)
    code, output = run(*words, "--output", tmp_path / "out", "--max-calls", 4)
    assert code == 130 and says(output, "--max-calls 4", "run the same command with --resume")
    assert left_behind(tmp_path) == ["out.partial"]
    code, output = run(*words, "--output", tmp_path / "out", "--resume")
    assert code == 0 and len(chat_server.received) == 6
    assert all(received.has_image for received in chat_server.received)
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert (results["model"], results["dataset"]) == ("endpoint#m", preferences.name)
    code, output = run("score", tmp_path / "out", "--output", tmp_path / "anew")
    assert code == 0 and says(output, "overall_accuracy", "anew")
    theirs = ("--predictions", tmp_path / "out" / "predictions.jsonl", "--output", tmp_path / "theirs")
    code, output = run("score", *theirs, "--source", corpus, "--split", "preference")
    assert code == 2 and says(output, "predictions.jsonl cannot be scored", "questions have no prediction")
    assert run("score", *theirs, "--dataset", preferences, "--limit", 6)[0] == 0
    scored = [(tmp_path / name / "scores.jsonl").read_bytes() for name in ("out", "anew", "theirs")]
    assert scored[0] == scored[1] == scored[2]


def test_evaluate_leaves_nothing_where_an_endpoint_refuses_the_key(
    run: Run, corpus: Path, chat_server: ChatServer, tmp_path: Path
) -> None:
    chat_server.answer = lambda received: Answer("no such key", 401)
    words = ("--source", corpus, "--split", "test", "--output", tmp_path / "out")
    code, output = run("evaluate", "--model", f"{chat_server.url}#m", *words)
    assert code == 2 and says(output, "refuses", "MMEDPO_API_KEY")
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("words", [["score", "{start}"], ["compare", "{start}", "{start}/../again"]])
def test_short_commands_read_no_file_in_a_folders_place_and_leave_nothing_half_done(
    run: Run, evaluations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    given = [word.format(start=evaluations / "start") for word in words] + ["--output", str(tmp_path / "out")]
    code, output = run(given[0], f"{given[1]}/results.json", *given[2:])
    assert code == 2 and says(output, "results.json/results.json cannot be read (Not a directory)")

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        for writer in ("mmedpo.runs.json_files.write_json", "mmedpo.evaluation.score.write_json"):
            patched.setattr(writer, interrupted)
        code, output = run(*given)
    assert code == 130 and "Interrupted." in output and "--resume" not in output
    assert left_behind(tmp_path) == []
    assert run(*given)[0] == 0 and left_behind(tmp_path) == ["out"]


@pytest.mark.parametrize("option", ["--training", "--source", "--attention"])
def test_compare_refuses_missing_folders_to_show(run: Run, evaluations: Path, tmp_path: Path, option: str) -> None:
    words = (evaluations / "start", evaluations / "again", option, tmp_path / "nowhere")
    code, output = run("compare", *words, "--output", tmp_path / "out")
    assert code == 2 and says(output, "nowhere")
    assert left_behind(tmp_path) == []


# Ctrl-C.


def test_interrupted_run_keeps_its_work_and_says_how_to_go_on(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    """A SIGINT while a process of `curate` samples answers."""
    words = ["--source", corpus, "--split", "preference", "--model", tiny_model, "--output", tmp_path / "out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mmedpo.cli", "curate", *WORDS, *map(str, words)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    results = tmp_path / "out.partial/results/00000.journal"
    while process.poll() is None and not (results.exists() and results.stat().st_size):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate()
    assert process.returncode == 130 and "Traceback" not in messages
    assert says(messages, "run the same command with --resume")
    assert left_behind(tmp_path) == ["out.partial"] and results.stat().st_size > 0


@pytest.mark.parametrize("words", [["--hub_token", "hf_x", "--seed", "1"], ["--hub_token=hf_x", "--seed", "1"]])
def test_recorded_command_has_no_token(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(sys, "argv", ["mmedpo", "train", *words, "--resume"])
    assert "hf_x" not in cli.command_line()
    assert "--hub_token" in cli.command_line() and cli.command_line().endswith("--seed 1")


def test_score_warns_of_one_report_for_all_images(run: Run, make_source: MakeSource, tmp_path: Path) -> None:
    rows = [row(id=f"r{i}", task="report", answer=f"The heart measures {i} cm.", image="a.png") for i in range(20)]
    source, predictions = make_source(rows), tmp_path / "predictions.jsonl"
    lines = [json.dumps({"id": f"r{i}", "prediction": "The heart is normal."}) for i in range(20)]
    predictions.write_text("\n".join(lines), encoding="utf-8")
    code, output = run("score", "--predictions", predictions, "--source", source, "--output", tmp_path / "out")
    assert code == 0, output
    assert says(output, "Warning: 1 distinct report in 20 (the references: 20)", "100.0 %", "templates")


@pytest.mark.parametrize(
    "words",
    [
        ("curate", "--source", "data", "--output", "out"),
        ("build", "vqa_rad", "--source", "data", "--output", "out"),
        ("evaluate", "--model", "org/model", "--source", "data", "--output", "out"),
    ],
    ids=lambda words: words[0],
)
def test_commands_with_tasks_are_not_launched(run, monkeypatch, words):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, said = run(*words)
    assert code == 2 and "2 processes were launched" in said and "--tasks 2" in said
