"""Real processors of the families, with a tokenizer made on the spot and chat templates of the families' own forms.

Qwen-VL, InternVL and SmolVLM hold a video processor, which needs torchvision. Where that is missing, `...WithoutVideo`
classes stand in for theirs: the real class with the real image processor, and no video processor, which images never
reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import transformers as tf
from families import SIDE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.smolvlm import processing_smolvlm

from mmedpo.models.convert.templates import chat_template

SQUARE = {"height": SIDE, "width": SIDE}
CLIP = {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}
LLAVA = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
TEXTS = [
    "Is there an effusion? Yes, on the left. No. What is shown in this image? The heart is enlarged. assistant user"
]

# Templates as published with models of these families on the Hub, without their branches for video and tools.
LLAVA_1_5 = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
LLAVA_NEXT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{{ ' [/INST]' }}{% else %}{{ ' ' + message['content'][0]['text'] + '</s> ' }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}SYSTEM<|im_start|>{{ message['role'] }}\n{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}IMAGE{% else %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN_SYSTEM = "{% if loop.first %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
GEMMA = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<start_of_image>{% else %}{{ content['text'] | trim }}{% endif %}{% endfor %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
IDEFICS = (
    "BOS{% for message in messages %}{{ message['role'].capitalize() }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}{% for content in message['content'] %}"
    "{% if content['type'] == 'text' %}{{ content['text'] }}{% else %}<image>{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
# PaliGemma is published without one: its task prefix and answer as they stand.
PALIGEMMA = (
    "{% for message in messages %}{% for content in message['content'] %}{% if content['type'] == 'image' %}<image>"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}{% if message['role'] == 'assistant' %}<eos>{% endif %}"
    "{% endfor %}"
)


def tokenizer(special: list[str], begins: bool, **named: str) -> Any:
    """A byte-level tokenizer.

    Args:
        special: special tokens from id 0: padding, first, end, unknown, another, image, image start, image end, more.
        begins: whether it puts the first token before texts.
        named: tokens that the family's processor asks for by attribute.
    """
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    if begins:
        made.post_processor = processors.TemplateProcessing(single=f"{special[1]} $A", special_tokens=[(special[1], 1)])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=special[0], bos_token=special[1], eos_token=special[2], unk_token=special[3],
        additional_special_tokens=special[4:], extra_special_tokens=named,
    )  # fmt: skip


def _llama_tokenizer() -> Any:
    return tokenizer(["<pad>", "<s>", "</s>", "<unk>", "<unused>", "<image>"], True, image_token="<image>")


def _llava(style: str | None = None, begins: bool = True) -> Any:
    words = _llama_tokenizer() if begins else _chatml_tokenizer(["<image>"])
    template = chat_template(style, words) if style else LLAVA_1_5
    return tf.LlavaProcessor(tf.CLIPImageProcessorPil(**CLIP), words, chat_template=template, **LLAVA)


def _chatml_tokenizer(images: list[str], **named: str) -> Any:
    return tokenizer(["<pad>", "<|endoftext|>", "<|im_end|>", "<unk>", "<|im_start|>", *images], False, **named)


def _llava_next() -> Any:
    images = tf.LlavaNextImageProcessorPil(**CLIP, image_grid_pinpoints=PINPOINTS)
    return tf.LlavaNextProcessor(images, _llama_tokenizer(), chat_template=LLAVA_NEXT, **LLAVA)


class Qwen2_5_VLProcessorWithoutVideo(tf.Qwen2_5_VLProcessor):
    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: Any = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


class Qwen3VLProcessorWithoutVideo(tf.Qwen3VLProcessor):
    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: Any = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


class InternVLProcessorWithoutVideo(tf.InternVLProcessor):
    def __init__(self, image_processor: Any, tokenizer: Any, image_seq_length: int, chat_template: Any = None) -> None:
        super().__init__(image_processor, tokenizer, None, image_seq_length, chat_template)


class SmolVLMProcessorWithoutVideo(tf.SmolVLMProcessor):
    video_processor = SimpleNamespace(num_frames=None, fps=None)  # its chat template asks

    def __init__(self, image_processor: Any, tokenizer: Any, image_seq_len: int, chat_template: Any = None) -> None:
        super().__init__(image_processor, tokenizer, None, image_seq_len, chat_template)


WITHOUT_VIDEO = {
    tf.Qwen2_5_VLConfig: (Qwen2_5_VLProcessorWithoutVideo, "Qwen2VLVideoProcessor"),
    tf.Qwen3VLConfig: (Qwen3VLProcessorWithoutVideo, "Qwen3VLVideoProcessor"),
    tf.InternVLConfig: (InternVLProcessorWithoutVideo, "InternVLVideoProcessor"),
    tf.SmolVLMConfig: (SmolVLMProcessorWithoutVideo, "SmolVLMVideoProcessor"),
}


def _with_video(config: Any, images: Any, words: Any, **settings: Any) -> Any:
    """The family's own processor where torchvision is installed, else the one without video."""
    stand_in, video = WITHOUT_VIDEO[config]
    if find_spec("torchvision") is None:
        return stand_in(images, words, **settings)
    return stand_in.__base__(images, words, getattr(tf, video)(), **settings)


