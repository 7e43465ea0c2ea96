"""The before/after report: one file, derived numbers, everything escaped, honest about zero."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from invented import QUESTION, cell, comparison, row
from PIL import Image

from mmedpo import report
from mmedpo.data import shards
from mmedpo.errors import InputError
from mmedpo.evaluation.score import METRICS
from mmedpo.report import data_uri, pictures, wording

MANIFEST = {
    "format": "mmedpo.manifest/1",
    "command": "mmedpo curate --source invented",
    "versions": {"torch": "2.12.0", "mmedpo": "0.1.0"},
    "seed": 7,
    "source": {"name": "phantom", "license": "cc0-1.0", "split": "train", "split_by": "image", "questions": 9},
    "target_model": {"name": "tiny-llava", "revision": None},
    "chat_model": "standin:chat",
    "judges": ["standin:judge-a", "standin:judge-b"],
    "localizer": "boxes",
    "noise": {"method": "diffusion", "step": 500},
    "prompt_versions": {"inject": "inject@1"},
    "counts": {"hallucinated_response": 5, "lesion_noise": 4},
    "rejects": {"no lesion was found": 1234, "both sides say 'yes'": 2},
    "weights": {"method": "rescale", "mean_before": 0.2, "sd_before": 0.14, "mean_after": 0.85, "sd_after": 0.07},
    "mask_coverage": {"mean": 0.0625, "max": 0.0625},
}
TRAINING = {
    "format": "mmedpo.training/1", "command": "mmedpo train --config invented.yaml",
    "versions": {"torch": "2.13.0", "mmedpo": "0.1.0"}, "config": {"learning_rate": 1e-4}, "model": "tiny-llava",
    "dataset": "pairs", "rows": {"hallucinated_response": 5}, "weights": {"mean": 0.9, "sd": 0.1}, "seconds": 3.2,
    "hardware": "1 x invented",
}  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A dataset folder of 5 + 4 rows with its manifest, and two training folders, one without rewards."""
    folder = tmp_path_factory.mktemp("recorded")
    dataset = folder / "pairs"
    dataset.mkdir()
    shards.save([row(n) for n in range(5)] + [row(n, visual=True) for n in range(5, 9)], dataset)
    (dataset / "manifest.json").write_text(json.dumps(MANIFEST))
    trainings = {}
    for name, keys in {"mmedpo": ("loss", "rewards/margins", "rewards/accuracies"), "sft": ("loss",)}.items():
        trainings[name] = folder / name
        trainings[name].mkdir()
        history = [{"step": step, **dict.fromkeys(keys, 0.7 - step / 100)} for step in range(10)]
        state = {"log_history": [*history, {"step": 9, "train_runtime": 3.2, "rewards/margins": 99.0}]}
        (trainings[name] / "trainer_state.json").write_text(json.dumps(state))
        (trainings[name] / "training.json").write_text(json.dumps(TRAINING))
    return {"dataset": str(dataset), "trainings": trainings}


