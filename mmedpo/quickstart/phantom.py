"""Phantom corpus: chest-like images drawn by code, with lesions at known places and questions about them.

These are NOT medical images. The whole pipeline can run on them without data, network or GPU. A corpus is an ordinary
source folder (see `mmedpo.data.sources`); only its name and licence show that it is a phantom.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SIZE = 64  # pixels
FINDINGS = ("nodule", "effusion", "opacity", "pneumothorax")
SIDES = ("right", "left")  # the patient's: the right lung is drawn on the left, as radiographs are shown
ZONES = ("upper", "middle", "lower")


@dataclass(frozen=True)
class Lesion:
    """One lesion: finding, the patient's side, vertical zone, and the box (x, y, width, height) in pixels around it."""

    finding: str
    side: str
    zone: str
    box: tuple[float, float, float, float]

    @property
    def place(self) -> str:
        return f"{self.side} {self.zone} zone"


def _ellipse(cx: float, cy: float, rx: float, ry: float, edge: float = 1.0) -> np.ndarray:
    """Return float H x W in [0, 1]: 1 inside the ellipse, falling to 0 over `edge` pixels."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    distance = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)
    return np.clip((1 - distance) * min(rx, ry) / edge + 0.5, 0, 1)


def _chest(rng: np.random.Generator) -> tuple[np.ndarray, dict[str, tuple[float, float, float, float]]]:
    """Return a chest without lesions (float H x W in [0, 1]) and each lung's ellipse (cx, cy, rx, ry) by side."""
    image = np.full((SIZE, SIZE), 0.08) + 0.42 * _ellipse(32, 36, 31, 34, edge=3)
    lungs = {}
    for side, cx in (("right", 19.0), ("left", 45.0)):
        lungs[side] = (
            cx + rng.uniform(-1, 1),
            32 + rng.uniform(-1.5, 1.5),
            10 + rng.uniform(-1, 1),
            21 + rng.uniform(-2, 1),
        )
        image -= rng.uniform(0.28, 0.34) * _ellipse(*lungs[side], edge=2)
    heart = (36 + rng.uniform(-1, 1), 42 + rng.uniform(-1, 1), 8 + rng.uniform(-1, 1), 9 + rng.uniform(-1, 1))
    image = np.maximum(image, rng.uniform(0.55, 0.62) * _ellipse(*heart, edge=3))
    image += 0.12 * _ellipse(32, 32, 3.5, 31, edge=2)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    spacing, phase = rng.uniform(6.5, 7.5), rng.uniform(0, 7)
    image += 0.035 * (np.sin((y + 0.012 * (x - 32) ** 2 + phase) * 2 * np.pi / spacing) > 0.55)
    return image, lungs


def _draw(
    image: np.ndarray, finding: str, lung: tuple[float, float, float, float], zone: str, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Add one lesion to a lung; return the image and the lesion's box in pixels."""
    cx, cy, rx, ry = lung
    inside = _ellipse(*lung, edge=1)
    centre_y = cy + {"upper": -0.55, "middle": 0.0, "lower": 0.55}[zone] * ry + rng.uniform(-1.5, 1.5)
    centre_x = cx + rng.uniform(-0.25, 0.25) * rx
    contrast = rng.uniform(0.75, 1.0)
    if finding == "nodule":
        radius = rng.uniform(2.6, 3.8)
        return image + 0.42 * contrast * _ellipse(centre_x, centre_y, radius, radius), _around(
            centre_x, centre_y, radius, radius
        )
    if finding == "opacity":
        wide, tall = rng.uniform(6.0, 8.0), rng.uniform(4.5, 6.0)
        shade = _ellipse(centre_x, centre_y, wide, tall, edge=4) * inside
        return image + 0.26 * contrast * shade, _around(centre_x, centre_y, wide, tall)
    y = np.mgrid[0:SIZE, 0:SIZE][0]
    if finding == "effusion":
        level = cy + rng.uniform(0.45, 0.65) * ry
        fluid = np.clip(y - level, 0, 1) * inside
        return np.maximum(image, (0.5 * contrast + 0.08) * fluid), (cx - rx, level, 2 * rx, cy + ry - level)
    level = cy - rng.uniform(0.5, 0.65) * ry
    air = np.clip(level - y, 0, 1) * inside
    return image * (1 - air) + 0.02 * air, (cx - rx, cy - ry, 2 * rx, level - cy + ry)


def _around(cx: float, cy: float, rx: float, ry: float) -> tuple[float, float, float, float]:
    margin = 1.0
    return cx - rx - margin, cy - ry - margin, 2 * (rx + margin), 2 * (ry + margin)


def draw(rng: np.random.Generator) -> tuple[np.ndarray, list[Lesion]]:
    """Draw one phantom with up to two lesions, at most one in a lung.

    Returns:
        uint8 64 x 64 image, and its lesions.
    """
    image, lungs = _chest(rng)
    lesions = []
    for side in rng.permutation(SIDES)[: rng.choice(3, p=[0.2, 0.5, 0.3])]:
        finding = str(rng.choice(FINDINGS))
        zone = {"effusion": "lower", "pneumothorax": "upper"}.get(finding) or str(rng.choice(ZONES))
        image, box = _draw(image, finding, lungs[side], zone, rng)
        lesions.append(Lesion(finding, str(side), zone, box))
    image = image + rng.normal(0, 0.025, image.shape)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8), sorted(lesions, key=lambda lesion: lesion.side, reverse=True)


