"""Log-probabilities of given answers, for training and evaluation: tokens of prompts and answers, one forward pass.

A row is [prompt with image tokens][answer], or a tree of those that begin alike, whose branches `models.sharing`
keeps apart. Prompt and answer are tokenised separately; the answer includes the end of turn. Its last token predicts
nothing and is left out; the prompt's last token predicts the first token of each answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from trl.data_utils import prepare_multimodal_messages

from mmedpo.errors import InputError
from mmedpo.models.chat_template import lacks_first_token

PACKING = ("ends", "positions", "answer_ids", "completion_mask", "predictors")  # keys of `pack` beside the inputs
# `token_type_ids` of answer tokens, 0 in other families: PaliGemma's 0 is the prefix with bidirectional attention.
ANSWER_TYPES = {"PaliGemmaProcessor": 1}
LOOK_AHEAD = ("PaliGemmaProcessor",)  # image tokens see the question
EVEN = 8192  # tokens of a row at which attention takes about as long as all else in the layers of a 7B model
TOKENS = ("input_ids", "token_type_ids", "mm_token_type_ids")  # types mark image tokens for Gemma and Qwen-VL

Messages = Sequence[dict[str, str]]
Tokens = dict[str, list[int]]  # the model's keys of `TOKENS`, with a number per token of a prompt


def rendered(processor: Any, prompt: Messages, images: int, answers: Sequence[Messages]) -> tuple[str, list[str]]:
    """Return prompt and answers as the chat template writes them, answers with end-of-turn token.

    Raises:
        InputError: the template writes the prompt differently once an answer follows.
    """
    asked = prepare_multimodal_messages(list(prompt), images=[None] * images)
    before: str = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    answered = [asked + prepare_multimodal_messages(list(answer)) for answer in answers]
    whole = [processor.apply_chat_template(conversation, tokenize=False) for conversation in answered]
    if not all(text.startswith(before) for text in whole):
        raise InputError(
            f"The chat template of {type(processor).__name__} writes the prompt differently where an answer follows, "
            "so prompt and answer cannot be separated. Use the template that the model was trained with."
        )
    return before, [text[len(before) :] for text in whole]


def read_prompts(
    processor: Any, prompts: Sequence[str], images: Sequence[Sequence[Any]]
) -> tuple[list[Tokens], dict[str, torch.Tensor]]:
    """Return token ids and types of each rendered prompt, and the model inputs of its images (RGB)."""
    made = processor(
        text=list(prompts),
        images=[list(shown) for shown in images],
        padding=True,  # removed below; PaliGemma's processor fails on rows of different length
        add_special_tokens=lacks_first_token(processor.tokenizer, prompts[0]),
    )
    masks = made["attention_mask"]
    tokens = [
        {key: [v for v, there in zip(made[key][row], mask, strict=True) if there] for key in TOKENS if key in made}
        for row, mask in enumerate(masks)
    ]
    pixels = {
        key: value if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
        for key, value in made.items()
        if key not in (*TOKENS, "attention_mask", "labels")  # PaliGemma adds labels
    }
    return tokens, pixels


def token_ids(processor: Any, answers: Sequence[str]) -> list[list[int]]:
    """Return the token ids of rendered answers."""
    ids: list[list[int]] = processor.tokenizer(list(answers), add_special_tokens=False)["input_ids"]
    return ids


def filler(processor: Any) -> int:
    """Return the token id of padding."""
    tokenizer = processor.tokenizer
    found: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return found


def batch(
    processor: Any, rows: Sequence[int], prompts: Sequence[Tokens], answers: Sequence[Sequence[int]]
) -> dict[str, torch.Tensor]:
    """Return `pack` of prompts and answers as the processor's model takes them."""
    return pack(rows, prompts, answers, filler(processor), ANSWER_TYPES.get(type(processor).__name__, 0))


