"""Files as MedKLIP's user has them, with the published tensor names and shapes, but random or blank values.

Names and shapes are written down from the architecture and not from our module; no public weights are used.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

DESCRIPTIONS = {
    "normal": "no disease",
    "eumonia": "Disease of the lung",  # misspelt as in the published file
    "disease": "lung " * 100,  # more than 64 tokens
    "mass": "A white spot",
}
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "disease", "of", "the", "lung", "a", "white", "spot"]
# Place in the Sequential: channels in, width, blocks.
STAGES = {4: (64, 64, 3), 5: (256, 128, 4), 6: (512, 256, 6)}
Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, torch.Tensor]


def published() -> Shapes:
    """Names and shapes of the public checkpoint's tensors."""
    shapes: Shapes = {}

    def affine(name: str, *weight: int) -> None:
        shapes.update({f"module.{name}.weight": weight, f"module.{name}.bias": weight[:1]})

    def conv(name: str, *weight: int) -> None:
        shapes[f"module.{name}.weight"] = weight

    def batch_norm(name: str, width: int) -> None:
        affine(name, width)
        shapes.update({f"module.{name}.running_mean": (width,), f"module.{name}.running_var": (width,)})
        shapes[f"module.{name}.num_batches_tracked"] = ()

    conv("res_features.0", 64, 3, 7, 7)
    batch_norm("res_features.1", 64)
    for place, (channels, width, blocks) in STAGES.items():
        for index in range(blocks):
            block = f"res_features.{place}.{index}"
            conv(f"{block}.conv1", width, 4 * width if index else channels, 1, 1)
            conv(f"{block}.conv2", width, width, 3, 3)
            conv(f"{block}.conv3", 4 * width, width, 1, 1)
            for number, outputs in enumerate((width, width, 4 * width), start=1):
                batch_norm(f"{block}.bn{number}", outputs)
        conv(f"res_features.{place}.0.downsample.0", 4 * width, channels, 1, 1)
        batch_norm(f"res_features.{place}.0.downsample.1", 4 * width)
    affine("res_l1", 1024, 1024)
    affine("res_l2", 256, 1024)
    affine("disease_embedding_layer", 256, 768)
    affine("cl_fc", 768, 256)
    for index in range(4):
        layer = f"decoder.layers.{index}"
        for attention in ("self_attn", "multihead_attn"):
            shapes[f"module.{layer}.{attention}.in_proj_weight"] = (3 * 256, 256)
            shapes[f"module.{layer}.{attention}.in_proj_bias"] = (3 * 256,)
            affine(f"{layer}.{attention}.out_proj", 256, 256)
        affine(f"{layer}.linear1", 1024, 256)
        affine(f"{layer}.linear2", 256, 1024)
        for number in (1, 2, 3):
            affine(f"{layer}.norm{number}", 256)
    affine("decoder.norm", 256)
    affine("classifier", 2, 256)
    return shapes


def is_norm(name: str) -> bool:
    return any(part in name for part in (".bn", ".norm", "downsample.1", "res_features.1."))


def random_tensors() -> Tensors:
    """Values of the size that a trained network has, so that nothing vanishes or saturates."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in published().items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(7)
        elif name.endswith("running_var") or (is_norm(name) and name.endswith("weight")):
            tensors[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            fan_in = math.prod(shape[1:])
            tensors[name] = torch.randn(shape, generator=generator) * (fan_in**-0.5 if fan_in > 1 else 0.3)
    return tensors


def blank_tensors() -> Tensors:
    """Zeros of the published shapes (ones where a normalisation divides or scales), almost empty on disk."""
    ones = {name for name in published() if is_norm(name) and name.endswith(("weight", "running_var"))}
    return {
        name: (torch.zeros((), dtype=torch.int64) if not shape else torch.full((1,), float(name in ones)).expand(shape))
        for name, shape in published().items()
    }


def write_folder(folder: Path, tensors: Tensors, **others: object) -> Path:
    """The user's folder; beside the tensors, the public training code saves its own state and settings."""
    folder.mkdir(exist_ok=True)
    state = {"optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}, "config": {"d_model": 256}, "epoch": 99}
    torch.save({"model": tensors, **state, **others}, folder / "checkpoint_final.pth")
    (folder / "observation explanation.json").write_text(json.dumps(DESCRIPTIONS))
    return folder


def write_text_encoder(folder: Path) -> None:
    """A tiny random BERT of Bio_ClinicalBERT's width that knows the words of `DESCRIPTIONS`."""
    from transformers import BertConfig, BertModel, BertTokenizer

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=768, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab={word: index for index, word in enumerate(VOCABULARY)}).save_pretrained(folder)
