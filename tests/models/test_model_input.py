"""Images at a model's input: the size that its processor says, and its pixels read back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import transformers as tf
from PIL import Image

from mmedpo.errors import InputError
from mmedpo.models import model_input

CLIP = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
SIZES: dict[str, tuple[Callable[[], Any], int]] = {
    "LLaVA": (lambda: tf.CLIPImageProcessorPil(**CLIP), 336),
    "LLaVA, padded": (lambda: tf.LlavaImageProcessorPil(**CLIP, do_pad=True), 336),
    "LLaVA-NeXT": (lambda: tf.LlavaNextImageProcessorPil(**CLIP), 336),
    "LLaVA-OneVision": (lambda: tf.LlavaOnevisionImageProcessorPil(), 384),
    "PaliGemma": (lambda: tf.SiglipImageProcessorPil(size={"height": 224, "width": 224}), 224),
    "Gemma3": (lambda: tf.Gemma3ImageProcessorPil(size={"height": 896, "width": 896}), 896),
    "InternVL": (
        lambda: tf.GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, crop_to_patches=True, max_patches=4),
        448,
    ),
    "Idefics3": (lambda: tf.Idefics3ImageProcessorPil(), 364),
    "Idefics3, no tiles": (lambda: tf.Idefics3ImageProcessorPil(do_image_splitting=False), 364),
    "SmolVLM": (
        lambda: tf.SmolVLMImageProcessorPil(size={"longest_edge": 1024}, max_image_size={"longest_edge": 512}), 512
    ),
    "Pixtral": (lambda: tf.PixtralImageProcessorPil(), 1024),
    "Qwen-VL": (
        lambda: tf.Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 28 * 28 * 1280}), 1001
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", SIZES)
def test_the_longer_side_is_that_of_the_whole_image_at_the_model(family):
    make, side = SIZES[family]
    processor = make()
    seen = max(model_input.overview(processor, Image.new("RGB", (1500, 1500))).shape)
    assert model_input.longer_side(processor) == side
    assert 0 <= side - seen < 28  # a budget's square root is met by whole patches only


def test_a_processor_without_a_size_has_none():
    processor = tf.Gemma4ImageProcessorPil()
    assert model_input.longer_side(processor) is None
    with pytest.raises(InputError, match="Gemma4ImageProcessorPil: its pixel input of shape"):
        model_input.views(processor, Image.new("RGB", (300, 300)))


@pytest.mark.parametrize("family", SIZES)
def test_the_overview_is_the_picture_as_it_was_before_it_was_normalised(family):
    """Left dark red, right light blue: places, channels and brightness come back."""
    array = np.full((600, 600, 3), (60, 10, 20), dtype=np.uint8)
    array[:, 300:] = (90, 160, 250)
    array[:60, :60] = 255
    seen = model_input.overview(SIZES[family][0](), Image.fromarray(array))
    height, width, channels = seen.shape
    assert channels == 3 and height == width
    assert np.allclose(seen[height // 2, width // 4], (60, 10, 20), atol=1)
    assert np.allclose(seen[height // 2, 3 * width // 4], (90, 160, 250), atol=1)
    assert np.allclose(seen[height // 30, width // 30], 255, atol=1)


def test_qwens_patches_are_put_together_pixel_by_pixel():
    array = np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    (seen,) = model_input.views(tf.Qwen2VLImageProcessorPil(), Image.fromarray(array))
    assert np.abs(seen - array).max() < 1e-3


def test_correlation_is_pearson_s_inside_the_mask_averaged_over_channels():
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 20, 30, 3))
    mask = rng.random((20, 30)) > 0.5
    expected = np.mean([np.corrcoef(before[mask][:, c], after[mask][:, c])[0, 1] for c in range(3)])
    assert model_input.correlation(before, after, mask) == pytest.approx(expected)
    assert model_input.correlation(before, before, mask) == pytest.approx(1)
    assert np.isnan(model_input.correlation(before * 0, after, mask))
    assert np.isnan(model_input.correlation(before, after, np.zeros_like(mask)))
