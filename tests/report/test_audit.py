"""The audit: every number is counted by hand on a few invented rows, and broken datasets are still audited."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from invented import picture, row
from PIL import Image
from pyarrow import parquet
from pyarrow.parquet import ParquetFile

from mmedpo import schema
from mmedpo.data import images, shards
from mmedpo.errors import InputError
from mmedpo.report import audit
from mmedpo.report.audit import pictures, style


def text(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


def write(rows: list[dict[str, Any]], folder: Path, split: str = "train", drop: tuple[str, ...] = ()) -> Path:
    """Write rows without the schema's checks, as a foreign program might."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    dataset = Dataset.from_list(rows, features=schema.FEATURES).remove_columns(list(drop))
    dataset.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return folder


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("clean") / "pairs"
    folder.mkdir()
    rows = [row(0), row(1, rejected=text("a lung nodule seen")), row(2, visual=True), row(3, visual=True)]
    rows[1]["chosen"] = text("left lower lobe")
    shards.save(rows, folder)
    return audit.audit(str(folder))


def test_clean_dataset_in_numbers(clean: dict[str, Any]) -> None:
    assert clean["format"] == "mmedpo.audit/1"
    assert clean["dataset"] == "pairs"  # and not the machine's path
    assert clean["rows"] == 4
    assert clean["counts"] == {
        "dispreference": {"hallucinated_response": 2, "lesion_noise": 2},
        "task": {"open_vqa": 4},
    }
    assert clean["faults"] == [] and clean["shared_groups"] == []
    coverage = clean["mask_coverage"]
    assert (coverage["mean"], coverage["max"]) == (0.0625, 0.0625)
    assert coverage["histogram"]["counts"] == [0, 2, *[0] * 18]  # twentieths: 0.0625 is in the second
    assert list(coverage["by_dispreference"]) == ["lesion_noise"]
    # words: "a nodule" / "the heart is too large" and "left lower lobe" / "a lung nodule seen"
    assert clean["style"] == {
        "chosen_words_mean": 2.5,
        "rejected_words_mean": 4.5,
        "rejected_longer_share": 1.0,
        "within_two_words_share": 0.5,
    }
    judges = clean["judges"]
    assert [judges[key] for key in ("rows", "agreed_share", "judgements", "unreadable")] == [2, 1.0, 6, 2]
    assert judges["first_round"]["alpha"] is None  # in each round, one of the two judges has no score
    assert judges["first_round"]["reason"] == "no row has the scores of two judges"
    assert clean["style_shortcut"]["auc"] is None and "at least 20 are needed" in clean["style_shortcut"]["reason"]
    assert clean["rejects"] is None  # no manifest beside the data


def test_weights_and_relevance(clean: dict[str, Any]) -> None:
    weights, relevance = clean["weights"], clean["relevance"]
    # weights .75 .80 .85 .90: the population variance is .05^2 * (1.5^2 + .5^2) / 2
    assert weights["mean"] == pytest.approx(0.825)
    assert weights["sd"] == pytest.approx(0.05 * 1.25**0.5, abs=1e-6)
    assert (weights["min"], weights["max"]) == pytest.approx((0.75, 0.9))
    assert weights["by_dispreference"]["lesion_noise"]["mean"] == pytest.approx(0.875)
    assert sum(weights["histogram"]["counts"]) == 4
    assert relevance["histogram"]["counts"] == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]  # 0, .1, .2, .3: a bin each
    for part in weights["by_dispreference"].values():
        assert part["histogram"]["edges"] == weights["histogram"]["edges"]


def test_is_json_and_a_page_and_a_table(clean: dict[str, Any]) -> None:
    json.dumps(clean, allow_nan=False)
    table = dict(audit.rows(clean))
    assert table["rows"] == "4"
    assert table["words, chosen / rejected"] == "2.5 / 4.5"
    assert table["  answers that could not be read"] == "2 of 6"
    page = audit.render(clean)
    assert "not measured: no row has the scores of two judges" in page
    assert "4 rows in the split" in page and "no fault found" in page
    assert "src=" not in page and "href=" not in page


