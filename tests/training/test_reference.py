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
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmedpo import schema
from mmedpo.errors import InputError
from mmedpo.training.collator import PreferenceCollator
from mmedpo.training.model import language_model_linears
from mmedpo.training.reference import ReferenceCache, reference_fingerprint

ROOT = Path(__file__).parents[2]
SETTINGS = {"mixed_precision": "no", "tf32": None}


def load(folder: Path, **settings: Any) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, **settings)


def with_lora(model: Any, r: int = 4, alpha: int = 8, name: str = "default", seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=language_model_linears(model), **settings)
    return get_peft_model(model, config, adapter_name=name)


@pytest.fixture(scope="module")
def processor(tiny_model: Path) -> Any:
    return AutoProcessor.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def plain(tiny_model: Path, processor: Any) -> str:
    """The fingerprint of the tiny model."""
    return reference_fingerprint(load(tiny_model), processor, SETTINGS)


def test_a_hit_does_not_compute_and_a_half_known_batch_keeps_its_first_values(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, "name")
    first = torch.tensor([-1.1, -torch.inf])
    assert torch.equal(cache.get(["a", "b"], lambda: first), first)

    def never() -> torch.Tensor:
        raise AssertionError("everything is known")

    assert cache.get(["b", "a", "b"], never).tolist() == first[[1, 0, 1]].tolist()
    mixed = cache.get(["a", "c", "b"], lambda: torch.full((3,), -9.0))
    assert mixed.tolist() == [first[0], -9.0, -torch.inf]
    assert torch.equal(ReferenceCache(tmp_path, "name").get(["a", "c", "b"], never), mixed)


def test_a_value_that_is_no_number_is_not_kept(tmp_path: Path) -> None:
    for number in (-1.0, -2.0):
        found = ReferenceCache(tmp_path, "name").get(["a", "b"], lambda n=number: torch.tensor([n, torch.nan]))
        assert found[0] == -1.0 and found[1].isnan()


# What a reference is


def nudge(model: Any, processor: Any) -> None:
    weight = model.model.language_model.layers[1].mlp.up_proj.weight.data
    weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))


def swap_rows(model: Any, processor: Any) -> None:
    weight = model.get_input_embeddings().weight.data
    weight[[7, 8]] = weight[[8, 7]]


