"""The cache of reference log-probabilities: what is equal is found, what differs is not, on any number of processes."""

from __future__ import annotations

import copy
import multiprocessing
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from launches import launcher
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmedpo import schema
from mmedpo.errors import InputError
from mmedpo.training.model import language_model_linears
from mmedpo.training.reference import ReferenceCache, fingerprint, row_key

ROOT = Path(__file__).parents[2]
SETTINGS = {"max_length": 512, "mixed_precision": "no"}


def load(folder: Path, **settings: Any) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, **settings)


def with_lora(model: Any, r: int = 4, alpha: int = 8, name: str = "default", seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=language_model_linears(model), **settings)
    return get_peft_model(model, config, adapter_name=name)


@pytest.fixture(scope="module")
def processor(tiny_model: Path) -> Any:
    return AutoProcessor.from_pretrained(tiny_model)


def logps(model: Any, processor: Any, row: dict[str, Any]) -> list[float]:
    """Summed log-probabilities of both answers of a row, by the book."""
    sums = []
    for side, images in (("chosen", row["images"]), ("rejected", row["rejected_images"] or row["images"])):
        prompt = f"<image> {row['prompt'][0]['content']}"
        inputs = processor(text=[prompt], images=[images], return_tensors="pt")
        answer = processor.tokenizer(row[side][0]["content"], return_tensors="pt")["input_ids"]
        ids = torch.cat([inputs["input_ids"], answer], dim=1)
        with torch.no_grad():
            logits = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0].log_softmax(-1)
        count = answer.shape[1]
        sums.append(logits[-count - 1 : -1].gather(1, answer.T).sum().item())
    return sums


def test_a_second_run_finds_what_the_first_computed_bit_for_bit(
    rows: Dataset, tiny_model: Path, processor: Any, tmp_path: Path
) -> None:
    def run(chosen: list[dict[str, Any]]) -> tuple[torch.Tensor, int]:
        model = load(tiny_model)
        cache = ReferenceCache(tmp_path / "cache", fingerprint(model, processor, SETTINGS))
        known = len(cache)
        values = cache.get(
            torch.stack([row_key(row) for row in chosen]),
            lambda: torch.tensor([logps(model, processor, row) for row in chosen]),
        )
        return values, known

    drawn = list(rows.select([0, 1, len(rows) - 1]))
    first, nothing = run(drawn)
    second, known = run([drawn[2], drawn[0]])
    assert (nothing, known) == (0, 3)
    assert first.shape == (3, 2) and len(set(first[[0, 2]].flatten().tolist())) == 4
    again = torch.tensor([logps(load(tiny_model), processor, row) for row in (drawn[2], drawn[0])])
    assert torch.equal(second, first[[2, 0]]) and torch.equal(second, again)


def test_a_hit_does_not_compute_and_a_half_known_batch_keeps_its_first_values(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, "name")
    keys = torch.tensor([[1, 2], [-3, 4], [1, -2]])
    first = torch.tensor([[-1.1, -2.2], [-3.3, torch.inf]])
    assert torch.equal(cache.get(keys[:2], lambda: first), first)

    def never() -> torch.Tensor:
        raise AssertionError("everything is known")

    assert torch.equal(cache.get(keys[[1, 0]], never), first[[1, 0]])
    mixed = cache.get(keys, lambda: torch.full((3, 2), -9.0))
    assert torch.equal(mixed, torch.cat([first, torch.tensor([[-9.0, -9.0]])]))
    assert torch.equal(ReferenceCache(tmp_path, "name").lookup(keys), mixed)


def test_a_value_that_is_no_number_is_not_kept(tmp_path: Path) -> None:
    keys = torch.tensor([[1, 2], [3, 4]])
    ReferenceCache(tmp_path, "name").get(keys, lambda: torch.tensor([[-1.0, torch.nan], [-1.0, -2.0]]))
    assert ReferenceCache(tmp_path, "name").lookup(keys).isnan().tolist() == [[True, True], [False, False]]


# What a reference is


def nudge(model: Any, processor: Any) -> None:
    weight = model.model.language_model.layers[1].mlp.up_proj.weight.data
    weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))


