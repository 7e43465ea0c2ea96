"""Tiny random models of the families that mmedpo trains, with inputs built by hand.

No processor is used (processors.py has them). What the models get is what processors make: one run of placeholders an
image, pixels, grids, and the marks of image tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers as tf
from peft import LoraConfig, get_peft_model

from mmedpo.models.answers import Answers, Tokens, pack, split
from mmedpo.models.prompts import numbered
from mmedpo.models.sharing import BATCH_IMAGES, BatchImages, read_answers
from mmedpo.training.model import language_model_linears
from mmedpo.training.parts import is_frozen

SIDE = 16  # pixels
WORDS = range(10, 60)  # ids of words; special tokens lie outside
IMAGE, START, END = 5, 6, 7
TEXT = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.4, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "head_dim": 8,
}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": SIDE, "patch_size": 8, "initializer_range": 0.4}  # fmt: skip


@dataclass
class Family:
    """A model and how it wants its images. An image is a float tensor (3, SIDE, SIDE)."""

    model: Any
    placeholders: list[int]  # tokens of one image
    pixels: Callable[[list[list[torch.Tensor]]], dict[str, torch.Tensor]]  # images of each row -> model inputs
    marks: str | None = None  # the input that tells image tokens from text
    answer_mark: int = 0
    image_mark: int = 1
    looks_ahead: bool = False  # image tokens see the question


def _flat(rows: list[list[torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.stack([image for row in rows for image in row])}


def _llava(text: Any) -> Family:
    config = tf.LlavaConfig(text_config=text, vision_config=tf.CLIPVisionConfig(**VISION), image_token_index=IMAGE)
    return Family(tf.LlavaForConditionalGeneration(config), [IMAGE] * 4, _flat)


def llava_llama() -> Family:
    return _llava(tf.LlamaConfig(**TEXT))


def llava_mistral() -> Family:
    return _llava(tf.MistralConfig(**TEXT, sliding_window=9))


def llava_qwen2() -> Family:
    return _llava(tf.Qwen2Config(**TEXT))


def llava_next() -> Family:
    config = tf.LlavaNextConfig(
        text_config=tf.MistralConfig(**TEXT), vision_config=tf.CLIPVisionConfig(**VISION), image_token_index=IMAGE,
        image_grid_pinpoints=[[SIDE, 2 * SIDE]],
    )  # fmt: skip

    def pixels(rows: list[list[torch.Tensor]]) -> dict[str, torch.Tensor]:
        tiles = [torch.stack([image, image.flip(-1), image.flip(-2)]) for row in rows for image in row]
        return {"pixel_values": torch.stack(tiles), "image_sizes": torch.tensor([[SIDE, 2 * SIDE]] * len(tiles))}

    model = tf.LlavaNextForConditionalGeneration(config)
    features = model.get_image_features(**pixels([[torch.zeros(3, SIDE, SIDE)]])).pooler_output
    return Family(model, [IMAGE] * len(features[0]), pixels)


def _patches(rows: list[list[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """4 x 4 patches of 4 pixels, in two equal frames, as Qwen-VL's processor flattens them."""
    images = [image for row in rows for image in row]
    flat = [image.unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 0, 3, 4).reshape(16, 3, 1, 16) for image in images]
    return {"pixel_values": torch.cat(flat).expand(-1, -1, 2, -1).reshape(-1, 96),
            "image_grid_thw": torch.tensor([[1, 4, 4]] * len(images))}  # fmt: skip


QWEN_VISION = {"depth": 2, "num_heads": 2, "intermediate_size": 24, "patch_size": 4, "spatial_merge_size": 2,
               "temporal_patch_size": 2, "out_hidden_size": 32, "initializer_range": 0.4}  # fmt: skip
QWEN_TOKENS = {"image_token_id": IMAGE, "video_token_id": 8, "vision_start_token_id": START, "vision_end_token_id": END}
MROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}


def qwen2_5_vl() -> Family:
    vision = {**QWEN_VISION, "hidden_size": 16, "window_size": 8, "fullatt_block_indexes": [1]}
    config = tf.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": MROPE}, vision_config=vision, **QWEN_TOKENS
    )  # fmt: skip
    model = tf.Qwen2_5_VLForConditionalGeneration(config)
    return Family(model, [START, *[IMAGE] * 4, END], _patches, "mm_token_type_ids")


