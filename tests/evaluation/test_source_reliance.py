"""Visual reliance on any source: every view of every question, and noise where the source marks a lesion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmedpo import schema
from mmedpo.curation.marked_noise import MarkedNoise
from mmedpo.data import loading
from mmedpo.data.images import open_rgb
from mmedpo.errors import InputError
from mmedpo.evaluation import pairs
from mmedpo.evaluation.compare import compare
from mmedpo.evaluation.measures import measure
from mmedpo.evaluation.metrics import visual_reliance
from mmedpo.evaluation.questions import Asked, read
from mmedpo.evaluation.settings import Run, Settings
from mmedpo.evaluation.source_reliance import SourceReliance
from mmedpo.models.vision_language import VisionLanguageModel


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_noise_is_that_of_the_curated_pair(corpus: Path, preferences: Path) -> None:
    rows = schema.undecoded(loading.load(str(preferences)))
    curated = {row["provenance"]["sample_id"]: row["rejected_images"][0] for row in rows if row["rejected_images"]}
    noise, compared = MarkedNoise(seed=0), 0
    for question in read(Asked(corpus, split="preference")).questions[:20]:
        made = noise(question.sample)
        assert (made is not None) == (question.id in curated) == bool(question.sample.boxes)
        if made is not None:
            assert np.array_equal(open_rgb(made[0]["bytes"]), open_rgb(curated[question.id]["bytes"]))
            compared += 1
    assert compared > 5


def test_a_source_is_measured_as_its_pairs_are_and_without_a_lesion_too(
    corpus: Path, preferences: Path, tiny_model: Path, tmp_path: Path
) -> None:
    model = VisionLanguageModel(str(tiny_model))
    asked, noise = read(Asked(corpus, split="preference", limit=12)), MarkedNoise(0)
    (tmp_path / "source").mkdir()
    ours = SourceReliance(asked, noise, batch_size=5, max_new_tokens=4, noise=noise.record())
    results = pairs.measure(ours, lambda: model, tmp_path / "source")
    scores = lines(tmp_path / "source", "scores")
    marked = {one.id for one in asked.questions if one.sample is not None and one.sample.boxes}
    assert 0 < len(marked) < 12 == results["metrics"]["n_samples"]
    assert results["metrics"]["n_lesion_noise"] == len(marked)
    assert results["settings"]["noise"]["method"] == "diffusion"
    for score in scores:
        assert ("logps_lesion_noise" in score) == (score["id"] in marked)
        assert {"logps_original", "logps_blank", "logps_swapped"} <= score.keys()
    (tmp_path / "pairs").mkdir()
    theirs = pairs.VisualReliance(loading.load(str(preferences)), 5, max_new_tokens=4)
    pairs.measure(theirs, lambda: model, tmp_path / "pairs")
    known = {row["id"].split("/")[1]: row for row in lines(tmp_path / "pairs", "scores")}
    for score in scores:
        if score["id"] in marked:
            for view in ("original", "lesion_noise", "blank"):  # another image may be swapped in
                assert score[f"logps_{view}"] == pytest.approx(known[score["id"]][f"logps_{view}"], abs=1e-3)


def test_the_command_measures_a_source_and_compare_reads_it(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    noise, chosen = MarkedNoise(0), {"split": "test", "limit": 6, "max_new_tokens": 3}
    for name in ("a", "b"):
        settings = Settings(model=str(tiny_model), source=corpus, measure="visual_reliance", name=name, **chosen)
        found = measure(settings, Run(tmp_path / name), noised=noise, noise=noise.record())
        assert found is not None and found["source"] == "phantom" and found["metrics"]["n_samples"] == 6
    compared = compare([tmp_path / "a", tmp_path / "b"], resamples=20)
    assert compared["metrics"]["logps_drop_blank"]["b"]["difference"] == 0


def test_a_source_without_marks_has_the_views_that_need_none(
    make_source: Any, tiny_model: Path, tmp_path: Path
) -> None:
    rows = [{"id": f"q{n}", "image": name, "question": "Is it normal?", "answer": "yes"} for n, name in
            enumerate(("a.png", "b.png"))]  # fmt: skip
    folder = make_source(rows)
    noise = np.random.default_rng(7).integers(0, 200, (32, 32), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "b.png")
    reliance = SourceReliance(read(Asked(folder)), MarkedNoise(0), max_new_tokens=2)
    found = pairs.measure(reliance, lambda: VisionLanguageModel(str(tiny_model)), tmp_path)["metrics"]
    assert found["n_lesion_noise"] == 0 and "accuracy_drop_blank" in found and "accuracy_lesion_noise" not in found
    with pytest.raises(InputError, match="of one patient"):
        SourceReliance(read(Asked(make_source(rows[:1], name="alone"))), MarkedNoise(0))


def test_only_the_noised_view_may_be_missing() -> None:
    whole = {f"{kind}_{view}": [1 if kind == "correct" else -1.0] for kind in ("correct", "logps")
             for view in visual_reliance.VIEWS}  # fmt: skip
    bare = whole | {"correct_lesion_noise": [None], "logps_lesion_noise": [None]}
    assert visual_reliance.compute(bare)["n_lesion_noise"] == 0 and "n_lesion_noise" not in visual_reliance.compute(
        whole
    )
    for wrong in ({"logps_blank": [None]}, {"correct_blank": [None]}, {"correct_lesion_noise": [None]}):
        with pytest.raises(InputError):
            visual_reliance.compute(whole | wrong)