@pytest.fixture(scope="module")
def html(recorded: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("out") / "deep" / "report.html"
    report.write_report(
        output, comparison(), **recorded, commands=["mmedpo quickstart"], notes=["All of this is invented."]
    )
    return output.read_text(encoding="utf-8")


def test_templates_are_said_at_the_top_of_the_page(recorded: dict[str, Any], tmp_path: Path) -> None:
    found = comparison() | {"templates": ["'mmedpo' has 4 distinct reports in 590"]}
    report.write_report(tmp_path / "report.html", found, **recorded, commands=[])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert -1 < text.find("has 4 distinct reports in 590.") < text.find("<table")


def test_phantoms_are_said_where_the_page_knows_evaluations_alone(tmp_path: Path) -> None:
    found = comparison()
    for evaluation in found["evaluations"].values():
        evaluation["source"] = "phantom"
    report.write_report(tmp_path / "report.html", found, None, {})
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert -1 < text.find("The images are phantoms drawn by a program.") < text.find("<table")


def test_nothing_is_loaded_from_elsewhere(html: str) -> None:
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(sources) >= 1 + 1 + 3 + 3 + 6  # forest, spread, curves, pictures of both kinds
    assert all(source.startswith("data:image/") for source in sources)
    assert "@import" not in html and "url(" not in html


def test_the_one_script_is_the_one_that_the_policy_allows(html: str) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy and policy[1].startswith("default-src 'none'") and f"script-src 'sha256-{allowed}'" in policy[1]


def test_headline_and_table_are_derived_from_the_comparison(html: str) -> None:
    sentence = (
        "MMedPO answers 74.1 % of 1,204 held-out questions right, the starting model 69.0 %: +5.1 points [+3.0, +7.2]."
    )
    assert sentence in html
    assert "unlikely to explain the gain (p = 0.002 after correction" in html
    assert html.index("All questions: right") < html.index("Open questions: F1 of words")
    assert "<strong>−1.0</strong> [−1.5, −0.5]<br>▼ worse (p\u00a0=\u00a00.002)" in html  # dpo on open_f1
    assert "<strong>+2.0</strong> [−1.0, +5.0]<br>○ no difference shown (p\u00a0=\u00a00.400)" in html
    assert "71.1 to 77.1" in html
    assert "corrected by Holm for the 4 tests" in html
    assert "max_new_tokens is 32 in &#39;dpo&#39;, but 64 in &#39;start&#39;." in html


@pytest.mark.parametrize(
    ("value", "p", "said"),
    [(0.70, 0.3, "does not show that"), (0.60, 0.01, "does worse than"), (0.75, 0.01, "explain the gain")],
)
def test_headline_is_honest(value: float, p: float, said: str, tmp_path: Path) -> None:
    report.write_report(tmp_path / "r.html", comparison(value, p), None, {})
    assert said in re.findall(r"<p>(.*?)</p>", (tmp_path / "r.html").read_text())[0]


def test_a_metric_without_a_label_is_a_plain_number_neither_good_nor_bad(tmp_path: Path) -> None:
    found = {**comparison(), "groups": {}}
    found["metrics"] = {"margin_drop": {"start": cell(-1.5), "dpo": cell(-1.0, -1.5), "mmedpo": cell(-2.5, -1.5)}}
    report.write_report(tmp_path / "r.html", found, None, {})
    html = (tmp_path / "r.html").read_text()
    assert "MMedPO reaches −2.500 in “Margin drop” on held-out questions, the starting model −1.500: −1.000 [" in html
    assert "▼ lower (p" in html and "▲ higher (p" in html and "better" not in html and "worse" not in html
    assert "The choice of test images alone is unlikely to explain the difference" in html


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"images": 3, "of": 400, "by_pixels": 3, "by_id": 2, "patients": 1, "of_patients": 50},
         "holds 3 of 400 test images (by pixels and by id), and 1 of 50 test patients. Results on images"),
        ({"images": 0, "of": 400, "by_pixels": None, "by_id": 0, "patients": None, "of_patients": 0},
         "holds 0 of 400 test images (by id)."),
        ({"images": None, "of": 400, "by_pixels": None, "by_id": None, "patients": None, "of_patients": 0},
         "holds test images is not known"),
    ],
)  # fmt: skip
def test_seen_images_are_said(found: dict[str, Any], said: str, tmp_path: Path) -> None:
    report.write_report(
        tmp_path / "r.html", {**comparison(), "seen_in_training": {"dataset": "pairs", **found}}, None, {}
    )
    html = (tmp_path / "r.html").read_text()
    assert said in html and ("Read this first" in html) == bool(found["images"])


def test_groups_have_their_tables(html: str) -> None:
    block = html[html.index("<summary>By organ") : html.index("Distribution of scores")]
    assert block.count('<table class="stack">') == 2
    assert '<th scope="row">CHEST <span class="soft">(1,204 questions, 400 images)</span>' in block
    assert '<th scope="row">&lt;HEAD&gt; <span class="soft">(1 question, 1 image)</span>' in block
    assert "25.0 %" in block


def test_texts_are_escaped_and_unicode_kept(html: str) -> None:
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; there? Où – 肺 &amp; µ" in html
    assert "<dd>&lt;b&gt;</dd>" in html


