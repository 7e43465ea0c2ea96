"""Models that would run code when loaded: the code leaves a file behind, and no file may be there."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from medklip_files import write_text_encoder

from mmedpo.data import trust
from mmedpo.errors import InputError
from mmedpo.models import vision_language

CODE = """from pathlib import Path
Path({mark!r}).write_text("ran")
"""


class Payload:
    """A pickle of it touches `mark` when an unrestricted reader loads it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """File that the code would leave behind; questions on the terminal are answered with yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    return tmp_path / "ran"


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def own_model_type(folder: Path, mark: Path) -> None:
    (folder / "code.py").write_text(CODE.format(mark=str(mark)))
    change(folder / "config.json", model_type="other", auto_map={"AutoConfig": "code.Config"})


def own_processor(folder: Path, mark: Path) -> None:
    (folder / "code.py").write_text(CODE.format(mark=str(mark)))
    own = {"processor_class": "Other", "auto_map": {"AutoProcessor": "code.Processor"}}
    change(folder / "processor_config.json", **own)


def own_generation(folder: Path, mark: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(CODE.format(mark=str(mark)))


def pickled(folder: Path, mark: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Payload(mark)}, folder / "pytorch_model.bin")


def own_attention(folder: Path, mark: Path) -> None:
    change(folder / "config.json", attn_implementation="somebody/kernel")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (own_model_type, trust.OWN_CODE),
        (own_processor, trust.OWN_CODE),
        (pickled, trust.PICKLED),
        (own_attention, "asks for the Hub's code 'somebody/kernel', which is not run"),
    ],
)
def test_a_model_that_could_run_code_is_refused(tiny_model, tmp_path, mark, spoil, said):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    spoil(folder, mark)
    with pytest.raises(InputError) as caught:
        vision_language.load_processor(str(folder))
        vision_language.load_model(str(folder))
    assert said in str(caught.value) and "trust_remote_code" not in str(caught.value)
    assert not mark.exists()


def test_the_hubs_code_for_attention_is_not_run(tiny_model):
    with pytest.raises(InputError, match="attn_implementation 'somebody/kernel': it is the Hub's code, which is not"):
        vision_language.load_model(str(tiny_model), attention="somebody/kernel")


def test_a_folders_own_way_to_generate_is_not_run(tiny_model, tmp_path, mark):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    own_generation(folder, mark)
    assert vision_language.load_model(str(folder)).generate.__name__ == "generate" and not mark.exists()


def detector(folder: Path) -> object:
    from mmedpo.curation.localize import open_localizer

    return open_localizer(f"detector:{folder}", "disease", "otsu", 0.1)


def tokenizer(folder: Path) -> object:
    return vision_language.load_tokenizer(str(folder))


def text_encoder(folder: Path) -> object:
    from mmedpo.curation.medklip import _encode_texts

    return _encode_texts(["a lesion"], str(folder), torch.device("cpu"))


def vision_tower(folder: Path) -> object:
    from transformers import AutoConfig

    from mmedpo.models.convert.read import Place

    return Place(str(folder)).load(AutoConfig, **trust.only_data())


@pytest.mark.parametrize("read", [detector, tokenizer, text_encoder, vision_tower])
def test_no_reader_runs_the_code_of_a_model(tmp_path, mark, read):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["code.Tokenizer", null]}}')
    own_model_type(folder, mark)
    with pytest.raises(InputError, match="needs code of its repository, which is not run"):
        read(folder)
    assert not mark.exists()


def test_a_pickled_text_encoder_holds_tensors_alone(tmp_path, mark):
    folder = tmp_path / "encoder"
    write_text_encoder(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Payload(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled with more than tensors"):
        text_encoder(folder)
    assert not mark.exists()


def test_a_pickled_adapter_is_refused(tmp_path, mark):
    from peft import LoraConfig

    from mmedpo.models.adapters import with_adapter

    LoraConfig(target_modules=["0"]).save_pretrained(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(InputError, match=r"adapter_model\.bin\), which are not read"):
        with_adapter(torch.nn.Sequential(torch.nn.Linear(2, 2)), "base", str(tmp_path))
    assert not mark.exists()


@pytest.mark.parametrize("command", ["mmedpo", "mmedpo.cli", "mmedpo.quickstart.tiny"])
def test_no_module_of_the_current_folder_is_imported(tmp_path, mark, command):
    here = tmp_path / "data"
    here.mkdir()
    for name in ("typer", "rich", "yaml", "accelerate", "transformers", "argparse", "logging", "numpy", "typing"):
        (here / f"{name}.py").write_text(CODE.format(mark=str(mark)))
    kept = {**os.environ, "PYTHONPATH": str(Path(trust.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-m", command, "--help"], cwd=here, env=kept, capture_output=True, text=True)
    assert done.returncode == 0 and "sage: " in done.stdout, done.stderr
    assert not mark.exists()


def test_no_variable_lets_code_run(tiny_model, tmp_path, mark):
    pairs, model = tmp_path / "pairs", shutil.copytree(tiny_model, tmp_path / "model")
    pairs.mkdir()
    (pairs / "pairs.py").write_text(CODE.format(mark=str(mark)))
    own_model_type(model, mark)
    code = """
import sys
from mmedpo.data import loading
from mmedpo.models import vision_language as models
from mmedpo.errors import InputError
for read, name in [(loading.load_splits, sys.argv[1]), (models.load_model, sys.argv[2])]:
    try:
        read(name)
    except InputError as error:
        print(" ".join(str(error).split()))
"""
    names = ("TRUST_REMOTE_CODE", "HF_DATASETS_TRUST_REMOTE_CODE", "HF_TRUST_REMOTE_CODE", "MMEDPO_TRUST_REMOTE_CODE")
    environment = {**os.environ, **dict.fromkeys(names, "1")}
    words = [sys.executable, "-c", code, str(pairs), str(model)]
    done = subprocess.run(words, env=environment, input="y\ny\n", capture_output=True, text=True, check=False)
    assert trust.SCRIPT in done.stdout and trust.OWN_CODE in done.stdout, done.stderr
    assert not mark.exists()
