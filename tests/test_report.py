"""The before/after report: one file, derived numbers, everything escaped, honest about zero."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from mmedpo import report, schema
from mmedpo.errors import InputError

QUESTION = "Is <script>alert('x')</script> there? Où – 肺 & µ"


def picture(shade: int, noise: bool = False, side: int = 64) -> dict[str, Any]:
    image = Image.new("RGB", (side, side), (shade, shade, shade))
    draw = ImageDraw.Draw(image)
    draw.ellipse((side // 4, side // 4, side // 2, side // 2), fill=(220, 220, 220))
    if noise:
        draw.rectangle((side // 4, side // 4, side // 2, side // 2), fill=(90, 120, 40))
    file = io.BytesIO()
    image.save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}


def row(number: int, visual: bool = False, **changes: Any) -> dict[str, Any]:
    """One valid invented row; every hallucinated row was judged in two rounds."""
    box = {"label": "nodule", "x": 16.0, "y": 16.0, "width": 16.0, "height": 16.0, "confidence": 0.8}
    judgements = [
        {"round": 1, "judge": "standin:judge-a", "score": 0.9, "rationale": "sees | a nodule"},
        {"round": 1, "judge": "standin:judge-b", "score": None, "rationale": ""},
        {"round": 2, "judge": "standin:judge-a", "score": 0.8, "rationale": ""},
    ]
    provenance = {
        "sample_id": f"s{number}", "image_id": f"i{number}", "patient_id": None,
        "rejected_by": "diffusion" if visual else "standin:chat", "revision": None,
        "prompt_version": None if visual else "inject@1", "seed": 0, "candidates": None if visual else ["a mass"],
        "judgements": None if visual else judgements, "agreed": None if visual else True,
        "localizer": "boxes" if visual else None, "query": None, "boxes": [box] if visual else None,
        "noise_step": 500 if visual else None, "mask_coverage": 0.0625 if visual else None,
    }  # fmt: skip
    return {
        "id": f"invented/s{number}/{'lesion' if visual else 'text'}",
        "images": [picture(10 + number)],
        "rejected_images": [picture(10 + number, noise=True)] if visual else None,
        "prompt": [{"role": "user", "content": QUESTION if number == 0 else f"What is at place {number}?"}],
        "chosen": [{"role": "assistant", "content": "a nodule"}],
        "rejected": [{"role": "assistant", "content": "a nodule" if visual else "the heart is too large"}],
        "weight": 0.75 + 0.05 * number,
        "clinical_relevance": 0.1 * number,
        "dispreference": "lesion_noise" if visual else "hallucinated_response",
        "task": "open_vqa",
        "source": "phantom",
        "license": "cc0-1.0",
        "provenance": provenance,
        **changes,
    }


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


def cell(value: float, base: float | None = None, half: float = 0.021) -> dict[str, float]:
    own = {"value": value, "low": value - 0.03, "high": value + 0.03}
    if base is None:
        return own
    difference = value - base
    return {**own, "difference": difference, "difference_low": difference - half, "difference_high": difference + half}


def comparison(mmedpo: float = 0.741, half: float = 0.021) -> dict[str, Any]:
    def example(before: str, after: str, was: bool, became: bool) -> dict[str, Any]:
        answers = {"predictions": {"start": before, "mmedpo": after}, "correct": {"start": was, "mmedpo": became}}
        return {"id": "q", "task": "open_vqa", "question": QUESTION, "reference": "a nodule", **answers}

    return {
        "format": "mmedpo.comparison/1", "command": "mmedpo compare start dpo mmedpo", "versions": {"torch": "2.13.0"},
        "seed": 0, "resamples": 10000, "unit": "image", "baseline": "start", "runs": ["start", "dpo", "mmedpo"],
        "n": {"closed": 602, "open": 602, "report": 0, "images": 400},
        "metrics": {
            "open_f1": {"start": cell(0.5), "dpo": cell(0.49, 0.5, 0.005), "mmedpo": cell(0.52, 0.5, 0.03)},
            "overall_accuracy": {"start": cell(0.69), "dpo": cell(0.70, 0.69), "mmedpo": cell(mmedpo, 0.69, half)},
        },
        "examples": [
            example("no", "now right", False, True),
            example("was right", "<b>", True, False),
            example("same", "same", True, True),
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A dataset folder of 5 + 4 rows with its manifest, and two training folders, one without rewards."""
    folder = tmp_path_factory.mktemp("recorded")
    dataset = folder / "pairs"
    dataset.mkdir()
    schema.save([row(n) for n in range(5)] + [row(n, visual=True) for n in range(5, 9)], dataset)
    (dataset / "manifest.json").write_text(json.dumps(MANIFEST))
    trainings = {}
    for name, keys in {"mmedpo": ("loss", "rewards/margins", "rewards/accuracies"), "sft": ("loss",)}.items():
        trainings[name] = folder / name
        trainings[name].mkdir()
        history = [{"step": step, **dict.fromkeys(keys, 0.7 - step / 100)} for step in range(10)]
        state = {"log_history": [*history, {"step": 9, "train_runtime": 3.2, "rewards/margins": 99.0}]}
        (trainings[name] / "trainer_state.json").write_text(json.dumps(state))
        (trainings[name] / "training.json").write_text(json.dumps(TRAINING))
    return {"dataset": dataset, "trainings": trainings}