def qwen3_vl() -> Family:
    vision = {**QWEN_VISION, "hidden_size": 16, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    config = tf.Qwen3VLConfig(
        text_config={**TEXT, "rope_parameters": {**MROPE, "mrope_interleaved": True}}, vision_config=vision,
        **QWEN_TOKENS,
    )  # fmt: skip
    model = tf.Qwen3VLForConditionalGeneration(config)
    return Family(model, [START, *[IMAGE] * 4, END], _patches, "mm_token_type_ids")


def gemma3() -> Family:
    text = {**TEXT, "sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 8}  # fmt: skip
    config = tf.Gemma3Config(
        text_config=text, vision_config={**VISION, "patch_size": 4}, mm_tokens_per_image=4, image_token_index=IMAGE,
        boi_token_index=START, eoi_token_index=END,
    )  # fmt: skip
    return Family(tf.Gemma3ForConditionalGeneration(config), [START, *[IMAGE] * 4, END], _flat, "token_type_ids")


def internvl() -> Family:
    vision = {**VISION, "image_size": [SIDE, SIDE], "patch_size": [4, 4]}
    config = tf.InternVLConfig(text_config=tf.Qwen2Config(**TEXT), vision_config=vision, image_token_id=IMAGE)
    return Family(tf.InternVLForConditionalGeneration(config), [IMAGE] * 4, _flat)


def _by_row(rows: list[list[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """(R, most images of a row, 3, SIDE, SIDE): rows with fewer images are filled with zeros, which the model drops."""
    most = max(len(row) for row in rows)
    blank = torch.zeros(3, SIDE, SIDE)
    return {"pixel_values": torch.stack([torch.stack([*row, *[blank] * (most - len(row))]) for row in rows])}


def idefics3() -> Family:
    config = tf.Idefics3Config(
        text_config=tf.LlamaConfig(**TEXT), vision_config={**VISION, "patch_size": 4}, image_token_id=IMAGE,
        scale_factor=2,
    )  # fmt: skip
    return Family(tf.Idefics3ForConditionalGeneration(config), [START, *[IMAGE] * 4, END], _by_row)


def smolvlm() -> Family:
    config = tf.SmolVLMConfig(
        text_config=tf.LlamaConfig(**TEXT), vision_config={**VISION, "patch_size": 4}, image_token_id=IMAGE,
        scale_factor=2,
    )  # fmt: skip
    return Family(tf.SmolVLMForConditionalGeneration(config), [START, *[IMAGE] * 4, END], _by_row)


def paligemma() -> Family:
    config = tf.PaliGemmaConfig(
        text_config=tf.GemmaConfig(**TEXT), vision_config={**VISION, "vision_use_head": False}, image_token_index=IMAGE,
        projection_dim=32, hidden_size=32,
    )  # fmt: skip
    model = tf.PaliGemmaForConditionalGeneration(config)
    # 0 is the prefix, which attends in both directions, images included; 1 the answer.
    return Family(model, [IMAGE] * 4, _flat, "token_type_ids", answer_mark=1, image_mark=0, looks_ahead=True)


FAMILIES: dict[str, Callable[[], Family]] = {
    "LLaVA (Llama)": llava_llama, "LLaVA (Mistral, sliding window)": llava_mistral, "LLaVA (Qwen2)": llava_qwen2,
    "LLaVA-NeXT": llava_next, "Qwen2.5-VL": qwen2_5_vl, "Qwen3-VL": qwen3_vl, "Gemma3": gemma3, "InternVL": internvl,
    "Idefics3": idefics3, "SmolVLM": smolvlm, "PaliGemma": paligemma,
}  # fmt: skip


def build(name: str, attention: str = "sdpa", seed: int = 0) -> Family:
    """The family's tiny model in float32, without dropout, with weights drawn from `seed`."""
    torch.manual_seed(seed)
    family = FAMILIES[name]()
    family.model.set_attn_implementation(attention)
    for parameter in family.model.parameters():  # zeros and ones would hide errors: Gemma3's projector starts at zero
        if parameter.ndim == 1 or not parameter.any():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return family


def pairs(images: Sequence[int] = (1, 2, 1), answers: Sequence[tuple[int, int]] = ((3, 5), (8, 2), (1, 6))) -> Any:
    """Drawn pairs: (images, prompt words, chosen, rejected), with so many images and so long answers."""
    chance = torch.Generator().manual_seed(1)

    def words(count: int) -> list[int]:
        return (torch.randint(len(WORDS), (count,), generator=chance) + WORDS.start).tolist()

    return [
        ([torch.randn(3, SIDE, SIDE, generator=chance) for _ in range(count)], words(4 + count), words(w), words(l))
        for count, (w, l) in zip(images, answers, strict=True)
    ]


def questions(images: Sequence[Sequence[int]] = ((4, 4, 7), (5, 6), (2, 9))) -> Any:
    """Drawn pairs as `pairs`, with several questions of so many words about each image; some begin alike."""
    chance = torch.Generator().manual_seed(2)

    def words(count: int) -> list[int]:
        return (torch.randint(3, (count,), generator=chance) + WORDS.start).tolist()

    drawn = []
    for lengths in images:
        shown = [torch.randn(3, SIDE, SIDE, generator=chance)]
        drawn += [(shown, words(length), words(length), words(9 - length)) for length in lengths]
    return drawn


def batch(family: Family, drawn: Any, shared: bool, once: bool = False) -> dict[str, torch.Tensor]:
    """Model inputs of pairs with equal images: a row an image list, or (fallback) chosen rows and then rejected rows.

    With `once` the image lists are there once, in reversed order, the rows say which they show, and long trees are
    split.
    """
    sides = [*drawn, *drawn]
    lists = numbered([tuple(map(id, pair[0])) for pair in sides])
    keys = [(number, tuple(pair[1]) * family.looks_ahead) for number, pair in zip(lists, sides, strict=True)]
    rows = numbered(keys) if shared else [*range(len(sides))]
    prompts, answers = [prompt(family, pair) for pair in sides], [pair[side] for side in (2, 3) for pair in drawn]
    if once:
        rows = split(rows, prompts, answers)
    inputs = pack(rows, prompts, answers, answer_type=family.answer_mark)
    first = [rows.index(number) for number in range(max(rows) + 1)]
    pixels = family.pixels([sides[i][0] for i in first])
    if once:
        grid, last = pixels.get("image_grid_thw"), max(lists)
        pixels = family.pixels([sides[lists.index(number)][0] for number in reversed(range(last + 1))])
        pixels["pictures"] = torch.tensor([last - lists[i] for i in first])
        if grid is not None:
            pixels |= {"picture_grid_thw": pixels["image_grid_thw"], "image_grid_thw": grid}
    return {**inputs, **pixels}


def prompt(family: Family, pair: Any) -> Tokens:
    ids = [1, *family.placeholders * len(pair[0]), *pair[1]]
    marks = [family.image_mark if token == IMAGE else 0 for token in ids]
    return {"input_ids": ids, **({family.marks: marks} if family.marks else {})}


def alone(family: Family, drawn: Any) -> torch.Tensor:
    """Summed log-probability of each side, chosen first, by the book: every side alone, unpadded, with all logits."""
    sums = []
    for pair, answer in [(pair, pair[side]) for side in (2, 3) for pair in drawn]:
        asked = prompt(family, pair)
        length = len(asked["input_ids"])
        inputs = {
            name: torch.tensor([values + (answer if name == "input_ids" else [family.answer_mark] * len(answer))])
            for name, values in asked.items()
        }
        logits = family.model(**placed(family, {**inputs, **family.pixels([pair[0]])}), use_cache=False).logits
        logps = logits[0, length - 1 : -1].log_softmax(dim=-1)
        sums.append(logps.gather(1, torch.tensor(answer, device=logps.device)[:, None]).sum())
    return torch.stack(sums)


def placed(family: Family, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return inputs on the model's device."""
    return {name: value.to(family.model.device) for name, value in inputs.items()}


def ours(family: Family, inputs: dict[str, torch.Tensor]) -> Answers:
    """What the trainer makes of a batch: with images encoded once where the batch has them once."""
    inputs, once = placed(family, inputs), "pictures" in inputs
    plain = {name: value for name, value in inputs.items() if name not in BATCH_IMAGES}
    return read_answers(family.model, plain, BatchImages(inputs, is_frozen(family.model)) if once else None)


SETTINGS = ("plain", "plain, checkpointing", "plain, re-entrant checkpointing",
            "LoRA", "LoRA, checkpointing", "LoRA, re-entrant checkpointing")  # fmt: skip


def prepare(family: Family, setting: str) -> None:
    """Make a family's model ready to train by one of `SETTINGS`; LoRA's B matrices are drawn, for zeros hide errors."""
    if setting.startswith("LoRA"):
        linears = language_model_linears(family.model)
        family.model = get_peft_model(family.model, LoraConfig(r=2, target_modules=linears, task_type="CAUSAL_LM"))
        for name, parameter in family.model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1)
    family.model.train()
    if "checkpointing" in setting:
        family.model.gradient_checkpointing_enable({"use_reentrant": "re-entrant" in setting})
        family.model.enable_input_require_grads()


def differences(
    name: str, setting: str, shared: bool, attention: str = "sdpa", once: bool = False, drawn: Any = None,
    device: str = "cpu",
) -> tuple[float, float]:  # fmt: skip
    """Weighted DPO loss and gradients against `alone`: absolute difference of the loss, largest relative of a gradient.

    A gradient's difference is relative to the norm of its tensor, or to a thousandth of the largest tensor's norm where
    that is more: a key's bias has no gradient but rounding.
    """
    family, drawn = build(name), drawn or pairs()
    prepare(family, setting)
    family.model.to(device)
    weights = torch.linspace(0.8, 1.25, len(drawn), device=device)
    reference = -4.0 * torch.tensor([len(pair[side]) for side in (2, 3) for pair in drawn], device=device)

    def step(sums: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
        chosen, rejected = (sums - reference).chunk(2)
        loss = (weights * -F.logsigmoid(0.1 * (chosen - rejected))).mean()
        family.model.zero_grad()
        loss.backward()
        parameters = family.model.named_parameters()
        return loss.item(), {key: value.grad.clone() for key, value in parameters if value.grad is not None}

    loss, gradients = step(alone(family, drawn))
    family.model.set_attn_implementation(attention)
    our_loss, our_gradients = step(ours(family, batch(family, drawn, shared, once)).logps().sum(dim=1))
    assert gradients.keys() == our_gradients.keys()
    least = 1e-3 * max(gradient.norm() for gradient in gradients.values())
    relative = [(our_gradients[key] - value).norm() / value.norm().clamp(min=least) for key, value in gradients.items()]
    return abs(our_loss - loss), max(relative).item()
