"""The base model of an adapter: known by its weights, in whatever folder and shards, and by its name where need be."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from mmedpo.errors import InputError
from mmedpo.models.adapters import (
    BY_FINGERPRINT,
    BY_NAME,
    FINGERPRINT,
    adapter_config,
    adapter_contents,
    check_base,
    record,
    with_adapter,
)
from mmedpo.models.fingerprint import fingerprint
from mmedpo.models.vision_language import load_processor

CONFIG = LlamaConfig(
    vocab_size=999, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    tie_word_embeddings=False,
)  # fmt: skip


def model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(CONFIG)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapter(folder: Path, base: str, training: dict[str, Any] | None) -> str:
    get_peft_model(model(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
    if training is not None:
        (folder / "training.json").write_text(json.dumps(training))
    return str(folder)


def test_a_fingerprint_is_of_the_weights_alone(base, tmp_path):
    known = fingerprint(str(base))
    assert known is not None and len(known) == 64
    model().save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    shutil.copytree(base, tmp_path / "elsewhere")
    assert fingerprint(str(tmp_path / "sharded")) == fingerprint(str(tmp_path / "elsewhere")) == known
    others = {}
    for name, change in {
        "step": lambda changed: [value.data.add_(1e-3) for value in changed.model.layers[1].parameters()],
        "norm": lambda changed: changed.model.norm.weight.data[7:8].add_(1e-3),
        "dtype": lambda changed: changed.to(torch.bfloat16),
        "rows": lambda changed: changed.resize_token_embeddings(1003),
    }.items():
        changed = model()
        change(changed)
        changed.save_pretrained(tmp_path / name)
        others[name] = fingerprint(str(tmp_path / name))
    assert len({known, *others.values()}) == 5


def test_a_fingerprint_tells_names_and_every_byte_of_small_tensors(base, tmp_path, monkeypatch):
    tensors = load_file(base / "model.safetensors")
    first, second = (f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1))
    between = tensors[first].clone()
    between.view(-1)[1400:1600] += 1  # of 4,096 numbers
    names = {name: name.removeprefix("model.") for name in tensors}

    def known(changed: dict[str, torch.Tensor]) -> str | None:
        (tmp_path / "changed").mkdir(exist_ok=True)
        save_file(changed, tmp_path / "changed" / "model.safetensors")
        return fingerprint(str(tmp_path / "changed"))

    same = [
        {("" if short == "lm_head.weight" else "model.language_model.") + short: tensors[name]
         for name, short in names.items()},
        {f"language_model.{name}": value for name, value in tensors.items()},
        dict(reversed(tensors.items())),
    ]  # fmt: skip
    others = [
        {**tensors, first: between},
        {**tensors, first: tensors[second], second: tensors[first]},
        {**tensors, "model.layers.2.self_attn.q_proj.weight": tensors[first].clone()},
        {name: value for name, value in tensors.items() if name != first},
    ]
    assert {known(changed) for changed in same} == {fingerprint(str(base))}
    assert len({fingerprint(str(base)), *map(known, others)}) == 5
    for limit in ("WHOLE", "TOTAL"):  # tensors above it are read in blocks, whose ends are the tensor's
        with monkeypatch.context() as patched:
            patched.setattr(f"mmedpo.models.fingerprint.{limit}", 4096)
            patched.setattr("mmedpo.models.fingerprint.BLOCKS", 3)
            patched.setattr("mmedpo.models.fingerprint.SIZE", 1024)
            assert known({**tensors, first: between}) == known(tensors)
            last = tensors[first].clone()
            last.view(-1)[-1] += 1
            assert known({**tensors, first: last}) != known(tensors)


def test_weights_that_are_missing_or_torn_have_none(base, tmp_path):
    weights = base / "model.safetensors"
    whole = weights.read_bytes()
    for torn in (whole[:4], whole[:100]):
        weights.write_bytes(torn)
        with pytest.raises(InputError, match=r"The weights of '.*base' cannot be loaded"):
            fingerprint(str(base))
    weights.unlink()
    assert fingerprint(str(base)) is None


def test_the_same_weights_are_taken_and_others_refused(base, tmp_path, caplog):
    known = {FINGERPRINT: fingerprint(str(base))}
    trained = adapter(tmp_path / "adapter", "org/another-name", known)
    assert check_base(trained, str(base)) == BY_FINGERPRINT
    model(1).save_pretrained(tmp_path / "other" / "another-name")
    with pytest.raises(InputError, match=r"trained on other weights than those of .*Give its own base model, 'org/an"):
        check_base(trained, str(tmp_path / "other" / "another-name"))
    assert not caplog.records
    checkpoint = adapter(tmp_path / "run.partial" / "checkpoint-2", "org/another-name", None)
    (tmp_path / "run.partial" / "training.json").write_text(json.dumps(known))
    assert record(checkpoint) == known and check_base(checkpoint, str(base)) == BY_FINGERPRINT


@pytest.mark.parametrize("training", [None, {}, {FINGERPRINT: None}])
def test_without_a_fingerprint_names_are_compared_and_it_is_said(training, base, tmp_path, caplog):
    for number, (named, said) in enumerate(
        [("org/base", "only the name 'base' was compared"), ("", "nothing was compared")]
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert check_base(adapter(tmp_path / str(number), named, training), str(base)) == BY_NAME
        (message,) = caplog.messages
        assert message.endswith(f"the adapter may have been trained on other weights; {said}.")
    with pytest.raises(InputError, match="was trained on 'org/another', not on"):
        check_base(adapter(tmp_path / "third", "org/another", training), str(base))


def test_a_base_without_safetensors_is_compared_by_name(base, tmp_path, caplog):
    trained = adapter(tmp_path / "adapter", "org/base", {FINGERPRINT: fingerprint(str(base))})
    (base / "model.safetensors").unlink()
    assert check_base(trained, str(base)) == BY_NAME
    assert "base' has no safetensors files: the adapter" in caplog.messages[0]


def test_an_adapter_given_as_a_model_is_said(base, tmp_path):
    trained = adapter(tmp_path / "adapter", "org/base", None)
    with pytest.raises(InputError, match=r"adapter' is an adapter, not a model. Give its base model, 'org/base', as"):
        load_processor(trained)


@pytest.mark.parametrize("option", ["--adapter", "--adapter_name_or_path"])
def test_an_adapter_without_weights_is_said_before_a_model_is_loaded(base, tmp_path, option):
    trained = adapter(tmp_path / "adapter", str(base), None)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=rf"adapter' has no adapter_model.safetensors. Give {option} a finished"):
        check_base(trained, str(base), option=option)
    with pytest.raises(InputError, match=r"adapter' has no adapter_model.safetensors"):
        with_adapter(model(), str(base), trained)


def test_contents_of_an_adapter_are_its_weights_and_configuration(tmp_path):
    name = adapter(tmp_path / "adapter", "org/base", {})
    known = adapter_contents(name)
    shutil.copytree(name, tmp_path / "copy")
    (tmp_path / "copy" / "training.json").write_text("[]")
    (tmp_path / "copy" / "README.md").write_text("A card.")
    assert adapter_contents(str(tmp_path / "copy")) == known
    config = json.loads((tmp_path / "copy" / "adapter_config.json").read_text())
    (tmp_path / "copy" / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 99}))
    other = adapter_contents(str(tmp_path / "copy"))
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    save_file({key: value + 1 for key, value in weights.items()}, tmp_path / "adapter" / "adapter_model.safetensors")
    assert len({known, other, adapter_contents(name)}) == 3
    with pytest.raises(InputError, match="The adapter 'no/where' cannot be read"):
        adapter_contents("no/where")


def test_a_torn_adapter_is_one_sentence(base, tmp_path):
    name = adapter(tmp_path / "adapter", str(base), None)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match=r"the file is truncated or damaged\. Copy or download it again"):
        with_adapter(model(), str(base), name)
    (tmp_path / "adapter" / "adapter_config.json").write_text("[]")
    with pytest.raises(InputError, match=r"cannot be read: .*\. Give the folder or Hub id of an adapter\.$"):
        adapter_config(name)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda tensors: tensors.popitem(),
            "lacks weights of modules that",
        ),
        (
            lambda tensors: tensors.update({"base_model.model.other.lora_A.weight": torch.zeros(2, 2)}),
            "modules that the model does not have",
        ),
        (
            lambda tensors: tensors.update({name: value * torch.nan for name, value in tensors.items()}),
            "contains NaN or",
        ),
    ],
)
def test_an_adapter_that_is_not_loaded_whole_is_refused(base: Path, tmp_path: Path, change: Any, sentence: str) -> None:
    folder = Path(adapter(tmp_path / "adapter", str(base), None))
    with_adapter(model(), str(base), str(folder))
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match=rf"^The adapter \S+ .*{sentence}"):
        with_adapter(model(), str(base), str(folder))


@pytest.mark.parametrize(
    "settings", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["q_proj", "embed_tokens"]}]
)
def test_adapters_of_every_kind_are_loaded_whole(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    made = get_peft_model(model(), LoraConfig(**{"r": 2, "target_modules": ["q_proj"], **settings}))
    made.save_pretrained(tmp_path / "adapter")
    loaded = with_adapter(model(), str(base), str(tmp_path / "adapter")).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in made.state_dict().items() if "lora" in name)
