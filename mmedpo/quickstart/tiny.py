"""Tiny LLaVA-type vision-language model with random weights, and its supervised training.

Offline stand-in for a Med-LVLM from the Hub: a real `LlavaForConditionalGeneration` with a real `LlavaProcessor`, small
enough to train on a laptop's CPU in minutes. It knows only the words it is built with. A model of the same type may be
trained in its place (`--backbone`), such as the one around a real language model of benchmarks/real_language_model.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import track

from mmedpo.data import changes, credentialed
from mmedpo.data.images import open_rgb
from mmedpo.data.samples import Sample
from mmedpo.data.sources import read_source, refuse_faults
from mmedpo.errors import InputError
from mmedpo.runs import formats
from mmedpo.runs.json_files import write_json
from mmedpo.runs.run_folder import output_folder
from mmedpo.runs.terminal import say, silence_libraries

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

IMAGE_SIZE, PATCH = 64, 8  # pixels
INITIALIZER_RANGE = 0.08  # with the usual 0.02 so narrow a model learns half as fast
LEARNING_RATE = 2e-3
BATCH = 64
BACKBONE = (4, 5e-4)  # batch and learning rate
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %} "
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def build(
    texts: Iterable[str], seed: int = 0, patch: int = PATCH
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Return a random-weight LLaVA of half a million parameters, and its processor.

    It sees images at `IMAGE_SIZE` x `IMAGE_SIZE` pixels: the shorter side is scaled, the rest cropped.

    Args:
        texts: their words are the vocabulary; other words become `<unk>`.
        seed: of the weights.
        patch: side of a patch of the vision tower, in pixels; each is an image token.
    """
    import torch
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = _tokenizer(texts)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        ),
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            image_size=IMAGE_SIZE, patch_size=patch, projection_dim=64, initializer_range=INITIALIZER_RANGE,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=344, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024,
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            initializer_range=INITIALIZER_RANGE,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )  # fmt: skip
    config.initializer_range = INITIALIZER_RANGE  # of the projector
    torch.manual_seed(seed)
    return LlavaForConditionalGeneration(config), processor