def questions(lesions: list[Lesion], rng: np.random.Generator) -> list[dict[str, object]]:
    """Return questions about one phantom: three closed ones with balanced answers, up to four open, one report."""
    present = {lesion.finding for lesion in lesions}
    rows: list[dict[str, object]] = []

    def ask(task: str, question: str, answer: str, boxes: list[Lesion]) -> None:
        rows.append({"task": task, "question": question, "answer": answer, "boxes": [_box(lesion) for lesion in boxes]})

    for wanted in (True, False):
        pool = sorted(present) if wanted else sorted(set(FINDINGS) - present)
        if pool:
            finding = str(rng.choice(pool))
            shown = [lesion for lesion in lesions if lesion.finding == finding]
            ask("closed_vqa", f"Is there {_article(finding)}?", "yes" if wanted else "no", shown)
    side = str(rng.choice(SIDES))
    shown = [lesion for lesion in lesions if lesion.side == side]
    ask("closed_vqa", f"Is the {side} lung clear?", "no" if shown else "yes", shown)
    for lesion in lesions:
        ask("open_vqa", f"What is seen in the {lesion.side} lung?", lesion.finding, [lesion])
        if sum(other.finding == lesion.finding for other in lesions) == 1:
            ask("open_vqa", f"Where is the {lesion.finding}?", lesion.place, [lesion])
    ask("report", "Describe the image.", report(lesions), lesions)
    return rows


def report(lesions: list[Lesion]) -> str:
    """Return the phantom's report: one sentence per lung, right lung first."""
    sentences: list[str] = []
    for side in SIDES:
        shown = [lesion for lesion in lesions if lesion.side == side]
        sentences += map(sentence, shown)
        if not shown:
            sentences.append(f"The {side} lung is clear.")
    return " ".join(sentences)


def sentence(lesion: Lesion) -> str:
    """Return the sentence of a report about a lesion."""
    return f"There is {_article(lesion.finding)} in the {lesion.place}."


def _article(finding: str) -> str:
    return f"{'an' if finding[0] in 'aeiou' else 'a'} {finding}"


def _box(lesion: Lesion) -> dict[str, object]:
    x, y, width, height = (round(float(side), 2) for side in lesion.box)
    return {"label": lesion.finding, "x": x, "y": y, "width": width, "height": height}


def write(folder: Path, parts: dict[str, int], seed: int) -> None:
    """Write a phantom corpus: `images/*.png` and `samples.jsonl`; `parts` maps each split to its number of images."""
    from PIL import Image

    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as table:
        for split, count in parts.items():
            for number in range(count):
                pixels, lesions = draw(rng)
                name = f"{split}-{number:05d}"
                Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
                for index, row in enumerate(questions(lesions, rng)):
                    row = {"id": f"{name}-{index}", "image": f"{name}.png", "split": split, **row}
                    table.write(json.dumps({**row, "source": "phantom", "license": "cc0-1.0"}) + "\n")
