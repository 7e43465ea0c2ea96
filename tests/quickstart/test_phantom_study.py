"""The study of clinical weighting (docs/study.md): its world, judges, arms and analysis, and one world at toy size."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from phantom_study import analysis, arms, judges, page, trials, world


@pytest.fixture(scope="module")
def asked() -> list[world.Question]:
    return world.world(3, (60,))[0]


def test_wrong_answers_are_wrong_and_answers_in_other_words_right(asked: list[world.Question]) -> None:
    pairs = world.text_pairs(asked, np.random.default_rng(0))
    short = [pair for pair in pairs if pair.question.task != "report"]
    for pair in short:
        assert trials.right(pair.question, pair.chosen)
        assert trials.right(pair.question, world.free(pair.chosen))
        assert trials.right(pair.question, pair.rejected) == (pair.severity == "not wrong"), pair
    reports = [pair for pair in pairs if pair.question.task == "report"]
    assert all(pair.rejected != pair.chosen for pair in reports)
    assert {pair.severity for pair in pairs} == {*world.RELEVANCE}
    assert 0.04 < sum(pair.severity == "not wrong" for pair in pairs) / len(pairs) < 0.1


@pytest.mark.parametrize(("detector", "low", "high"), [("hit", 1.0, 1.0), ("missed", 0.0, 0.02), ("whole", 1.0, 1.0)])
def test_noise_covers_the_lesion_as_the_detector_says(
    asked: list[world.Question], detector: str, low: float, high: float
) -> None:
    pairs = world.visual_pairs(asked, np.random.default_rng(0), detector)
    assert all(pair.question.lesions for pair in pairs)
    assert low <= np.mean([pair.covered for pair in pairs]) <= high
    pair = next(pair for pair in pairs if len(pair.question.lesions) == 1)
    assert pair.noised is not None
    changed = pair.noised != pair.question.shown.pixels
    x, y, wide, tall = pair.question.lesions[0].box
    inside = np.zeros_like(changed)
    inside[max(0, round(y)) : round(y + tall), max(0, round(x)) : round(x + wide)] = True
    assert (changed & inside).any() == (detector != "missed")
    assert (changed & ~inside).mean() > 0.5 or detector != "whole"


def test_judges_have_the_quality_they_are_named_for(asked: list[world.Question]) -> None:
    pairs = world.text_pairs(asked, np.random.default_rng(0))
    truth = [pair.truth for pair in pairs]
    for name, wanted in {"oracle": 1.0, "rank .9": 0.9, "rank .6": 0.6, "rank .3": 0.3, "reversed": -1.0}.items():
        scores = judges.scores(name, pairs, 1)
        assert stats.spearmanr(scores, truth).statistic == pytest.approx(wanted, abs=0.01)
        assert scores.min() >= 0 and scores.max() <= 1
    shuffled = judges.scores("shuffled", pairs, 1)
    assert sorted(shuffled) == sorted(truth) and abs(stats.spearmanr(shuffled, truth).statistic) < 0.15


def test_weights_by_method() -> None:
    values = np.array([0.0, 0.2, 0.5, 0.9, 0.9])
    assert judges.weigh(values, "filter").tolist() == [0, 1, 1, 1, 1]
    assert judges.weigh(values, "literal").tolist() == [0.75] * 5
    assert judges.weigh(values, "raw") == pytest.approx(values)
    spread = (values - 0.5) / values.std()
    assert judges.weigh(values, "wide") == pytest.approx(1 + np.sqrt(0.1) * spread)
    assert judges.weigh(values, "strong") == pytest.approx(np.clip(1 + 4 * np.sqrt(0.1) * spread, 0, 2))


def test_arms_of_a_world_share_their_text_pairs(asked: list[world.Question]) -> None:
    def texts(name: str) -> list[tuple[str, str, str]]:
        found, _ = trials.pairs_of(arms.ARMS[name], asked, 4)
        return [(p.question.text, p.chosen, p.rejected) for p, _ in found if p.noised is None]

    for name in ("strong rank .6", "both balance", "both symmetric", "warm none", "dpo none"):
        assert texts(name) == texts("none")
    assert {*texts("filter oracle")} < {*texts("none")}
    assert all(arm in arms.ARMS and other in arms.ARMS for arm, other in arms.PRIMARY)
    assert all(arms.control(name) in {"start", *arms.ARMS} for name in arms.ARMS)


def test_the_line_finds_a_planted_break_even() -> None:
    names = {f"strong {judge}": quality for judge, quality in analysis.DOSE.items()}
    noise = np.random.default_rng(0).normal(0, 0.002, (10, len(names)))

    def planted(slope: float) -> analysis.Runs:
        runs: analysis.Runs = {"none": {seed: {"weighted_accuracy": 0.7} for seed in range(10)}}
        for place, (name, quality) in enumerate(names.items()):
            gains = slope * (quality - 0.4) + noise[:, place]
            runs[name] = {
                seed: {"weighted_accuracy": 0.7 + gains[seed], "agreement": {"text": quality}} for seed in range(10)
            }
        return runs

    found = analysis.dose(planted(0.05), "strong")
    assert found["slope"]["low"] < 0.05 < found["slope"]["high"]
    even = found["break_even"]
    assert even["low"] < 0.4 < even["high"] and even["mean"] == pytest.approx(0.4, abs=0.05)
    assert found["gains"]["rank .9"]["agreement"] == pytest.approx(0.9)
    assert found["gains"]["rank .9"]["mean"] == pytest.approx(0.025, abs=0.002)
    assert "break_even" not in analysis.dose(planted(0.0), "strong")


def test_the_primary_family_is_paired_by_world_and_corrected_once_complete() -> None:
    chance = np.random.default_rng(1)
    level = chance.normal(0.7, 0.05, 10)  # of worlds, which pairing takes out
    names = {name for pair in arms.PRIMARY for name in pair}
    runs = {name: {s: {"weighted_accuracy": level[s] + chance.normal(0, 0.004)} for s in range(10)} for name in names}
    for seed in range(10):
        runs["strong oracle"][seed]["weighted_accuracy"] += 0.03
    rows = {(row["arm"], row["control"]): row for row in analysis.primary(runs)}
    gain = rows["strong oracle", "none"]
    assert gain["low"] > 0.02 and gain["p"] < gain["p_holm"] < 0.05
    assert [*gain["by_start"]] == ["0", "1", "2"]
    assert rows["both none", "none"]["p_holm"] > 0.05
    del runs["supervised"]
    assert not any("p_holm" in row for row in analysis.primary(runs))


def test_the_rate_with_the_best_mean_over_tuning_worlds_is_chosen(tmp_path: Path) -> None:
    values = {0.001: (0.5, 0.9), 0.002: (0.8, 0.8), 0.004: (0.9, 0.4)}
    for rate, own in values.items():
        for seed, value in zip(arms.TUNING_WORLDS, own, strict=True):
            file = trials.file_of(tmp_path / "worlds" / str(seed), "none", rate)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"weighted_accuracy": value}))
    assert analysis.chosen_rate(tmp_path, "none")[0] == 0.002
    trials.file_of(tmp_path / "worlds" / "901", "none", 0.004).unlink()
    assert analysis.chosen_rate(tmp_path, "none")[0] is None


def test_images_of_visual_and_reversed_pairs(asked: list[world.Question]) -> None:
    rng = np.random.default_rng(0)
    pair = next(pair for pair in world.visual_pairs(asked, rng))
    other = next(found for found in (world.reversed_of(pair, rng) for _ in range(20)) if found)
    first, second = trials.rows([(pair, 1.0), (other, 0.5)]).with_format(None)
    assert (first["chosen"], first["rejected"]) == (second["rejected"], first["chosen"])
    assert np.array_equal(np.asarray(first["images"][0]).squeeze(), pair.question.shown.pixels)
    assert np.array_equal(np.asarray(first["rejected_images"][0]).squeeze(), pair.noised)
    assert np.array_equal(np.asarray(second["images"][0]).squeeze(), pair.noised)
    assert second["rejected_images"] is None
    assert second["chosen"][0]["content"] not in pair.question.accepted


def test_accuracy_counts_questions_by_their_importance(asked: list[world.Question]) -> None:
    said = [question.answer for question in asked]
    assert trials.accuracies(asked, said)["weighted_accuracy"] == 1
    cosmetic = [question.importance == "cosmetic" for question in asked]
    short = [question for question in asked if question.task != "report"]
    wrong = ["nothing" if is_cosmetic else text for text, is_cosmetic in zip(said, cosmetic, strict=True)]
    total = sum(world.IMPORTANCE[question.importance] for question in short)
    found = trials.accuracies(asked, wrong)
    assert found["weighted_accuracy"] == pytest.approx(1 - 0.1 * sum(cosmetic) / total)
    assert found["accuracy"] == pytest.approx(1 - sum(cosmetic) / len(short))
    assert (found["accuracy_critical"], found["accuracy_cosmetic"]) == (1, 0)


def test_differences_are_paired_by_world() -> None:
    values = [0.01, 0.03, 0.02, 0.05]
    found = analysis.difference(values)
    known = stats.ttest_1samp(values, 0)
    assert found["p"] == pytest.approx(known.pvalue)
    assert (found["low"], found["high"]) == pytest.approx(known.confidence_interval())


def test_a_world_at_toy_size_is_trained_measured_resumed_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "STARTS", 1)
    trials.start(tmp_path, 0, images=8, steps=3)
    monkeypatch.setattr(arms, "SEEDS", {"main": 2, "factors": 2})
    monkeypatch.setattr(analysis, "SEEDS", arms.SEEDS)
    monkeypatch.setattr(analysis, "TUNING_WORLDS", (900,))
    rate = 2e-3
    wanted = [(name, replace(arms.ARMS[name], steps=2), rate) for name in ("none", "both rescale oracle")]
    for seed in (0, 1, 900):
        trials.run_world(tmp_path, seed, wanted, sizes=(4, 3))
    known = {file: file.stat().st_mtime_ns for file in tmp_path.glob("worlds/*/*.json")}
    assert len(known) == 9
    gone = tmp_path / "worlds" / "1" / "none@0.002.json"
    before = gone.read_text()
    gone.unlink()
    trials.run_world(tmp_path, 1, wanted, sizes=(4, 3))
    again = {file: file.stat().st_mtime_ns for file in known}
    assert [file for file in known if again[file] != known[file]] == [gone]
    first, second = (json.loads(text) for text in (before, gone.read_text()))
    assert second["brier"] == pytest.approx(first["brier"], abs=1e-4)
    assert [second[name] for name in ("pairs", "mean_weights")] == [first[name] for name in ("pairs", "mean_weights")]
    for name in arms.ARMS:
        monkeypatch.setitem(arms.ARMS, name, replace(arms.ARMS[name], rates=(rate,)))
    found = analysis.analyse(tmp_path, "main")
    assert {*found["arms"]} == {"start", "none", "both rescale oracle"}
    assert found["arms"]["both rescale oracle"]["agreement"] == pytest.approx({"text": 1.0, "visual": 1.0})
    page.write(found, tmp_path, "main")
    assert "both rescale oracle" in (tmp_path / "main.html").read_text()
    factors = analysis.analyse(tmp_path, "factors")
    assert {*factors["arms"]} == {"start", "none"} and "primary" not in factors
    page.write(factors, tmp_path, "factors")
    assert "dose" not in (tmp_path / "factors.html").read_text()
