"""Conversion of original LLaVA checkpoints: the same numbers, ids and pixels as the published code computes.

Checkpoints are random and tiny; the names of their tensors are those of the published ones, written out as data.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from mmedpo.errors import AlreadyFinished, InputError
from mmedpo.models.convert import convert

VISION = {
    "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14, "projection_dim": 12,
}  # fmt: skip
LANGUAGE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 5000.0,
    "sliding_window": None, "use_sliding_window": False, "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip
LLAVA = {
    "mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": 24,
    "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False, "image_aspect_ratio": "pad", "torch_dtype": "float32", "use_mm_proj": True,
    "tune_mm_mlp_adapter": False, "tokenizer_padding_side": "right",
}  # fmt: skip
TOWER = "model.vision_tower.vision_tower."
QUESTION = "is the heart big?"


def clip_tensors() -> dict[str, tuple[int, ...]]:
    d, wide = VISION["hidden_size"], VISION["intermediate_size"]
    block = {
        "layer_norm1.weight": (d,), "layer_norm1.bias": (d,), "layer_norm2.weight": (d,), "layer_norm2.bias": (d,),
        "mlp.fc1.weight": (wide, d), "mlp.fc1.bias": (wide,), "mlp.fc2.weight": (d, wide), "mlp.fc2.bias": (d,),
        "self_attn.k_proj.weight": (d, d), "self_attn.k_proj.bias": (d,), "self_attn.q_proj.weight": (d, d),
        "self_attn.q_proj.bias": (d,), "self_attn.v_proj.weight": (d, d), "self_attn.v_proj.bias": (d,),
        "self_attn.out_proj.weight": (d, d), "self_attn.out_proj.bias": (d,),
    }  # fmt: skip
    return {
        "vision_model.embeddings.class_embedding": (d,),
        "vision_model.embeddings.patch_embedding.weight": (d, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (5, d),
        "vision_model.pre_layrnorm.weight": (d,), "vision_model.pre_layrnorm.bias": (d,),
        **{f"vision_model.encoder.layers.{i}.{name}": shape for i in range(3) for name, shape in block.items()},
        "vision_model.post_layernorm.weight": (d,), "vision_model.post_layernorm.bias": (d,),
    }  # fmt: skip


def language_tensors(vocabulary: int, biases: bool) -> dict[str, tuple[int, ...]]:
    d, wide, kv = LANGUAGE["hidden_size"], LANGUAGE["intermediate_size"], 16
    block = {
        "input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,),
        "self_attn.q_proj.weight": (d, d), "self_attn.k_proj.weight": (kv, d), "self_attn.v_proj.weight": (kv, d),
        "self_attn.o_proj.weight": (d, d),
        "mlp.gate_proj.weight": (wide, d), "mlp.up_proj.weight": (wide, d), "mlp.down_proj.weight": (d, wide),
    }  # fmt: skip
    if biases:
        block |= {"self_attn.q_proj.bias": (d,), "self_attn.k_proj.bias": (kv,), "self_attn.v_proj.bias": (kv,)}
    return {
        "model.embed_tokens.weight": (vocabulary, d),
        **{f"model.layers.{i}.{name}": shape for i in range(2) for name, shape in block.items()},
        "model.norm.weight": (d,),
        "model.mm_projector.0.weight": (d, 24), "model.mm_projector.0.bias": (d,),
        "model.mm_projector.2.weight": (d, d), "model.mm_projector.2.bias": (d,),
        "lm_head.weight": (vocabulary, d),
    }  # fmt: skip


@dataclass
class Original:
    """A checkpoint in the original layout, before it is written."""

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def write(self, folder: Path, form: str = "safetensors", shards: int = 3) -> Path:
        write_tokenizer(folder, self.model_type)
        (folder / "config.json").write_text(json.dumps(self.config))
        names = sorted(self.tensors)
        stem = {"safetensors": "model", "bin": "pytorch_model"}[form]
        weight_map = {}
        for number in range(shards):
            file = f"{stem}-{number + 1:05}-of-{shards:05}.{form}"
            held = {name: self.tensors[name] for name in names[number::shards]}
            if form == "bin":
                torch.save(held, folder / file)
            else:
                save_file(held, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(held, file)
        (folder / f"{stem}.{form}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return folder


def original(model_type: str, with_tower: bool = True, /, **config: Any) -> Original:
    """`llava_qwen2` has rows to spare in its vocabulary, as HuatuoGPT-Vision has; the others have none."""
    vocabulary = 300 if model_type == "llava_qwen2" else 358
    shapes = language_tensors(vocabulary, biases=model_type == "llava_qwen2")
    if with_tower:
        shapes |= {TOWER + name: shape for name, shape in clip_tensors().items()}
    whole = {"model_type": model_type, "vocab_size": vocabulary, **LANGUAGE, **LLAVA, **config}
    whole |= {"bos_token_id": 1, "eos_token_id": 2} if model_type != "llava_qwen2" else {"eos_token_id": 256}
    return Original(model_type, whole, random_tensors(shapes))


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=chance) * 0.2 for name, shape in shapes.items()}


def write_tokenizer(folder: Path, model_type: str) -> None:
    """Every letter is a token. Mistral's is `legacy`: it puts a blank after each special token; LLaVA-1.5's is not."""
    from tokenizers import pre_tokenizers
    from transformers import LlamaTokenizer, Qwen2Tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    if model_type == "llava_qwen2":
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Qwen2Tokenizer(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
        tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.save_pretrained(folder)
        return
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *map(chr, range(33, 127)), "▁"]
    pieces += ["▁t", "▁a", "▁th", "▁the"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    assert len(vocabulary) == 358
    merges = [("▁", "t"), ("▁", "a"), ("▁t", "h"), ("▁th", "e")]
    LlamaTokenizer(vocab=vocabulary, merges=merges).save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"legacy": model_type == "llava_mistral", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like openai/clip-vit-large-patch14-336: the whole CLIP in one file of torch, with its text side."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPVisionConfig

    folder = tmp_path_factory.mktemp("towers") / "clip"
    config = CLIPConfig(vision_config=CLIPVisionConfig(**VISION).to_dict())
    config.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    tensors = random_tensors(clip_tensors(), seed=1)
    tensors["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    tensors |= random_tensors({"text_model.final_layer_norm.bias": (8,), "visual_projection.weight": (12, 24),
                               "text_projection.weight": (12, 8), "logit_scale": ()})  # fmt: skip
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Wider than high, so that padding and cropping differ."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# The published computation, by hand.


def reference_pixels(picture: Image.Image, pad: bool = True) -> torch.Tensor:
    """(1, 3, 28, 28) as LLaVA-1.5 prepares an image: a square of CLIP's mean colour, scaled, normalised."""
    mean, sd = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    if pad:
        square = Image.new("RGB", (50, 50), tuple(int(x * 255) for x in mean))
        square.paste(picture, (0, 10))
        small = square.resize((28, 28), Image.Resampling.BICUBIC)
    else:
        small = picture.resize((46, 28), Image.Resampling.BICUBIC).crop((9, 0, 37, 28))
    scaled = (np.asarray(small, dtype=np.float64) / 255 - mean) / sd
    return torch.tensor(scaled, dtype=torch.float32).permute(2, 0, 1)[None]


