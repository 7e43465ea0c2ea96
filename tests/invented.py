"""Invented rows of a preference dataset and an invented comparison, for the tests of what reads them."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, ImageDraw

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


def cell(value: float, base: float | None = None, half: float = 0.021, p: float = 0.002) -> dict[str, float]:
    own = {"value": value, "low": value - 0.03, "high": value + 0.03}
    if base is None:
        return own
    difference = value - base
    tested = {"difference": difference, "difference_low": difference - half, "difference_high": difference + half}
    return {**own, **tested, "p": p / 2, "p_adjusted": p}


def comparison(mmedpo: float = 0.741, p: float = 0.002) -> dict[str, Any]:
    def example(
        name: str, before: str, after: str, was: bool | None, became: bool | None, **more: Any
    ) -> dict[str, Any]:
        answers = {"predictions": {"start": before, "mmedpo": after}, "correct": {"start": was, "mmedpo": became}}
        asked = {"id": name, "task": "open_vqa", "question": QUESTION, "reference": "a nodule", "organ": "CHEST"}
        return {**asked, "question_type": None, "modality": None, "metric": None, "scores": {}, **answers, **more}

    metrics = {
        "open_f1": {"start": cell(0.5), "dpo": cell(0.49, 0.5, 0.005), "mmedpo": cell(0.52, 0.5, 0.03, 0.4)},
        "overall_accuracy": {"start": cell(0.69), "dpo": cell(0.70, 0.69), "mmedpo": cell(mmedpo, 0.69, p=p)},
    }
    sizes = {"open_f1": {"questions": 602, "images": 390}, "overall_accuracy": {"questions": 1204, "images": 400}}
    few = {name: {run: {"value": 0.25} for run in entries} for name, entries in metrics.items()}
    one = {"questions": 1, "images": 1}
    return {
        "format": "mmedpo.comparison/2", "command": "mmedpo compare start dpo mmedpo", "versions": {"torch": "2.13.0"},
        "seed": 0, "resamples": 10000, "unit": "image", "baseline": "start", "runs": ["start", "dpo", "mmedpo"],
        "evaluations": {name: {"source": "invented/questions", "split": "test", "adapter": f"runs/{name}"}
                        for name in ("start", "dpo", "mmedpo")},
        "definitions": {"med_vqa": "strict"}, "notes": ["max_new_tokens is 32 in 'dpo', but 64 in 'start'"],
        "n": {"closed": 602, "open": 602, "report": 0, "images": 400}, "seen_in_training": None,
        "tests": {"correction": "holm", "table": 4, "organ": 4}, "metrics": metrics, "sizes": sizes,
        "groups": {"organ": {
            "CHEST": {"n": {"questions": 1203, "images": 399}, "sizes": sizes, "metrics": metrics},
            "<HEAD>": {"n": one, "sizes": dict.fromkeys(sizes, one), "metrics": few},
        }},
        "distributions": {"open_f1": {"edges": [0.0, 0.5, 1.0],
                                      "counts": {"start": [10, 380], "dpo": [5, 385], "mmedpo": [0, 390]}}},
        "changes": {"gained": 1, "lost": 1, "both_right": 1},
        "outcomes": {"gained": {"listed": 1, "of": 1}, "lost": {"listed": 1, "of": 1},
                     "higher": {"listed": 1, "of": 1}, "both_right": {"listed": 1, "of": 1201}},
        "examples": [
            example("q1", "no", "now right", False, True, outcome="gained"),
            example("q2", "was right", "<b>", True, False, outcome="lost", organ="<HEAD>"),
            example("q3", "a report", "another", None, None, outcome="higher", task="report", metric="bleu_1",
                    scores={"start": 0.1, "mmedpo": 0.75}),
            example("q4", "same", "same", True, True, outcome="both_right"),
        ],
    }  # fmt: skip
