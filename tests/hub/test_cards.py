"""Cards: the whole text is matched against the filled examples, and the Hub's own classes read the front matter."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset
from huggingface_hub import DatasetCard, ModelCard
from PIL import Image

from mmedpo import schema
from mmedpo.data import licenses
from mmedpo.errors import InputError
from mmedpo.hub import cards
from mmedpo.report import curves
from mmedpo.report.notices import notices
from mmedpo.runs import packaged

EXAMPLES = Path(__file__).parents[2] / "model_cards" / "examples"
MAKERS = {"dataset": cards.dataset_card, "adapter": cards.adapter_card}


def changed(kind: str, folder: Path, **changes: Any) -> Path:
    """A copy of an example folder (named `copy`) whose manifest or training record is changed at the top level."""
    shutil.copytree(EXAMPLES / kind, folder / "copy")
    path = folder / "copy" / {"dataset": "manifest.json", "adapter": "training.json"}[kind]
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder / "copy"


@pytest.mark.parametrize("kind", MAKERS)
def test_whole_card(kind: str) -> None:
    assert MAKERS[kind](EXAMPLES / kind) == (EXAMPLES / f"{kind}.md").read_text(encoding="utf-8")


def test_dataset_front_matter_is_read_by_the_hub_classes() -> None:
    data = DatasetCard(cards.dataset_card(EXAMPLES / "dataset")).data
    assert (
        not {"license", "license_name"} & data.to_dict().keys()
    )  # a person has to say it; the source's is in the text
    assert data.task_categories == ["visual-question-answering", "image-text-to-text"]
    assert {"mmedpo", "preference", "dpo", "medical", "trl"} <= set(data.tags)
    assert data.size_categories == ["1K<n<10K"]


def test_a_published_dataset_card_differs_where_it_must() -> None:
    files = {"configs": [{"config_name": "default"}], "dataset_info": {"download_size": 3}}
    plain = cards.dataset_card(EXAMPLES / "dataset").splitlines()
    published = cards.dataset_card(
        EXAMPLES / "dataset", published=cards.Published("someone/pairs", "audit.png", **files)
    ).splitlines()
    assert [line for line in published if line not in plain] == [
        "configs:", "- config_name: default", "dataset_info:", "  download_size: 3",
        "![Kinds, weights, lengths and rejects of the pairs](audit.png)",
        'dataset = load_dataset("someone/pairs", split="train")',
    ]  # fmt: skip
    assert [line for line in plain if line not in published] == [
        "`rejects.jsonl`, if the folder has it, lists each with its reason.",
        'dataset = load_dataset("path/to/this/folder", split="train")  # or the Hub id of this dataset',
    ]


@pytest.mark.parametrize("split", ["train", None])
@pytest.mark.parametrize("limit", [20, None])
def test_a_dataset_card_says_that_questions_were_limited(tmp_path: Path, split: str | None, limit: int | None) -> None:
    source = {"name": "clinic", "license": "unknown", "questions": 20, "split": split, "split_by": "source"}
    (line,) = [
        line
        for line in cards.dataset_card(changed("dataset", tmp_path, source=source, settings={"limit": limit})).split(
            "\n"
        )
        if "questions taken" in line
    ]
    assert ("at most 20, chosen by seed (`--limit`)" in line) is (limit is not None)
    assert ("of all its splits" in line) is (split is None) and "all of them" not in line


def test_what_was_written_is_kept_beside_what_a_person_may_edit(tmp_path: Path) -> None:
    folder = changed("dataset", tmp_path)
    cards.write_dataset_card(folder)
    written = (folder / "README.md").read_text()
    assert written == (folder / ".mmedpo" / "card.md").read_text() == cards.dataset_card(folder)


def test_adapter_front_matter_is_read_by_the_hub_classes() -> None:
    data = ModelCard(cards.adapter_card(EXAMPLES / "adapter")).data
    assert (data.base_model, data.library_name) == ("example-org/invented-med-vlm", "peft")
    assert (data.pipeline_tag, data.datasets) == ("image-text-to-text", ["example-org/invented-pairs"])


@pytest.mark.parametrize(
    ("text", "license", "name"),
    [
        ("CC0 1.0", "cc0-1.0", None),
        ("cc by-nc-nd 4.0", "cc-by-nc-nd-4.0", None),
        ("llama3.1", "llama3.1", None),
        ("OpenRAIL++", "openrail++", None),
        ("PhysioNet Credentialed 1.5.0", "other", "physionet-credentialed-1.5.0"),
    ],
)
def test_licences_are_named_as_the_hub_knows_them(text: str, license: str, name: str | None) -> None:
    fields = licenses.fields(text)
    assert (fields["license"], fields.get("license_name")) == (license, name)


def test_the_card_does_not_mix_up_folders(tmp_path: Path) -> None:
    # A card with `configs` makes `datasets` take the second folder's rows from the first one's cache.
    for number in (1, 2):
        folder = tmp_path / str(number) / "pairs"
        (folder / "data").mkdir(parents=True)
        Dataset.from_dict({"a": [0] * number}).to_parquet(str(folder / "data" / "train-00000-of-00001.parquet"))
        shutil.copy(EXAMPLES / "dataset" / "manifest.json", folder)
        (folder / "rejects.jsonl").write_text('{"id": "a"}\n')
        (folder / "README.md").write_text(cards.dataset_card(folder))
        assert load_dataset(str(folder), split="train").num_rows == number


def test_a_stand_in_is_the_first_paragraph_of_every_card(tmp_path: Path) -> None:
    said = "**Not for real use.** Offline stand-ins made or scored rows in place of real models: standin:rules. "
    made = changed("dataset", tmp_path / "a", standins=["standin:rules"])
    trained = changed("adapter", tmp_path / "b", dataset_manifest={"standins": ["standin:rules"], "judges": []})
    bare = cards.stripped_card(made, cards.Published("someone/weights", "", [], {}))
    for card in (cards.dataset_card(made), cards.adapter_card(trained), bare):
        assert re.search(r"^# .*\n\n(.*)", card, re.MULTILINE)[1].startswith(said)
    free = changed("dataset", tmp_path / "c", standins=[])  # named, but of no row
    assert "Not for real use" not in cards.dataset_card(free)


def test_card_of_rows_that_nobody_scored_says_so(tmp_path: Path) -> None:
    weights = {"method": "none", "count": 1410, "unscored": 1290, "mean_before": 1.0, "sd_before": 0.0,
               "mean_after": 1.0, "sd_after": 0.0, "low": None, "high": None}  # fmt: skip
    card = cards.dataset_card(changed("dataset", tmp_path / "a", weights=weights, judges=[]))
    assert "Clinical relevance was turned into weights" not in card
    assert "| `clinical_relevance` | float in [0, 1], or null | " in card
    assert "side. **No clinical relevance was scored** for 1,290 of them: every weight is 1, which is plain" in card
    weights |= {"unscored": 1410, "mean_before": None, "sd_before": None}
    card = cards.dataset_card(changed("dataset", tmp_path / "b", weights=weights, judges=[]))
    assert "**No clinical relevance was scored**: every weight is 1, which is plain DPO.\n" in card
    assert "clinical weight" not in card.split("## How a row looks")[0] and "not recorded" not in card
    weights |= {"unscored": 0, "mean_before": 0.7, "sd_before": 0.2}
    assert "\nside. Every weight is 1, which is plain DPO.\n" in cards.dataset_card(
        changed("dataset", tmp_path / "c", weights=weights)
    )


def test_card_without_audit_says_so(tmp_path: Path) -> None:
    folder = changed("dataset", tmp_path, mask_coverage=None, rejects={})
    (folder / "audit.json").unlink()
    card = cards.dataset_card(folder)
    assert "No audit was recorded" in card and "Nothing was rejected." in card
    assert "Noise covers" not in card and "not recorded" not in card


def test_standins_phantoms_and_toys_stand_at_the_top(tmp_path: Path) -> None:
    source = {"name": "phantom", "license": "cc0-1.0", "split": "train", "split_by": "image", "questions": 3}
    folder = changed("dataset", tmp_path, source=source, target_model={"name": "/home/someone/tiny-llava"})
    card = cards.dataset_card(folder)
    top = card[: card.index("## How a row looks")]
    assert "standin:chat, standin:judge-a" in top and "phantoms" in top and "tiny-llava" in top
    assert "/home/someone" not in card
    manifest = json.loads((folder / "manifest.json").read_text())
    trained = changed("adapter", tmp_path / "a", dataset=str(folder), dataset_manifest=manifest)
    adapter = cards.adapter_card(trained)
    assert "phantoms" in adapter and "standin:chat" in adapter
    assert str(tmp_path) not in adapter


def test_real_models_need_no_warning() -> None:
    real = {"model": "xtuner/TinyLLaVA-3B", "dataset": "someone/tinypairs", "command": "standin:chat phantom tiny"}
    assert notices(real) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config": {"weighted": False}}, "plain DPO, its weights switched off"),
        ({"config": {"loss_type": ["sft"]}}, "without a preference loss"),
        ({"config": {"loss_type": ["sigmoid", "sft"]}}, "clinically weighted objective of MMedPO, plus the likelihood"),
        ({"config": {"loss_type": ["sigmoid", "bco_pair"]}}, "objective of MMedPO (loss sigmoid + bco_pair)\n"),
        ({"weights": {"mean": 1.0, "sd": 0.0}}, "plain DPO times a constant"),
    ],
)
def test_the_objective_is_named_as_it_was(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert said in cards.adapter_card(changed("adapter", tmp_path, **changes))


def test_a_whole_model_is_not_called_an_adapter(tmp_path: Path) -> None:
    card = cards.adapter_card(changed("adapter", tmp_path, lora={}))
    assert ModelCard(card).data.library_name == "transformers"
    assert "PeftModel" not in card and "A fully fine-tuned model" in card


def test_folders_are_not_taken_for_hub_ids(tmp_path: Path) -> None:
    card = cards.adapter_card(changed("adapter", tmp_path, model=str(tmp_path), dataset="./pairs"))
    assert ModelCard(card).data.base_model is None and ModelCard(card).data.datasets is None
    assert 'base = "path/to/the/base/model"' in card
    assert cards.hub_id("owner/name") == "owner/name"
    assert cards.hub_id("owner/name", is_local=True) is None and cards.hub_id("tests/hub") is None
    assert cards.hub_id("tests/hub", is_local=False) == "tests/hub"
    assert cards.hub_id("tests") is None and cards.hub_id({"name": "a/b", "revision": "c"}) == "a/b"


def test_the_dataset_is_readable_by_the_version_that_its_card_names() -> None:
    kinds = set(re.findall(r'"_type": "(\w+)"', json.dumps(schema.FEATURES.to_dict())))
    assert kinds == {"Value", "ClassLabel", "Image", "List"}  # all that datasets 4.0 knows, and 3.6 not the last
    assert "Needs `datasets` 4.0 or later" in cards.dataset_card(EXAMPLES / "dataset")


def test_curves_leave_out_the_summary_of_the_run() -> None:
    history = [{"step": step, "loss": float(step)} for step in range(1, 21)]
    history.append({"step": 20, "train_runtime": 3.0, "loss": 99.0, "rewards/margins": 99.0})
    # the first and last tenth of 20 steps: (1 + 2) / 2 and (19 + 20) / 2
    assert curves.summaries(history) == [{"key": "loss", "count": 20, "lost": 0, "first": 1.5, "last": 19.5}]


def test_curves_count_steps_without_a_finite_number(tmp_path: Path) -> None:
    history = [{"step": 1, "loss": 2.0, "rewards/margins": None}, {"step": 2, "loss": None, "rewards/margins": None}]
    assert curves.summaries(history) == [
        {"key": "loss", "count": 1, "lost": 1, "first": 2.0, "last": 2.0},
        {"key": "rewards/margins", "count": 0, "lost": 2, "first": None, "last": None},
    ]
    curves.draw(history, tmp_path / "curves.png")  # one point, and no panel of margins
    with Image.open(tmp_path / "curves.png") as drawn:
        assert drawn.size == (400, 300)


def test_a_curve_of_one_step_is_a_point(tmp_path: Path) -> None:
    curves.draw([{"step": 1, "loss": 0.7}], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as drawn:
        colours = drawn.convert("RGB").getcolors(10_000) or []
    assert sum(count for count, (red, _, blue) in colours if blue > red + 50) > 10  # all else is black


@pytest.mark.parametrize("kind", MAKERS)
def test_python_in_the_cards_compiles(kind: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (EXAMPLES / f"{kind}.md").read_text(), re.S)
    assert blocks
    for block in blocks:
        compile(block, kind, "exec")


def test_tables_hold_against_strange_text(tmp_path: Path) -> None:
    card = cards.dataset_card(changed("dataset", tmp_path, rejects={"a | b\n<script>": 1}))
    assert "| a \\| b \\<script> | 1 |" in card


def test_faulty_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"manifest\.json does not exist"):
        cards.dataset_card(tmp_path)
    folder = changed("dataset", tmp_path, format="other/1")
    with pytest.raises(InputError, match=r"has the format 'other/1'; this version reads 'mmedpo\.manifest/1'"):
        cards.dataset_card(folder)
    for text, said in (
        ("[]", "is not a JSON object"),
        ('{"format": "mmedpo.manifest/1"}', "no entry source, counts"),
    ):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(InputError, match=said):
            cards.dataset_card(folder)


@pytest.mark.parametrize("text", [None, "{% if %}"])
def test_a_template_that_cannot_be_read_is_named(
    text: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packaged, "folder", lambda name: tmp_path)
    if text is not None:
        (tmp_path / "dataset.md.jinja").write_text(text)
    with pytest.raises(InputError, match=r"dataset\.md\.jinja.*Install mmedpo again"):
        cards.check_template("dataset")


def test_margins_by_kind_have_a_line_each_and_a_row_each(tmp_path: Path) -> None:
    both = {"rewards/margins": 2.0, "rewards/margins_hallucinated_response": 1.0, "rewards/margins_lesion_noise": 3.0}
    history = [{"step": 1, "loss": 0.7, **dict.fromkeys(both, 0.0)}, {"step": 2, "loss": 0.6, **both}]
    found = {summary["key"]: (summary["first"], summary["last"]) for summary in curves.summaries(history)}
    assert found == {"loss": (0.7, 0.6), **{key: (0.0, value) for key, value in both.items()}}
    one = [{key: value for key, value in entry.items() if "lesion" not in key} for entry in history]
    assert [summary["key"] for summary in curves.summaries(one)] == ["loss", "rewards/margins"]  # it says it all
    curves.draw(history, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as drawn:
        colours = [colour for _, colour in drawn.convert("RGB").getcolors(100_000) or []]
    for look in ((0, 114, 178), (213, 94, 0), (0, 158, 115)):  # the palette's first three
        assert look in colours


def test_a_card_without_results_asks_for_them(tmp_path: Path) -> None:
    folder = changed("adapter", tmp_path)
    (folder / "comparison.json").unlink()
    card = cards.adapter_card(folder)
    assert "mmedpo compare --card" in card and ModelCard(card).data.eval_results is None


def test_results_come_with_what_they_were_measured_on() -> None:
    card = (EXAMPLES / "adapter.md").read_text(encoding="utf-8")
    read = ModelCard(card).data
    assert read.model_name == "adapter" and read.eval_results[0].metric_name == "All questions: right"
    part = card[card.index("## Results") : card.index("## Licence")]
    assert "example-org/invented-questions, split test (made by image)" in part and "med_vqa strict" in part
    assert "| 74.1 % [71.1 to 77.1]; +5.1 [+3.0, +7.2], p = 0.002 |" in part
    assert "holds 0 of 400 test images" in part and "More information needed" not in part


def test_results_files_are_what_the_card_is_made_of(tmp_path: Path) -> None:
    folder = changed("adapter", tmp_path)
    comparison = json.loads((folder / "comparison.json").read_text())
    comparison["evaluations"]["mmedpo"]["adapter"] = "runs/copy"
    before = sorted(tmp_path.rglob("*"))
    files = cards.results_files(folder, comparison)
    assert list(files) == ["README.md", "comparison.json", ".eval_results/example-org_invented-questions.yaml"]
    assert sorted(tmp_path.rglob("*")) == before
    (folder / "comparison.json").write_text(files["comparison.json"])
    assert cards.adapter_card(folder) == files["README.md"]


@pytest.mark.parametrize(("kind", "changes"), [
    ("dataset", {"calls": {"judge": {"calls": "many"}}}), ("dataset", {"counts": {"lesion_noise": "many"}}),
    ("dataset", {"rejects": {"no lesion was found": None}}), ("dataset", {"versions": ["0.1.0"]}),
    ("adapter", {"lora": 3}), ("adapter", {"config": []}),
])  # fmt: skip
def test_records_of_other_types_are_refused(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a recorded value has another type"):
        MAKERS[kind](changed(kind, tmp_path, **changes))
