"""The check before a training: every kind of fault is found, all in one message, and a sound run passes."""

from __future__ import annotations

import io
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from PIL import ExifTags, Image
from transformers import AutoProcessor, LlavaNextImageProcessorPil, LlavaNextProcessor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import ModelConfig

from mmedpo import MMedPOConfig, schema
from mmedpo.data.images import png
from mmedpo.errors import InputError
from mmedpo.models.refusals import prompt_tokens
from mmedpo.training.model import choose_trained
from mmedpo.training.preflight import check
from mmedpo.training.preflight import rows as checked_rows
from mmedpo.training.preflight.image_tokens import SAMPLED, image_tokens

Check = Callable[..., list[str]]
ZERO3 = {"zero_optimization": {"stage": 3}, "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"}


@pytest.fixture
def run_check(rows: Dataset, tiny_model: Path, tmp_path: Path) -> Iterator[Check]:
    """`check` of the fixtures' dataset and model, with LoRA, or with what is given instead."""

    def run(
        dataset: Any = rows, processor: Any = None, model: dict[str, Any] | None = None, **settings: Any
    ) -> list[str]:
        model_args = ModelConfig(model_name_or_path=str(tiny_model), **{"use_peft": True, **(model or {})})
        output = tmp_path / "not" / "yet" / "there"
        config = MMedPOConfig(output_dir=str(output), **{"use_cpu": True, "bf16": False, "max_steps": 2, **settings})

        def adapter(empty: Any) -> Any:
            assert all(parameter.is_meta for parameter in empty.parameters()), "no weights may be loaded"
            return choose_trained(empty, model_args, config)

        return check(
            [dataset], processor or AutoProcessor.from_pretrained(tiny_model), config, model_args, output, adapter
        ).warnings

    yield run
    unset_hf_deepspeed_config()  # transformers keeps ZeRO-3 for the models of later tests


def faults(run: Check, *args: Any, **kwargs: Any) -> dict[tuple[str, str], str]:
    """Sentences by rows and column; every one of them is in the message."""
    with pytest.raises(InputError) as caught:
        run(*args, **kwargs)
    assert all(str(fault) in str(caught.value) for fault in caught.value.faults)
    return {(fault.row, fault.column): fault.sentence for fault in caught.value.faults}


def changed(dataset: Dataset, changes: dict[int, dict[str, Any]]) -> Dataset:
    """The dataset with other values in some rows; ids are `row 0`, `row 1`, ..."""
    listed = [{**row, "id": f"row {i}", **changes.get(i, {})} for i, row in enumerate(schema.undecoded(dataset))]
    return Dataset.from_list(listed, features=dataset.features)


def said(text: str, role: str = "user") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def test_a_sound_run_passes_without_a_word_and_leaves_nothing(run_check: Check, tmp_path: Path) -> None:
    assert run_check() == []
    assert run_check(model={"use_peft": False}) == []
    assert run_check(model={"use_dora": True, "lora_modules_to_save": ["multi_modal_projector"]}) == []
    assert not list(tmp_path.iterdir())


