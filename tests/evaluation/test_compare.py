"""Runs side by side: values, intervals, tests, groups, examples, seen images, and what makes runs incomparable."""

import io
import json
import shutil
from itertools import count
from pathlib import Path
from statistics import stdev

import pytest
from invented import row
from PIL import Image

from mmedpo.data import shards
from mmedpo.data.images import digest
from mmedpo.errors import InputError
from mmedpo.evaluation import compare as comparing
from mmedpo.evaluation import examples, parts
from mmedpo.evaluation.compare import compare
from mmedpo.evaluation.joining import joined
from mmedpo.evaluation.metrics.base import mean_of
from mmedpo.evaluation.score import METRICS, PROTOCOLS, Scoring, finish
from mmedpo.evaluation.statistics import holm
from mmedpo.report import rows
from mmedpo.report.wording import note
from mmedpo.runs.json_files import sha256

IMAGES = 20


def questions():
    for image in range(IMAGES):
        common = {"image_id": f"image-{image}", "patient_id": None, "question": "?"}
        yield {"id": f"closed-{image}", "task": "closed_vqa", "reference": "yes" if image % 2 else "no", **common}
        yield {"id": f"open-{image}", "task": "open_vqa", "reference": "left lung", **common}
        yield {"id": f"report-{image}", "task": "report", "reference": "the heart is normal in size", **common}


def answer(question, right):
    if question["task"] == "closed_vqa":
        return question["reference"] if right else "cannot tell"
    if question["task"] == "open_vqa":
        return "left lung" if right else "lung"
    return "the heart is normal in size" if right else "the heart is large"


def run(folder: Path, name: str, right_until: int, changes=None, results=None) -> Path:
    """A finished evaluation folder whose answers about the first `right_until` images are right."""
    folder = folder / name
    folder.mkdir(parents=True)
    asked = [{**row, **(changes or {}).get(row["id"], {})} for row in questions()]
    asked = [row for row in asked if not row.get("dropped")]
    answers = [
        {"id": row["id"], "prediction": answer(row, int(row["image_id"].split("-")[1]) < right_until)} for row in asked
    ]
    for file, lines in (("questions", asked), ("predictions", reversed(answers))):
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    record = {"format": "mmedpo.results/1", "name": name, "source": "invented", "split": "test",
              "questions_sha256": sha256(folder / "questions.jsonl")}  # fmt: skip
    scored(folder, record)
    edit(folder, **(results or {}))
    return folder


def scored(folder, record):
    return finish(folder, joined(folder / "questions.jsonl", folder / "predictions.jsonl"), Scoring(), record)


