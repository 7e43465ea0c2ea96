"""Local chat models: answers of a batch are those of each request alone, by a route without `generate`."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmedpo.errors import InputError
from mmedpo.models.chat import ChatReply, ChatRequest
from mmedpo.models.chat.local import LocalChat
from mmedpo.models.fingerprint import model_contents

SPECIAL = ["<pad>", "</s>", "<unk>", "<user>", "<assistant>"]
WORDS = [
    "is", "there", "a", "large", "small", "mass", "effusion", "in", "the", "left", "right", "lung", "lobe", "yes", "no",
    "normal", "scan", "of", "chest", "liver",
]  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
CONTEXT, LONGEST = 40, 12  # tokens
TEXTS = [
    "is there a mass",
    "no",
    "is there a large effusion in the left lobe of the right lung",
    "normal chest scan",
    "the liver is normal is there a small mass in the liver",
    "chest",
    "yes there is a mass",
]


def save_language_model(folder: Path, template: str | None = TEMPLATE) -> Path:
    """A random Llama that knows `WORDS`, and its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=SPECIAL[3:], chat_template=template,
    )  # fmt: skip
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, initializer_range=0.3, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_language_model(tmp_path_factory.mktemp("models") / "llama"))


def chat_of(folder: str, **settings: Any) -> LocalChat:
    return LocalChat(folder, **{"batch_size": 3, "max_tokens": LONGEST, "dtype": "float32", **settings})


def ask(text: str, *images: bytes) -> ChatRequest:
    return ChatRequest("test@1", {}, text, images)


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


REQUESTS = [ask(text) for text in TEXTS]


def answered_alone(folder: str, text: str) -> ChatReply:
    """Greedy, one token at a time, without padding, cache, template or `generate`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    end = tokenizer.eos_token_id
    never = [i for i in range(len(SPECIAL)) if i != end]
    prompt: list[int] = tokenizer(f"<user> {text} <assistant>", add_special_tokens=False)["input_ids"]
    answer: list[int] = []
    while len(answer) < LONGEST and end not in answer:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, -1]
        logits[never] = -torch.inf
        answer.append(int(logits.argmax()))
    said = " ".join((SPECIAL + WORDS)[token] for token in answer if token != end)
    counts = {"prompt_tokens": len(text.split()) + 2, "completion_tokens": len(answer)}
    if end not in answer:
        return ChatReply(failure=f"cut off at {LONGEST} tokens", partial=said, **counts)
    return ChatReply(said, **counts) if said else ChatReply(failure="the answer is empty", **counts)


def seen_prompts(chat: LocalChat) -> list[list[str]]:
    """A list that fills with the prompts of every batch that the model is given, padding left out."""
    batches: list[list[str]] = []

    def record(module: Any, positional: Any, named: Any) -> None:
        if named["past_key_values"].get_seq_length() == 0:
            tokenizer = getattr(chat.processor, "tokenizer", chat.processor)
            batches.append(tokenizer.batch_decode(named["input_ids"], skip_special_tokens=True))

    chat.model.register_forward_pre_hook(record, with_kwargs=True)
    return batches


def bend(chat: LocalChat, favoured: Callable[[Any], Any]) -> LocalChat:
    """The model's head gives `favoured(logits)`."""
    chat.model.lm_head.register_forward_hook(lambda module, inputs, logits: favoured(logits))
    return chat


# Answers and counts.


def test_answers_and_token_counts_of_batches_are_those_of_each_request_alone(language_model):
    expected = [answered_alone(language_model, text) for text in TEXTS]
    lengths = {reply.completion_tokens for reply in expected}
    assert LONGEST in lengths and min(lengths) < LONGEST  # some answers end by themselves, some are cut
    for batch_size in (1, 3, 8):
        assert chat_of(language_model, batch_size=batch_size).complete(REQUESTS) == expected
    assert chat_of(language_model).complete([]) == []