def test_contradictions_are_counted_each_once(tmp_path: Path) -> None:
    rows = [
        row(0, rejected=text(" A nodule")),  # identical
        row(1, rejected=text("a nodule in the heart")),  # contains the gold answer
        row(2, chosen=text("yes"), rejected=text("yes, it is"), task="closed_vqa"),  # same polarity
        row(3, weight=0.0),
        row(4, id="invented/again"),
        row(4),  # the same image, question and kind
        row(5, visual=True, rejected_images=[picture(15)]),  # "noised" image equals the preferred one
    ]
    found = audit.audit(str(write(rows, tmp_path / "pairs")))
    names = ("identical_pairs", "gold_in_rejected", "same_polarity", "zero_weights", "repeated_questions")
    assert [found[name] for name in names] == [2, 1, 1, 1, 1]
    assert found["repeated_rows"] == 1
    assert found["checked"] == {"open": 4, "closed": 1}  # rows 1, 3, 4 and 4 again; row 2
    # As strings, the identical pairs count too: rows 0 and 5 hold their gold answer, as row 1 does.
    assert found["by_letters"] == {"open": 6, "gold_in_rejected": 3, "closed": 1, "same_polarity": 1}
    assert {fault["row"] for fault in found["faults"]} == {row["id"] for row in (*rows[:3], rows[6])}


def test_a_missing_column_is_a_fault_and_the_rest_is_counted(tmp_path: Path) -> None:
    folder = write([row(0), row(1)], tmp_path / "pairs", drop=("weight", "provenance", "rejected_images"))
    found = audit.audit(str(folder))
    assert {fault["column"] for fault in found["faults"]} == {"weight", "provenance", "rejected_images"}
    assert found["rows"] == 2 and found["weights"] is None and found["mask_coverage"] is None
    assert found["judges"]["rows"] == 0 and found["style"]["chosen_words_mean"] == 2.0
    assert found["relevance"]["max"] == pytest.approx(0.1)
    page = audit.render(found)
    assert "3 faults found" in page and "is missing; expected" in page
    assert len(audit.rows(found)) > 8


