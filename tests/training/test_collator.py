"""Real processors of several families: what the collator makes of them, both ways.

Those of Qwen-VL, InternVL and SmolVLM hold a video processor, which needs torchvision; their models' inputs are built
by hand in families.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from families import SIDE, WORDS, build
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from mmedpo.training.collator import PreferenceCollator
from mmedpo.training.sharing import read_answers

SPECIAL = ["<pad>", "<bos>", "</s>", "<unk>", "<assistant>", "<image>", "<start>", "<end>", "<tile>", "<global-img>"]
TEMPLATE = (
    "<bos>{% for message in messages %}{% if message['role'] == 'assistant' %}<assistant> {% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }} "
    "{% endif %}{% endfor %}{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
SQUARE = {"height": SIDE, "width": SIDE}
CLIP = {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}
LLAVA = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}


def tokenizer() -> Any:
    vocabulary = {word: i for i, word in enumerate(SPECIAL)} | {f"w{i}": i for i in WORDS}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=SPECIAL[4:],
        extra_special_tokens={"image_token": "<image>", "boi_token": "<start>", "eoi_token": "<end>"},
    )  # fmt: skip


def paligemma() -> Any:
    images = tf.SiglipImageProcessorPil(size=SQUARE)
    images.image_seq_length = 4
    return tf.PaliGemmaProcessor(images, tokenizer(), chat_template=TEMPLATE.removeprefix("<bos>"))  # it writes its own


def idefics3() -> Any:
    edge = {"longest_edge": SIDE}
    images = tf.Idefics3ImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False)
    return tf.Idefics3Processor(images, tokenizer(), image_seq_len=4, chat_template=TEMPLATE)


PROCESSORS: dict[str, Callable[[], Any]] = {
    "LLaVA (Llama)": lambda: tf.LlavaProcessor(
        tf.CLIPImageProcessorPil(**CLIP), tokenizer(), chat_template=TEMPLATE, **LLAVA
    ),
    "LLaVA-NeXT": lambda: tf.LlavaNextProcessor(
        tf.LlavaNextImageProcessorPil(**CLIP, image_grid_pinpoints=[[SIDE, 2 * SIDE]]), tokenizer(),
        chat_template=TEMPLATE, **LLAVA,
    ),
    "Gemma3": lambda: tf.Gemma3Processor(
        tf.Gemma3ImageProcessorPil(size=SQUARE), tokenizer(), image_seq_length=4,
        chat_template=TEMPLATE.replace("<image>", "<start>"),
    ),
    "Idefics3": idefics3,
    "PaliGemma": paligemma,
}  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """A pair, a pair with two images, and a pair whose rejected side sees another image."""
    chance = np.random.default_rng(0)

    def images(count: int) -> list[Image.Image]:
        return [Image.fromarray(chance.integers(0, 255, (20, 24, 3), dtype=np.uint8)) for _ in range(count)]

    def said(role: str, *words: int) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(f"w{word}" for word in words)}]

    def pair(count: int, prompt: list[int], chosen: list[int], rejected: list[int]) -> dict[str, Any]:
        return {"images": images(count), "prompt": said("user", *prompt), "chosen": said("assistant", *chosen),
                "rejected": said("assistant", *rejected), "weight": 1.0}  # fmt: skip

    return [
        pair(1, [11, 12], [20, 21, 22], [30]),
        pair(2, [11, 12, 15, 16], [25], [35, 36, 37]),
        {**pair(1, [18], [25], [25]), "rejected_images": images(1), "dispreference": "lesion_noise"},
    ]


@pytest.mark.parametrize("name", PROCESSORS)
def test_shared_and_separate_rows_of_a_real_processor_give_the_same(name: str) -> None:
    processor, family = PROCESSORS[name](), build(name)
    family.model.eval()
    shared, separate = (PreferenceCollator(processor, share=share)(rows()) for share in (True, False))
    assert len(shared["input_ids"]) == 4 and len(separate["input_ids"]) == 6
    assert shared["kind"].tolist() == [-1, -1, 1]
    for batch in (shared, separate):
        del batch["weight"], batch["kind"]
    with torch.no_grad():
        ours, theirs = (read_answers(family.model, way).logps() for way in (shared, separate))
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert abs(ours[2].sum() - ours[5].sum()) > 1e-3, "the same answer on another image has another probability"


def test_answers_are_outside_of_paligemmas_prefix() -> None:
    batch = PreferenceCollator(paligemma(), share=True)(rows())
    assert batch["token_type_ids"].bool().equal(batch["segments"] > 0)


def test_only_image_tokens_are_marked_as_such_for_gemma() -> None:
    batch = PreferenceCollator(PROCESSORS["Gemma3"](), share=True)(rows())
    assert batch["token_type_ids"].bool().equal(batch["input_ids"] == SPECIAL.index("<image>"))
