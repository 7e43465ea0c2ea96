"""MedKLIP: the published tensor names, the attention, and the folder's faults.

No public weights are used: checkpoints have the published names and shapes, and random or planted values.
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from medklip_files import (
    DESCRIPTIONS,
    STAGES,
    VOCABULARY,
    Tensors,
    blank_tensors,
    published,
    random_tensors,
    write_folder,
    write_text_encoder,
)
from PIL import Image
from safetensors.torch import save_file

from mmedpo.curation.medklip import MedKLIP
from mmedpo.errors import InputError


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "bert"
    write_text_encoder(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return random_tensors()


@pytest.fixture(scope="module")
def medklip(tensors: Tensors, text_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> MedKLIP:
    folder = write_folder(tmp_path_factory.mktemp("medklip") / "random", tensors)
    return MedKLIP(folder, text_encoder, device="cpu")


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Two images of different sizes and modes."""
    chance = np.random.default_rng(0)
    colour = Image.fromarray(chance.integers(0, 256, (40, 30, 3), dtype=np.uint8))
    return [colour, Image.fromarray(chance.integers(0, 256, (300, 280), dtype=np.uint8))]


def test_the_published_list_has_the_parameters_of_a_resnet_50_up_to_its_third_stage() -> None:
    trunk = {name: shape for name, shape in published().items() if "res_features" in name}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    parameters = sum(math.prod(shape) for name, shape in trunk.items() if not name.endswith(statistics))
    # ResNet-50 has 25,557,032; its fourth stage and its classifier are left out.
    fourth = 2048 * 1024 + 512 * 1024 + 2 * 512 * 2048 + 3 * (512 * 512 * 9 + 512 * 2048) + 2 * (4 * 2048 + 6 * 512)
    assert parameters == 25_557_032 - fourth - (2048 + 1) * 1000
    assert len(trunk) == 6 + 13 * 18 + 3 * 6


@pytest.fixture(scope="module")
def expected(tensors: Tensors, text_encoder: str, images: list[Image.Image]) -> list[tuple[np.ndarray, np.ndarray]]:
    """A second implementation's heat maps (Q x 14 x 14) and confidences (Q) of each image."""
    texts = text_vectors(text_encoder)
    return [second_route(tensors, texts, features) for features in trunk(tensors, images)]