def reference_ids(source: Path, before: str, after: str, bos: bool) -> tuple[list[int], list[int]]:
    """Ids before and after the image, whose surroundings the published code tokenizes apart."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, after))
    return [1, *first] if bos else first, second


def reference_logits(given: Original, ids: tuple[list[int], list[int]], pixels: torch.Tensor) -> torch.Tensor:
    from transformers import CLIPVisionConfig, CLIPVisionModel
    from transformers.models.auto import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(prefix): v for k, v in given.tensors.items() if k.startswith(prefix)}

    vision = CLIPVisionModel(CLIPVisionConfig(**VISION)).eval()
    vision.load_state_dict(part(f"{TOWER}vision_model."), strict=True)
    config = CONFIG_MAPPING[given.model_type.removeprefix("llava_")]
    config = config(**LANGUAGE, vocab_size=given.config["vocab_size"])
    language = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()
    other = ("model.vision_tower.", "model.mm_projector.")
    language.load_state_dict({k: v for k, v in given.tensors.items() if not k.startswith(other)}, strict=True)
    with torch.inference_mode():
        features = vision(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        linear, weights = torch.nn.functional.linear, part("model.mm_projector.")
        features = torch.nn.functional.gelu(linear(features, weights["0.weight"], weights["0.bias"]))
        features = linear(features, weights["2.weight"], weights["2.bias"])
        before, after = (language.model.embed_tokens(torch.tensor([part])) for part in ids)
        return language(inputs_embeds=torch.cat([before, features, after], dim=1)).logits[0]


PROMPTS = {
    "llava_mistral": ("[INST] ", f"\n{QUESTION} [/INST]"),
    "llava_llama": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: ",
        f"\n{QUESTION} ASSISTANT:",
    ),
    "llava_qwen2": ("<|user|>\n", f"\n{QUESTION}\n<|assistant|>\n"),
}


def asked(question: str = QUESTION) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("model_type", list(PROMPTS))
def test_a_converted_model_computes_what_the_original_computes(model_type, form, tower, picture, tmp_path):
    from transformers import LlavaForConditionalGeneration

    from mmedpo.models.vision_language import encode, load_processor

    given = original(model_type)
    source = given.write(tmp_path / "original", form)
    done = convert(str(source), tmp_path / "converted", vision_tower=str(tower))
    model, loading = LlavaForConditionalGeneration.from_pretrained(tmp_path / "converted", output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    assert (done.tensors, done.ignored) == (len(given.tensors), {})

    inputs = encode(load_processor(str(tmp_path / "converted")), [(picture, QUESTION)])
    torch.testing.assert_close(inputs["pixel_values"], reference_pixels(picture), atol=1e-5, rtol=0)
    before, after = reference_ids(source, *PROMPTS[model_type], bos=model_type != "llava_qwen2")
    assert inputs["input_ids"][0].tolist() == [*before, *[done.image_token_id] * 4, *after]

    with torch.inference_mode():
        logits = model.eval()(**inputs).logits[0]
    expected = reference_logits(given, (before, after), inputs["pixel_values"])
    torch.testing.assert_close(logits[:, : expected.shape[1]], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", list(PROMPTS))
def test_every_tensor_is_written_once_and_bit_for_bit(model_type, tower, tmp_path):
    given = original(model_type)
    given.tensors = {name: tensor.half() for name, tensor in given.tensors.items()}
    convert(str(given.write(tmp_path / "original")), tmp_path / "converted", vision_tower=str(tower))
    written: list[tuple[str, torch.Tensor]] = []
    for file in sorted((tmp_path / "converted").glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            written += [(name, opened.get_tensor(name)) for name in opened.keys()]  # noqa: SIM118
    index = json.loads((tmp_path / "converted" / "model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == sorted(name for name, _ in written)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for _, tensor in written)
    rows = given.config["vocab_size"]
    kept = sorted(tensor[:rows].numpy().tobytes() for _, tensor in written)  # no other tensor has as many rows
    assert kept == sorted(tensor.numpy().tobytes() for tensor in given.tensors.values())


def test_a_new_row_of_the_vocabulary_takes_next_to_no_probability(tower, tmp_path):
    given = original("llava_mistral")
    done = convert(str(given.write(tmp_path / "original")), tmp_path / "converted", vision_tower=str(tower))
    assert (done.image_token_id, done.rows_added) == (358, 1)
    with safe_open(tmp_path / "converted" / "model-00001-of-00003.safetensors", "pt") as opened:
        head = opened.get_tensor("language_model.lm_head.weight")
    states = torch.randn(1000, 32, generator=torch.Generator().manual_seed(1)) * 20
    states = torch.cat([states, -20 * head[:358].mean(0, keepdim=True)])  # most logits below 0: no row of zeros here
    logits = states @ head.T
    moved = logits[:, :358].log_softmax(-1) - logits.log_softmax(-1)[:, :358]
    assert moved.min() >= 0 and moved.max() <= math.log(1 + 1 / 358) + 1e-6
    assert logits.softmax(-1)[:, 358].max() <= 1 / 359 + 1e-6


def test_a_vocabulary_with_rows_to_spare_does_not_grow(tower, tmp_path):
    source = original("llava_qwen2").write(tmp_path / "original")
    done = convert(str(source), tmp_path / "converted", vision_tower=str(tower))
    assert (done.image_token_id, done.rows_added) == (259, 0)  # 256 bytes, <|endoftext|>, <|im_start|>, <|im_end|>
    assert json.loads((tmp_path / "converted" / "config.json").read_text())["text_config"]["vocab_size"] == 300


def test_the_published_huatuogpt_vision_7b_has_the_tensors_that_are_expected(tmp_path):
    """Its four files hold 734 tensors, 391 of them of the tower."""
    from transformers import CLIPVisionConfig

    from mmedpo.models.convert import model_config
    from mmedpo.models.convert.read import Place
    from mmedpo.models.convert.weights import expected_tensors

    large = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    CLIPVisionConfig(**large, image_size=336, patch_size=14).save_pretrained(tmp_path)
    published = {
        "model_type": "llava_qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, **LLAVA,
    }  # fmt: skip
    expected = expected_tensors(model_config(published, Place(str(tmp_path))))
    assert len(expected) == 734
    assert sum(name.startswith(f"{TOWER}vision_model.") for name in expected) == 391
    assert expected["model.layers.27.self_attn.k_proj.bias"][1] == (512,)
    assert expected["model.mm_projector.0.weight"][1] == (3584, 1024)
    assert expected["lm_head.weight"][1] == (152064, 3584)


def test_tied_embeddings_stay_tied(tower, tmp_path):
    from mmedpo.models.vision_language import load_model

    given = original("llava_qwen2", tie_word_embeddings=True)
    given.tensors["lm_head.weight"] = given.tensors["model.embed_tokens.weight"]
    source = given.write(tmp_path / "original", "bin", shards=1)
    done = convert(str(source), tmp_path / "converted", vision_tower=str(tower))
    assert done.ignored == {"lm_head.weight": "tied to the embedding"}
    model = load_model(str(tmp_path / "converted"))
    torch.testing.assert_close(model.lm_head.weight, given.tensors["model.embed_tokens.weight"], atol=0, rtol=0)


# Conversations.

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
TWO_TURNS = [
    asked(" first? <image>\n"),
    {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
    {"role": "user", "content": "second?"},
]
ANSWERED = [*TWO_TURNS, {"role": "assistant", "content": "No."}]
# What the published code writes; `<s>` is what its tokenizer puts before.
WRITTEN = {
    "mistral_instruct": ("<s>[INST] <image>\nfirst? [/INST] Yes. </s>[INST] second? [/INST]", " No. </s>"),
    "vicuna_v1": (
        f"<s>{SYSTEM} USER: <image>\nfirst? ASSISTANT: Yes.</s>USER: second? ASSISTANT:", " No.</s>",
    ),
    "llama3": (
        f"<s><|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nfirst?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nsecond?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "No.<|eot_id|>",
    ),
    "huatuo": (
        "<|user|>\n<image>\nfirst?\n<|assistant|>\nYes. \n<|user|>\nsecond?\n<|assistant|>\n", "No.<|endoftext|>",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def converted(tower: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A converted model for each template; Mistral's tokenizer writes them all."""
    folder = tmp_path_factory.mktemp("converted")
    source = original("llava_mistral").write(folder / "original")
    for name in WRITTEN:
        convert(str(source), folder / name, template=name, vision_tower=str(tower))
    return {name: str(folder / name) for name in WRITTEN}