def test_end_tokens_of_the_generation_config_end_answers_too(language_model, tmp_path):
    folder = shutil.copytree(language_model, tmp_path / "two-ends")
    mass = len(SPECIAL) + WORDS.index("mass")
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token_id": [1, mass]}))
    for before, after in zip(
        chat_of(language_model).complete(REQUESTS), chat_of(str(folder)).complete(REQUESTS), strict=True
    ):
        said = (before.said or "").split()
        if "mass" in said:
            count = said.index("mass")
            assert ((after.said or ""), after.completion_tokens) == (" ".join(said[:count]), count + 1)
        else:
            assert after == before


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_special_tokens_other_than_the_end_are_never_generated(language_model, temperature):
    def favour(logits: Any) -> Any:
        logits[..., [0, 2, 3, 4]] += 1000
        logits[..., 1] = -torch.inf  # the end
        return logits

    for reply in bend(chat_of(language_model, temperature=temperature), favour).complete(REQUESTS):
        assert reply.said and set(reply.said.split()) <= set(WORDS)
        assert len(reply.said.split()) == reply.completion_tokens == LONGEST  # special tokens would not be shown


def test_settings_say_what_an_answer_depends_on(language_model):
    chat = LocalChat(language_model, revision="main", temperature=0.5, seed=3)
    assert (chat.name, chat.revision) == (language_model, "main")
    contents = model_contents(language_model)
    sampling = {"max_tokens": 512, "temperature": 0.5, "seed": 3, "dtype": "float32"}
    assert chat.settings == {**sampling, "contents": contents}
    assert LocalChat(language_model, dtype="bfloat16").settings["dtype"] == "bfloat16"