def test_examples_show_all_changes_and_carry_what_filters_need(html: str) -> None:
    cards = re.findall(r'<article class="card example"(.*?)>(.*?)</article>', html, re.S)
    assert [re.search(r'data-outcome="(\w+)"', attributes)[1] for attributes, _ in cards] == [  # type: ignore[index]
        "gained", "lost", "higher", "both_right",
    ]  # fmt: skip
    assert 'data-organ="&lt;HEAD&gt;"' in cards[1][0] and "now right" in cards[0][1]
    assert "data-modality" not in html  # all alike: nothing to choose from
    assert "Reports: BLEU-1 75.0 %" in cards[2][1]
    assert '<option value="report">report (1)</option>' in html and '<option value="lost">▼ lost (1)</option>' in html
    assert "1 wrong before, right now, 1 right before, wrong now, 1 right before and now." in html
    assert "4 of 1,204 questions are listed, those that changed first" in html
    assert "all 1 a higher score than before; 1 of the 1,201 right before and now." in html
    assert 'id="filters" class="filters" role="search" aria-label="Filter the answers" hidden' in html  # without script


def test_images_of_the_source_stand_beside_the_answers(tmp_path: Path) -> None:
    Image.new("L", (600, 300), 90).save(tmp_path / "a.png")
    report.write_report(tmp_path / "r.html", comparison(), None, {}, images={"q2": [tmp_path / "a.png"]})
    html = (tmp_path / "r.html").read_text()
    (source,) = re.findall(r'<img class="thumbnail" loading="lazy" src="data:image/jpeg;base64,([^"]*)"', html)
    assert Image.open(io.BytesIO(base64.b64decode(source))).size == (224, 112)
    assert "the first 1 with their image" in html
    with pytest.raises(InputError, match="holds none of the compared questions"):
        report.write_report(tmp_path / "r.html", comparison(), None, {}, images={"other": [tmp_path / "a.png"]})


SUMMARY = {
    "n": 1, "n_boxed": 1, "lift": None,
    "in_box": {"start": {"value": 0.1, "low": 0.05, "high": 0.15},
               "adapter": {"value": 0.2, "low": 0.1, "high": 0.3, "difference": 0.1, "difference_low": 0.04,
                           "difference_high": 0.16}},
}  # fmt: skip


def attention_folder(folder: Path, **changes: Any) -> Path:
    (folder / "pictures").mkdir(parents=True)
    Image.new("RGB", (64, 32), (0, 90, 0)).save(folder / "pictures" / "x.png")
    sample = {"id": "q1", "question": QUESTION, "picture": "pictures/x.png", "in_box": {"start": 0.125, "mmedpo": None}}
    record = {"format": "mmedpo.attention/1", "samples": [sample | changes.pop("sample", {})], "summary": SUMMARY}
    (folder / "attention.json").write_text(json.dumps(record | changes))
    return folder


def test_attention_pictures_are_shown_with_their_shares(tmp_path: Path) -> None:
    report.write_report(tmp_path / "r.html", comparison(), None, {}, attention=attention_folder(tmp_path / "maps"))
    html = (tmp_path / "r.html").read_text()
    assert "The starting model: 12.5 % of the image’s attention" in html and "MMedPO: no box of the image" not in html
    assert html.count('class="attention"') == 1 and "inside the lesion’s box</th>" in html
    assert "<strong>+10.0</strong> [+4.0, +16.0]" in html


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "other"}, "not in the format mmedpo.attention/1"),
        ({"samples": []}, "lists no samples"),
        ({"sample": {"picture": "../secret.png"}}, r"q1 \[picture\]: cannot be shown, got '../secret.png'"),
        ({"sample": {"picture": "pictures/none.png"}}, "has no usable pictures"),
    ],
)
def test_attention_that_cannot_be_shown_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    with pytest.raises(InputError, match=said):
        pictures.attention(attention_folder(tmp_path / "maps", **changes))
    with pytest.raises(InputError, match=r"attention\.json does not exist"):
        pictures.attention(tmp_path)