@pytest.mark.parametrize("name", list(WRITTEN))
def test_templates_write_what_the_published_code_writes(name, converted):
    from mmedpo.models.vision_language import load_processor

    write = load_processor(converted[name]).apply_chat_template
    prompt, answer = WRITTEN[name]
    assert write(TWO_TURNS, add_generation_prompt=True, tokenize=False) == prompt
    assert write(ANSWERED, tokenize=False) == prompt + answer


def test_a_system_message_is_refused_by_the_template(converted):
    from jinja2 import TemplateError

    from mmedpo.models.vision_language import load_processor

    with pytest.raises(TemplateError, match="trained with user and assistant messages only"):
        load_processor(converted["vicuna_v1"]).apply_chat_template([{"role": "system", "content": "x"}, asked()])


@pytest.mark.parametrize("model_type", ["llava_mistral", "llava_llama", "llava"])
def test_a_conversation_has_the_ids_it_had_in_training(model_type, tower, tmp_path):
    """Also after `</s>`, where Mistral's tokenizer puts a blank and LLaVA-1.5's does not; also beside an adapter."""
    from transformers import AutoTokenizer

    from mmedpo.models.vision_language import load_processor

    source = original(model_type).write(tmp_path / "original")
    done = convert(str(source), tmp_path / "converted", vision_tower=str(tower))
    processor = load_processor(str(tmp_path / "converted"))
    text = processor.apply_chat_template(TWO_TURNS, add_generation_prompt=True, tokenize=False)
    before, after = WRITTEN[done.template][0].removeprefix("<s>").split("<image>")
    first, second = reference_ids(source, before, after, bos=True)
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == [*first, done.image_token_id, *second]
    blank = processor.tokenizer.convert_tokens_to_ids("▁")
    after_end = ids[ids.index(2) + 1]
    assert (after_end == blank) == (model_type == "llava_mistral")
    (tmp_path / "adapter").mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "converted" / file, tmp_path / "adapter" / file)
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter")(text, add_special_tokens=False)["input_ids"] == ids