def open_backbone(folder: Path, seed: int = 0) -> tuple[Any, Any]:
    """Return a LLaVA-type model with LoRA on its language model, vision tower and projector trainable; its processor.

    Raises:
        InputError: the folder holds no such model.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlavaForConditionalGeneration

    from mmedpo.models.vision_language import load_model, load_processor

    model, processor = load_model(str(folder), dtype="float32"), load_processor(str(folder))
    if not isinstance(model, LlavaForConditionalGeneration):
        raise InputError(f"{folder}: a {type(model).__name__}. Give a folder of a LlavaForConditionalGeneration.")
    torch.manual_seed(seed)
    linear = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
    adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=linear))
    for name, parameter in adapted.named_parameters():
        if "vision_tower" in name or "multi_modal_projector" in name:
            parameter.requires_grad = True
    return adapted, processor


def _tokenizer(texts: Iterable[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    markers = ["<image>", "<user>", "<assistant>"]
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=["<pad>", "</s>", "<unk>", *markers]))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=markers,
    )  # fmt: skip


def supervise(
    model: Any, processor: Any, samples: Sequence[Sample], steps: int, seed: int = 0, batch: int = BATCH,
    learning_rate: float = LEARNING_RATE,
) -> list[float]:  # fmt: skip
    """Train the weights that require gradients on the gold answers; return each step's loss.

    The loss is the token-mean NLL, the optimiser AdamW with a one-cycle rate.
    """
    import torch

    rows = _encode(processor, samples)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    model.train()
    losses = []
    for _ in track(range(steps), description="Supervised training of the stand-in model"):
        drawn = torch.randint(len(rows), (batch,), generator=generator)
        loss = model(**_batch([rows[i] for i in drawn.tolist()])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def _encode(processor: Any, samples: Sequence[Sample]) -> list[tuple[list[int], list[int], Any]]:
    """Return (prompt ids, answer ids, pixel values) of each sample; each image is read once."""
    pixels: dict[Path, Any] = {}
    rows = []
    for sample in samples:
        file = sample.images[0].file
        if file not in pixels:
            image = open_rgb(file)
            pixels[file] = processor.image_processor([image], return_tensors="pt")["pixel_values"][0]
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.prompt}]}
        prompt = processor.apply_chat_template([user], add_generation_prompt=True, tokenize=False)
        prompt = prompt.replace("<image>", "<image>" * _image_tokens(processor, pixels[file]))
        answer = f"{sample.answer}{processor.tokenizer.eos_token}"
        rows.append((processor.tokenizer(prompt)["input_ids"], processor.tokenizer(answer)["input_ids"],
                     pixels[file]))  # fmt: skip
    return rows


def _image_tokens(processor: Any, pixels: Any) -> int:
    return int((pixels.shape[-2] // processor.patch_size) * (pixels.shape[-1] // processor.patch_size))


def _batch(rows: Sequence[tuple[list[int], list[int], Any]]) -> dict[str, Any]:
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = [torch.tensor(prompt + answer) for prompt, answer, _ in rows]
    labels = [torch.tensor([-100] * len(prompt) + answer) for prompt, answer, _ in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=0),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
        "pixel_values": torch.stack([pixels for *_, pixels in rows]),
    }


def make(
    source: Path, split: str, steps: int, output: Path, seed: int = 0, resume: bool = False,
    backbone: Path | None = None,
) -> None:  # fmt: skip
    """Build a tiny model for a source's words, train it on one split, and save it with its processor.

    A `backbone`, a LLaVA-type model's folder, is trained instead: its language model by LoRA, the rest in full.
    """
    everything = read_source(source, seed=seed)
    refuse_faults(everything, skip_faulty=False)
    if everything.note:
        say(everything.note)
    taught = [sample for sample in everything.samples if sample.split == split]
    if not taught:
        raise InputError(
            f"{everything.name} has no split {split!r}; it has {sorted({s.split for s in everything.samples})}."
        )
    if backbone:
        model, processor, batch, learning_rate = *open_backbone(backbone, seed), *BACKBONE
    else:
        texts = [text for sample in everything.samples for text in (sample.prompt, sample.answer)]
        model, processor, batch, learning_rate = *build(texts, seed), BATCH, LEARNING_RATE
    settings = {"source": str(source), "split": split, "steps": steps, "seed": seed}
    settings |= {"backbone": str(backbone)} if backbone else {}
    contents = {"source": changes.digest_of(changes.of_samples(everything.samples))}
    with output_folder(output, settings, resume, contents=contents) as folder:
        losses = supervise(model, processor, taught, steps, seed, batch, learning_rate)
        model = model.merge_and_unload() if backbone else model
        setattr(model.config, formats.STANDIN_KEY, f"{formats.STANDIN}{'backbone' if backbone else 'tiny'}")
        if everything.credentialed:  # weights and tokenizer hold its words
            setattr(model.config, credentialed.KEY, everything.name)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        write_json(folder / "supervised.json", {"questions": len(taught), "steps": steps, "seed": seed, "loss": losses})


def main() -> None:
    """`python -m mmedpo.quickstart.tiny`: make a tiny stand-in model for a source folder."""
    parser = argparse.ArgumentParser(prog="python -m mmedpo.quickstart.tiny", description=make.__doc__)
    parser.add_argument("--source", type=Path, required=True, help="source folder (see mmedpo curate)")
    parser.add_argument("--split", default="train", help="split to train on")
    parser.add_argument("--backbone", type=Path, help="folder of a LLaVA-type model to train instead of a tiny one")
    parser.add_argument("--steps", type=int, default=600, help=f"of {BATCH} questions, {BACKBONE[0]} for a backbone")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; it must not exist")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    silence_libraries()
    try:
        make(**vars(parser.parse_args()))
    except InputError as error:
        parser.exit(2, f"Error: {error}\n")


if __name__ == "__main__":
    main()
