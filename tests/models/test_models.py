"""Vision-language models: what is refused, and that answers are reproducible and free of image tokens."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from mmedpo.data import hub, loading
from mmedpo.data.images import open_rgb
from mmedpo.data.sources import read_source
from mmedpo.errors import InputError
from mmedpo.evaluation.attention_weights import attending
from mmedpo.evaluation.attention_weights import read as read_attention
from mmedpo.evaluation.likelihood import View, answer_logps
from mmedpo.models.adapters import adapter_config, adapter_digest
from mmedpo.models.chat import ChatRequest
from mmedpo.models.chat.local import LocalChat
from mmedpo.models.fingerprint import fingerprint
from mmedpo.models.generation import Sampling
from mmedpo.models.thoughts import Answer
from mmedpo.models.vision_language import VisionLanguageModel, load_processor

SAMPLED = Sampling(max_new_tokens=6, temperature=1.0, samples=3, seed=0)
Question = tuple[Image.Image, str]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> VisionLanguageModel:
    return VisionLanguageModel(str(tiny_model))


@pytest.fixture(scope="module")
def questions(corpus: Path) -> list[Question]:
    """Four questions of different lengths about different images."""
    samples = read_source(corpus, "test").samples[::5][:4]
    assert len({len(sample.question) for sample in samples}) > 1
    return [(open_rgb(sample.images[0].file), sample.question) for sample in samples]


# What is refused.


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_model_without_vision_is_refused_by_its_type(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(InputError, match=rf"is a '{kind}' model, not a vision-language model"):
        VisionLanguageModel(str(tmp_path))


@pytest.mark.parametrize("name", ["no-such-model", "org/no-such-model"])
def test_missing_model_is_refused_by_name(tmp_path, name):
    for spelled in (name, str(tmp_path / name)):
        with pytest.raises(InputError, match="cannot be loaded") as raised:
            load_processor(spelled)
        assert repr(spelled) in str(raised.value)


@pytest.mark.parametrize(
    "name", ["./models/tiny", "models/tiny", "../tiny", "models/old/tiny", "~/tiny", "/models/tiny"]
)
def test_a_missing_folder_is_said_to_be_one(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    reading = {
        f"The model {name!r} cannot be loaded": load_processor,
        f"The adapter {name!r} cannot be read": adapter_config,
        f"{name!r} cannot be loaded as a dataset": loading.load_splits,
    }
    for said, read in reading.items():
        with pytest.raises(InputError) as raised:
            read(name)
        assert str(raised.value).startswith(f"{said}: the folder does not exist; check the path")
        assert "http" not in str(raised.value) and "Hub id must" not in str(raised.value)
    assert not hub._is_missing_folder("org/tiny") and not hub._is_missing_folder("tiny")


def no_chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def no_image_processor(folder: Path) -> None:
    (folder / "processor_config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def torn_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def spoiled(tiny_model: Path, tmp_path: Path, spoil: Callable[[Path], None]) -> str:
    folder = shutil.copytree(tiny_model, tmp_path / "spoiled")
    spoil(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_chat_template, "has no chat template, and none is guessed"),
        (no_image_processor, "image processor"),
        (broken_config, "cannot be loaded"),
        (no_config, "cannot be loaded"),
    ],
)
def test_incomplete_model_is_refused(tiny_model, tmp_path, spoil, message):
    name = spoiled(tiny_model, tmp_path, spoil)
    with pytest.raises(InputError, match=message) as raised:
        VisionLanguageModel(name)
    assert repr(name) in str(raised.value)


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_model_whose_processor_needs_a_missing_library_is_refused_with_its_name(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "qwen")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Qwen2_5_VLProcessor"}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "Qwen2VLImageProcessor"}))
    with pytest.raises(
        InputError, match=r"qwen' cannot be loaded: .* requires the Torchvision library .* pip install torchvision$"
    ):
        load_processor(str(folder))


@pytest.mark.parametrize("spoil", [no_weights, torn_weights])
def test_model_without_whole_weights_is_refused(tiny_model, tmp_path, spoil):
    name = spoiled(tiny_model, tmp_path, spoil)
    with pytest.raises(InputError, match=r"The weights of .*spoiled' cannot be loaded: .") as raised:
        VisionLanguageModel(name)
    assert repr(name) in str(raised.value)


def test_a_model_of_an_unknown_dtype_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "dtype": "wat"}))

    with pytest.raises(InputError, match=r"spoiled' cannot be loaded: .*wat"):
        VisionLanguageModel(spoiled(tiny_model, tmp_path, spoil))


def test_a_tokenizer_with_more_tokens_than_the_model_embeds_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    def spoil(folder: Path) -> None:
        processor = load_processor(str(folder))
        processor.tokenizer.add_tokens(["pneumonoultramicroscopic"])
        processor.save_pretrained(folder)

    with pytest.raises(InputError, match=r"The tokenizer of .* has \d+ tokens, its model embeds \d+"):
        VisionLanguageModel(spoiled(tiny_model, tmp_path, spoil))


def rewrite_weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_a_model_whose_weights_lack_a_tensor_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    def drop(tensors: dict[str, Any]) -> None:
        del tensors[next(name for name in tensors if "language_model" in name)]

    name = spoiled(tiny_model, tmp_path, lambda folder: rewrite_weights(folder, drop))
    with pytest.raises(
        InputError,
        match=r"^The weights of .* are incomplete: 1 tensor of Llava\w+ missing \(lm_head",
    ):
        VisionLanguageModel(name)


@pytest.mark.parametrize("door", ["greedy", "sampled", "likelihood", "attention", "own attention", "chat"])
def test_a_model_that_computes_nan_is_refused(
    tiny_model: Path, tmp_path: Path, questions: list[Question], door: str
) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        next(value for name, value in tensors.items() if name.endswith("norm.weight"))[0] = math.nan

    name = spoiled(tiny_model, tmp_path, lambda folder: rewrite_weights(folder, spoil))
    with pytest.raises(InputError, match=r"The model '.*spoiled' computes NaN or infinite values"):
        if door == "chat":
            LocalChat(name).complete([ChatRequest("judge@2", {}, "Is it?")])
        nan = VisionLanguageModel(name)
        if door in ("greedy", "sampled"):
            nan.answer(questions, SAMPLED if door == "sampled" else Sampling())
        if door == "likelihood":
            answer_logps(nan, [View([questions[0][0]], said("user", "What?"), said("assistant", "yes"))])
        inputs = nan.encode(questions[:1])
        forced = nan.processor.tokenizer("yes", add_special_tokens=False)["input_ids"]
        read_attention(nan, inputs, forced if door == "attention" else None, attending(nan))


def said(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def test_missing_adapter_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The adapter '.*nowhere' cannot be read"):
        VisionLanguageModel(str(tiny_model), adapter=str(tmp_path / "nowhere"))


def adapter(tiny_model: Path, folder: Path, base: str) -> str:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    plain = AutoModelForImageTextToText.from_pretrained(tiny_model)
    get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": base}))
    return str(folder)


def test_an_adapter_without_weights_is_said_before_the_model_is_loaded(tiny_model, tmp_path, monkeypatch):
    trained = adapter(tiny_model, tmp_path / "adapter", base=str(tiny_model))
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    monkeypatch.delattr("mmedpo.models.vision_language.load_model")
    with pytest.raises(InputError, match=r"has no adapter_model.safetensors. Give --adapter a finished"):
        VisionLanguageModel(str(tiny_model), trained)


def test_fresh_adapter_changes_no_answer(tiny_model, tmp_path, model, questions):
    adapted = VisionLanguageModel(str(tiny_model), adapter(tiny_model, tmp_path / "adapter", str(tiny_model)))
    greedy = Sampling(max_new_tokens=6)
    assert adapted.answer(questions, greedy) == model.answer(questions, greedy)  # LoRA starts as zero


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, r"samples \(0\)"),
        ({"max_new_tokens": 0}, r"max_new_tokens \(0\)"),
        ({"temperature": -0.1}, r"temperature -0\.1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"top_p": float("nan")}, "top_p nan"),
        ({"top_p": 0.0}, r"top_p 0\.0"),
        ({"top_p": 1.1}, r"top_p 1\.1"),
        ({"samples": 2}, "2 samples at temperature 0 would be equal"),
    ],
)
def test_impossible_sampling_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Sampling(**settings)


# Answers.


def test_greedy_answers_are_the_same_every_time_and_alone(model, questions):
    greedy = Sampling(max_new_tokens=6)
    answers = model.answer(questions, greedy)
    assert [len(texts) for texts in answers] == [1] * 4 and any(texts[0] for texts in answers)
    assert model.answer(questions, greedy) == answers
    assert model.answer(questions, Sampling(max_new_tokens=6, seed=9)) == answers
    assert [model.answer([question], greedy)[0] for question in questions] == answers  # padding changes nothing


def test_samples_come_from_the_seed(model, questions):
    answers = model.answer(questions, SAMPLED)
    assert [len(texts) for texts in answers] == [3] * 4
    assert any(len(set(texts)) > 1 for texts in answers)
    assert model.answer(questions, SAMPLED) == answers
    assert model.answer(questions, Sampling(**{**vars(SAMPLED), "seed": 1})) != answers


def test_image_token_is_never_sampled(tiny_model, questions):
    """The head is bent so that the model would say nothing else: special tokens are not shown, so texts were empty."""
    bent = VisionLanguageModel(str(tiny_model))
    tokenizer = bent.processor.tokenizer
    markers = [tokenizer.convert_tokens_to_ids(token) for token in ("<image>", "<user>", "<assistant>", "<pad>")]

    def favour(module: Any, inputs: Any, logits: Any) -> Any:
        logits[..., markers] += 1000
        return logits

    bent.model.lm_head.register_forward_hook(favour)
    texts = [text for texts in bent.answer(questions, SAMPLED) for text in texts]
    assert all(texts)
    assert not any("<" in text for text in texts)


def test_answers_end_where_the_model_ends_them(tiny_model, questions):
    bent = VisionLanguageModel(str(tiny_model))
    end = bent.processor.tokenizer.eos_token_id

    def favour(module: Any, inputs: Any, logits: Any) -> Any:
        logits[..., end] += 1000
        return logits

    bent.model.lm_head.register_forward_hook(favour)
    assert bent.answer(questions, SAMPLED) == [[""] * 3] * 4


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("is </think> normal </s>", Answer("normal")),
        ("is </think> normal scan yes", Answer(failure="cut off at 5 tokens", partial="normal scan yes")),
        ("normal </s>", Answer("normal")),
        ("normal scan yes no is", Answer(failure="cut off at 5 tokens", partial="normal scan yes no is")),
        ("</s>", Answer(failure="the answer is empty")),
    ],
)
def test_answers_are_whole_and_without_thoughts_or_say_why_not(tiny_model, tmp_path, questions, said, expected):
    """Also where the tokenizer calls the end of a thought special: it is neither suppressed nor left out unseen."""
    folder = shutil.copytree(tiny_model, tmp_path / "thinker")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    own = tokenizer["model"]["vocab"]
    spare = [word for word in own if word.isalpha()]
    for word in ("</think>", *said.replace("</think>", "").replace("</s>", "").split()):
        if word not in own:
            own[word] = own.pop(spare.pop())
    mark = {**tokenizer["added_tokens"][-1], "id": own["</think>"], "content": "</think>"}
    tokenizer["added_tokens"].append(mark)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    bent = VisionLanguageModel(str(folder))
    place = iter(bent.processor.tokenizer.convert_tokens_to_ids(said.split()))

    def follow(module: Any, inputs: Any, logits: Any) -> Any:
        logits[..., next(place)] += 1000
        return logits

    bent.model.lm_head.register_forward_hook(follow)
    greedy = Sampling(max_new_tokens=5)
    assert bent.generate(bent.prompts(questions[:1], greedy), greedy) == [[expected]]


def test_prompts_are_padded_on_the_left_in_the_models_own_template(model, questions):
    inputs = model.encode(questions)
    mask = inputs["attention_mask"].numpy()
    assert mask[:, -1].all() and not mask[:, 0].all()
    tokenizer = model.processor.tokenizer
    for ids, (_, question) in zip(inputs["input_ids"], questions, strict=True):
        text = tokenizer.decode(ids, skip_special_tokens=False).replace(" ", "")
        assert text.endswith(question.replace(" ", "") + "<assistant>")
        assert text.count("<image>") == 64  # (64 pixels / patches of 8)^2


def test_template_that_only_the_tokenizer_has_is_used(tiny_model, tmp_path, model, questions):
    folder = shutil.copytree(tiny_model, tmp_path / "older")
    settings = folder / "tokenizer_config.json"
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": template}))
    inputs = VisionLanguageModel(str(folder)).encode(questions)
    assert inputs["input_ids"].equal(model.encode(questions)["input_ids"])


def test_what_a_checkpoint_brings_to_generation_changes_no_answer(tiny_model, tmp_path, model, questions):
    folder = shutil.copytree(tiny_model, tmp_path / "brings")
    config = folder / "generation_config.json"
    brought = {"num_beams": 4, "no_repeat_ngram_size": 2, "min_new_tokens": 6, "repetition_penalty": 1.5, "top_k": 3}
    config.write_text(json.dumps({**json.loads(config.read_text()), **brought, "do_sample": True, "top_p": 0.5}))
    own = VisionLanguageModel(str(folder))
    for sampling in (Sampling(max_new_tokens=6), SAMPLED):
        assert own.answer(questions, sampling) == model.answer(questions, sampling)
    kept = own.model.generation_config
    assert (kept.num_beams, kept.min_new_tokens, kept.top_k) == (1, None, None)
    assert kept.eos_token_id == [own.processor.tokenizer.eos_token_id]


def test_the_digest_of_an_adapter_is_that_of_its_weights(tiny_model, tmp_path):
    name = adapter(tiny_model, tmp_path / "adapter", str(tiny_model))
    weights = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    assert adapter_digest(name) == hashlib.sha256(weights).hexdigest()
    adapted, plain = VisionLanguageModel(str(tiny_model), name), VisionLanguageModel(str(tiny_model))
    assert (adapted.adapter_sha256, adapted.adapter_checked_by) == (adapter_digest(name), "name")
    assert (plain.adapter_sha256, plain.adapter_checked_by) == (None, None)
    assert adapted.fingerprint == plain.fingerprint == fingerprint(str(tiny_model))


@pytest.mark.parametrize(("method", "message"), [
    ({"quant_method": "nibbles", "bits": 4}, "does not know the quantisation 'nibbles'"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "is quantised by bitsandbytes according to"),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "is quantised by bitsandbytes according to"),
])  # fmt: skip
def test_quantisation_that_would_be_left_out_is_refused(
    tiny_model: Path, tmp_path: Path, method: dict[str, Any], message: str
) -> None:
    pytest.importorskip("bitsandbytes")
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": method}))
    with pytest.raises(InputError, match=message):
        VisionLanguageModel(str(folder))


@pytest.mark.parametrize("given", ["m-Q4.gguf", ""])
def test_gguf_files_name_a_server(tmp_path, run, make_source, given):
    folder = tmp_path / "gguf"
    folder.mkdir()
    (folder / "m-Q4.gguf").write_bytes(b"GGUF")
    source = make_source([{"image": "a.png", "question": "Is there a mass?", "answer": "no"}])
    words = ("curate", "--source", source, "--output", tmp_path / "pairs", "--judges", "none", "--weights", "none")
    for role in (("--chat", f"local:{folder / given}"), ("--chat", "standin:rules", "--model", folder / given)):
        code, said = run(*words, *role)
        assert code == 2 and f"`llama-server -m {folder / 'm-Q4.gguf'}`" in said
        assert "http://localhost:8080/v1#m-Q4." in said
