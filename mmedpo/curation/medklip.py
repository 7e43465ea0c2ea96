"""MedKLIP (Wu et al., arXiv 2301.02228), the paper's visual tool: heat map and probability of a chest finding.

Own implementation of the published architecture; reads the published checkpoint by its tensor names.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mmedpo.data import hub, trust
from mmedpo.data.images import open_rgb
from mmedpo.errors import InputError
from mmedpo.models.fingerprint import file_contents, model_contents
from mmedpo.models.generation import require_numbers
from mmedpo.models.vision_language import UNLOADABLE, whole

if TYPE_CHECKING:
    from PIL.Image import Image

PIXELS = 224  # width and height of the network's input
PATCHES = 14  # per row and column
TEXT_ENCODER = "emilyalsentzer/Bio_ClinicalBERT"
TEXT_WIDTH, WIDTH = 768, 256
TOKENS = 64  # of a description, with [CLS]
# ImageNet's mean and standard deviation per channel, on values in [0, 1].
MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
SD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
BATCH = 16  # images at a time
TRAINING_ONLY = ("cl_fc.weight", "cl_fc.bias")  # layer of the contrastive loss; every checkpoint has it
MISSPELT = {"eumonia": "pneumonia"}  # in the published file of descriptions


class MedKLIP:
    """MedKLIP from a folder with one checkpoint (`*.pth` or `*.pt`) and one JSON file {observation: description}.

    Args:
        folder: holds both files.
        text_encoder: the BERT of width 768 that the checkpoint was trained with, on the Hub or in a folder. It is
            released once it has encoded the descriptions.
        device: of the network; by default the GPU if there is one.

    Attributes:
        observations: names for `observe`, in the order of the file.

    Raises:
        InputError: a file is missing, duplicated or unreadable; the checkpoint holds other objects than tensors;
            tensors are missing, unknown or misshapen (all are named); the text encoder cannot be used.
    """

    observations: tuple[str, ...]

    def __init__(self, folder: Path, text_encoder: str = TEXT_ENCODER, device: str | None = None) -> None:
        checkpoint, described = _files(folder)
        self._name = str(checkpoint)
        descriptions = _read_descriptions(described)
        self.observations = tuple(MISSPELT.get(name, name) for name in descriptions)
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._network = _load_network(checkpoint).to(self._device).eval()
        self._texts = _encode_texts(list(descriptions.values()), text_encoder, self._device)

    @torch.inference_mode()
    def observe(self, images: Sequence[Image], observation: str) -> list[tuple[np.ndarray, float]]:
        """Return a heat map and a probability of the observation for each image.

        Args:
            images: of any size and mode; they are scaled to 224 x 224, proportions ignored.
            observation: one of `observations`, in upper or lower case.

        Returns:
            For each image a float32 (14, 14) heat map and the probability, in [0, 1], that the observation is present.
            The heat map is the query's cross-attention over the patches, averaged over heads and decoder layers:
            non-negative, with sum 1.

        Raises:
            InputError: the observation is unknown, or the network computes NaN or infinite values.
        """
        names = [name.casefold() for name in self.observations]
        if observation.casefold() not in names:
            raise InputError(f"MedKLIP has no observation {observation!r}; use one of: {', '.join(self.observations)}.")
        query = names.index(observation.casefold())
        found: list[tuple[np.ndarray, float]] = []
        for start in range(0, len(images), BATCH):
            pixels = torch.stack([_pixels(image) for image in images[start : start + BATCH]])
            attention, logits = self._network(pixels.to(self._device), self._texts)
            for numbers in (attention, logits):
                require_numbers(numbers, self._name)
            heats = attention[:, query].reshape(-1, PATCHES, PATCHES).cpu().numpy()
            found += zip(heats, logits[:, query].softmax(-1)[:, 1].tolist(), strict=True)
        return found


class _Network(nn.Module):
    """The published network without its frozen text encoder; module names are those of the checkpoint's tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.res_features = nn.Sequential(
            nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
            _stage(64, 64, blocks=3, stride=1),
            _stage(256, 128, blocks=4, stride=2),
            _stage(512, 256, blocks=6, stride=2),
        )
        self.res_l1 = nn.Linear(1024, 1024)
        self.res_l2 = nn.Linear(1024, WIDTH)
        self.disease_embedding_layer = nn.Linear(TEXT_WIDTH, WIDTH)
        layer = nn.TransformerDecoderLayer(WIDTH, nhead=4, dim_feedforward=1024, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, num_layers=4, norm=nn.LayerNorm(WIDTH))
        self.classifier = nn.Linear(WIDTH, 2)

    def forward(self, pixels: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Return attention N x Q x 196 and logits N x Q x 2 of images N x 3 x 224 x 224 and texts Q x 768."""
        patches = self.res_features(pixels).flatten(2).transpose(1, 2)
        patches = self.res_l2(self.res_l1(patches).relu())
        queries = self.disease_embedding_layer(texts).expand(len(pixels), -1, -1)
        maps = []
        # torch's decoder layer returns no attention, so its eval mode is written out here.
        decoder: Any = self.decoder
        for layer in decoder.layers:
            normed = layer.norm1(queries)
            queries = queries + layer.self_attn(normed, normed, normed, need_weights=False)[0]
            seen, attention = layer.multihead_attn(layer.norm2(queries), patches, patches)
            queries = queries + seen
            queries = queries + layer.linear2(layer.linear1(layer.norm3(queries)).relu())
            maps.append(attention)
        return torch.stack(maps).mean(0), self.classifier(decoder.norm(queries))


class _Bottleneck(nn.Module):
    """A residual block of ResNet-50; the stride is in its 3 x 3 convolution."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample: nn.Module = nn.Identity()
        if channels != 4 * width:
            projection = nn.Conv2d(channels, 4 * width, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(4 * width))

    def forward(self, features: Tensor) -> Tensor:
        residual = self.bn1(self.conv1(features)).relu()
        residual = self.bn2(self.conv2(residual)).relu()
        return (self.bn3(self.conv3(residual)) + self.downsample(features)).relu()


def _stage(channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (_Bottleneck(4 * width, width, stride=1) for _ in range(blocks - 1))
    return nn.Sequential(_Bottleneck(channels, width, stride), *rest)


def contents(folder: Path) -> str:
    """Return one SHA-256 (hexadecimal) over MedKLIP's files and its text encoder.

    Raises:
        InputError: a file is missing or duplicated, or the text encoder cannot be found.
    """
    files = [file_contents(file) for file in _files(folder)]
    encoder = model_contents(text_encoder(folder), also=["pytorch_model.bin"])
    return hashlib.sha256(" ".join([*files, encoder]).encode()).hexdigest()


def text_encoder(folder: Path) -> str:
    """Return the subfolder `text_encoder` if it exists, else the Hub's Bio_ClinicalBERT."""
    own = folder / "text_encoder"
    return str(own) if own.is_dir() else TEXT_ENCODER


def _files(folder: Path) -> tuple[Path, Path]:
    """Return the checkpoint and the file of descriptions."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder of MedKLIP's checkpoint and descriptions.")
    return (
        _only(folder, "*.pth", "*.pt", what="checkpoint (*.pth or *.pt)"),
        _only(folder, "*.json", what="file of descriptions (*.json)"),
    )


def _only(folder: Path, *patterns: str, what: str) -> Path:
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    if len(files) != 1:
        names = f": {', '.join(file.name for file in files)}" if files else ""
        raise InputError(f"{folder} must contain exactly one {what} of MedKLIP; it contains {len(files)}{names}.")
    return files[0]


def _read_descriptions(file: Path) -> dict[str, str]:
    try:
        descriptions = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"MedKLIP's descriptions {file.name} cannot be read as JSON: {error}.") from error
    if not descriptions or not isinstance(descriptions, dict):
        raise InputError(f"MedKLIP's descriptions {file.name} must be one JSON object {{observation: description}}.")
    if odd := [name for name, text in descriptions.items() if not isinstance(text, str)]:
        raise InputError(f"In MedKLIP's descriptions {file.name} entries without text: {', '.join(odd)}.")
    return descriptions


def _load_network(file: Path) -> _Network:
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, LookupError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        if other := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
            raise InputError(
                f"MedKLIP's checkpoint {file.name} contains {other[1]} beside tensors, which is not read, since it "
                "could run code. If you trust the file, save only {'model': its tensors} and give that file."
            ) from error
        raise InputError(f"MedKLIP's checkpoint {file.name} is damaged or was not written by torch.save.") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), dict):
        raise InputError(f"MedKLIP's checkpoint {file.name} must have its tensors under the key 'model'.")
    tensors = {name.removeprefix("module."): tensor for name, tensor in checkpoint["model"].items()}
    with torch.device("meta"):  # saves memory and leaves the global random state as it is
        network = _Network()
    try:
        network.load_state_dict({name: tensors[name] for name in tensors if name not in TRAINING_ONLY}, assign=True)
    except RuntimeError as error:
        faults = " ".join(line.strip() for line in str(error).splitlines()[1:])
        raise InputError(f"The checkpoint {file.name} does not have MedKLIP's architecture. {faults}") from error
    return network.float()


@torch.inference_mode()
def _encode_texts(texts: list[str], encoder: str, device: torch.device) -> Tensor:
    """Return the text encoder's [CLS] vectors, float32 Q x 768.

    As in the published code, a text is [CLS] and its word pieces, without BERT's final [SEP].
    """
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(encoder, **trust.only_data())
        # The published one is a pickle. Its pooler is not used.
        bert = whole(AutoModel, encoder, unused=("pooler.",), pickled=True, dtype=torch.float32).to(device).eval()
    except InputError:
        raise
    except (*UNLOADABLE, pickle.UnpicklingError) as error:
        raise InputError(f"The text encoder {encoder!r} cannot be loaded: {hub.why_unread(error, encoder)}") from error
    if bert.config.hidden_size != TEXT_WIDTH or tokenizer.cls_token is None:
        raise InputError(f"The text encoder {encoder!r} is not a BERT of width {TEXT_WIDTH}, which MedKLIP needs.")
    marked = [f"{tokenizer.cls_token} {text}" for text in texts]
    options = {"padding": "max_length", "truncation": True, "max_length": TOKENS, "return_tensors": "pt"}
    vectors = bert(**tokenizer(marked, add_special_tokens=False, **options).to(device)).last_hidden_state[:, 0]
    require_numbers(vectors, encoder)
    return vectors


def _pixels(image: Image) -> Tensor:
    """Return the network's input for one image, float32 3 x 224 x 224."""
    from PIL import Image as pillow

    scaled = open_rgb(image).resize((PIXELS, PIXELS), pillow.Resampling.BILINEAR)
    return torch.from_numpy((np.asarray(scaled, dtype=np.float32) / 255 - MEAN) / SD).permute(2, 0, 1)