def pack(
    rows: Sequence[int],
    prompts: Sequence[Tokens],
    answers: Sequence[Sequence[int]],
    filler: int = 0,
    answer_type: int = 0,
) -> dict[str, torch.Tensor]:
    """Rows of prompts with their answers, right-padded. A row of several sides is a tree: what they begin with stands
    once, and each branch follows where it leaves the others.

    Args:
        rows: the row of each of S sides, numbers from 0 to R - 1.
        prompts: tokens of each side's prompt.
        answers: token ids of each side's answer.
        filler: token id of the padding.
        answer_type: type of answer tokens.

    Returns (int64; L tokens in the longest row, T in the longest answer):
        `input_ids` and types of tokens, `attention_mask` (R x L); `ends` (R x L: place behind the last token that
        follows this one on some side, 0 for padding); `positions` (R x L: place of each token on its own sides);
        `answer_ids`, `completion_mask` (S x T: whether there is such a token);
        `predictors` (S x T: the place, in the flattened R x L, whose logits predict the token).
    """
    names = [name for name in TOKENS if name in prompts[0]]
    sides: list[list[int]] = [[] for _ in range(max(rows) + 1)]
    for side, row in enumerate(rows):
        sides[row].append(side)
    paths = [
        [*zip(*(prompt[name] for name in names), strict=True),
         *((token, *[answer_type] * (len(names) - 1)) for token in answer[:-1])]
        for prompt, answer in zip(prompts, answers, strict=True)
    ]  # fmt: skip
    trees = [_tree([paths[side] for side in own]) for own in sides]
    width = max(len(tokens) for tokens, *_ in trees)
    predictors: list[list[int]] = [[] for _ in answers]
    for row, (own, tree) in enumerate(zip(sides, trees, strict=True)):
        for side, places in zip(own, tree[-1], strict=True):
            first = len(prompts[side][names[0]]) - 1
            predictors[side] = [row * width + place for place in places[first : first + len(answers[side])]]
    fillers = [filler, *[0] * (len(names) - 1)]
    return {
        **{
            name: padded([[token[i] for token in tokens] for tokens, *_ in trees], fillers[i])
            for i, name in enumerate(names)
        },
        "attention_mask": padded([[1] * len(tokens) for tokens, *_ in trees]),
        "ends": padded([ends for _, ends, *_ in trees]),
        "positions": padded([depths for _, _, depths, _ in trees]),
        "answer_ids": padded(answers, filler),
        "completion_mask": padded([[1] * len(answer) for answer in answers]),
        "predictors": padded(predictors),
    }