def test_a_foreign_dataset_yields_an_audit(tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    Dataset.from_dict({"question": ["a", "b"], "weight": ["heavy", None]}).to_parquet(str(folder / "train.parquet"))
    found = audit.audit(str(folder))
    by_row = {fault["row"]: fault["sentence"] for fault in found["faults"] if fault["row"] != "(all rows)"}
    assert found["rows"] == 2 and len(found["faults"]) == len(schema.FEATURES) + 2
    assert by_row["row 1"].startswith("is not a number") and by_row["row 2"].startswith("is missing")
    assert found["counts"] == {"dispreference": {"(none)": 2}, "task": {"(none)": 2}}
    assert found["weights"] is None and found["style"] is None
    audit.render(found)


def test_a_reversed_pair_is_measured_the_other_way_round(tmp_path: Path) -> None:
    wrong, gold = text("the nodule is too large"), text("a nodule")
    reversed_pair = row(0, dispreference="reversed_noise", chosen=wrong, rejected=gold)
    said = row(1, dispreference="reversed_noise", chosen=text("a nodule in the heart"), rejected=gold)
    found = audit.audit(str(write([reversed_pair, said], tmp_path / "pairs")))
    assert found["gold_in_rejected"] == 1 and found["checked"]["open"] == 2
    assert [fault["row"] for fault in found["faults"]] == [said["id"]]
    assert (found["style"]["chosen_words_mean"], found["style"]["rejected_words_mean"]) == (2.0, 5.0)


@pytest.mark.parametrize(("yes", "of", "warns"), [(12, 20, False), (13, 20, True), (19, 19, False), (7, 20, True)])
def test_a_prevailing_answer_among_visual_pairs_is_warned_of(tmp_path: Path, yes: int, of: int, warns: bool) -> None:
    sides = ["yes"] * yes + ["no"] * (of - yes)
    rows = [
        row(number, True, task="closed_vqa", chosen=text(side), rejected=text(side), weight=1.0, clinical_relevance=0.5)
        for number, side in enumerate(sides)
    ]
    texts = row(of, task="closed_vqa", chosen=text("yes"), rejected=text("no"), weight=1.0, clinical_relevance=0.5)
    found = audit.audit(str(write([*rows, texts], tmp_path / "pairs")))
    assert (found["preferred"]["yes"], found["preferred"]["no"]) == (yes, of - yes)
    said = found["preferred"]["warning"]
    assert bool(said) == warns
    if said:
        assert said.startswith(f"{'yes' if yes > 10 else 'no'} is preferred in 65.0 % of the 20 visual pairs")
        assert said in audit.render(found) and ["  warning", said] in audit.rows(found)


def judged(number: int, *scores: tuple[int, str, float | None]) -> dict[str, Any]:
    judgements = [{"round": r, "judge": judge, "score": score, "rationale": ""} for r, judge, score in scores]
    made = row(number)
    return {**made, "provenance": {**made["provenance"], "judgements": judgements, "agreed": None}}


def test_agreement_of_the_judges(tmp_path: Path) -> None:
    first = [(0.1, 0.2), (0.9, 0.7), (0.5, 0.5)]
    rows = [judged(n, (1, "a", one), (1, "b", two), (2, "a", two), (2, "b", two)) for n, (one, two) in enumerate(first)]
    rows.append(judged(3, (1, "a", 0.4), (1, "b", None)))  # no unit: one score
    found = audit.audit(str(write(rows, tmp_path / "pairs")))["judges"]
    # alpha = 1 - observed / expected disagreement, both as mean squared differences over ordered pairs of values
    values = [value for pair in first for value in pair]
    observed = sum(2 * (one - two) ** 2 for one, two in first) / len(values)
    expected = sum((one - two) ** 2 for one in values for two in values) / (len(values) * (len(values) - 1))
    assert found["first_round"] == {
        "units": 3, "judges": 2, "alpha": pytest.approx(1 - observed / expected, abs=1e-4), "reason": None
    }  # fmt: skip
    assert found["last_round"]["alpha"] == 1.0 and found["last_round"]["units"] == 3


def test_agreement_without_variation_is_not_measured(tmp_path: Path) -> None:
    rows = [judged(n, (1, "a", 0.5), (1, "b", 0.5)) for n in range(2)]
    found = audit.audit(str(write(rows, tmp_path / "pairs")))
    assert found["judges"]["first_round"]["alpha"] is None
    assert "without variation" in dict(audit.rows(found))["  alpha of the first round"]
    assert "not measured: all scores are equal" in audit.render(found)


def test_rejects_stand_beside_the_data(preferences: Path) -> None:
    manifest = json.loads((preferences / "manifest.json").read_text(encoding="utf-8"))
    lines = (preferences / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    found = audit.audit(str(preferences))
    assert found["rejects"] == manifest["rejects"] and sum(found["rejects"].values()) == len(lines) > 0
    assert dict(audit.rows(found))["rejected while curating"] == f"{len(lines):,}"
    page = audit.render(found)
    assert "Rejected while curating" in page and all(reason in page for reason in found["rejects"])


def test_images_are_not_kept(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("L", (500, 500)).save(file, format="BMP")  # 251 kB
    folder = tmp_path / "pairs"
    shards.save((row(n % 10, id=str(n), images=[{"bytes": file.getvalue(), "path": None}]) for n in range(160)), folder)
    audit.audit(str(folder))  # imports what it needs
    tracemalloc.start()
    assert audit.audit(str(folder))["rows"] == 160
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6  # of 40 MB; `datasets` reads a row group at a time, 8 MB here


def test_rows_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "MOST_PAIRS", 20)  # the fit takes as much for either dataset
    normal = "the heart is normal in size and both lungs are clear " * 10

    def peak(count: int) -> int:
        folder = tmp_path / str(count)
        folder.mkdir()
        made = (
            row(n, id=f"invented/{n}", images=[picture(n % 10)], weight=1.0, clinical_relevance=0.5,
                chosen=text(f"a nodule of {n} mm: {normal}"), rejected=text(f"a mass of {n} mm: {normal}"))
            for n in range(count)
        )  # fmt: skip
        shards.save(made, folder)
        audit.audit(str(folder))
        tracemalloc.start()
        assert audit.audit(str(folder))["style_shortcut"]["of"] == count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert (peak(600) - peak(200)) / 400 < 400  # bytes a row; its two texts alone have 1,100


def test_groups_shared_between_splits(tmp_path: Path) -> None:
    folder = write([row(0), row(1)], tmp_path / "pairs")
    write([row(1, id="invented/other"), row(2)], folder, split="test")
    found = audit.audit(str(folder))
    assert [(fault["row"], fault["column"]) for fault in found["shared_groups"]] == [("i1", "image_id")]
    assert audit.audit(str(folder), split="test")["rows"] == 2
    with pytest.raises(InputError, match="no split 'dev'; it has 'test', 'train'"):
        audit.audit(str(folder), split="dev")


def structured(seed: int, format: str = "PNG", side: int = 128, **options: Any) -> dict[str, Any]:
    """A smooth picture of chance as a file; equal seeds look alike."""
    grid = np.random.default_rng(seed).integers(0, 256, (12, 12), dtype=np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(grid).resize((192, 192), Image.Resampling.BICUBIC)
    image.resize((side, side)).save(buffer, format, **options)
    return {"bytes": buffer.getvalue(), "path": f"{seed}.{format.lower()}"}


def showing(number: int, name: str, picture: dict[str, Any]) -> dict[str, Any]:
    made = row(number, images=[picture])
    return {**made, "provenance": {**made["provenance"], "image_id": name, "patient_id": None}}


def test_a_picture_under_two_names_is_shared_between_splits(tmp_path: Path) -> None:
    folder = write([showing(0, "a", structured(0)), showing(1, "b", structured(1))], tmp_path / "pairs")
    write([showing(2, "copy", structured(0, "BMP")), showing(3, "c", structured(2))], folder, split="test")
    found = audit.audit(str(folder))
    (shared,) = found["shared_groups"]
    assert (shared["row"], shared["column"]) in (("a", "images"), ("copy", "images"))
    assert found["near_duplicates"] == {
        "images": 3, "groups": 0, "in_several_splits": 0, "examples": [], "bits": 256, "within": 16
    }  # fmt: skip


def test_near_duplicates_are_named_and_not_merged(tmp_path: Path) -> None:
    """A smaller, compressed copy of a picture looks like it; equal pixels are one picture and no near-duplicate."""
    rows = [showing(n, f"{n}.png", structured(n)) for n in range(8)]
    rows += [
        showing(8, "small.jpg", structured(3, "JPEG", 90, quality=70)),
        showing(9, "copy.bmp", structured(4, "BMP")),
    ]
    folder = write(rows, tmp_path / "pairs")
    write([showing(10, "tiny.jpg", structured(5, "JPEG", 64, quality=50))], folder, split="test")
    found = audit.audit(str(folder))
    assert found["near_duplicates"]["images"] == 10  # of 11 files
    assert (found["near_duplicates"]["groups"], found["near_duplicates"]["in_several_splits"]) == (2, 1)
    assert sorted(map(sorted, found["near_duplicates"]["examples"])) == [["3.png", "small.jpg"], ["5.png", "tiny.jpg"]]
    assert ["groups of near-duplicate images", "2 among 10 images, 1 in several splits"] in audit.rows(found)
    assert "<li>3.png, small.jpg</li>" in audit.render(found)


def test_an_image_file_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write([row(n, images=[structured(0)]) for n in range(5)], tmp_path / "pairs")
    decoded, pixels = [], images.pixels
    monkeypatch.setattr(images, "pixels", lambda image: decoded.append(1) or pixels(image))
    assert audit.audit(str(folder))["rows"] == 5
    assert len(decoded) == 1


def test_near_duplicates_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (12, 256), dtype=np.uint8)
    bits[:, :200] = 0  # most bits are alike, as in pictures of one kind
    for _ in range(40):
        changed = bits[rng.integers(len(bits))].copy()
        changed[rng.choice(256, rng.integers(0, 20), replace=False)] ^= 1
        bits = np.vstack([bits, changed])
    bits = rng.permutation(bits)
    near = (bits[:, None] != bits[None]).sum(axis=2) <= pictures.NEAR
    for _ in range(6):  # neighbours of neighbours, up to 64 steps away
        near = near @ near
    expected = [
        np.flatnonzero(row).tolist() for place, row in enumerate(near) if row.sum() > 1 and row.argmax() == place
    ]
    assert len(expected) > 1
    assert pictures._alike([row.tobytes() for row in np.packbits(bits, axis=1)]) == expected


def test_near_duplicates_are_not_sought_among_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    compared, near = [], pictures._near
    monkeypatch.setattr(pictures, "_near", lambda *places: compared.append(len(places[1])) or near(*places))
    rng = np.random.default_rng(0)
    assert pictures._alike([rng.bytes(32) for _ in range(2000)]) == []
    assert sum(compared) < 2000  # of 1,999,000


def test_a_file_is_opened_once_however_many_row_groups_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    shards.save([row(n, id=f"invented/{n}", weight=1.0, clinical_relevance=0.5) for n in range(100)], folder)
    opened = []

    class Counted(ParquetFile):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            opened.append(self.num_row_groups)

    monkeypatch.setattr(parquet, "ParquetFile", Counted)
    assert audit.audit(str(folder))["rows"] == 100
    assert opened == [7]  # each row has its own image


def test_folders_of_one_name_are_not_mixed_up(tmp_path: Path) -> None:
    configs = "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: data/train-*}\n---\n"
    for number in (1, 2):
        folder = write([row(n) for n in range(number)], tmp_path / str(number) / "pairs")
        (folder / "README.md").write_text(configs)
        assert audit.audit(str(folder))["rows"] == number


def test_equal_weights_have_a_histogram() -> None:
    part = audit.distributions({"hallucinated_response": [1.0, 1.0, None], "lesion_noise": [None]})
    assert part and part["sd"] == 0 and sum(part["histogram"]["counts"]) == 2
    assert list(part["by_dispreference"]) == ["hallucinated_response"]
    assert audit.distributions({"lesion_noise": [None]}) is None


@pytest.mark.parametrize("content", [None, b"", b"no parquet"])
def test_nothing_to_load(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "pairs" / "data").mkdir(parents=True)
        (tmp_path / "pairs" / "data" / "train-00000-of-00001.parquet").write_bytes(content)
    with pytest.raises(InputError, match="cannot be loaded as a dataset"):
        audit.audit(str(tmp_path / "pairs"))