def test_all_kinds_of_faults_are_told_in_one_message(text_rows: Dataset, run_check: Check, tiny_model: Path) -> None:
    image = schema.undecoded(text_rows)[0]["images"][0]
    half = {"bytes": image["bytes"][: len(image["bytes"]) // 2], "path": "half.png"}
    notes = {"bytes": b"these are my notes", "path": "notes.png"}
    dataset = changed(
        text_rows,
        {
            0: {"weight": math.nan},
            1: {"weight": -1.0},
            2: {"images": [half]},
            3: {"rejected_images": [notes]},
            4: {"images": []},
            5: {"rejected_images": [image, image]},
            6: {"rejected": said(" ", "assistant")},
            7: {"prompt": said("<image> Is there a mass?")},
            8: {"prompt": said("Is there a mass?", "doctor")},
            9: {"weight": None, "chosen": said("</s>", "assistant"), "prompt": []},
            10: {"prompt": said("mass " * 200)},
        },
    )
    found = faults(
        run_check, dataset, max_length=200, deepspeed=ZERO3,
        model={"load_in_4bit": True, "lora_r": 10**10},
    )  # fmt: skip

    def rows(*numbers: int) -> str:
        return f"{len(numbers)} of 12 rows ({', '.join(f'row {number}' for number in numbers)})"

    expected = {
        (rows(0), "weight"): "is not a number",
        (rows(1), "weight"): "is -1, outside [0, 1000]",
        (rows(9), "weight"): "is missing; every row needs one",
        (rows(2), "images"): "the image cannot be decoded",
        (rows(3), "rejected_images"): "the image has an unknown format",
        (rows(4), "images"): "is empty",
        (rows(5), "rejected_images"): "has more or fewer images",
        (rows(6), "rejected"): "has no text",
        (rows(7), "prompt"): "contains '<image>'",
        (rows(8), "prompt"): "has another role than system",
        (rows(9), "chosen"): "has no text, or only text without tokens",
        (rows(9), "prompt"): "has no text",
        (rows(10), "max_length 200"): "is less than the row's tokens",
        ("(settings)", "output"): "needs about",
    }
    bitsandbytes = found.pop(("(settings)", "load_in_4bit"))
    assert "ZeRO-3" in bitsandbytes or "not installed" in bitsandbytes
    assert found.keys() == expected.keys()
    assert all(sentence in found[key] for key, sentence in expected.items())


def test_wrong_columns_do_not_hide_other_faults(text_rows: Dataset, run_check: Check) -> None:
    dataset = changed(text_rows, {3: {"weight": -1.0, "images": []}})
    dataset = dataset.remove_columns("chosen").rename_column("task", "kind")
    named = {"lora_target_modules": ["no_proj"], "lora_modules_to_save": ["projector"]}
    found = faults(run_check, dataset, model=named)
    assert found.keys() == {
        ("(all rows)", "chosen"),
        ("(all rows)", "task"),
        ("1 of 12 rows (row 3)", "weight"),
        ("1 of 12 rows (row 3)", "images"),
        ("(settings)", "lora_target_modules"),
        ("(settings)", "lora_modules_to_save"),
    }
    assert "'no_proj' names no module" in found["(settings)", "lora_target_modules"]
    assert "'projector' names no module" in found["(settings)", "lora_modules_to_save"]


def test_repeated_ids_are_refused_as_the_audit_does(text_rows: Dataset, run_check: Check) -> None:
    dataset = changed(text_rows, {1: {"id": "row 0"}, 2: {"id": "row 0"}})
    assert faults(run_check, dataset) == {("row 0", "id"): "occurs 3 times; ids must be unique"}


def test_a_dtype_that_torch_has_not_and_no_epoch_are_refused(run_check: Check) -> None:
    for name in ("float99", "nn"):
        with pytest.raises(InputError, match=f"dtype is '{name}'; use auto"):
            run_check(model={"dtype": name})
    assert run_check(model={"dtype": "float32"}) == []
    with pytest.raises(InputError, match="num_train_epochs is 0: nothing would be trained"):
        run_check(max_steps=-1, num_train_epochs=0)


def test_a_fault_of_lora_target_parameters_has_their_name(run_check: Check) -> None:
    found = faults(run_check, model={"lora_target_parameters": ["norm.weight"]})
    assert found.keys() == {("(settings)", "lora_target_parameters")}
    assert "only 2d and 3d are supported" in found["(settings)", "lora_target_parameters"]


@pytest.mark.parametrize(
    ("model", "settings", "part"),
    [
        ({"load_in_4bit": True}, {"deepspeed": ZERO3}, "cannot be split over processes by ZeRO-3"),
        ({"load_in_8bit": True, "use_peft": False}, {}, "set use_peft to true to train an adapter"),
    ],
)
def test_quantised_weights_are_refused_where_they_cannot_work(
    model: dict[str, Any], settings: dict[str, Any], part: str, run_check: Check
) -> None:
    with pytest.raises(InputError, match=part):
        run_check(model=model, **settings)
    assert run_check(model={"use_dora": True}, **settings) == []


def test_deepspeed_decides_the_dtype_of_the_weights(run_check: Check) -> None:
    found = faults(run_check, model={"dtype": "bfloat16"}, deepspeed=ZERO3)
    assert "ZeRO-3 without mixed precision uses float32" in found["(settings)", "dtype"]
    assert run_check(model={"dtype": "bfloat16"}, deepspeed=ZERO3, bf16=True) == []
    assert run_check(model={"dtype": "float32"}, deepspeed=ZERO3) == []
    (warning,) = run_check(model={"dtype": "float32"}, deepspeed=ZERO3, bf16=True)
    assert "holds the weights in bfloat16" in warning
    assert run_check(model={"dtype": "bfloat16"}) == []


def test_a_length_that_every_row_has_to_keep_is_exact(rows: Dataset, run_check: Check, tiny_model: Path) -> None:
    processor = AutoProcessor.from_pretrained(tiny_model)
    lengths = [max(whole_lengths(processor, row)) for row in rows]
    check_longest(run_check, rows, processor, lengths)


def test_image_tokens_that_depend_on_the_size_are_counted(
    text_rows: Dataset, run_check: Check, tiny_model: Path
) -> None:
    """LLaVA-NeXT cuts an image into tiles; one pair's rejected image is the larger one, and one image is turned."""
    processor = next_processor(tiny_model)
    shapes = [(40, 90), (90, 40), (64, 64), (20, 300), (300, 300), (33, 31)]
    grey = [png(torch.full(shape, 99, dtype=torch.uint8).numpy(), "grey") for shape in shapes]
    changes: dict[int, dict[str, Any]] = {i: {"images": [grey[i % 6]]} for i in range(12)}
    changes[0]["rejected_images"] = [grey[4]]
    changes[1]["images"] = [lying_down(20, 300)]
    dataset = changed(text_rows, changes)
    lengths = [whole_lengths(processor, row) for row in dataset]
    assert len({chosen for chosen, _ in lengths}) > 3 and lengths[0][1] > lengths[0][0] + 2
    check_longest(run_check, dataset, processor, [max(sides) for sides in lengths])


def next_processor(tiny_model: Path) -> Any:
    tiny = AutoProcessor.from_pretrained(tiny_model)
    return LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16},
            image_grid_pinpoints=[[16, 32], [32, 16], [32, 32], [16, 48], [48, 48]],
        ),
        tiny.tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=tiny.chat_template,
    )  # fmt: skip