def split(rows: Sequence[int], prompts: Sequence[Tokens], answers: Sequence[Sequence[int]]) -> list[int]:
    """Return `rows` of `pack` where long trees are several rows, each with what its sides begin with.

    All rows are padded to the longest, and attention grows with the square of its length. A tree goes on in a new row
    where its next side would pass a bound; of some bounds, from no split to rows of about one side, the one of least
    cost. The result depends on the batch only.
    """
    paths = [[*prompt["input_ids"], *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
    order = sorted(range(len(paths)), key=lambda side: (rows[side], paths[side]))
    added = [None] + [  # tokens of each side behind the one before it in its tree
        len(paths[side]) - _alike(paths[before], paths[side]) if rows[before] == rows[side] else None
        for before, side in pairwise(order)
    ]

    def cut(bound: int) -> tuple[list[int], list[int]]:
        """Return the row of each side of `order`, and the length of each row."""
        numbers: list[int] = []
        lengths: list[int] = []
        for side, more in zip(order, added, strict=True):
            if more is not None and lengths[-1] + more <= bound:
                lengths[-1] += more
            else:
                lengths.append(len(paths[side]))
            numbers.append(len(lengths) - 1)
        return numbers, lengths

    def cost(made: tuple[list[int], list[int]]) -> float:
        width = max(made[1])
        return len(made[1]) * width * (1 + width / EVEN)

    side, tree = max(map(len, paths)), max(cut(sum(map(len, paths)))[1])
    numbers, _ = min((cut(side + (tree - side) // parts) for parts in range(1, 17)), key=cost)
    return [number for _, number in sorted(zip(order, numbers, strict=True))]


def _alike(one: Sequence[Any], two: Sequence[Any]) -> int:
    """Return the number of tokens that both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


def _tree(paths: Sequence[list[tuple[int, ...]]]) -> tuple[list[Any], list[int], list[int], list[list[int]]]:
    """Return the tokens of the tree of paths, depth first, their ends and depths, and the places of each path."""
    tokens: list[Any] = []
    ends: list[int] = []
    depths: list[int] = []
    places: list[list[int]] = [[] for _ in paths]
    before: list[tuple[int, ...]] = []
    at: list[int] = []  # places of the last path
    for number in sorted(range(len(paths)), key=lambda number: paths[number]):
        path = paths[number]
        shared = _alike(before, path)
        at = [*at[:shared], *range(len(tokens), len(tokens) + len(path) - shared)]
        tokens += path[shared:]
        depths += range(shared, len(path))
        ends += [0] * (len(path) - shared)
        for place in at:
            ends[place] = len(tokens)
        before, places[number] = path, at
    return tokens, ends, depths, places


def padded(rows: Sequence[Sequence[int]], value: int = 0) -> torch.Tensor:
    """Return rows of different length as one int64 tensor, padded on the right."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value)


@dataclass
class Answers:
    """Next-token distributions at K places, which predict the N tokens of S answers.

    Attributes:
        logits: float32, K x V. Two answers behind one prompt share the prediction of their first tokens, so K <= N.
        places: int64, N: index in K that predicts each answer token, in the order of `there`.
        tokens: int64, N: ids of the answer tokens.
        there: bool, S x T: True where answer s has a token t.
    """

    logits: torch.Tensor
    places: torch.Tensor
    tokens: torch.Tensor
    there: torch.Tensor

    def logps(self) -> torch.Tensor:
        """Return the log-probability of each answer token (float32, S x T; 0 where there is none)."""
        return self._spread(self.logits[self.places, self.tokens] - self.logits.logsumexp(dim=-1)[self.places])

    def divergence(self, reference: Answers) -> torch.Tensor:
        """Return KL(reference || this) in nats at each answer token (float32, S x T; 0 where there is none)."""
        own, target = self.logits.log_softmax(dim=-1), reference.logits.log_softmax(dim=-1)
        return self._spread(F.kl_div(own, target, reduction="none", log_target=True).sum(dim=-1)[self.places])

    def _spread(self, values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(self.there.shape).masked_scatter(self.there, values)


def read_answers(model: Any, inputs: dict[str, torch.Tensor]) -> Answers:
    """Run a model over a batch and return its answers' distributions, with the language-model head at answers only.

    Args:
        model: a vision-language model of transformers, maybe inside PEFT, DeepSpeed or DDP.
        inputs: the output of `pack`, and further model inputs (`pixel_values`, ...).

    Raises:
        InputError: the model's head cannot be limited to chosen places.
    """
    there = inputs["completion_mask"].bool()
    predictors = inputs["predictors"][there]
    keep = torch.zeros_like(inputs["attention_mask"], dtype=torch.bool)
    keep.view(-1)[predictors] = True
    plain = {name: value for name, value in inputs.items() if name not in PACKING}
    logits = model(**plain, use_cache=False, logits_to_keep=keep).logits
    kept = keep.view(-1).cumsum(0)
    if logits.shape[:-1] != (int(kept[-1]),):
        raise InputError(
            f"{type(model).__name__} does not accept `logits_to_keep` as a mask, so its language-model head cannot be "
            "limited to answers. Use a model class that ships with transformers."
        )
    return Answers(logits.float(), kept[predictors] - 1, inputs["answer_ids"][there], there)