def test_attention_of_another_adapter_is_refused(tmp_path: Path) -> None:
    folder = attention_folder(tmp_path / "maps", adapter="elsewhere/other")
    with pytest.raises(InputError, match="is of the adapter other, but the runs evaluated start, dpo, mmedpo"):
        report.write_report(tmp_path / "r.html", comparison(), None, {}, attention=folder)
    other = {"adapter": "runs/other"}
    assert pictures.attention(folder, [{"adapter": None}, other])
    again = attention_folder(tmp_path / "again", adapter="elsewhere/other", adapter_sha256="new")
    assert pictures.attention(again, [other]) and pictures.attention(again, [other | {"adapter_sha256": "new"}])
    with pytest.raises(InputError, match="is of other weights than the adapter other of the compared runs"):
        pictures.attention(again, [other | {"adapter_sha256": "old"}])


def test_pairs_show_boxes_judges_and_who_made_them(html: str) -> None:
    assert html.count('<rect class="box" x="16.0" y="16.0" width="16.0" height="16.0"/>') == 3
    assert "nodule (0.80)" in html and "6.2 % of the image, step 500" in html
    assert "standin:chat, prompt inject@1" in html
    assert "unreadable" in html and "Judges, round by round (agreed)" in html


def test_rejects_commands_versions_and_badge(html: str) -> None:
    assert re.search(r"no lesion was found</td><td class=\"number\">1,234", html)
    commands = re.search(r"<pre>(.*?)</pre>", html, re.S)
    assert commands and commands[1].split() == ["mmedpo", "quickstart"]
    assert "2.12.0, 2.13.0" in html
    badge = html[html.index("Read this first") : html.index("Results on held-out questions")]
    assert all(word in badge for word in ("standin:chat", "phantoms", "tiny-llava", "All of this is invented."))


def test_optional_inputs_may_be_missing(tmp_path: Path) -> None:
    bare = comparison()
    bare |= {"runs": ["start"], "examples": [], "groups": {}, "distributions": {}}
    bare["metrics"] = {"bleu_1": {"start": {"value": None}}, "open_f1": {"start": cell(0.5)}}
    report.write_report(tmp_path / "r.html", bare, None, {})
    html = (tmp_path / "r.html").read_text()
    assert "Nothing here was measured on both" in html and "not measured" in html
    assert not any(heading in html for heading in ("<h2>Training", "<h2>Weights", "Read this first", 'class="chart"'))