def lying_down(height: int, width: int) -> dict[str, Any]:
    """A JPEG that is to be turned by a quarter before it is shown."""
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("L", (width, height), 99).save(buffer, "JPEG", exif=exif)
    return {"bytes": buffer.getvalue(), "path": "lying.jpg"}


def whole_lengths(processor: Any, row: dict[str, Any]) -> list[int]:
    """Tokens of prompt, images and answer of both sides, by processing them whole."""
    found = []
    for side, images in (("chosen", row["images"]), ("rejected", row["rejected_images"] or row["images"])):
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["prompt"][0]["content"]}]}
        text = processor.apply_chat_template([user, row[side][0]], tokenize=False)
        made = processor(text=[text], images=[[image.convert("RGB") for image in images]], add_special_tokens=False)
        found.append(len(made["input_ids"][0]))
    return found


def check_longest(run_check: Check, dataset: Dataset, processor: Any, lengths: list[int]) -> None:
    longest = max(lengths)
    assert longest > min(lengths)
    assert run_check(dataset, processor, max_length=longest) == []
    for limit in sorted(set(lengths))[:-1]:
        found = faults(run_check, dataset, processor, max_length=limit)
        ((name, column),) = found
        assert name.startswith(f"{sum(length > limit for length in lengths)} of {len(lengths)} rows")
        assert column == f"max_length {limit}" and f"set {longest} or" in found[name, column]