@pytest.fixture(scope="module", params=[("<think>", "</think>"), ("<unused94>thought", "<unused95>")], ids=str)
def thinker(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A model whose template opens a thought and whose tokenizer calls the end of one special; and that end."""
    opening, closing = request.param
    folder = tmp_path_factory.mktemp("thinker")
    save_language_model(folder, TEMPLATE.replace("<assistant> {%", f"<assistant> {opening}\n{{%"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    own = tokenizer["model"]["vocab"]
    own[opening], own[closing] = own.pop("liver"), own.pop("chest")
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": own[closing], "content": closing})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return str(folder), closing


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("no {end} yes </s>", ("yes", None, None)),
        ("no {end} yes normal scan", (None, "cut off at 5 tokens", "yes normal scan")),
        ("no {end} </s>", (None, "the answer is empty", None)),
        ("no no no no no", (None, "its thought was not finished within 5 tokens", None)),
        ("no no </s>", (None, "its thought was not finished", None)),
    ],
)
def test_a_thought_that_the_template_opens_is_no_answer(thinker, said, expected):
    folder, closing = thinker
    chat = chat_of(folder, max_tokens=5)
    tokens = [chat.processor.convert_tokens_to_ids(word) for word in said.format(end=closing).split()]
    place = iter(tokens)

    def follow(logits: Any) -> Any:
        logits[..., next(place)] += 1000
        return logits

    (reply,) = bend(chat, follow).complete([ask("is there a mass")])
    assert (reply.text, reply.failure, reply.partial) == expected
    assert (reply.prompt_tokens, reply.completion_tokens) == (7, len(tokens))


# Batches, and what a resumed run makes of them.


def test_resumed_run_makes_the_batches_of_the_uninterrupted_one(language_model):
    """Also where requests without an answer, which no cache holds, come again before the others."""
    too_long = ask("mass " * CONTEXT)
    requests = [too_long, *REQUESTS[:4], too_long, *REQUESTS[4:]]
    chat = chat_of(language_model)
    batches = seen_prompts(chat)
    replies = chat.complete(requests)
    assert batches == [TEXTS[:3], TEXTS[3:6], TEXTS[6:]]
    batches.clear()
    resumed = chat.complete([too_long, requests[4], too_long, *requests[6:]])  # the first batch is done
    assert batches == [TEXTS[3:6], TEXTS[6:]]
    assert resumed == [replies[0], replies[4], replies[5], *replies[6:]]


def test_replies_are_handed_over_batch_by_batch_until_that_fails(language_model):
    chat = chat_of(language_model)
    batches, handed = seen_prompts(chat), []
    replies = chat.complete(REQUESTS, handed.append)
    assert handed == [{i: replies[i] for i in places} for places in (range(3), range(3, 6), range(6, 7))]

    def stop(new: Any) -> None:
        raise InputError("enough")

    batches.clear()
    with pytest.raises(InputError, match="enough"):
        chat.complete(REQUESTS, stop)
    assert batches == [TEXTS[:3]]


def test_prompts_that_exceed_the_context_are_failures_with_the_numbers(language_model):
    fits, exceeds = ask("mass " * (CONTEXT - LONGEST - 2)), ask("mass " * (CONTEXT - LONGEST - 1))
    replies = chat_of(language_model).complete([exceeds, REQUESTS[0], fits])
    assert replies[0].failure == (
        f"the prompt has {CONTEXT - LONGEST + 1} tokens, and with an answer of up to {LONGEST} (max_tokens) it exceeds "
        f"the model's context of {CONTEXT}"
    )
    assert replies[1] == answered_alone(language_model, TEXTS[0])
    assert replies[2].prompt_tokens == CONTEXT - LONGEST


def out_of_memory_above(rows: int) -> Callable[[Any], Any]:
    def refuse(logits: Any) -> Any:
        if len(logits) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return logits

    return refuse


def test_batch_that_does_not_fit_into_memory_is_halved(language_model):
    expected = chat_of(language_model, temperature=1.0).complete(REQUESTS)
    chat = bend(chat_of(language_model, batch_size=7, temperature=1.0), out_of_memory_above(2))
    batches = seen_prompts(chat)
    with pytest.warns(UserWarning, match="a batch of [734] does not fit into memory and is halved"):
        assert chat.complete(REQUESTS) == expected
    assert [len(batch) for batch in batches] == [7, 3, 1, 2, 4, 2, 2]


def test_single_request_that_does_not_fit_into_memory_is_a_failure(language_model):
    chat = bend(chat_of(language_model, batch_size=1), out_of_memory_above(0))
    for reply in chat.complete(REQUESTS[:2]):
        assert reply.failure == "out of memory with a batch of one: CUDA out of memory. Tried to allocate 2.00 GiB."


def test_other_errors_of_the_model_are_no_replies(language_model):
    def fail(logits: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        bend(chat_of(language_model), fail).complete(REQUESTS)


# Chance.


def test_sampled_answers_come_from_the_seed_and_the_request_alone(language_model):
    replies = chat_of(language_model, temperature=1.0).complete(REQUESTS)
    torch.manual_seed(99)
    others = chat_of(language_model, temperature=1.0, batch_size=2).complete(REQUESTS[::-1])
    assert others[::-1] == replies
    assert chat_of(language_model, temperature=1.0, seed=1).complete(REQUESTS) != replies
    assert chat_of(language_model, temperature=1.0).complete([REQUESTS[0]] * 2) == [replies[0]] * 2


def test_samples_have_the_distribution_of_the_temperature(language_model):
    """One word of three with logits 0, 1 and 2 at temperature 2, for 900 different requests."""
    first, draws, temperature = len(SPECIAL), 900, 2.0

    def three_words(logits: Any) -> Any:
        logits[...] = -torch.inf
        logits[..., first : first + 3] = torch.tensor([0.0, 1.0, 2.0])
        return logits

    chat = bend(chat_of(language_model, temperature=temperature, max_tokens=1, batch_size=300), three_words)
    numbers = [[WORDS[i // 100], WORDS[i // 10 % 10], WORDS[i % 10]] for i in range(draws)]
    drawn = Counter(reply.said for reply in chat.complete([ask(" ".join(number)) for number in numbers]))
    weights = np.exp(np.array([0.0, 1.0, 2.0]) / temperature)
    for word, share in zip(WORDS, weights / weights.sum(), strict=False):
        deviation = np.sqrt(share * (1 - share) / draws)
        assert drawn[word] / draws == pytest.approx(share, abs=4 * deviation)


# Models with vision.


def test_model_with_vision_answers_as_it_does_elsewhere_with_and_without_images(tiny_model):
    """Requests with images are compared with `VisionLanguageModel`, those without with themselves alone."""
    from mmedpo.models.generation import Sampling
    from mmedpo.models.vision_language import VisionLanguageModel

    questions = ["is there a mass", "effusion", "where is it", "is the scan normal", "what is in the image", "mass"]
    images = [[picture(0)], [], [picture(1)], [], [picture(2)], [picture(0), picture(1)]]
    requests = [ask(text, *shown) for text, shown in zip(questions, images, strict=True)]
    chat = chat_of(str(tiny_model), batch_size=2, max_tokens=6)
    batches = seen_prompts(chat)
    replies = chat.complete(requests)
    assert [len(batch) for batch in batches] == [2, 2, 2]
    elsewhere = VisionLanguageModel(str(tiny_model))
    for request, reply in zip(requests, replies, strict=True):
        assert reply.said and reply.prompt_tokens
        assert chat.complete([request]) == [reply]
        if request.images:
            shown = [Image.open(io.BytesIO(image)) for image in request.images], request.text
            assert elsewhere.answer([shown], Sampling(max_new_tokens=6)) == [[reply.said]]
    # 64 image tokens (64 pixels / patches of 8)^2 more than <user>, the words and <assistant>
    assert [reply.prompt_tokens for reply in replies] == [
        2 + len(text.split()) + 64 * len(shown) for text, shown in zip(questions, images, strict=True)
    ]


def test_images_alone_give_requests_a_chance_of_their_own(tiny_model):
    """All words are equally likely here, whatever the model sees."""
    chat = bend(chat_of(str(tiny_model), batch_size=8, max_tokens=6, temperature=1.0), lambda logits: logits * 0)
    replies = chat.complete([ask("is there a mass", picture(seed)) for seed in (0, 1, 0)])
    assert replies[0] == replies[2] != replies[1]


@pytest.mark.parametrize(
    ("text", "image", "reason"),
    [
        ("is there a mass", b"no image", "the image has an unknown format"),
        ("is there a mass", picture(0)[:200], "the image cannot be decoded"),
        ("half a \ud800 pair", None, "the model's processor refuses it"),
        ("is <image> normal", picture(0), "the text contains '<image>', the placeholder of an image; remove it"),
        ("is <image> normal", None, "the text contains '<image>', the placeholder of an image; remove it"),
    ],
)
def test_odd_request_is_a_failure_and_spoils_no_other(tiny_model, text, image, reason):
    chat = chat_of(str(tiny_model), max_tokens=2)
    odd, fine = chat.complete([ask(text, *filter(None, [image])), ask("is there a mass", picture(1))])
    assert odd.failure and reason in odd.failure
    assert [fine] == chat.complete([ask("is there a mass", picture(1))])


def test_model_without_vision_that_is_asked_to_look_is_refused_by_name(language_model):
    with pytest.raises(InputError, match=r"is a 'llama' model, which takes no images\. Leave out --show") as no:
        chat_of(language_model).complete([REQUESTS[0], ask("is there a mass", picture(0))])
    assert repr(language_model) in str(no.value)


# What is refused at the start.


def test_model_without_chat_template_is_refused(tmp_path):
    folder = str(save_language_model(tmp_path / "plain", template=None))
    with pytest.raises(InputError, match="has no chat template, and none is guessed") as raised:
        LocalChat(folder)
    assert repr(folder) in str(raised.value)


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def another_kind(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "t5"}))


@pytest.mark.parametrize("spoil", [no_tokenizer, another_kind])
def test_model_that_cannot_be_loaded_is_refused(language_model, tmp_path, spoil):
    folder = shutil.copytree(language_model, tmp_path / "spoiled")
    spoil(folder)
    with pytest.raises(InputError, match=r"cannot be loaded: .") as raised:
        LocalChat(str(folder))
    assert repr(str(folder)) in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, r"batch_size \(0\)"),
        ({"max_tokens": 0}, r"max_tokens \(0\)"),
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"dtype": "float7"}, "dtype='float7' is unknown; choose one of auto"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        LocalChat("org/model", **settings)