CHANGES: dict[str, Callable[[Any, Any], Any]] = {
    "one bit of a weight": nudge,
    "rows of the vocabulary": swap_rows,
    "buffer": lambda model, _: model.register_buffer("shift", torch.zeros(1)),
    "rope base": lambda model, _: model.config.text_config.rope_parameters.update(rope_theta=5e5),
    "attention": lambda model, _: model.model.vision_tower.set_attn_implementation("eager"),
    "dtype": lambda model, _: model.model.multi_modal_projector.to(torch.bfloat16),
    "pixels": lambda _, own: setattr(own.image_processor, "image_mean", [0.48, 0.46, 0.41]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_decides_the_numbers_gives_another_fingerprint(
    change: str, tiny_model: Path, processor: Any, plain: str
) -> None:
    model, changed = load(tiny_model), AutoProcessor.from_pretrained(tiny_model)
    CHANGES[change](model, changed)
    assert (
        reference_fingerprint(model, changed, SETTINGS)
        != plain
        == reference_fingerprint(load(tiny_model), processor, SETTINGS)
    )


def test_settings_and_reference_adapters_give_another_fingerprint(tiny_model: Path, processor: Any) -> None:
    adapters = [{}, {"alpha": 16}, {"seed": 1}, {"r": 2}, {"name": "ref"}]
    found = [reference_fingerprint(with_lora(load(tiny_model), **adapter), processor, SETTINGS) for adapter in adapters]
    found += [reference_fingerprint(load(tiny_model), processor, {**SETTINGS, **other}) for other in
              ({}, {"tf32": True}, {"mixed_precision": "bf16"})]  # fmt: skip
    two = with_lora(load(tiny_model))
    two.add_adapter("other", two.peft_config["default"])
    found.append(reference_fingerprint(two, processor, SETTINGS))
    two.set_adapter("other")
    found.append(reference_fingerprint(two, processor, SETTINGS))
    assert len(set(found)) == len(found)


def test_the_reference_is_the_same_whatever_adapter_is_trained_on_it(
    tiny_model: Path, processor: Any, plain: str
) -> None:
    trained = with_lora(load(tiny_model), r=8, use_dora=True, modules_to_save=["multi_modal_projector"])
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    assert reference_fingerprint(trained, processor, SETTINGS, trained={"default"}) == plain
    assert reference_fingerprint(trained, processor, SETTINGS) != plain
    assert reference_fingerprint(copy.deepcopy(trained).merge_and_unload(), processor, SETTINGS) != plain
    below = trained.get_base_model().model.language_model.layers[0].mlp.up_proj.base_layer.weight.data
    below[0, 0] += 1e-3
    assert reference_fingerprint(trained, processor, SETTINGS, trained={"default"}) != plain


def test_after_sft_the_reference_is_the_sft_adapter_and_not_the_base(
    tiny_model: Path, processor: Any, plain: str
) -> None:
    def policy(seed: int) -> Any:
        """As TRL makes it of a model with an SFT adapter: `ref` is a copy that stays."""
        model = with_lora(load(tiny_model), seed=seed, init_lora_weights=False)
        model.add_adapter("ref", model.peft_config["default"])
        for name, parameter in model.named_parameters():
            if ".default." in name:
                model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)
        return model

    sft = policy(0)
    before = reference_fingerprint(sft, processor, SETTINGS, trained={"default"})
    for name, parameter in sft.named_parameters():
        if ".default." in name:
            parameter.data += 1
    assert reference_fingerprint(sft, processor, SETTINGS, trained={"default"}) == before
    assert reference_fingerprint(policy(1), processor, SETTINGS, trained={"default"}) != before
    assert plain != before


def test_where_a_model_lies_and_what_its_tokenizer_did_last_do_not_matter(
    tiny_model: Path, processor: Any, plain: str, tmp_path: Path
) -> None:
    load(tiny_model).save_pretrained(tmp_path / "copy")
    processor.save_pretrained(tmp_path / "copy")
    copied = AutoProcessor.from_pretrained(tmp_path / "copy")
    copied.tokenizer(["one", "two words"], padding=True, truncation=True, max_length=2)
    assert reference_fingerprint(load(tmp_path / "copy"), copied, SETTINGS) == plain


def test_a_model_without_its_weights_is_refused(tiny_model: Path, processor: Any) -> None:
    config = load(tiny_model).config
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    with pytest.raises(InputError, match="not in memory"):
        reference_fingerprint(model, processor, SETTINGS)


# What a side is


def test_a_side_is_its_tokens_and_images_and_nothing_else(rows: Dataset, tiny_model: Path) -> None:
    row = rows[0]

    def keys(change: Callable[[Any], Any] = lambda own: None, **changes: Any) -> list[str]:
        processor = AutoProcessor.from_pretrained(tiny_model)
        change(processor)
        return PreferenceCollator(processor)([{**row, **changes}])["side_keys"]

    image = row["images"][0]
    dotted = image.copy()
    dotted.putpixel((0, 0), 255 - image.getpixel((0, 0)))
    chosen, rejected = keys()
    others = [
        *keys(images=[dotted]),
        *keys(images=[image.resize((image.height, image.width * 2))]),
        *keys(images=[image, image]),
        keys(rejected_images=[dotted], rejected=row["chosen"])[1],
        *keys(prompt=[{**row["prompt"][0], "content": "Is there a mass ?"}]),
        *keys(lambda own: setattr(own, "chat_template", own.chat_template.replace("<image>", "<image> look"))),
        *keys(lambda own: own.tokenizer.add_tokens([" ".join(row["prompt"][0]["content"].split()[:2])])),
    ]
    assert len({chosen, rejected, *others}) == len(others) + 1  # two of them show the dotted image beside one answer
    assert keys(id="other", weight=0.1, rejected_images=[image.copy()]) == [chosen, rejected]
    assert keys(chosen=row["rejected"], rejected=row["chosen"]) == [rejected, chosen]
    assert keys(images=[schema.undecoded(rows)[0]["images"][0]]) == [chosen, rejected]


# Files


def filled(folder: Path, count: int = 300) -> Path:
    cache = ReferenceCache(folder, "name")
    cache.get([f"{number:032x}" for number in range(count)], lambda: -torch.arange(count) / 7)
    cache._ledger.close()
    return folder / "name.ledger"


@pytest.mark.parametrize("kept", [50, 0.6, None])
def test_a_torn_or_foreign_file_is_an_error_that_says_what_to_do(kept: float | None, tmp_path: Path) -> None:
    data = filled(tmp_path / "whole").read_bytes()
    data = b"notes, not a database\n" * 50 if kept is None else data[: int(kept * len(data)) if kept < 1 else int(kept)]
    (tmp_path / "name.ledger").write_bytes(data)
    with pytest.raises(InputError, match=r"name\.ledger cannot be used .* Remove the file"):
        ReferenceCache(tmp_path, "name")
    assert (tmp_path / "name.ledger").read_bytes() == data


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
        return torch.tensor([-10.0 - rank])

    steps = [cache.get([str(step * (rank + 1))], compute).item() for step in (1, 1, 2, 4, 2)]
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
    ReferenceCache(tmp_path / "shared", "name").get(["1"], lambda: torch.tensor([-1.0]))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    processes = [spawn.Process(target=_rank, args=(rank, port, tmp_path, answers)) for rank in range(2)]
    for process in processes:
        process.start()
    first, second = sorted(answers.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
    # Rows of rank 0: 1 1 2 4 2; of rank 1: 2 2 4 8 4. Known at the start: 1. So both compute at the first step (2 is
    # new), neither at the second, both at the third (4) and the fourth (8), neither at the last.
    assert first[1] == second[1] == 3
    assert first[2] == [-1, -1, -11, -11, -11]
    assert second[2] == [-11, -11, -11, -11, -11]
    assert first[3] == second[3] == 4
    assert (first[4], second[4]) == (True, False), "only the first process touches a disk"
    assert "Remove the file" in first[5] and first[5] == second[5]
    assert len(ReferenceCache(tmp_path / "shared", "name")) == 4


ZERO3 = """
import sys
from mmedpo import MMedPOConfig
from mmedpo.models.vision_language import load_model, load_processor
from mmedpo.training.reference import reference_fingerprint
config = MMedPOConfig(output_dir=sys.argv[2], use_cpu=True, bf16=False, gradient_checkpointing=False)
model = load_model(sys.argv[1])
empty = sum(parameter.numel() == 0 for parameter in model.parameters())
found = reference_fingerprint(model, load_processor(sys.argv[1]), {})
open(f"{sys.argv[2]}/{config.process_index}", "w").write(f"{empty} {found}")
"""


@pytest.mark.slow
def test_a_model_split_by_zero_3_has_the_fingerprint_of_the_whole(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(ZERO3)
    launch = [*launcher("zero3"), str(tmp_path / "program.py")]
    done = subprocess.run(
        [*launch, str(tiny_model), str(tmp_path)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    whole = reference_fingerprint(load(tiny_model), AutoProcessor.from_pretrained(tiny_model), {})
    for rank in "01":
        empty, found = (tmp_path / rank).read_text().split()
        assert int(empty) > 0, "the parameters were to be split"
        assert found == whole