def swap_rows(model: Any, processor: Any) -> None:
    weight = model.get_input_embeddings().weight.data
    weight[[7, 8]] = weight[[8, 7]]


def change_buffer(model: Any, processor: Any) -> None:
    model.register_buffer("shift", torch.zeros(1))


def change_base(model: Any, processor: Any) -> None:
    model.config.text_config.rope_parameters["rope_theta"] = 5e5


def change_attention(model: Any, processor: Any) -> None:
    model.model.vision_tower.set_attn_implementation("eager")


def change_dtype(model: Any, processor: Any) -> None:
    model.model.multi_modal_projector.to(torch.bfloat16)


def change_template(model: Any, processor: Any) -> None:
    processor.chat_template = processor.chat_template.replace("<{{", "< {{")


def change_pixels(model: Any, processor: Any) -> None:
    processor.image_processor.image_mean = [0.48, 0.46, 0.41]


def change_vocabulary(model: Any, processor: Any) -> None:
    processor.tokenizer.add_tokens(["pneumothorax"])


@pytest.mark.parametrize(
    "change",
    [nudge, swap_rows, change_buffer, change_base, change_attention, change_dtype, change_template, change_pixels,
     change_vocabulary],
)  # fmt: skip
def test_whatever_decides_the_numbers_gives_another_fingerprint(
    change: Callable[[Any, Any], None], tiny_model: Path
) -> None:
    model, processor = load(tiny_model), AutoProcessor.from_pretrained(tiny_model)
    before = fingerprint(model, processor, SETTINGS)
    assert fingerprint(load(tiny_model), AutoProcessor.from_pretrained(tiny_model), SETTINGS) == before
    change(model, processor)
    assert fingerprint(model, processor, SETTINGS) != before


def test_settings_and_reference_adapters_give_another_fingerprint(tiny_model: Path, processor: Any) -> None:
    adapters = [{}, {"alpha": 16}, {"seed": 1}, {"r": 2}, {"name": "ref"}]
    found = [fingerprint(with_lora(load(tiny_model), **adapter), processor, SETTINGS) for adapter in adapters]
    found += [fingerprint(load(tiny_model), processor, {**SETTINGS, **other}) for other in
              ({}, {"max_length": None}, {"mixed_precision": "bf16"})]  # fmt: skip
    two = with_lora(load(tiny_model))
    two.add_adapter("other", two.peft_config["default"])
    found.append(fingerprint(two, processor, SETTINGS))
    two.set_adapter("other")
    found.append(fingerprint(two, processor, SETTINGS))
    assert len(set(found)) == len(found)


def test_the_reference_is_the_same_whatever_adapter_is_trained_on_it(tiny_model: Path, processor: Any) -> None:
    plain = fingerprint(load(tiny_model), processor, SETTINGS)
    trained = with_lora(load(tiny_model), r=8, use_dora=True, modules_to_save=["multi_modal_projector"])
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    assert fingerprint(trained, processor, SETTINGS, trained={"default"}) == plain
    assert fingerprint(trained, processor, SETTINGS) != plain
    assert fingerprint(copy.deepcopy(trained).merge_and_unload(), processor, SETTINGS) != plain
    below = trained.get_base_model().model.language_model.layers[0].mlp.up_proj.base_layer.weight.data
    below[0, 0] += 1e-3
    assert fingerprint(trained, processor, SETTINGS, trained={"default"}) != plain


def test_after_sft_the_reference_is_the_sft_adapter_and_not_the_base(tiny_model: Path, processor: Any) -> None:
    def policy(seed: int) -> Any:
        """As TRL makes it of a model with an SFT adapter: `ref` is a copy that stays."""
        model = with_lora(load(tiny_model), seed=seed, init_lora_weights=False)
        model.add_adapter("ref", model.peft_config["default"])
        for name, parameter in model.named_parameters():
            if ".default." in name:
                model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)
        return model

    sft = policy(0)
    before = fingerprint(sft, processor, SETTINGS, trained={"default"})
    for name, parameter in sft.named_parameters():
        if ".default." in name:
            parameter.data += 1
    assert fingerprint(sft, processor, SETTINGS, trained={"default"}) == before
    assert fingerprint(policy(1), processor, SETTINGS, trained={"default"}) != before
    assert fingerprint(load(tiny_model), processor, SETTINGS) != before


