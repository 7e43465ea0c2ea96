"""The reviewed version of a dataset: what is left out, edited, noised and weighed anew, and what is recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from invented import picture, row

from mmedpo.curation.noise import Noise, box_mask
from mmedpo.curation.weights import normalize
from mmedpo.data import credentialed, images, loading, origin, shards
from mmedpo.data.samples import Box
from mmedpo.review import apply, shown
from mmedpo.review.agreement import reviewed
from mmedpo.review.apply import DIFFERENT, EDITED, NO_BOX, NO_PAIR, REJECTED, outcome
from mmedpo.review.pairs import Pairs, digest
from mmedpo.review.verdicts import Verdict, Verdicts
from mmedpo.runs.json_files import sha256

BOX = {"label": "opacity", "x": 4.0, "y": 4.0, "width": 20.0, "height": 10.0, "confidence": 1.0}


class Review:
    """A file of verdicts on a dataset."""

    def __init__(self, folder: Path, file: Path) -> None:
        self.pairs, self.file = Pairs(folder), Verdicts(file)

    def places(self, kind: str) -> list[int]:
        return [place for place, row in enumerate(self.pairs.rows) if row.kind == kind]

    def say(self, place: int, reviewer: str = "A", decision: str = "accept", **more: Any) -> str:
        read = self.pairs.read(place)
        said = {"id": str(len(self.file.all())), "row": read["id"], "digest": digest(read), "reviewer": reviewer,
                "time": "t", "decision": decision}  # fmt: skip
        self.file.append([Verdict(**said | more)])
        return str(read["id"])


@pytest.fixture
def review(preferences: Path, tmp_path: Path) -> Review:
    return Review(preferences, tmp_path / "v.jsonl")


@pytest.mark.parametrize(
    ("said", "reject", "after", "relevance"),
    [
        (["accept"], None, {}, None),
        (["reject"], REJECTED, {}, None),
        (["unsure"], None, {}, None),
        (["unsure", "reject"], REJECTED, {}, None),
        (["accept", "reject"], REJECTED, {}, None),
        (["accept", "accept", "reject"], None, {}, None),
        ([("accept", {"relevance": 0.2}), ("accept", {"relevance": 0.6}), ("reject", {"relevance": 1})], None, {}, 0.4),
        ([("accept", {"before": {"chosen": "a"}, "after": {"chosen": "b"}}), "accept"], None, {"chosen": "b"}, None),
        ([("accept", {"before": {"chosen": "a"}, "after": {"chosen": text}}) for text in "bc"], DIFFERENT, {}, None),
        ([("accept", {"before": {"boxes": [BOX]}, "after": {"boxes": []}})], NO_BOX, {}, None),
    ],
)  # fmt: skip
def test_verdicts_on_a_row_come_to_one_outcome(said: Any, reject: Any, after: Any, relevance: Any) -> None:
    given = [(one, {}) if isinstance(one, str) else one for one in said]
    found = outcome([Verdict("v", "r", "d", "A", "t", decision, **more) for decision, more in given], "lesion_noise")
    assert (found.reject, found.after) == (reject, after) and found.relevance == pytest.approx(relevance)


def test_what_is_said_after_the_verdicts_were_read_is_neither_applied_nor_copied(
    review: Review, tmp_path: Path
) -> None:
    review.say(0, decision="reject")
    read = Verdicts(review.file.file)
    given = reviewed(review.pairs, read)
    with review.file.file.open("ab") as file:
        file.write(b'{"id": "being wri')
    review.say(1, decision="reject")
    made = apply.apply(review.pairs, given, read, tmp_path / "reviewed", "")
    copy = tmp_path / "reviewed" / "verdicts.jsonl"
    assert made["review"]["rejected"] == len(copy.read_text("utf-8").splitlines()) == 1
    assert made["review"]["verdicts_sha256"] == sha256(copy)


def test_a_reviewed_version_has_edits_rejects_and_new_weights(review: Review, tmp_path: Path, run: Any) -> None:
    text, visual = review.places("hallucinated_response"), review.places("lesion_noise")
    gone = review.say(text[0], decision="reject", reason="wrong – 肺")
    review.say(text[1], "A", relevance=0.0)
    scored = review.say(text[1], "B", relevance=0.1)
    review.say(text[1], "C", decision="unsure", relevance=1.0)  # does not count
    before = review.pairs.read(text[2])
    edited = review.say(
        text[2], before={"rejected": before["rejected"][0]["content"]}, after={"rejected": "something else entirely"}
    )
    boxes = [*review.pairs.read(visual[0])["provenance"]["boxes"]]
    moved = review.say(visual[0], before={"boxes": boxes}, after={"boxes": [BOX]})
    code, said = run("apply", review.pairs.folder, "--verdicts", review.file.file, "--output", "reviewed")
    assert code == 0 and "4 of" in said and "1 left out, 2 edited, 1 with their relevance" in said
    rows = {row["id"]: row for row in loading.load_pairs("reviewed")}
    assert len(rows) == len(review.pairs) - 1 and gone not in rows

    assert rows[edited]["rejected"][0]["content"] == "something else entirely"
    assert rows[edited]["provenance"]["rejected_by"] == before["provenance"]["rejected_by"] + EDITED
    assert rows[scored]["clinical_relevance"] == pytest.approx(0.05)
    assert [one["judge"] for one in rows[scored]["provenance"]["judgements"]][-2:] == ["reviewer A", "reviewer B"]
    kinds = ["lesion_noise" if "lesion_noise" in id else "text" for id in rows]
    expected, _ = normalize([row["clinical_relevance"] for row in rows.values()], "rescale", kinds)
    assert [row["weight"] for row in rows.values()] == pytest.approx(expected.tolist())

    clean, noised = (images.pixels(rows[moved][side][0]) for side in ("images", "rejected_images"))
    inside = np.zeros(clean.shape[:2], dtype=bool)
    inside[4:14, 4:24] = True
    changed = (clean != noised).reshape(*inside.shape, -1).any(-1)
    assert changed[inside].mean() > 0.9 and not changed[~inside].any()
    assert rows[moved]["provenance"]["mask_coverage"] == pytest.approx(inside.mean(), abs=1e-6)

    folder = tmp_path / "reviewed"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["rejects"][REJECTED] == 1 and manifest["review"]["reviewers"] == 3
    (reject,) = [one for one in map(json.loads, (folder / "rejects.jsonl").open()) if one["step"] == "review"]
    assert (reject["id"], reject["detail"]) == (gone, "wrong – 肺")
    changes = {one["id"]: one for one in map(json.loads, (folder / "changes.jsonl").open())}
    assert changes.keys() == {scored, edited, moved} and changes[moved]["after"] == {"boxes": [BOX]}
    card = (folder / "README.md").read_text()
    assert f"4 of {len(review.pairs)} rows were seen by 3 reviewers" in card
    assert run("apply", "reviewed", "--verdicts", review.file.file, "--output", "again")[0] == 0  # reviewed rows stay


def test_rows_that_nobody_saw_stay_as_they_are(review: Review, run: Any) -> None:
    review.say(0)
    assert run("apply", review.pairs.folder, "--verdicts", review.file.file, "--output", "reviewed")[0] == 0
    again = Pairs(Path("reviewed"))
    assert [again.read(place) for place in range(len(again))] == [
        review.pairs.read(place) for place in range(len(again))
    ]


def test_a_reviewed_version_of_marked_data_is_restricted(review: Review, tmp_path: Path, run: Any) -> None:
    folder = tmp_path / "marked" / "pairs"
    shutil.copytree(review.pairs.folder, folder)
    (folder.parent / credentialed.MARKER).touch()
    review.say(0)
    assert run("apply", folder, "--verdicts", review.file.file, "--output", "reviewed")[0] == 0
    assert origin.credentialed_source(review.pairs.folder) is None  # by the mark alone
    assert origin.credentialed_source("reviewed")


@pytest.mark.parametrize(
    ("verdicts", "said"), [(None, "does not exist"), ("all", "no dataset is left"), ("broken", "verdict")]
)
def test_what_cannot_be_applied_is_said_and_nothing_is_left(
    review: Review, run: Any, verdicts: str | None, said: str
) -> None:
    if verdicts == "all":
        for place in range(len(review.pairs)):
            review.say(place, decision="reject")
    if verdicts == "broken":
        review.file.file.write_text('{"id": "v"}\n')
    code, printed = run("apply", review.pairs.folder, "--verdicts", review.file.file, "--output", "reviewed")
    assert code == 2 and said in printed and not Path("reviewed").exists()


def test_edits_that_make_no_pair_together_leave_the_row_out(review: Review, run: Any) -> None:
    text, visual = review.places("hallucinated_response")[0], review.places("lesion_noise")[0]
    before = shown.texts(review.pairs.read(text))
    ids = {review.say(text, name, before={side: before[side]}, after={side: "a mass of the left lung"})
           for name, side in (("A", "chosen"), ("B", "rejected"))}  # fmt: skip
    ids.add(review.say(visual, before={"boxes": []}, after={"boxes": [BOX | {"x": 9_000}]}))
    with review.file.file.open("a") as lines:
        lines.write("garbage\n")
    code, said = run("apply", review.pairs.folder, "--verdicts", review.file.file, "--output", "reviewed")
    assert code == 0 and "2 left out, 0 edited" in said and "1 verdict in lines that are no JSON" in said
    lines = [
        one
        for one in map(json.loads, Path("reviewed/rejects.jsonl").read_text().splitlines())
        if one["step"] == "review"
    ]
    assert {one["id"] for one in lines} == ids and {one["reason"] for one in lines} == {NO_PAIR}
    assert ["equal" in one["detail"] for one in lines] == [True, False] and "outside of its image" in lines[1]["detail"]


def test_noise_made_anew_is_that_of_the_box_as_stored(review: Review, run: Any) -> None:
    place = review.places("lesion_noise")[0]
    boxes = shown.boxes(review.pairs.read(place))
    # 1.6 + 0.4 ends at 2, but as stored in 32 bits behind it.
    edge = {"label": "opacity", "x": 1.6, "y": 4.0, "width": 0.4, "height": 8.0, "confidence": 1.0}
    moved = review.say(place, before={"boxes": boxes}, after={"boxes": [edge]})
    assert run("apply", review.pairs.folder, "--verdicts", review.file.file, "--output", "reviewed")[0] == 0
    (row,) = [row for row in loading.load_pairs("reviewed") if row["id"] == moved]
    (stored,) = row["provenance"]["boxes"]
    clean, noised = (images.pixels(row[side][0]) for side in ("images", "rejected_images"))
    mask = box_mask([Box(**stored)], *clean.shape[:2])
    assert row["provenance"]["mask_coverage"] == pytest.approx(mask.mean(), abs=1e-6)
    assert mask.sum() == 16 and not (clean != noised).reshape(*mask.shape, -1).any(-1)[~mask].any()


def test_verdicts_of_another_version_do_not_count(review: Review) -> None:
    review.say(0, digest="other")
    assert [*reviewed(review.pairs, review.file)] == []


def test_of_several_images_those_with_changed_boxes_are_noised_anew(tmp_path: Path, run: Any) -> None:
    made = row(1, visual=True, weight=1.0)
    made["images"] = [picture(90), made["images"][0]]
    made["rejected_images"] = [made["images"][0], made["rejected_images"][0]]
    made["provenance"]["box_images"] = [1]
    shards.save([made], tmp_path / "pairs")
    manifest = {
        "format": "mmedpo.manifest/1", "settings": {"weights": "none", "seed": 0}, "noise": Noise().record(),
        "source": {"name": "x"}, "counts": {"lesion_noise": 1}, "rejects": {}, "weights": {},
        "mask_coverage": {"bound": 1.0},
    }  # fmt: skip
    (tmp_path / "pairs" / "manifest.json").write_text(json.dumps(manifest))
    review = Review(tmp_path / "pairs", tmp_path / "v.jsonl")
    before = shown.boxes(review.pairs.read(0))
    assert [box["image"] for box in before] == [1]
    review.say(0, before={"boxes": before}, after={"boxes": [*before, BOX]})
    code, said = run("apply", review.pairs.folder, "--verdicts", review.file.file, "--output", "reviewed")
    assert code == 0, said
    again = Pairs(Path("reviewed")).read(0)
    assert again["provenance"]["box_images"] == [1, 0]
    first = images.pixels(again["rejected_images"][0])
    assert again["rejected_images"][1]["bytes"] == made["rejected_images"][1]["bytes"]  # its box is the same
    changed = (first != images.pixels(again["images"][0])).reshape(64, 64, -1).any(-1)
    assert changed[4:14, 4:24].mean() > 0.9 and changed.sum() == changed[4:14, 4:24].sum()
    assert again["provenance"]["mask_coverage"] == pytest.approx((200 + 256) / 2 / 64**2, abs=1e-6)