def test_images_that_the_processor_refuses_are_named(text_rows: Dataset, run_check: Check, tiny_model: Path) -> None:
    class Choosy:
        """A processor that takes no wide image, as Qwen-VL's takes none 200 times as wide as high."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def __call__(self, images: list[list[Image.Image]], **kwargs: Any) -> Any:
            if any(image.width > 100 * image.height for row in images for image in row):
                raise ValueError("aspect ratio must be below 100")
            return self.inner(images=images, **kwargs)

    wide = png(torch.zeros(2, 400, dtype=torch.uint8).numpy(), "wide")
    dataset = changed(text_rows, {1: {"images": [wide]}, 3: {"rejected_images": [wide]}})
    found = faults(run_check, dataset, Choosy(AutoProcessor.from_pretrained(tiny_model)))
    ((_, sentence),) = found.items()
    assert list(found) == [("2 of 12 rows (row 1, row 3)", "images")] and "aspect ratio must be below 100" in sentence


def test_each_distinct_image_is_read_once(
    text_rows: Dataset, run_check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images of 12 rows are two; a fault of one is a fault of every row that shows it, in the sample or not."""
    read: Counter[str] = Counter()
    for name in ("image_size", "image_fault"):
        inner = getattr(checked_rows, name)

        def counted(image: Any, name: str = name, inner: Any = inner) -> Any:
            read[name] += 1
            return inner(image)

        monkeypatch.setattr(checked_rows, name, counted)
    sound, other = (schema.undecoded(text_rows)[i]["images"][0] for i in (0, -1))
    assert sound["bytes"] != other["bytes"]
    shown = [{"bytes": image["bytes"], "path": f"{i}.png"} for i in range(6) for image in (sound, other)]
    assert run_check(changed(text_rows, {i: {"images": [image]} for i, image in enumerate(shown)})) == []
    assert read == {"image_size": 2, "image_fault": 2}
    half = {**other, "bytes": other["bytes"][: len(other["bytes"]) // 2]}
    monkeypatch.setattr(checked_rows, "DECODED", 9)  # at least three rows of six show it
    torn = changed(text_rows, {i: {"images": [half if i % 2 else sound]} for i in range(12)})
    assert list(faults(run_check, torn)) == [("6 of 12 rows (row 1, row 3, row 5, ...)", "images")]


def test_sides_of_equal_bytes_are_equal(text_rows: Dataset, run_check: Check) -> None:
    image, answer = schema.undecoded(text_rows)[2]["images"][0], said("a mass", "assistant")
    same = {"images": [image], "rejected_images": [{**image, "path": "other.png"}]}
    dataset = changed(text_rows, {2: {**same, "chosen": answer, "rejected": answer}})
    assert list(faults(run_check, dataset)) == [("1 of 12 rows (row 2)", "rejected_images")]


def test_texts_are_written_and_tokenised_no_more_than_needed(
    rows: Dataset, run_check: Check, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt is written once a pair, and each of its answers once; tokens are asked for by blocks of rows."""
    processor = AutoProcessor.from_pretrained(tiny_model)
    counts: Counter[str] = Counter()

    def calls(dataset: Dataset) -> Counter[str]:
        counts.clear()
        assert run_check(dataset, processor) == []
        return counts.copy()

    def count(owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return inner(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count(processor, "apply_chat_template")
    count(type(processor.tokenizer), "_encode_plus")
    some = rows.select(range(20))
    many = concatenate_datasets([some] * 9)
    many = many.remove_columns("id").add_column("id", [str(i) for i in range(180)]).cast(rows.features)
    few, more = calls(some), calls(many)
    answers = sum(1 if row["chosen"] == row["rejected"] else 2 for row in some)
    assert few["apply_chat_template"] == 20 + answers
    assert more["apply_chat_template"] == 9 * (20 + answers)
    blocks = [math.ceil(count / checked_rows.ROWS_AT_ONCE) for count in (20, 180)]
    assert more["_encode_plus"] - few["_encode_plus"] == blocks[1] - blocks[0]


class Counting:
    """A processor that counts how often it is asked; `lies` changes its own count of image tokens by size."""

    def __init__(self, inner: Any, lies: bool = False) -> None:
        self.inner, self.lies, self.calls = inner, lies, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.inner(*args, **kwargs)

    def _get_num_multimodal_tokens(self, image_sizes: list[tuple[int, int]]) -> Any:
        told = self.inner._get_num_multimodal_tokens(image_sizes=image_sizes).num_image_tokens
        lied = [tokens + (height > 150) for tokens, (height, _) in zip(told, image_sizes, strict=True)]
        return SimpleNamespace(num_image_tokens=lied if self.lies else told)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("lies", [False, True])
def test_image_tokens_of_many_sizes_are_those_of_each_processed(number: int, lies: bool, tiny_model: Path) -> None:
    inner = next_processor(tiny_model)
    widths = random.Random(0).sample(range(9, 300), 120)
    shown = [tuple((w, h) for _ in range(number)) for w, h in zip(widths[:60], widths[60:], strict=True)]
    prompt = "<image>" * number + " Is there a mass?"
    processor = Counting(inner, lies)
    added, refused = image_tokens(processor, shown, {number: prompt})
    text = len(inner.tokenizer([prompt])["input_ids"][0])
    expected = {sizes: prompt_tokens(inner, prompt, sizes) - text for sizes in shown}
    assert added == expected and not refused and len(set(expected.values())) > 2
    assert processor.calls == 60 if lies else processor.calls <= SAMPLED + 8


def test_odd_but_possible_runs_are_warned_of(text_rows: Dataset, run_check: Check) -> None:
    equal = changed(text_rows, {i: {"weight": 0.5} for i in range(12)})
    (warning,) = run_check(equal)
    assert warning.startswith("All weights are 0.5")
    assert run_check(equal, weighted=False) == []
    nothing = changed(text_rows, {i: {"weight": 0.0} for i in range(12)})
    assert list(faults(run_check, nothing)) == [("12 of 12 rows (row 0, row 1, row 2, ...)", "weight")]
    (warning,) = run_check(changed(text_rows, {2: {"prompt": said("mass " * 1100)}}))
    assert warning.startswith("1 of 12 rows (row 2) have up to") and "the model's context is 1024" in warning


def test_of_a_streamed_dataset_the_beginning_is_checked(text_rows: Dataset, run_check: Check) -> None:
    (warning,) = run_check(text_rows.to_iterable_dataset())
    assert "only its first 1000 rows" in warning
    streamed = changed(text_rows, {5: {"weight": -2.0}}).to_iterable_dataset()
    assert list(faults(run_check, streamed)) == [("1 of 12 rows (row 5)", "weight")]


def test_what_is_saved_is_set_against_the_free_disk(run_check: Check) -> None:
    """Of the linear layers of the tiny model, one of rank r has r * (inputs + outputs) numbers of 4 bytes in LoRA."""
    width, inner, layers, r = 128, 344, 2, 10**9
    numbers = r * layers * (4 * 2 * width + 3 * (width + inner))
    adapter, checkpoint = 4 * numbers / 1e9, (4 + 8) * numbers / 1e9
    huge = {"lora_r": r}
    for settings, kept in (
        ({"save_strategy": "no"}, 0),
        ({"max_steps": 20, "save_steps": 5}, 4),
        ({"max_steps": 20, "save_steps": 5, "save_total_limit": 2}, 3),
        ({"max_steps": 20, "save_steps": 0.5}, 2),
        ({"max_steps": -1, "num_train_epochs": 2, "save_strategy": "epoch"}, 2),
    ):
        (sentence,) = faults(run_check, model=huge, **settings).values()
        assert f"needs about {adapter + kept * checkpoint:.1f} GB" in sentence, settings
    (sentence,) = faults(run_check, model=huge, max_steps=5, save_steps=5, save_only_model=True).values()
    assert f"needs about {2 * adapter:.1f} GB" in sentence