def test_where_a_model_lies_and_what_its_tokenizer_did_last_do_not_matter(
    tiny_model: Path, processor: Any, tmp_path: Path
) -> None:
    load(tiny_model).save_pretrained(tmp_path / "copy")
    processor.save_pretrained(tmp_path / "copy")
    copied = AutoProcessor.from_pretrained(tmp_path / "copy")
    before = fingerprint(load(tiny_model), processor, SETTINGS)
    copied.tokenizer(["one", "two words"], padding=True, truncation=True, max_length=2)
    assert fingerprint(load(tmp_path / "copy"), copied, SETTINGS) == before


def test_a_model_without_its_weights_is_refused(tiny_model: Path, processor: Any) -> None:
    config = load(tiny_model).config
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    with pytest.raises(InputError, match="not in memory"):
        fingerprint(model, processor, SETTINGS)


# What a pair is


def test_a_pair_is_its_texts_and_images_and_nothing_else(rows: Dataset) -> None:
    row = rows[0]

    def key(**changes: Any) -> tuple[int, ...]:
        return tuple(row_key({**row, **changes}).tolist())

    image = row["images"][0]
    dotted = image.copy()
    dotted.putpixel((0, 0), 255 - image.getpixel((0, 0)))
    longer = [{**row["chosen"][0], "content": row["chosen"][0]["content"] + " "}]
    others = [
        key(),
        key(images=[dotted]),
        key(images=[image.resize((image.height, image.width * 2))]),
        key(images=[image, image]),
        key(rejected_images=[dotted]),
        key(chosen=longer),
        key(rejected=longer),
        key(prompt=longer),
        key(chosen=row["rejected"], rejected=row["chosen"]),
    ]
    assert len(set(others)) == len(others)
    assert key(id="other", weight=0.1, rejected_images=[image.copy()]) == key()
    assert row_key(row).dtype == torch.int64 and row_key(row).shape == (2,)


def test_undecoded_images_count_by_their_bytes(rows: Dataset, tmp_path: Path) -> None:
    row = schema.undecoded(rows)[0]
    (tmp_path / "image.png").write_bytes(row["images"][0]["bytes"])
    on_disk = {"bytes": None, "path": str(tmp_path / "image.png")}
    assert torch.equal(row_key({**row, "images": [on_disk]}), row_key(row))
    (tmp_path / "image.png").write_bytes(row["images"][0]["bytes"] + b" ")
    assert not torch.equal(row_key({**row, "images": [on_disk]}), row_key(row))


def test_equal_indices_with_other_palettes_are_other_images(rows: Dataset) -> None:
    def paletted(first: int) -> Image.Image:
        image = Image.new("P", (2, 2))
        image.putpalette([first, 0, 0])
        return image

    keys = {tuple(row_key({**rows[0], "images": [paletted(first)]}).tolist()) for first in (1, 2)}
    assert len(keys) == 2


# Files


def filled(folder: Path, count: int = 300) -> Path:
    keys = torch.arange(2 * count).view(count, 2)
    cache = ReferenceCache(folder, "name")
    cache.store(keys, -keys / 7)
    cache.close()
    return folder / "name.ledger"


@pytest.mark.parametrize("kept", [50, 1000, 0.3, 0.6, 0.95])
def test_a_truncated_file_is_an_error_that_says_what_to_do(kept: float, tmp_path: Path) -> None:
    data = filled(tmp_path / "whole").read_bytes()
    length = int(kept * len(data)) if kept < 1 else int(kept)
    (tmp_path / "name.ledger").write_bytes(data[:length])
    with pytest.raises(InputError, match=r"name\.ledger cannot be used .* Remove the file"):
        ReferenceCache(tmp_path, "name")


def test_a_file_of_something_else_is_an_error_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "name.ledger").write_text("notes, not a database\n" * 50)
    with pytest.raises(InputError, match="Remove the file"):
        ReferenceCache(tmp_path, "name")
    assert (tmp_path / "name.ledger").read_text().startswith("notes")