def edit(folder, **changes):
    """Change fields of results.json."""
    file = folder / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def rewrite(folder, name, change):
    """Change the lines of a file, whose digest is then the new one."""
    file = folder / f"{name}.jsonl"
    rows = [change(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recorded = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    edit(folder, files_sha256={**recorded["files_sha256"], file.name: sha256(file)})


def test_values_are_those_of_the_results_and_differences_are_paired(tmp_path):
    folders = [run(tmp_path, "start", 5), run(tmp_path, "dpo", 5), run(tmp_path, "mmedpo", 15)]
    found = compare(folders, resamples=400, command="mmedpo compare ...")
    assert (found["baseline"], found["runs"]) == ("start", ["start", "dpo", "mmedpo"])
    assert found["n"] == {"closed": IMAGES, "open": IMAGES, "report": IMAGES, "images": IMAGES}
    for folder in folders:
        recorded = json.loads((folder / "results.json").read_text())["metrics"]
        values = {name: entries[folder.name]["value"] for name, entries in found["metrics"].items()}
        assert values == pytest.approx({name: recorded[name] for name in values})
        measured = {name for name, value in recorded.items() if isinstance(value, float)}
        assert set(values) == measured - {"most_frequent_share", "most_frequent_reference_share"}
    closed = found["metrics"]["closed_accuracy"]
    assert set(closed["start"]) == {"value", "low", "high"}
    assert closed["mmedpo"]["difference"] == pytest.approx(10 / IMAGES)
    assert closed["mmedpo"]["difference_low"] > 0
    # 10 images changed, all for the better: 2 of the 2^10 equally likely exchanges are as large.
    assert closed["mmedpo"]["p"] == pytest.approx(2 / 2**10, abs=0.005)
    assert found["sizes"]["closed_accuracy"] == {"questions": IMAGES, "images": IMAGES}
    assert found["sizes"]["overall_accuracy"] == {"questions": 2 * IMAGES, "images": IMAGES}
    for entries in found["metrics"].values():
        same = entries["dpo"]
        assert (same["difference"], same["difference_low"], same["difference_high"]) == (0.0, 0.0, 0.0)
        assert all(entry["low"] <= entry["value"] <= entry["high"] for entry in entries.values())


def test_equal_input_gives_equal_output_as_json(tmp_path):
    folders = [run(tmp_path, "start", 5), run(tmp_path, "mmedpo", 15)]
    first, again = (json.dumps(compare(folders, seed=3, resamples=50), allow_nan=False) for _ in range(2))
    assert first == again


def test_metrics_about_no_question_are_absent(tmp_path):
    changes = {row["id"]: {"dropped": True} for row in questions() if row["task"] != "report"}
    found = compare([run(tmp_path, "start", 5, changes), run(tmp_path, "mmedpo", 9, changes)], resamples=20)
    assert set(found["metrics"]) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor"}
    assert found["n"]["closed"] == 0
    assert {example["outcome"] for example in found["examples"]} == {"higher", "equal"}
    assert found["changes"] == {}


def test_p_values_are_corrected_over_all_metrics_and_runs_of_the_table(tmp_path):
    found = compare([run(tmp_path, "start", 5), run(tmp_path, "dpo", 8), run(tmp_path, "mmedpo", 15)], resamples=200)
    cells = [cell for entries in found["metrics"].values() for name, cell in entries.items() if name != "start"]
    assert found["tests"]["table"] == len(cells) == 2 * len(found["metrics"])
    assert [cell["p_adjusted"] for cell in cells] == holm([cell["p"] for cell in cells])


def seeds_of(folder, name, *right):
    """Runs of one method; each is right about another number of images."""
    return [
        run(folder, f"{name}-{n}", until, results={"adapter_sha256": f"{name}-{n}"}) for n, until in enumerate(right)
    ]


def test_seeds_of_a_method_are_one_row_that_covers_seeds_and_images(tmp_path):
    start, dpo = run(tmp_path, "start", 5), run(tmp_path, "dpo", 9)
    folders = [start, *seeds_of(tmp_path, "mmedpo", 8, 10, 15), dpo]
    found = compare(folders, resamples=2000, methods=[None, "mmedpo", "mmedpo", "mmedpo", None])
    assert found["runs"] == ["start", "mmedpo", "dpo"]
    assert found["seeds"] == {"mmedpo": 3}
    cell, alone = (found["metrics"]["closed_accuracy"][name] for name in ("mmedpo", "dpo"))
    assert cell["values"] == [8 / 20, 10 / 20, 15 / 20]
    assert (cell["value"], cell["sd"]) == pytest.approx((11 / 20, stdev(cell["values"])))
    assert cell["difference"] == pytest.approx(6 / 20)
    # Seeds alone: 4.3 standard errors on each side; images widen it.
    half = 4.303 * cell["sd"] / 3**0.5
    assert cell["high"] - cell["low"] > 2 * half
    assert cell["difference_low"] < 0 < alone["difference_low"]  # a smaller difference, but of one run
    assert cell["p"] > 0.05
    assert "sd" not in alone
    # Holm counts methods: 2 others than the start by metric.
    assert found["tests"]["table"] == 2 * len(found["metrics"])
    assert [one["adapter_sha256"] for one in found["evaluations"]["mmedpo"]["further_seeds"]] == [
        "mmedpo-1",
        "mmedpo-2",
    ]
    again = compare([start, dpo], resamples=2000)["metrics"]["closed_accuracy"]["dpo"]
    numbers = {key: value for key, value in alone.items() if key != "p_adjusted"}
    assert numbers == {key: value for key, value in again.items() if key != "p_adjusted"}  # a run as without seeds


def test_seeds_of_the_baseline_are_compared_with_every_run(tmp_path):
    base, other = seeds_of(tmp_path, "sft", 4, 6), seeds_of(tmp_path, "mmedpo", 10, 11, 12)
    found = compare([*base, *other], resamples=400, methods=["sft"] * 2 + ["mmedpo"] * 3)
    cell = found["metrics"]["closed_accuracy"]["mmedpo"]
    assert cell["difference"] == pytest.approx((11 - 5) / 20)
    gain = found["reading"]["closed"]["gain"]["mmedpo"]
    assert sum(part["value"] for part in gain.values()) == pytest.approx(cell["difference"])
    assert found["distributions"]["closed_accuracy"]["counts"].keys() == {"sft", "mmedpo"}
    shown = rows(found)
    assert shown[0][2] == "value ± sd [95 % interval]"
    assert next(row for row in shown[1:] if row[0] == "closed_accuracy")[1:3][0] == "sft (2 seeds)"
    assert f" ± {stdev([10, 11, 12]) / 20:.3f} [" in shown[[row[0] for row in shown].index("closed_accuracy") + 1][2]
    assert "Means over training seeds: SFT (2 runs), MMedPO (3 runs)" in note(found)


def test_a_run_given_twice_is_no_seed(tmp_path):
    folders = [run(tmp_path, "start", 5), *seeds_of(tmp_path, "mmedpo", 9, 9)]
    edit(folders[2], adapter_sha256="mmedpo-0")
    with pytest.raises(InputError, match="mmedpo: two of its runs are of the same model and adapter"):
        compare(folders, resamples=10, methods=[None, "mmedpo", "mmedpo"])
    with pytest.raises(InputError, match="All runs are of the method mmedpo"):
        compare(folders[1:], resamples=10, methods=["mmedpo", "mmedpo"])


def test_seeds_trained_with_other_settings_are_noted(tmp_path):
    folders = [run(tmp_path, "start", 5), *seeds_of(tmp_path, "mmedpo", 9, 11)]
    for seed, (folder, beta) in enumerate(zip(folders[1:], (0.1, 0.2), strict=True)):
        adapter = tmp_path / f"adapter-{seed}"
        adapter.mkdir()
        (adapter / "training.json").write_text(json.dumps({"config": {"seed": seed, "beta": beta}, "dataset": "pairs"}))
        edit(folder, adapter=str(adapter))
    found = compare(folders, resamples=10, methods=[None, "mmedpo", "mmedpo"])
    assert "runs of 'mmedpo' differ in more than their seed: beta" in found["notes"]


@pytest.mark.parametrize(
    ("argument", "named"),
    [("runs/a", None), ("dpo=runs/a", "dpo"), ("runs/lr=1/a", None), ("there=is", None), ("=runs/a", None)],
)
def test_names_of_runs_and_folders_are_told_apart(tmp_path, monkeypatch, argument, named):
    monkeypatch.chdir(tmp_path)
    Path("there=is").mkdir()
    name, folder = comparing.method_and_folder(argument)
    assert (name, str(folder)) == (named, "runs/a" if named else argument)


def in_groups(column, label):
    return {row["id"]: {column: label(int(row["image_id"].split("-")[1]))} for row in questions()}


def test_groups_have_their_own_values_and_their_own_family_of_tests(tmp_path):
    changes = in_groups("organ", lambda image: "CHEST" if image < 12 else "HEAD" if image < 19 else None)
    found = compare([run(tmp_path, "start", 5, changes), run(tmp_path, "mmedpo", 15, changes)], resamples=200)
    assert set(found["groups"]) == {"task", "organ"}
    groups = found["groups"]["organ"]
    assert list(groups) == ["CHEST", "HEAD", "(not recorded)"]
    chest, head = (groups[name]["metrics"]["closed_accuracy"] for name in ("CHEST", "HEAD"))
    assert groups["CHEST"]["n"] == {"questions": 36, "images": 12}
    assert (chest["start"]["value"], chest["mmedpo"]["value"]) == pytest.approx((5 / 12, 1.0))
    assert head["mmedpo"] == {"value": pytest.approx(3 / 7)}  # of 7 images: no interval, no test
    tested = [cell for entries in groups["CHEST"]["metrics"].values() for cell in entries.values() if "p" in cell]
    assert found["tests"]["organ"] == len(tested) == len(found["metrics"])
    assert [cell["p_adjusted"] for cell in tested] == holm([cell["p"] for cell in tested])
    # Open and closed metrics, and those of reports, have one task each: they are in the main table already.
    assert [list(group["metrics"]) for group in found["groups"]["task"].values()] == [["overall_accuracy"]] * 2 + [[]]


def test_draws_are_shared_by_what_is_about_equally_many_images(tmp_path, monkeypatch):
    changes = in_groups("organ", lambda image: "CHEST" if image % 2 else "HEAD")
    folders = [run(tmp_path, "start", 5, changes), run(tmp_path, "mmedpo", 15, changes)]
    drawn, bootstrap = [], parts.bootstrap
    monkeypatch.setattr(
        parts, "bootstrap", lambda sums, images, *given: drawn.append(len(images)) or bootstrap(sums, images, *given)
    )
    found = [json.dumps(compare(folders, resamples=200))]
    # Once for all 20 images, and once for both organs of 10.
    assert sorted(drawn) == [IMAGES // 2, IMAGES]
    monkeypatch.setattr(parts, "COLUMNS", 1)  # nothing is shared
    drawn.clear()
    found.append(json.dumps(compare(folders, resamples=200)))
    assert sum(drawn) == 6 * IMAGES + 2 * IMAGES + 2 * 6 * IMAGES / 2
    shared, alone = (json.loads(text, parse_float=lambda digits: round(float(digits), 9)) for text in found)
    assert shared == alone


def test_many_groups_are_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr(comparing, "GROUPS", 2)
    changes = in_groups("question_type", lambda image: f"kind {min(image, 15)}")
    found = compare([run(tmp_path, "start", 5, changes), run(tmp_path, "mmedpo", 15, changes)], resamples=20)
    groups = found["groups"]["question_type"]
    assert next(iter(groups)) == "kind 15" and len(groups) == 3
    assert groups["(others)"]["n"]["images"] == 14


def test_too_many_tests_for_the_permutations_are_said(tmp_path):
    found = compare([run(tmp_path, "start", 5), run(tmp_path, "mmedpo", 15)], resamples=50)
    assert any(note.startswith("12 tests by table are too many for 50 permutations") for note in found["notes"])


def test_spreads_count_each_image_once(tmp_path):
    found = compare([run(tmp_path, "start", 5), run(tmp_path, "mmedpo", 15)], resamples=20)
    spread = found["distributions"]["overall_accuracy"]
    assert spread["edges"][0] == 0 and spread["edges"][-1] == 1
    assert [spread["counts"][name] for name in ("start", "mmedpo")] == [[15, *[0] * 8, 5], [5, *[0] * 8, 15]]


def test_differing_settings_are_noted_and_not_refused(tmp_path):
    folders = [run(tmp_path, "start", 5, results={"settings": {"max_new_tokens": 64}}),
               run(tmp_path, "mmedpo", 5, results={"settings": {"max_new_tokens": 32}, "split": None})]  # fmt: skip
    said = compare(folders, resamples=400)["notes"]
    assert said == [
        "max_new_tokens is 32 in 'mmedpo', but 64 in 'start'",
        "split is None in 'mmedpo', but 'test' in 'start'",
    ]


@pytest.mark.parametrize(
    ("fingerprints", "said"),
    [
        (("a1", "a1"), []),  # one model in two folders
        (("a1", "b2"), ["model is 'copy' in 'mmedpo', but 'tiny' in 'start'",
                        "model's weights is 'b2' in 'mmedpo', but 'a1' in 'start'"]),
        (("a1", None), ["model is 'copy' in 'mmedpo', but 'tiny' in 'start'"]),
    ],
)  # fmt: skip
def test_models_are_the_same_by_their_weights(tmp_path, fingerprints, said):
    records = [
        {"model": name, "model_fingerprint": known} for name, known in zip(("tiny", "copy"), fingerprints, strict=True)
    ]
    folders = [
        run(tmp_path, name, 5, results=record) for name, record in zip(("start", "mmedpo"), records, strict=True)
    ]
    assert compare(folders, resamples=400)["notes"] == said


def test_unanswered_questions_and_other_prompts_are_noted(tmp_path):
    prompts = [{"example": "<user> Where?", "chat_template_sha256": digest} for digest in ("a", "b")]
    records = [{"prompt": prompts[0], "dtype": "float32"}, {"prompt": prompts[1], "dtype": "bfloat16", "unanswered": 2}]
    folders = [
        run(tmp_path, name, 5, results=record) for name, record in zip(("start", "mmedpo"), records, strict=True)
    ]
    assert compare(folders, resamples=400)["notes"] == [
        "2 of 60 questions got no answer in 'mmedpo', and count as ''",
        "dtype is 'bfloat16' in 'mmedpo', but 'float32' in 'start'",
        "prompt chat_template_sha256 is 'b' in 'mmedpo', but 'a' in 'start'",
    ]


def without_meteor(folder):
    """The run, as where METEOR could not be computed."""
    absent = {"meteor_absent": "there is no Java"}
    rewrite(folder, "scores", lambda line: line | absent if line.pop("meteor_statistics", None) else line)
    edit(folder, metrics=json.loads((folder / "results.json").read_text())["metrics"] | absent)


def test_a_meteor_that_one_run_lacks_is_left_out_and_the_reason_noted(tmp_path):
    folders = [run(tmp_path, "start", 5), run(tmp_path, "mmedpo", 15)]
    without_meteor(folders[1])
    found = compare(folders, resamples=400)
    assert "meteor" not in found["metrics"] and "bleu_4" in found["metrics"]
    assert found["notes"][0] == "meteor is not computed for 'mmedpo': there is no Java"
    assert "meteor_variant" not in found["definitions"] and found["definitions"]["report_generation"] == "coco"


def test_templates_are_noted_beside_the_other_runs(tmp_path):
    changes = {f"report-{i}": {"reference": f"the heart is {i} cm"} for i in range(IMAGES)}
    folders = [run(tmp_path, name, right, changes) for name, right in (("start", 10), ("mmedpo", 15))]
    found = compare(folders, resamples=400)
    (note,) = [note for note in found["notes"] if "reports" in note]
    assert found["templates"] == [note]
    assert note.startswith(
        "Distinct reports in 20, and the share of the most frequent one: the references 20 (5.0 %), "
    )
    assert "'start' 2 (50.0 %), 'mmedpo' 2 (75.0 %). Those of 'mmedpo' are templates" in note


def test_definitions_of_what_was_not_asked_neither_block_nor_are_claimed(tmp_path):
    changes = {row["id"]: {"dropped": True} for row in questions() if row["task"] == "report"}
    folders = [run(tmp_path, name, 5, changes) for name in ("start", "mmedpo")]
    results = json.loads((folders[1] / "results.json").read_text())
    metrics = results["metrics"] | {"meteor_variant": "nltk_wordnet", "report_generation_definition": "paper@1"}
    edit(folders[1], metrics=metrics, protocols={**PROTOCOLS, "report_generation": "paper"})
    assert compare(folders, resamples=10)["definitions"] == {
        "med_vqa": "strict", "med_vqa_definition": results["metrics"]["med_vqa_definition"],
    }  # fmt: skip


def test_runs_whose_lines_hold_other_scores_are_refused(tmp_path):
    folders = [run(tmp_path, "start", 5), run(tmp_path, "mmedpo", 5)]
    rewrite(folders[1], "scores", lambda line: {name: value for name, value in line.items() if name != "recall"})
    with pytest.raises(InputError, match=r"open-0 \[scores\]: have open_recall in 'mmedpo' or 'start' only"):
        compare(folders, resamples=10)


def test_an_interval_of_few_images_is_said_to_say_little(tmp_path):
    changes = {row["id"]: {"dropped": True} for row in questions() if int(row["image_id"].split("-")[1]) > 8}
    changes["report-9"] = {"dropped": False}
    found = compare([run(tmp_path, "start", 5, changes), run(tmp_path, "mmedpo", 9, changes)], resamples=400)
    assert [note for note in found["notes"] if "fewer" in note] == [
        "overall_accuracy, closed_accuracy, open_recall, open_precision, open_f1, open_exact_match: "
        "fewer than 10 images, too few for a reliable interval or test"
    ]


def test_another_measure_is_compared_by_its_own_metrics(tmp_path, monkeypatch):
    monkeypatch.setitem(METRICS, "margin", lambda protocol: (mean_of("margin"),))
    folders = [run(tmp_path, name, 5, results={"protocols": {"margin": "nats"}}) for name in ("start", "mmedpo")]
    for folder, shift in zip(folders, (0.0, 2.0), strict=True):
        margins = (number % 7 - 3 + shift for number in count())
        rewrite(folder, "scores", lambda line, margins=margins: {"id": line["id"], "margin": next(margins)})
    found = compare(folders, resamples=200)
    assert list(found["metrics"]) == ["margin"] and found["metrics"]["margin"]["mmedpo"]["difference"] == pytest.approx(
        2
    )
    assert found["changes"] == {} and {example["outcome"] for example in found["examples"]} == {"higher"}
    edges = found["distributions"]["margin"]["edges"]
    assert edges[0] < 0 and edges[-1] > 1


def outcomes(found):
    return [example["outcome"] for example in found["examples"]]


def test_all_changed_questions_are_examples_and_come_first(tmp_path):
    found = compare([run(tmp_path, "start", 5), run(tmp_path, "mmedpo", 15)], resamples=10)
    assert found["changes"] == {"gained": 20, "both_wrong": 10, "both_right": 10}
    kinds = ["gained"] * 20 + ["higher"] * 10 + ["both_wrong"] * 10 + ["both_right"] * 10 + ["equal"] * 10
    assert outcomes(found) == kinds
    of = {"gained": 20, "higher": 10, "both_wrong": 10, "both_right": 10, "equal": 10}
    assert found["outcomes"] == {outcome: {"listed": n, "of": n} for outcome, n in of.items()}
    first, report = found["examples"][0], next(row for row in found["examples"] if row["outcome"] == "higher")
    assert first["correct"] == {"start": False, "mmedpo": True} and first["scores"] == {"start": 0.0, "mmedpo": 1.0}
    assert report["correct"] == {"start": None, "mmedpo": None} and report["metric"] == "bleu_1"
    assert report["scores"]["mmedpo"] == pytest.approx(1.0)


@pytest.mark.parametrize(("lost", "expected"), [(20, (6, 3)), (2, (7, 2))])
def test_where_not_all_are_kept_a_third_are_losses(tmp_path, monkeypatch, lost, expected):
    monkeypatch.setattr(examples, "MOST", {"gained": 9, "higher": 0, "both_wrong": 0, "both_right": 0, "equal": 0})
    # The baseline is right about the first 10 images; the other run about all but `lost` questions of those.
    folders = [run(tmp_path, "start", 10), run(tmp_path, "mmedpo", 10)]
    early = [row for row in questions() if int(row["image_id"].split("-")[1]) < 10 and row["task"] != "report"]
    answers = {row["id"]: answer(row, row not in early[:lost]) for row in questions()}
    (folders[1] / "predictions.jsonl").write_text(
        "".join(json.dumps({"id": id_, "prediction": text}) + "\n" for id_, text in answers.items())
    )
    scored(folders[1], json.loads((folders[1] / "results.json").read_text(encoding="utf-8")))
    found = compare(folders, resamples=10)
    kept, counts = outcomes(found), found["outcomes"]
    assert (kept.count("gained"), kept.count("lost")) == expected and len(kept) == 9
    assert (counts["gained"]["listed"], counts["lost"]) == (expected[0], {"listed": expected[1], "of": lost})


@pytest.mark.parametrize(
    ("changes", "results", "named"),
    [
        ({"open-3": {"dropped": True}}, {}, "mmedpo [id]: lacks 1 question of 'start': open-3"),
        ({"open-3": {"id": "new"}}, {}, "start [id]: lacks 1 question of 'mmedpo': new"),
        (
            {"open-3": {"reference": "right lung"}},
            {},
            "open-3 [reference]: differs between 'mmedpo' and 'start', got 'right lung'",
        ),
        ({"open-3": {"question": "Where?"}}, {}, "open-3 [question]"),
        ({}, {"protocols": {**PROTOCOLS, "med_vqa": "paper"}}, "mmedpo [med_vqa]: is 'paper', but 'strict' in 'start'"),
        (
            {},
            {"metrics": {"meteor_variant": "nltk_wordnet"}},
            "mmedpo [meteor_variant]: is 'nltk_wordnet', but 'meteor",
        ),
        (
            {},
            {"metrics": {"med_vqa_definition": "strict@1"}},
            "mmedpo [med_vqa_definition]: is 'strict@1', but 'strict",
        ),
        (
            {"open-3": {"image_digest": "b"}},
            {},
            "open-3 [image_digest]: differs between 'mmedpo' and 'start', got 'b' and 'a'",
        ),
        (
            {},
            {"name": "start"},
            "runs are named start. Give each its own name (FIRST=RUN OTHER=RUN), or mark",
        ),
        ({}, {"name": None}, "lacks name, protocols or metrics"),
        ({}, {"format": "mmedpo.results/9"}, "not in the format mmedpo.results/1"),
        ({}, {"protocols": {"nonsense": "x"}}, "scored by nonsense; this version knows med_vqa"),
    ],
)
def test_runs_that_differ_are_refused(tmp_path, changes, results, named):
    known = {"open-3": {"image_digest": "a"}}
    folders = [run(tmp_path, "start", 5, known), run(tmp_path, "mmedpo", 5, changes, results)]
    with pytest.raises(InputError) as refused:
        compare(folders, resamples=10)
    assert named in str(refused.value)


def test_one_run_and_damaged_runs_are_refused(tmp_path):
    start, damaged = run(tmp_path, "start", 5), run(tmp_path, "mmedpo", 5)
    with pytest.raises(InputError, match="needs at least two"):
        compare([start])
    lines = (damaged / "scores.jsonl").read_text().splitlines(keepends=True)
    (damaged / "scores.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(InputError, match="do not hold the same ids"):
        compare([start, damaged])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run, other: shutil.copy(other / "predictions.jsonl", run), "predictions.jsonl changed after"),
        (lambda run, other: shutil.copy(other / "scores.jsonl", run), "scores.jsonl changed after"),
        (lambda run, other: edit(run, questions_sha256="0" * 64), "questions.jsonl changed after"),
        (lambda run, other: edit(run, files_sha256="0" * 64), "predictions.jsonl, scores.jsonl changed after"),
        (lambda run, other: edit(run, files_sha256={}), "predictions.jsonl, scores.jsonl changed after"),
    ],
    ids=["predictions", "scores", "questions", "no digests", "none"],
)
def test_a_file_that_is_not_what_was_recorded_is_refused(tmp_path, change, said):
    folders = [run(tmp_path, "start", 5), run(tmp_path, "mmedpo", 15)]
    change(folders[1], folders[0])
    with pytest.raises(InputError) as refused:
        compare(folders)
    assert f"mmedpo: {said}" in str(refused.value) and "Run `mmedpo evaluate` again" in str(refused.value)


# Test images that the training data holds.


def picture(shade, form="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(file, form)
    return file.getvalue()


def pairs(folder, images):
    """A preference dataset of one row an image: (bytes, source, image id, patient)."""
    folder.mkdir()
    made = [
        row(number, images=[{"bytes": data, "path": None}], source=source)
        | {"provenance": {**row(number)["provenance"], "image_id": image, "patient_id": patient}}
        for number, (data, source, image, patient) in enumerate(images)
    ]
    shards.save(made, folder)
    return str(folder)


def test_seen_images_are_found_by_pixels_ids_and_patients(tmp_path):
    changes = {
        row["id"]: {
            "image_digest": digest(Image.new("RGB", (8, 6), (int(row["image_id"].split("-")[1]), 0, 0))),
            "patient_id": f"patient-{row['image_id']}",
        }
        for row in questions()
    }
    folders = [run(tmp_path, "start", 5, changes), run(tmp_path, "mmedpo", 5, changes)]
    dataset = pairs(
        tmp_path / "pairs",
        [
            (picture(3, "BMP"), "elsewhere", "other-3", "patient-image-9"),  # equal pixels in another file
            (picture(200), "invented", "image-4", None),  # an equal id from the source of that name
            (picture(201), "elsewhere", "image-5", None),  # an equal id from elsewhere says nothing
            (picture(202), "invented", "new", "patient-image-6"),
        ],
    )
    assert compare(folders, resamples=10, dataset=dataset)["seen_in_training"] == {
        "dataset": "pairs", "images": 2, "of": IMAGES, "by_pixels": 1, "by_id": 1, "patients": 1, "of_patients": IMAGES,
    }  # fmt: skip


def test_masked_images_are_known_by_their_ids_alone(tmp_path):
    """Their pixels are no longer the source's: none found would not mean that none was trained on."""
    changes = {row["id"]: {"image_digest": row["image_id"]} for row in questions()}
    folders = [run(tmp_path, "start", 5, changes), run(tmp_path, "mmedpo", 5, changes)]
    dataset = pairs(tmp_path / "pairs", [(picture(200), "invented", "image-4", None)])
    (Path(dataset) / "manifest.json").write_text(json.dumps({"burnt_text": {"masked": True}}))
    found = compare(folders, resamples=10, dataset=dataset)["seen_in_training"]
    assert (found["images"], found["by_pixels"], found["by_id"]) == (1, None, 1)


def test_a_picture_under_two_names_is_one_image(tmp_path):
    """It is counted once, resampled as one, and seen once, by whichever name."""
    changes = {row["id"]: {"image_digest": "twin" if row["image_id"] in ("image-0", "image-1") else row["image_id"]}
               for row in questions()}  # fmt: skip
    folders = [run(tmp_path, "start", 5, changes), run(tmp_path, "mmedpo", 5, changes)]
    dataset = pairs(tmp_path / "pairs", [(picture(3), "invented", name, None) for name in ("image-0", "image-1")])
    found = compare(folders, resamples=10, dataset=dataset)
    assert found["n"]["images"] == found["sizes"]["overall_accuracy"]["images"] == IMAGES - 1
    assert (found["seen_in_training"]["by_id"], found["seen_in_training"]["of"]) == (1, IMAGES - 1)


def test_what_the_records_do_not_tell_is_not_known(tmp_path):
    folders = [run(tmp_path, "start", 5), run(tmp_path, "mmedpo", 5)]
    dataset = pairs(tmp_path / "pairs", [(picture(3), "elsewhere", "image-3", None)])
    found = compare(folders, resamples=10, dataset=dataset)["seen_in_training"]
    assert (found["images"], found["by_pixels"], found["by_id"], found["patients"]) == (None,) * 4
    assert found["of"] == IMAGES


def test_seen_images_are_looked_for_in_what_the_adapter_was_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs(Path("pairs"), [(picture(3), "invented", "image-3", None)])
    for folder, dataset in (("adapter", "pairs"), ("moved", "gone")):
        Path(folder).mkdir()
        Path(folder, "training.json").write_text(json.dumps({"dataset": dataset, "dataset_revision": None}))
    start, own = run(tmp_path, "start", 5), run(tmp_path, "mmedpo", 5, results={"adapter": "adapter"})
    assert compare([start, own], resamples=10)["seen_in_training"]["images"] == 1
    other = run(tmp_path, "dpo", 5, results={"adapter": "org/adapter"})
    assert compare([start, other], resamples=10)["seen_in_training"] is None
    given = compare([start, other], resamples=10, trainings=[Path("moved"), Path("adapter")])
    assert given["seen_in_training"]["dataset"] == "pairs"
    assert compare([start, other], resamples=10, trainings=[Path("moved")])["seen_in_training"] is None
    pairs(Path("more"), [(picture(i), "invented", f"image-{i}", None) for i in (3, 4)])
    here = {"revision": None, "is_local": True, "manifest": {}}
    for names, seen in ((["pairs", "more"], 2), (["pairs", "gone"], None)):
        mixed = {"dataset": names, "datasets": [{"name": name, **here} for name in names]}
        Path("moved", "training.json").write_text(json.dumps(mixed))
        found = compare([start, other], resamples=10, trainings=[Path("moved")])["seen_in_training"]
        assert found == seen or (found["images"], found["dataset"]) == (seen, "pairs, more")


def test_what_is_no_preference_dataset_is_refused(tmp_path):
    from datasets import Dataset

    folders = [run(tmp_path, "start", 5), run(tmp_path, "mmedpo", 5)]
    with pytest.raises(InputError, match="cannot be loaded as a dataset"):
        compare(folders, dataset=str(tmp_path / "nowhere"))
    (tmp_path / "other" / "data").mkdir(parents=True)
    Dataset.from_dict({"text": ["a"]}).to_parquet(str(tmp_path / "other" / "data" / "train-00000-of-00001.parquet"))
    with pytest.raises(InputError, match="is not a preference dataset") as refused:
        compare(folders, dataset=str(tmp_path / "other"))
    assert "images" in {fault.column for fault in refused.value.faults}


def test_a_folder_moved_elsewhere_compares_alike(tmp_path):
    folders = [run(tmp_path, "start", 5), run(tmp_path, "mmedpo", 15)]
    moved = [Path(shutil.copytree(folder, tmp_path / "elsewhere" / folder.name)) for folder in folders]
    assert compare(folders, resamples=20) == compare(moved, resamples=20)


def test_questions_that_share_an_image_are_resampled_together(tmp_path):
    """Image n of even n is shown with the next one in one of three questions, so that 20 images are 10 clusters."""

    def changes(linking):
        for image in range(IMAGES):
            for kind in ("closed", "open", "report"):
                yield f"{kind}-{image}", {"image_digest": f"digest-{image}"}
            if linking and image % 2 == 0:
                both = [f"digest-{image}", f"digest-{image + 1}"]
                yield f"open-{image}", {"image_digest": f"joint-{image}", "image_digests": both}

    apart, linked = (
        compare([run(tmp_path / kind, name, right, dict(changes(kind == "linked"))) for name, right in RIGHT], 0, 200)
        for kind in ("apart", "linked")
    )
    for found, clusters in ((apart, IMAGES), (linked, IMAGES // 2)):
        assert found["n"]["images"] == IMAGES
        assert any("20 images are 10" in one for one in found["notes"]) is (clusters == 10)
        assert {one["images"] for one in found["sizes"].values()} == {clusters}  # also of questions with one image
    wide, narrow = (
        found["metrics"]["closed_accuracy"]["b"]["high"] - found["metrics"]["closed_accuracy"]["b"]["low"]
        for found in (linked, apart)
    )
    assert wide > 1.15 * narrow


RIGHT = (("a", 6), ("b", 12))