def test_stand_ins_of_the_training_data_are_said_where_only_a_training_is_at_hand(
    recorded: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(recorded["trainings"]["mmedpo"], tmp_path / "mmedpo")
    made = {"standins": ["standin:rules"], "judges": []}
    (tmp_path / "mmedpo" / "training.json").write_text(json.dumps({**TRAINING, "dataset_manifest": made}))
    report.write_report(tmp_path / "r.html", comparison(), None, {"mmedpo": tmp_path / "mmedpo"})
    badge = (tmp_path / "r.html").read_text().split("Read this first")[1].split("Results on held-out questions")[0]
    assert "Offline stand-ins made or scored rows in place of real models: standin:rules." in badge


def test_a_dataset_without_a_manifest_is_shown(recorded: dict[str, Any], tmp_path: Path) -> None:
    dataset = tmp_path / "pairs"
    dataset.mkdir()
    shards.save([row(0)], dataset)
    report.write_report(tmp_path / "r.html", comparison(), str(dataset), {})
    html = (tmp_path / "r.html").read_text()
    assert "Pairs with a rejected response" in html and "Pairs with a hidden lesion" not in html
    assert "How the pairs were made" not in html


def test_an_unfinished_training_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training\.json does not exist"):
        report.write_report(tmp_path / "r.html", comparison(), None, {"mmedpo": tmp_path})
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(("mode", "side"), [("L", 64), ("I;16", 64), ("RGBA", 700), ("F", 32)])
def test_pictures_of_every_depth_and_size(mode: str, side: int) -> None:
    file = io.BytesIO()
    Image.new(mode, (side, side), 0).save(file, format="PNG" if mode in ("L", "I;16", "RGBA") else "TIFF")
    shown = data_uri.picture(file.getvalue())
    assert shown and shown["width"] == side and shown["small"] == (side <= data_uri.SMALL_SIDE)


def test_a_broken_picture_is_left_out() -> None:
    assert data_uri.picture(b"not an image") is None


def test_numbers() -> None:
    assert wording.percent(0.7412) == "74.1 %"
    assert [wording.points(value) for value in (0.051, -0.0104, 0.0, 0.0002)] == ["+5.1", "−1.0", "0.0", "0.0"]
    assert [wording.change("margin", value) for value in (-0.0004, 0.0006)] == ["0.000", "+0.001"]
    assert wording.amount("margin", -0.0004) == "0.000" and wording.percent(-0.00004) == "0.0 %"
    assert wording.percent(-0.02) == "−2.0 %"


def test_names_that_users_gave_stay_as_they_are() -> None:
    assert [wording.heading(name) for name in ("start", "mmedpo", "mm", "llava-x")] == [
        "The starting model", "MMedPO", "mm", "llava-x",
    ]  # fmt: skip


def test_every_metric_of_every_measure_has_a_label() -> None:
    names = {metric.name for part in METRICS.values() for metric in (*part(), *METRICS["med_vqa"]("judge"))}
    assert names <= set(wording.METRICS)


def test_a_visual_reliance_page_leads_with_what_is_lost_and_preferences_are_of_pairs(tmp_path: Path) -> None:
    found = comparison() | {"groups": {}, "examples": [], "distributions": {}}
    names = ("accuracy_original", "accuracy_drop_lesion_noise")
    found["metrics"] = {name: {"start": cell(0.1), "mmedpo": cell(0.3, 0.1)} for name in names}
    assert wording.summary(found)[0].startswith("MMedPO reaches 30.0 % in “Accuracy lost: lesion hidden”")
    found["metrics"] = {"preference_accuracy": {run: cell(0.6, 0.5) for run in found["runs"]}}
    found |= {"definitions": {"preference": "log_likelihood"},
              "sizes": {"preference_accuracy": {"pairs": 300, "images": 90}}}  # fmt: skip
    report.write_report(tmp_path / "r.html", found, None, {})
    html = (tmp_path / "r.html").read_text()
    assert "in “Pairs: ranked right” on 300 held-out pairs" in html and "(300 pairs, 90 images)" in html
    assert "Results on held-out pairs" in html


def test_meteor_is_shown_by_the_name_of_its_variant(tmp_path: Path) -> None:
    found = comparison() | {"groups": {}}
    found["metrics"] = {"meteor": {run: cell(0.6, 0.5) for run in found["runs"]}}
    found["definitions"] = {"report_generation": "paper", "report_generation_definition": "paper@1",
                            "meteor_variant": "nltk_wordnet"}  # fmt: skip
    report.write_report(tmp_path / "r.html", found, None, {})
    html = (tmp_path / "r.html").read_text()
    assert '<th scope="row">Reports: METEOR (nltk_wordnet)' in html
    assert "Scored by report_generation paper@1, meteor nltk_wordnet." in html


def test_the_page_says_how_each_run_was_evaluated(tmp_path: Path) -> None:
    found = comparison()
    found["evaluations"]["dpo"] |= {"command": "mmedpo evaluate --name dpo", "unanswered": 2, "revision": "abc",
                                    "settings": {"temperature": 0.0}, "versions": {"torch": "2.11.0"}}  # fmt: skip
    report.write_report(tmp_path / "r.html", found, None, {})
    html = (tmp_path / "r.html").read_text()
    assert "<pre>mmedpo evaluate --name dpo\nmmedpo compare start dpo mmedpo\n</pre>" in html
    block = html[html.index("Evaluation of DPO") : html.index("Evaluation of MMedPO")]
    for fact in ("<dt>unanswered</dt><dd>2</dd>", "<dt>revision</dt><dd>abc</dd>", "temperature 0"):
        assert fact in block
    assert "2.11.0, 2.13.0" in html
