"""The style shortcut: datasets whose AUC can be derived, and those on which it cannot be measured."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmedpo.report import audit
from mmedpo.report.audit import style
from mmedpo.report.audit.show import verdict

WORDS = ["mass", "node", "lung", "bone", "cyst", "skin", "cell", "vein", "duct", "lobe"]  # four letters each


def measure(tmp_path: Path, pairs: list[tuple[str, str]], images: int | None = None) -> dict[str, Any]:
    """The style block of (preferred, rejected) texts about so many images, by default one each."""
    rows = [
        {"chosen": chosen, "rejected": rejected, "image": f"{n % (images or len(pairs))}.png"}
        for n, (chosen, rejected) in enumerate(pairs)
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    found: dict[str, Any] = audit.audit(str(tmp_path / "pairs.json"))
    return found


def texts(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Pairs of three different words of equal form."""
    rng = random.Random(seed)
    both = [rng.sample(WORDS, 6) for _ in range(count)]
    return [(" ".join(six[:3]), " ".join(six[3:])) for six in both]


def test_equal_form_is_clean(tmp_path: Path) -> None:
    found = measure(tmp_path, texts(40))["style_shortcut"]
    # All texts look the same to the model, so that every pair is a tie.
    assert (found["auc"], found["sd"], found["pairs"], found["groups"]) == (0.5, 0.0, 40, 40)
    assert found["strongest"] == []


def test_a_full_stop_in_half_of_the_rejected_texts(tmp_path: Path) -> None:
    pairs = [(chosen, rejected + "." * (n % 2)) for n, (chosen, rejected) in enumerate(texts(40))]
    found = measure(tmp_path, pairs)
    style = found["style_shortcut"]
    # Half of the rejected texts rank above all preferred ones, the other half ties with them: (1 + 1/2) / 2.
    assert style["auc"] == pytest.approx(0.75) and len(style["folds"]) == 5
    # A mark more is a character more, in a word as long: each of them alone tells as much.
    assert {one["auc"] for one in style["strongest"]} == {0.75}
    by_name = {one["feature"]: one for one in style["strongest"]}
    assert by_name["characters"]["rejected_mean"] == by_name["characters"]["chosen_mean"] + 0.5 == 14.5
    assert dict(audit.rows(found))["  meaning"].startswith("Length and form often tell")


MARKS: dict[str, Callable[[str], str]] = {  # each changes other features than the rest
    "a space before": lambda text: f" {text}",
    "a space after": lambda text: f"{text} ",
    "a line break": lambda text: text.replace(" ", "\n", 1),
    "a capital inside": lambda text: text[0] + text[1].upper() + text[2:],
    "a comma": lambda text: f"{text[:3]},{text[4:]}",
}


@pytest.mark.parametrize(
    "mark", [*MARKS.values(), str.upper, str.capitalize, "{}!".format, "{} lung".format], ids=lambda _: ""
)
def test_every_kind_of_form_is_seen(tmp_path: Path, mark: Callable[[str], str]) -> None:
    pairs = [(chosen, mark(rejected)) for chosen, rejected in texts(30)]
    assert measure(tmp_path, pairs)["style_shortcut"]["auc"] == 1.0


def test_pairs_of_one_image_stay_in_one_fold(tmp_path: Path) -> None:
    marks = list(MARKS.values())
    pairs = [(chosen, marks[n % 5](rejected)) for n, (chosen, rejected) in enumerate(texts(20))]
    # The mark of an image is in no other image: a model that was fitted on the others cannot know it, and sees ties.
    assert measure(tmp_path, pairs, images=5)["style_shortcut"]["folds"] == [0.5] * 5
    assert measure(tmp_path, pairs)["style_shortcut"]["auc"] > 0.9  # no two pairs of one image: every mark is known