def _store_share(folder: Path, share: int) -> None:
    cache = ReferenceCache(folder, "name")
    for number in range(150):
        keys = torch.tensor([[number, share], [number, 2]])  # one of its own, one that both have
        cache.store(keys, torch.tensor([[-number, -share], [-number, -2.0]]))


def test_two_runs_fill_one_folder_at_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_store_share, args=(tmp_path, share)) for share in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    cache = ReferenceCache(tmp_path, "name")
    assert len(cache) == 450
    assert cache.lookup(torch.tensor([[149, 0], [149, 1], [7, 2]])).tolist() == [[-149, 0], [-149, -1], [-7, -2]]


# Several processes of one run


def _rank(rank: int, port: int, folder: Path, answers: Any) -> None:
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in here.items()})
    from accelerate import PartialState

    PartialState(cpu=True)
    mine = folder / "shared" if rank == 0 else folder / "another-machine"
    cache = ReferenceCache(mine, "name")
    calls = []

    def compute() -> torch.Tensor:
        calls.append(rank)
        every = [None, None]
        torch.distributed.all_gather_object(every, rank)  # hangs unless both are here
        return torch.tensor([[-10.0 - rank, -20.0 - rank]])

    steps = [cache.get(torch.tensor([[step * (rank + 1), 0]]), compute).tolist() for step in (1, 1, 2, 4, 2)]
    try:
        ReferenceCache(folder / "torn", "name")
        refused = ""
    except InputError as error:
        refused = str(error)
    answers.put((rank, len(calls), steps, len(cache), mine.exists(), refused))
    PartialState().destroy_process_group()


def test_processes_compute_together_or_not_at_all_and_only_the_first_writes(tmp_path: Path) -> None:
    torn = filled(tmp_path / "torn")
    torn.write_bytes(torn.read_bytes()[:1000])
    ReferenceCache(tmp_path / "shared", "name").store(torch.tensor([[1, 0]]), torch.tensor([[-1.0, -1.0]]))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    processes = [spawn.Process(target=_rank, args=(rank, port, tmp_path, answers)) for rank in range(2)]
    for process in processes:
        process.start()
    first, second = sorted(answers.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    # Rows of rank 0: 1 1 2 4 2; of rank 1: 2 2 4 8 4. Known at the start: 1. So both compute at the first step (2 is
    # new), neither at the second, both at the third (4) and the fourth (8), neither at the last.
    assert first[1] == second[1] == 3
    assert first[2] == [[[-1, -1]], [[-1, -1]], [[-11, -21]], [[-11, -21]], [[-11, -21]]]
    assert second[2] == [[[-11, -21]], [[-11, -21]], [[-11, -21]], [[-11, -21]], [[-11, -21]]]
    assert first[3] == second[3] == 4
    assert (first[4], second[4]) == (True, False), "only the first process touches a disk"
    assert "Remove the file" in first[5] and first[5] == second[5]
    assert len(ReferenceCache(tmp_path / "shared", "name")) == 4


ZERO3 = """
import sys
from mmedpo import MMedPOConfig
from mmedpo.models.vision_language import load_model, load_processor
from mmedpo.training.reference import fingerprint
config = MMedPOConfig(output_dir=sys.argv[2], use_cpu=True, bf16=False, gradient_checkpointing=False)
model = load_model(sys.argv[1])
empty = sum(parameter.numel() == 0 for parameter in model.parameters())
found = fingerprint(model, load_processor(sys.argv[1]), {})
open(f"{sys.argv[2]}/{config.process_index}", "w").write(f"{empty} {found}")
"""


def test_a_model_split_by_zero_3_has_the_fingerprint_of_the_whole(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(ZERO3)
    launch = [*launcher("zero3"), str(tmp_path / "program.py")]
    done = subprocess.run(
        [*launch, str(tiny_model), str(tmp_path)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    whole = fingerprint(load(tiny_model), AutoProcessor.from_pretrained(tiny_model), {})
    for rank in "01":
        empty, found = (tmp_path / rank).read_text().split()
        assert int(empty) > 0, "the parameters were to be split"
        assert found == whole