def test_llama_3s_tokenizer_gets_llama_3s_template(tower, tmp_path):
    from transformers import AutoTokenizer

    source = original("llava_llama").write(tmp_path / "original")
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|start_header_id|>"]})
    tokenizer.save_pretrained(source)
    assert convert(str(source), tmp_path / "converted", vision_tower=str(tower)).template == "llama3"


def test_special_tokens_stay_special_and_padding_is_no_placeholder(tower, tmp_path):
    from mmedpo.models.vision_language import load_processor

    for model_type, special, pad in [
        ("llava_qwen2", "<|im_start|>", "<|endoftext|>"),
        ("llava_llama", "</s>", "<unk>"),
    ]:
        source = original(model_type).write(tmp_path / model_type)
        convert(str(source), tmp_path / f"{model_type}-hf", vision_tower=str(tower))
        tokenizer = load_processor(str(tmp_path / f"{model_type}-hf")).tokenizer
        assert {special, "<image>"} <= set(tokenizer.all_special_tokens)
        assert tokenizer.pad_token == pad


def test_a_converted_model_answers_questions(converted, picture):
    from mmedpo.models.vision_language import Sampling, VisionLanguageModel

    model = VisionLanguageModel(converted["mistral_instruct"])
    square = picture.resize((40, 40))
    answers = model.answer([(picture, QUESTION), (square, "and this one?")], Sampling(max_new_tokens=5))
    alone = model.answer([(square, "and this one?")], Sampling(max_new_tokens=5))
    assert answers[1] == alone[0]
    assert all(answer and "<image>" not in answer for (answer,) in answers)