@contextmanager
def known_without_video() -> Iterator[None]:
    """While open, AutoProcessor finds the processors without video by the names in their folders, where needed."""
    words = processing_smolvlm.num2words
    if find_spec("torchvision") is None:
        for config, (stand_in, _) in WITHOUT_VIDEO.items():
            tf.AutoProcessor.register(config, stand_in, exist_ok=True)
    processing_smolvlm.num2words = words or str  # of video frames; SmolVLM's processor refuses to be made without it
    try:
        yield
    finally:
        processing_smolvlm.num2words = words
        for config in WITHOUT_VIDEO:
            PROCESSOR_MAPPING._extra_content.pop(config, None)


def _qwen(config: Any, system: str) -> Any:
    images = tf.Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": SIDE * SIDE, "longest_edge": 4 * SIDE * SIDE}
    )
    words = _chatml_tokenizer(["<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"])
    template = CHATML.replace("SYSTEM", system).replace("IMAGE", QWEN_IMAGE)
    return _with_video(config, images, words, chat_template=template)


def _internvl() -> Any:
    names = {"context_image_token": "<IMG_CONTEXT>", "start_image_token": "<img>", "end_image_token": "</img>",
             "video_token": "<video>"}  # fmt: skip
    images = tf.GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4)
    template = CHATML.replace("SYSTEM", "").replace("IMAGE", "<IMG_CONTEXT>\n")
    words = _chatml_tokenizer([*names.values()], **names)
    return _with_video(tf.InternVLConfig, images, words, image_seq_length=4, chat_template=template)


def _gemma3() -> Any:
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    turns = ["<start_of_turn>", "<end_of_turn>"]
    words = tokenizer(["<pad>", "<bos>", "<eos>", "<unk>", "<mask>", *names.values(), *turns], True, **names)
    images = tf.Gemma3ImageProcessorPil(size=SQUARE)
    return tf.Gemma3Processor(images, words, image_seq_length=4, chat_template=GEMMA)


TILED = {"do_image_splitting": True, "size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}


def _idefics_tokenizer(begin: str) -> Any:
    tiles = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
    around = ["<image>", "<fake_token_around_image>", "<global-img>"]
    return tokenizer(["<pad>", begin, "<end_of_utterance>", "<unk>", "<unused>", *around, *tiles], False)


def _idefics3() -> Any:
    images, words = tf.Idefics3ImageProcessorPil(**TILED), _idefics_tokenizer("<|begin_of_text|>")
    return tf.Idefics3Processor(images, words, image_seq_len=4, chat_template=IDEFICS.replace("BOS", words.bos_token))


def _smolvlm() -> Any:
    images, words = tf.SmolVLMImageProcessorPil(**TILED), _idefics_tokenizer("<|im_start|>")
    template = IDEFICS.replace("BOS", words.bos_token)
    return _with_video(tf.SmolVLMConfig, images, words, image_seq_len=4, chat_template=template)


def _paligemma() -> Any:
    words = tokenizer(["<pad>", "<bos>", "<eos>", "<unk>", "<mask>", "<image>"], False, image_token="<image>")
    images = tf.SiglipImageProcessorPil(size=SQUARE)
    images.image_seq_length = 4
    return tf.PaliGemmaProcessor(images, words, chat_template=PALIGEMMA)


def matched(name: str) -> tuple[Any, Any]:
    """The family's processor, and its tiny model for the tokens and tiles of that processor."""
    from families import build

    processor, model = PROCESSORS[name](), build(name).model
    model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    if name == "LLaVA-NeXT":
        model.config.image_grid_pinpoints = PINPOINTS
    return processor, model


def save(name: str, folder: Path) -> None:
    """Save the family's `matched` model with its processor."""
    processor, model = matched(name)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


PROCESSORS: dict[str, Callable[[], Any]] = {
    "LLaVA (Llama)": _llava,
    "LLaVA (Mistral, sliding window)": lambda: _llava("mistral_instruct"),
    "LLaVA (Qwen2)": lambda: _llava("huatuo", begins=False),
    "LLaVA-NeXT": _llava_next,
    "Qwen2.5-VL": lambda: _qwen(tf.Qwen2_5_VLConfig, QWEN_SYSTEM),
    "Qwen3-VL": lambda: _qwen(tf.Qwen3VLConfig, ""),
    "Gemma3": _gemma3,
    "InternVL": _internvl,
    "Idefics3": _idefics3,
    "SmolVLM": _smolvlm,
    "PaliGemma": _paligemma,
}