@pytest.fixture(scope="module")
def html(recorded: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("out") / "deep" / "report.html"
    report.write_report(
        output, comparison(), **recorded, commands=["mmedpo quickstart"], notes=["All of this is invented."]
    )
    return output.read_text(encoding="utf-8")


def test_nothing_is_loaded_from_elsewhere(html: str) -> None:
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(sources) >= 1 + 3 + 3 + 6  # forest, curves, pictures of both kinds
    assert all(source.startswith("data:image/") for source in sources)
    assert "<script" not in html and "@import" not in html and "url(" not in html


def test_headline_and_table_are_derived_from_the_comparison(html: str) -> None:
    sentence = (
        "MMedPO answers 74.1 % of 1,204 held-out questions right, the starting model 69.0 %: +5.1 points [+3.0, +7.2]."
    )
    assert sentence in html
    assert "lies above zero" in html
    assert html.index("All questions: right") < html.index("Open questions: F1 of words")
    assert "<strong>−1.0</strong> [−1.5, −0.5]<br>▼ worse: interval below zero" in html  # dpo on open_f1
    assert "<strong>+2.0</strong> [−1.0, +5.0]<br>○ interval includes zero" in html
    assert "71.1 to 77.1" in html


@pytest.mark.parametrize(
    ("value", "half", "said"),
    [(0.70, 0.02, "includes zero"), (0.60, 0.02, "lies below zero"), (0.69, 0.0, "includes zero")],
)
def test_headline_is_honest(value: float, half: float, said: str, tmp_path: Path) -> None:
    report.write_report(tmp_path / "r.html", comparison(value, half), None, {})
    assert said in re.findall(r"<p>(.*?)</p>", (tmp_path / "r.html").read_text())[0]


def test_texts_are_escaped_and_unicode_kept(html: str) -> None:
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; there? Où – 肺 &amp; µ" in html
    assert "<dd>&lt;b&gt;</dd>" in html


def test_examples_show_gains_and_losses(html: str) -> None:
    assert "Got better: 1 of 3 recorded examples" in html
    assert "Got worse: 1 of 3 recorded examples" in html
    assert "now right" in html and "was right" in html
    assert "<dd>same</dd>" not in html


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
    bare["runs"], bare["examples"] = ["start"], []
    bare["metrics"] = {"bleu_1": {"start": {"value": None}}, "open_f1": {"start": cell(0.5)}}
    report.write_report(tmp_path / "r.html", bare, None, {})
    html = (tmp_path / "r.html").read_text()
    assert "Nothing here was measured on both" in html and "not measured" in html
    assert not any(heading in html for heading in ("<h2>Training", "<h2>Weights", "Read this first", 'class="chart"'))


def test_a_dataset_without_a_manifest_is_shown(recorded: dict[str, Any], tmp_path: Path) -> None:
    dataset = tmp_path / "pairs"
    dataset.mkdir()
    schema.save([row(0)], dataset)
    report.write_report(tmp_path / "r.html", comparison(), dataset, {})
    html = (tmp_path / "r.html").read_text()
    assert "Pairs with a wrong answer" in html and "Pairs with a hidden lesion" not in html
    assert "How the pairs were made" not in html


def test_an_unfinished_training_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training\.json does not exist"):
        report.write_report(tmp_path / "r.html", comparison(), None, {"mmedpo": tmp_path})
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(("mode", "side"), [("L", 64), ("I;16", 64), ("RGBA", 700), ("F", 32)])
def test_pictures_of_every_depth_and_size(mode: str, side: int) -> None:
    file = io.BytesIO()
    Image.new(mode, (side, side), 0).save(file, format="PNG" if mode in ("L", "I;16", "RGBA") else "TIFF")
    shown = report._picture({"bytes": file.getvalue(), "path": None}, [])
    assert shown and shown["width"] == side and shown["small"] == (side <= report.SMALL_SIDE)


def test_a_broken_picture_is_left_out() -> None:
    assert report._picture({"bytes": b"not an image", "path": None}, []) is None


def test_numbers() -> None:
    assert report.percent(0.7412) == "74.1 %"
    assert [report.points(value) for value in (0.051, -0.0104, 0.0, 0.0002)] == ["+5.1", "−1.0", "0.0", "+0.0"]