# Images and towers.


def test_images_are_cropped_where_the_original_did_not_pad(tower, picture, tmp_path):
    from mmedpo.models.vision_language import encode, load_processor

    source = original("llava_llama", image_aspect_ratio="square").write(tmp_path / "original")
    assert not convert(str(source), tmp_path / "converted", vision_tower=str(tower)).pad_to_square
    inputs = encode(load_processor(str(tmp_path / "converted")), [(picture, QUESTION)])
    torch.testing.assert_close(inputs["pixel_values"], reference_pixels(picture, pad=False), atol=1e-5, rtol=0)


def test_the_class_token_is_kept_where_the_original_kept_it(tower, picture, tmp_path):
    from mmedpo.models.vision_language import encode, load_model, load_processor

    source = original("llava_llama", mm_vision_select_feature="cls_patch").write(tmp_path / "original")
    done = convert(str(source), tmp_path / "converted", vision_tower=str(tower))
    inputs = encode(load_processor(str(tmp_path / "converted")), [(picture, QUESTION)])
    assert (inputs["input_ids"] == done.image_token_id).sum() == 5
    assert load_model(str(tmp_path / "converted"))(**inputs).logits.isfinite().all()


def test_a_checkpoint_without_its_tower_takes_the_towers_weights(tower, tmp_path):
    from mmedpo.models.vision_language import load_model

    given = original("llava_llama", False)
    given.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    done = convert(str(given.write(tmp_path / "original", "bin")), tmp_path / "converted", vision_tower=str(tower))
    of_clip = "the part of CLIP that LLaVA leaves out"
    assert done.ignored == {
        "model.layers.0.self_attn.rotary_emb.inv_freq": "computed from the configuration, not trained",
        "vision_model.embeddings.position_ids": "0, 1, 2, ..., not trained",
        "text_model.final_layer_norm.bias": of_clip, "visual_projection.weight": of_clip,
        "text_projection.weight": of_clip, "logit_scale": of_clip,
    }  # fmt: skip
    weights = load_model(str(tmp_path / "converted")).model.vision_tower.state_dict()
    of_tower = random_tensors(clip_tensors(), seed=1)
    assert {f"vision_model.{name}" for name in weights} == set(of_tower)
    assert all(torch.equal(tensor, of_tower[f"vision_model.{name}"]) for name, tensor in weights.items())