def test_random_lengths_on_both_sides_are_close_to_clean(tmp_path: Path) -> None:
    rng = random.Random(1)
    pairs = [tuple(" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(2)) for _ in range(400)]
    style = measure(tmp_path, [(a, b) for a, b in pairs], images=100)["style_shortcut"]
    assert abs(style["auc"] - 0.5) < 0.06 and style["groups"] == 100 and style["group"] == "image"


def test_too_few_pairs_or_images_are_not_measured(tmp_path: Path) -> None:
    few = measure(tmp_path, texts(19))
    assert few["style_shortcut"]["auc"] is None
    assert few["style_shortcut"]["reason"] == "19 pairs differ in their texts; at least 20 are needed"
    assert measure(tmp_path, texts(20))["style_shortcut"]["auc"] is not None
    narrow = measure(tmp_path, texts(20), images=4)
    assert narrow["style_shortcut"]["reason"] == "all pairs are about 4 images; at least 5 are needed"
    assert "Not measured: all pairs are about 4 images" in audit.render(narrow)


def test_pairs_that_share_one_of_several_images_are_one_group(tmp_path: Path) -> None:
    def groups(*shown: list[str]) -> int:
        rows = [
            {"images": shown[n % len(shown)], "chosen": chosen, "rejected": rejected}
            for n, (chosen, rejected) in enumerate(texts(20))
        ]
        (tmp_path / "pairs.json").write_text(json.dumps(rows))
        return audit.audit(str(tmp_path / "pairs.json"))["style_shortcut"]["groups"]

    assert groups(["a", "b"], ["b", "c"], ["d"], ["c", "b"], ["c"]) == 2
    assert groups(["a", "b"], ["c"], ["d"], ["e", "f"], ["g"]) == 5


def test_pairs_without_images_are_groups_of_their_own(tmp_path: Path) -> None:
    rows = [{"chosen": chosen, "rejected": rejected} for chosen, rejected in texts(20)]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    found = audit.audit(str(tmp_path / "pairs.json"))
    assert (found["style_shortcut"]["groups"], found["style_shortcut"]["group"]) == (20, "pair")
    assert "tested on pairs it was not fitted on" in audit.render(found)


def test_verdicts_grow_with_the_score() -> None:
    assert len({verdict(auc) for auc in (0.3, 0.6, 0.7, 1.0)}) == 4
    assert verdict(0.3) == verdict(0.5)  # worse than chance is chance


def test_of_very_many_pairs_a_seeded_sample_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "MOST_PAIRS", 60)
    pairs = [(chosen, f"{rejected}.") for chosen, rejected in texts(200)]
    found, again = (measure(tmp_path, pairs) for _ in range(2))
    score = found["style_shortcut"]
    assert (score["pairs"], score["of"], score["auc"]) == (60, 200, 1.0) and score == again["style_shortcut"]
    assert "60 of 200 pairs" in str(audit.rows(found))
    assert "of" not in measure(tmp_path, pairs[:60])["style_shortcut"]


def chosen_sides(count: int) -> list[dict[str, Any]]:
    """Corrected pairs of equal form whose gold answers end with a full stop, ranked ones, and a gold one."""
    made = []
    for n, (chosen, rejected) in enumerate(texts(count)):
        version = ("correct@1", "ranked@1:f1:strict@4")[n % 2]
        about = {"chosen_by": "model", "chosen_prompt_version": version, "gold": chosen + "." * (n % 2 == 0)}
        made.append({"chosen": chosen, "rejected": rejected, "image": f"{n}.png", "provenance": about})
    return [*made, {**made[0], "image": "gold.png", "provenance": {"chosen_by": "gold", "gold": made[0]["chosen"]}}]


def test_style_side_by_side(tmp_path: Path, run: Callable[..., tuple[int, str]]) -> None:
    (tmp_path / "pairs.json").write_text(json.dumps(chosen_sides(80)))
    found = audit.audit(str(tmp_path / "pairs.json"), name="ours")
    auc = {name: (score["auc"], score["pairs"]) for name, score in found["style_by_chosen"].items()}
    # With a full stop in all gold answers these alone tell the sides apart.
    assert auc == {
        "gold": (None, 1), "corrected": (0.5, 40), "the gold answer in place of corrected": (1.0, 40),
        "ranked": (0.5, 40), "the gold answer in place of ranked": (0.5, 40),
    }  # fmt: skip
    shown = dict(audit.rows(found))
    assert shown["  chosen: the gold answer in place of corrected"] == "AUC 1.000 ± 0.000, 40 pairs"
    assert shown["  chosen: gold"].startswith("not measured: 1 pairs differ")
    assert "the gold answer in place of ranked" in audit.render(found)

    (tmp_path / "audit.json").write_text(json.dumps(found))
    plain = measure(tmp_path, texts(40))
    assert "style_by_chosen" not in plain and "style shortcut by chosen side, or beside" not in dict(audit.rows(plain))
    beside = audit.others([tmp_path])
    kept = {name: found[name] for name in ("style_shortcut", "style_by_chosen")}
    assert beside == [{"dataset": "ours", **kept}]
    shown = dict(audit.rows(plain | {"beside": beside}))
    assert shown["  dataset ours, chosen: ranked"] == "AUC 0.500 ± 0.000, 40 pairs" and "  dataset ours" in shown

    code, said = run("audit", tmp_path / "pairs.json", "--beside", tmp_path)
    assert code == 0 and "dataset ours, chosen" in said
    code, said = run("audit", tmp_path / "pairs.json", "--beside", tmp_path / "none")
    assert code == 2 and "it has no audit.json of mmedpo" in said