@pytest.mark.parametrize("name", ["pneumonia", "disease"])
def test_attention_and_confidence_agree_with_a_second_implementation(
    name: str, medklip: MedKLIP, images: list[Image.Image], expected: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    query = medklip.observations.index(name)
    for (heat, confidence), (heats, confidences) in zip(medklip.observe(images, name), expected, strict=True):
        assert heat.shape == (14, 14) and heat.dtype == np.float32 and isinstance(confidence, float)
        np.testing.assert_allclose(heat, heats[query], rtol=1e-3)
        assert confidence == pytest.approx(confidences[query], abs=1e-4)


def text_vectors(text_encoder: str) -> np.ndarray:
    """[CLS] of each description, from token numbers made by hand: no [SEP], cut to 64, never padded."""
    from transformers import BertModel

    bert = BertModel.from_pretrained(text_encoder).eval()
    vectors = []
    for text in DESCRIPTIONS.values():
        tokens = [VOCABULARY.index(word) for word in ["[CLS]", *text.lower().split()]]
        with torch.no_grad():
            vectors.append(bert(torch.tensor([tokens[:64]])).last_hidden_state[0, 0].numpy())
    return np.stack(vectors)


def second_route(tensors: Tensors, texts: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From the trunk's features (196 x 1024) of one image to heat maps and confidences, in float64 NumPy."""
    weights = {name.removeprefix("module."): tensor.double().numpy() for name, tensor in tensors.items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def softmax(x: np.ndarray) -> np.ndarray:
        powers = np.exp(x - x.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    def attend(name: str, q: np.ndarray, kv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inputs = zip(
            (q, kv, kv),
            np.split(weights[f"{name}.in_proj_weight"], 3),
            np.split(weights[f"{name}.in_proj_bias"], 3),
            strict=True,
        )
        # 4 heads of width 64.
        q, k, v = ((x @ weight.T + bias).reshape(len(x), 4, 64).swapaxes(0, 1) for x, weight, bias in inputs)
        shares = softmax(q @ k.swapaxes(1, 2) / 8)
        return linear(f"{name}.out_proj", (shares @ v).swapaxes(0, 1).reshape(-1, 256)), shares.mean(0)

    patches = linear("res_l2", np.maximum(linear("res_l1", features), 0))
    queries = linear("disease_embedding_layer", texts.astype(np.float64))
    heats = []
    for index in range(4):
        layer = f"decoder.layers.{index}"
        normed = norm(f"{layer}.norm1", queries)
        queries = queries + attend(f"{layer}.self_attn", normed, normed)[0]
        seen, heat = attend(f"{layer}.multihead_attn", norm(f"{layer}.norm2", queries), patches)
        queries = queries + seen
        hidden = np.maximum(linear(f"{layer}.linear1", norm(f"{layer}.norm3", queries)), 0)
        queries = queries + linear(f"{layer}.linear2", hidden)
        heats.append(heat)
    logits = linear("classifier", norm("decoder.norm", queries))
    return np.mean(heats, axis=0).reshape(-1, 14, 14), softmax(logits)[:, 1]


def trunk(tensors: Tensors, images: list[Image.Image]) -> np.ndarray:
    """The patches' features (N x 196 x 1024) by transformers' ResNet and image processor, with the same weights."""
    from transformers import ResNetConfig, ResNetModel, ViTImageProcessorPil

    names = {
        "module.res_features.0": "embedder.embedder.convolution",
        "module.res_features.1": "embedder.embedder.normalization",
    }
    for place, (_, _, blocks) in STAGES.items():
        for index in range(blocks):
            ours, theirs = f"module.res_features.{place}.{index}", f"encoder.stages.{place - 4}.layers.{index}"
            for number in (1, 2, 3):
                names[f"{ours}.conv{number}"] = f"{theirs}.layer.{number - 1}.convolution"
                names[f"{ours}.bn{number}"] = f"{theirs}.layer.{number - 1}.normalization"
            names[f"{ours}.downsample.0"] = f"{theirs}.shortcut.convolution"
            names[f"{ours}.downsample.1"] = f"{theirs}.shortcut.normalization"
    model = ResNetModel(ResNetConfig(hidden_sizes=[256, 512, 1024], depths=[3, 4, 6], layer_type="bottleneck")).eval()
    state = {}
    for name, tensor in tensors.items():
        module, _, end = name.rpartition(".")
        if module in names:
            state[f"{names[module]}.{end}"] = tensor
    model.load_state_dict(state)
    processor = ViTImageProcessorPil(
        size={"height": 224, "width": 224}, resample=Image.Resampling.BILINEAR,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    pixels = processor([image.convert("RGB") for image in images], return_tensors="pt").pixel_values
    with torch.no_grad():
        return model(pixels).last_hidden_state.flatten(2).mT.double().numpy()


def planted_tensors() -> Tensors:
    """Weights by which every query attends to brightness: it travels through channel 0 of the trunk alone, and is the
    key of the first head; all else is zero."""
    tensors = blank_tensors()

    def set_one(name: str, place: tuple[int, ...], value: float) -> None:
        tensors[f"module.{name}"] = tensors[f"module.{name}"].clone()
        tensors[f"module.{name}"][place] = value

    set_one("res_features.0.weight", (0,), 1 / (3 * 7 * 7))
    for stage in STAGES:
        set_one(f"res_features.{stage}.0.downsample.0.weight", (0, 0), 1)
    set_one("res_l1.weight", (0, 0), 1)
    set_one("res_l2.weight", (0, 0), 1)
    for index in range(4):
        set_one(f"decoder.layers.{index}.multihead_attn.in_proj_bias", (0,), 60)  # queries come first, then keys
        set_one(f"decoder.layers.{index}.multihead_attn.in_proj_weight", (256, 0), 1)
    set_one("classifier.bias", (1,), math.log(3))
    return tensors


def test_a_planted_bright_square_is_where_the_map_is_hottest(text_encoder: str, tmp_path: Path) -> None:
    medklip = MedKLIP(write_folder(tmp_path / "planted", planted_tensors()), text_encoder, device="cpu")
    width, height, places = 448, 672, [(3, 10), (11, 2), (7, 7)]
    pictures = []
    for row, column in places:
        pixels = np.zeros((height, width), dtype=np.uint8)
        # On the way through channel 0, patch i sees pixel 16 i of 224 and 5 on either side.
        y, x = 16 * row * height // 224, 16 * column * width // 224
        pixels[y - 24 : y + 24, x - 16 : x + 16] = 255
        pictures.append(Image.fromarray(pixels))
    for (heat, confidence), place in zip(medklip.observe(pictures, "mass"), places, strict=True):
        assert np.unravel_index(heat.argmax(), heat.shape) == place
        # One head of four sees the square and only it; the others see all patches alike.
        assert heat.max() == pytest.approx(1 / 4 + 3 / 4 / 196, abs=1e-3)
        assert np.sort(heat, axis=None)[-2] == pytest.approx(3 / 4 / 196, abs=1e-3)
        assert confidence == pytest.approx(3 / 4)


def test_an_image_is_seen_alike_alone_in_batches_and_twice(
    medklip: MedKLIP, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmedpo.curation.medklip.BATCH", 2)
    before = torch.get_rng_state()
    alone = [medklip.observe([image], "pneumonia")[0] for image in images]
    again = medklip.observe(images[:1], "Pneumonia")[0]
    assert again[0].tobytes() == alone[0][0].tobytes() and again[1] == alone[0][1]
    many = medklip.observe([images[index % 2] for index in range(3)], "pneumonia")
    assert len(many) == 3
    for index, (heat, confidence) in enumerate(many):
        np.testing.assert_allclose(heat, alone[index % 2][0], rtol=1e-4)
        assert confidence == pytest.approx(alone[index % 2][1], abs=1e-5)
    assert torch.equal(before, torch.get_rng_state())
    assert medklip.observe([], "mass") == []


def test_loading_draws_no_random_numbers(text_encoder: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "blank", blank_tensors())
    before = torch.get_rng_state()
    MedKLIP(folder, text_encoder, device="cpu")
    assert torch.equal(before, torch.get_rng_state())


def test_an_unknown_observation_is_answered_with_the_known_ones(medklip: MedKLIP, images: list[Image.Image]) -> None:
    with pytest.raises(InputError, match="no observation 'liver'; use one of: normal, pneumonia, disease, mass"):
        medklip.observe(images, "liver")


def test_all_tensors_that_do_not_fit_are_named(text_encoder: str, tmp_path: Path) -> None:
    tensors = blank_tensors()
    tensors["module.res_l1.kernel"] = tensors.pop("module.res_l1.weight")
    tensors["module.text_encoder.embeddings.weight"] = torch.zeros(3)
    tensors["module.classifier.weight"] = torch.zeros(3, 256)
    del tensors["module.res_features.6.5.bn3.running_var"]
    with pytest.raises(InputError, match=r"checkpoint_final\.pth does not have MedKLIP's architecture") as fault:
        MedKLIP(write_folder(tmp_path / "odd", tensors), text_encoder, device="cpu")
    missing, _, rest = str(fault.value).partition("Unexpected key(s)")
    unexpected, _, misshapen = rest.partition("size mismatch for ")
    assert '"res_l1.weight"' in missing and '"res_features.6.5.bn3.running_var"' in missing
    assert '"res_l1.kernel"' in unexpected and '"text_encoder.embeddings.weight"' in unexpected
    assert misshapen.startswith("classifier.weight") and "[3, 256]" in misshapen and "[2, 256]" in misshapen


def test_tensors_without_the_prefix_or_the_training_only_layer_load_too(text_encoder: str, tmp_path: Path) -> None:
    tensors = {name.removeprefix("module."): tensor for name, tensor in blank_tensors().items() if "cl_fc" not in name}
    assert len(tensors) == len(published()) - 2
    MedKLIP(write_folder(tmp_path / "bare", tensors), text_encoder, device="cpu")


def test_a_checkpoint_with_other_objects_is_not_opened(text_encoder: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "objects", {}, args=argparse.Namespace(lr=1e-4))
    with pytest.raises(InputError, match=r"contains argparse\.Namespace beside tensors"):
        MedKLIP(folder, text_encoder, device="cpu")


def double(folder: Path) -> None:
    (folder / "checkpoint_41.pt").touch()


def tear(folder: Path) -> None:
    file = folder / "checkpoint_final.pth"
    file.write_bytes(file.read_bytes()[:-100])


def rewrite(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


DESCRIBED = "observation explanation.json"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: folder.rename(folder.parent / "elsewhere"), "is not a folder"),
        (lambda folder: (folder / "checkpoint_final.pth").unlink(), "exactly one checkpoint .* it contains 0"),
        (double, r"exactly one checkpoint .* it contains 2: checkpoint_41\.pt, checkpoint_final\.pth"),
        (rewrite("other.json", "{}"), "exactly one file of descriptions .* it contains 2"),
        (rewrite(DESCRIBED, "{"), "cannot be read as JSON"),
        (rewrite(DESCRIBED, "{}"), "must be one JSON object"),
        (rewrite(DESCRIBED, '{"mass": "a", "edema": null}'), "entries without text: edema"),
        (tear, "is damaged or was not written by torch.save"),
        (lambda folder: torch.save([1], folder / "checkpoint_final.pth"), "under the key 'model'"),
    ],
)
def test_a_spoilt_folder_is_refused(
    spoil: Callable[[Path], object], message: str, text_encoder: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "folder", blank_tensors())
    spoil(folder)
    with pytest.raises(InputError, match=message):
        MedKLIP(folder, text_encoder, device="cpu")


def test_a_text_encoder_that_is_missing_or_too_narrow_is_refused(text_encoder: str, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = write_folder(tmp_path / "folder", blank_tensors())
    with pytest.raises(InputError, match="text encoder 'no/such' cannot be loaded"):
        MedKLIP(folder, "no/such", device="cpu")
    narrow = tmp_path / "narrow"
    BertModel(BertConfig(vocab_size=13, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(
        narrow
    )
    BertTokenizer.from_pretrained(text_encoder).save_pretrained(narrow)
    with pytest.raises(InputError, match="is not a BERT of width 768"):
        MedKLIP(folder, str(narrow), device="cpu")


def test_text_encoder_without_some_weights_or_with_nan_is_refused(text_encoder: str, tmp_path: Path) -> None:
    from transformers import BertModel

    folder = write_folder(tmp_path / "folder", blank_tensors())
    for name, message in (("lacking", r"incomplete: 1 tensor .* missing"), ("spoilt", "computes NaN or infinite")):
        encoder = tmp_path / name
        shutil.copytree(text_encoder, encoder)
        state = BertModel.from_pretrained(text_encoder).state_dict()
        state["encoder.layer.0.attention.self.query.weight"][:] = torch.nan
        if name == "lacking":
            del state["encoder.layer.0.attention.self.query.weight"]
        kept = {key: value for key, value in state.items() if "pooler" not in key}
        save_file(kept, encoder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InputError, match=message):
            MedKLIP(folder, str(encoder), device="cpu")


def test_checkpoint_that_computes_nan_is_refused(text_encoder: str, images: list[Image.Image], tmp_path: Path) -> None:
    tensors = blank_tensors()
    tensors["module.classifier.weight"] = torch.full((2, 256), torch.nan)
    medklip = MedKLIP(write_folder(tmp_path / "nan", tensors), text_encoder, device="cpu")
    with pytest.raises(InputError, match=r"checkpoint_final\.pth' computes NaN or infinite values"):
        medklip.observe(images, "mass")