def test_a_tower_inside_the_checkpoint_is_found_by_its_relative_path(tower, tmp_path):
    from transformers import AutoModel, CLIPVisionConfig, CLIPVisionModel

    given = original("llava_qwen2", False, mm_vision_tower="./vit/clip")
    source = given.write(tmp_path / "original")
    alone = CLIPVisionModel(CLIPVisionConfig(**VISION))  # transformers 5 saves it without `vision_model.`
    alone.save_pretrained(source / "vit" / "clip")
    shutil.copy(tower / "preprocessor_config.json", source / "vit" / "clip")
    done = convert(str(source), tmp_path / "converted")
    assert done.vision_tower == "clip"
    seen = AutoModel.from_pretrained(tmp_path / "converted").vision_tower.state_dict()
    assert all(torch.equal(tensor, seen[name]) for name, tensor in alone.state_dict().items())


# What is refused.


def test_all_tensors_that_do_not_fit_are_named_in_one_error(tower, tmp_path):
    given = original("llava_mistral")
    del given.tensors["model.layers.1.mlp.up_proj.weight"]
    del given.tensors[f"{TOWER}vision_model.pre_layrnorm.bias"]
    given.tensors["model.image_newline"] = torch.zeros(32)
    given.tensors["model.norm.weight"] = torch.zeros(31)
    source = given.write(tmp_path / "original")
    save_file({"lm_head.weight": given.tensors["lm_head.weight"]}, source / "extra.safetensors")
    index = json.loads((source / "model.safetensors.index.json").read_text())
    index["weight_map"]["again"] = "extra.safetensors"
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"do not fit its config\.json") as raised:
        convert(str(source), tmp_path / "converted", vision_tower=str(tower))
    assert {(fault.row, fault.column) for fault in raised.value.faults} == {
        ("model.layers.1.mlp.up_proj.weight", "missing"),
        (f"{TOWER}vision_model.pre_layrnorm.bias", "missing"),
        ("model.image_newline", "surplus"),
        ("model.norm.weight", "misshaped"),
        ("lm_head.weight", "doubled"),
    }
    assert re.search(r"model.norm.weight \[misshaped\]: \(31,\) in model-.*; by config.json \(32,\)", str(raised.value))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "llava_phi"}, "is a 'llava_phi' checkpoint; only llava_mistral"),
        ({"text_config": {}}, "in transformers' own layout already"),
        ({"mm_projector_type": "linear", "image_aspect_ratio": "anyres"}, r"mm_projector_type\]: is 'linear'"),
        ({"mm_projector_type": "linear", "image_aspect_ratio": "anyres"}, r"image_aspect_ratio\]: is 'anyres'"),
        ({"mm_use_im_start_end": True}, r"mm_use_im_start_end\]: is True; use one of None, False"),
        ({"hidden_size": "wide"}, "config.json cannot be read"),
        ({"vocab_size": 300}, r"lm_head.weight \[misshaped\]: \(358, 32\)"),
    ],
)  # fmt: skip
def test_what_the_configuration_asks_for_in_vain_is_said(config, said, tower, tmp_path):
    source = original("llava_mistral", **config).write(tmp_path / "original")
    with pytest.raises(InputError, match=said):
        convert(str(source), tmp_path / "converted", vision_tower=str(tower))


