"""The audit compares texts by their plain form, and counts gold answers that may be none."""

from __future__ import annotations

import json
from pathlib import Path

from mmedpo.report import audit

SIDES, GOLD = ("conversations", "rejected_conversations"), "Question: Is it a mass?\n Yes"  # as in released files
PAIRS = [  # question, preferred, rejected
    ("Which weighting?", "T2-weighted", "T₂‑weighted"),  # one text in two forms
    ("Which weighting?", "T2-weighted", "T1-weighted"),
    ("Which\u00a0weighting?", "T2\u2013weighted", "T1-weighted\u200b"),  # the row before, in other forms
    ("Is it a mass?", "Is it a mass? Yes", "no"),
    ("Is it a mass?", "not sure", "a mass"),
]


def test_texts_in_two_unicode_forms_are_one(tmp_path: Path) -> None:
    rows = [dict(zip(("question", "chosen", "rejected"), pair, strict=True)) | {"image": "a.png"} for pair in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = audit.audit(str(tmp_path / "pairs.jsonl"))
    names = ("identical_pairs", "repeated_rows", "repeated_questions", "gold_repeats_question", "gold_declines")
    assert [found[name] for name in names] == [1, 1, 3, 1, 1]
    table = dict(audit.rows(found))
    assert table["gold answers that repeat the question"] == table["gold answers that decline to answer"] == "1"


def test_gold_answer_in_llavas_layout_repeats_its_question_without_the_images_place(tmp_path: Path) -> None:
    asked = {"from": "human", "value": "<image>\nIs it a mass?"}
    sides = {side: [asked, {"from": "gpt", "value": text}] for side, text in zip(SIDES, (GOLD, "no"), strict=True)}
    (tmp_path / "pairs.json").write_text(json.dumps([{"image": "a.png", **sides}]), encoding="utf-8")
    assert audit.audit(str(tmp_path / "pairs.json"))["gold_repeats_question"] == 1


def test_missing_patient_is_none_that_splits_share(tmp_path: Path) -> None:
    from datasets import Dataset

    for split, text in (("train", "a"), ("test", "b")):
        rows = [{"chosen": text, "rejected": "c", "provenance": {"patient_id": "nan", "image_id": text}}]
        Dataset.from_list(rows).to_parquet(tmp_path / f"{split}.parquet")
    assert audit.audit(str(tmp_path))["shared_groups"] == []