def test_missing_parts_are_named(tower, tmp_path):
    whole = original("llava_mistral").write(tmp_path / "original")

    def without(*files: str) -> str:
        folder = shutil.copytree(whole, tmp_path / "-".join(files), dirs_exist_ok=True)
        for file in files:
            (folder / file).unlink()
        return str(folder)

    index = "model.safetensors.index.json"
    for source, said in [
        (without("tokenizer.json", "tokenizer_config.json"), "tokenizer.json-tokenizer_config.json cannot be read"),
        (without("config.json"), "has no config.json"),
        (without("model-00002-of-00003.safetensors"), f"lacks model-00002.*, which its {index} lists"),
        (without(index), r"has none of model.safetensors.index.json, .*merge an adapter or projector"),
        (str(tmp_path / "nowhere"), "nowhere cannot be read"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=said):
            convert(source, tmp_path / "converted", vision_tower=str(tower))
    assert not (tmp_path / "converted").exists()


def test_a_torn_file_and_pickled_code_are_refused(tower, tmp_path):
    source = original("llava_mistral").write(tmp_path / "torn")
    shard = source / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model-00002-of-00003.safetensors cannot be read as weights"):
        convert(str(source), tmp_path / "converted", vision_tower=str(tower))
    source = original("llava_mistral").write(tmp_path / "code", "bin")
    torch.save({"run": Path}, source / "pytorch_model-00001-of-00003.bin")
    with pytest.raises(InputError, match=r"pytorch_model-00001-of-00003.bin cannot be read as weights"):
        convert(str(source), tmp_path / "converted", vision_tower=str(tower))
    torch.save({"step": 3}, source / "pytorch_model-00001-of-00003.bin")
    with pytest.raises(InputError, match="contains more than named tensors"):
        convert(str(source), tmp_path / "converted", vision_tower=str(tower))


def test_a_tower_that_cannot_serve_is_refused(tower, tmp_path):
    from transformers import SiglipVisionConfig

    source = str(original("llava_mistral").write(tmp_path / "original"))
    with pytest.raises(InputError, match=r"'openai/clip-vit-large-patch14-336' cannot be found; .* --vision-tower"):
        convert(source, tmp_path / "converted")
    elsewhere = str(original("llava_mistral", mm_vision_tower="/trained/with/clip").write(tmp_path / "elsewhere"))
    with pytest.raises(InputError, match=r"'/trained/with/clip' cannot be found; .* --vision-tower"):
        convert(elsewhere, tmp_path / "converted")
    SiglipVisionConfig().save_pretrained(tmp_path / "siglip")
    with pytest.raises(InputError, match=r"is a 'siglip_vision_model' model; only CLIP"):
        convert(source, tmp_path / "converted", vision_tower=str(tmp_path / "siglip"))
    other = shutil.copytree(tower, tmp_path / "other")
    settings = json.loads((other / "preprocessor_config.json").read_text())
    settings["crop_size"] = {"height": 14, "width": 14}
    (other / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="crops to 14 pixels, but its model takes 28"):
        convert(source, tmp_path / "converted", vision_tower=str(other))


def test_a_trained_tower_is_never_replaced_by_the_untrained_one(tower, tmp_path):
    given = original("llava_llama", False, mm_vision_tower=str(tower), unfreeze_mm_vision_tower=True)
    source = str(given.write(tmp_path / "original"))
    with pytest.raises(InputError, match=r"trained with its vision tower .* does not contain it"):
        convert(source, tmp_path / "converted")
    convert(source, tmp_path / "converted", vision_tower=str(tower))


def test_a_sentencepiece_model_alone_needs_two_packages(tower, tmp_path):
    from transformers.utils import is_protobuf_available, is_sentencepiece_available

    if is_sentencepiece_available() and is_protobuf_available():
        pytest.skip("both are installed")
    source = original("llava_llama").write(tmp_path / "original")
    (source / "tokenizer.json").rename(source / "tokenizer.model")
    with pytest.raises(InputError, match=r"pip install sentencepiece protobuf"):
        convert(str(source), tmp_path / "converted", vision_tower=str(tower))


@pytest.mark.parametrize("model_type", ["llava_mistral", "llava_llama"])
def test_a_sentencepiece_model_alone_gives_its_own_ids(model_type, tower, tmp_path):
    from mmedpo.models.vision_language import load_processor

    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    source = original(model_type).write(tmp_path / "original")
    (source / "tokenizer.json").unlink()
    with (source / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([SYSTEM, QUESTION] * 99), model_writer=file, vocab_size=320, model_type="bpe",
            byte_fallback=True, hard_vocab_limit=False, normalization_rule_name="identity",
            remove_extra_whitespaces=False, minloglevel=2,
        )  # fmt: skip
    done = convert(str(source), tmp_path / "converted", vision_tower=str(tower))
    processor = load_processor(str(tmp_path / "converted"))
    text = processor.apply_chat_template([asked()], add_generation_prompt=True, tokenize=False)
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    own = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    before, after = PROMPTS[model_type]
    assert ids == [1, *own.encode(before), done.image_token_id, *own.encode(after)]


def test_an_unknown_template_and_one_that_begins_with_a_lacking_token_are_refused(tower, tmp_path):
    source = str(original("llava_qwen2").write(tmp_path / "original"))
    for name, said in [
        ("alpaca", "choose one of mistral_instruct, vicuna_v1"),
        ("vicuna_v1", "tokenizer does not have"),
    ]:
        with pytest.raises(InputError, match=said):
            convert(source, tmp_path / "converted", template=name, vision_tower=str(tower))


def test_end_tokens_are_kept_and_contradictory_sampling_settings_are_not(tower, tmp_path):
    source = original("llava_llama").write(tmp_path / "original")
    settings = {"bos_token_id": 1, "eos_token_id": [2, 7], "temperature": 0.9, "top_p": 0.6, "do_sample": False}
    (source / "generation_config.json").write_text(json.dumps(settings))
    convert(str(source), tmp_path / "converted", vision_tower=str(tower))
    kept = json.loads((tmp_path / "converted" / "generation_config.json").read_text())
    assert (kept["eos_token_id"], kept["pad_token_id"], kept.get("temperature")) == ([2, 7], 0, None)


def test_an_existing_output_is_refused_and_an_interrupted_one_resumed(tower, tmp_path):
    source = str(original("llava_mistral").write(tmp_path / "original"))
    arguments = {"template": None, "vision_tower": str(tower), "revision": None}
    partial = tmp_path / "converted.partial"
    partial.mkdir()
    (partial / "settings.json").write_text(json.dumps({"source": source, **arguments}))
    (partial / "model-00001-of-00003.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="--resume"):
        convert(source, tmp_path / "converted", vision_tower=str(tower))
    convert(source, tmp_path / "converted", vision_tower=str(tower), resume=True)
    assert not partial.exists() and not (tmp_path / "converted" / "settings.json").exists()
    with pytest.raises(InputError, match="exists already"):
        convert(source, tmp_path / "converted", vision_tower=str(tower))
    with pytest.raises(AlreadyFinished):
        convert(source, tmp_path / "converted", vision_tower=str(tower), resume=True)
    weights = next(file for pattern in ("*.safetensors", "*.bin") for file in Path(source).glob(pattern))
    held = bytearray(weights.read_bytes())
    held[len(held) // 2] ^= 1
    weights.write_bytes(held)
    with pytest.raises(InputError, match=r"source .*original"):
        convert(source, tmp_path / "converted", vision_tower=str(tower), resume=True)


# Memory.

MEASURED = """
import sys
from pathlib import Path
from mmedpo.models.convert import convert

def resident(kind):  # bytes
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) * 1024

tower, small, *large = sys.argv[1:]
convert(small, Path(small + "-hf"), vision_tower=tower)  # imports are not counted
for source in large:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    convert(source, Path(source + "-hf"), vision_tower=tower)
    print("peak", resident("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from Linux's /proc")
def test_memory_stays_under_1_2_times_the_checkpoint(tower, tmp_path):
    small = original("llava_mistral").write(tmp_path / "small")
    wide = original("llava_mistral", intermediate_size=500_000)
    for name in wide.tensors:
        if name.startswith("model.layers.") and ".mlp." in name:
            shape = (32, 500_000) if "down_proj" in name else (500_000, 32)
            wide.tensors[name] = torch.zeros(shape, dtype=torch.float16)
    forms = [("safetensors", 1), ("bin", 1), ("bin", 4)]
    large = [wide.write(tmp_path / f"{form}-{shards}", form, shards) for form, shards in forms]
    sizes = [sum(file.stat().st_size for file in folder.glob("*model*")) for folder in large]
    assert min(sizes) > 190e6
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, [tower, small, *large])], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    peaks = [int(line.removeprefix("peak ")) for line in run.stdout.splitlines() if line.startswith("peak ")]
    shares = [peak / size for peak, size in zip(peaks, sizes, strict=True)]
    print(dict(zip(forms, shares, strict=True)))
    assert max(shares) < 1.2
    assert shares[2] < 0.6  # of four files, one at a time
