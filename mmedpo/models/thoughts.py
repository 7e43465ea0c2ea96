"""Answers without the thoughts of reasoning models; `read` parses every reply and prediction."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

CUT_OFF = "cut off at"  # followed by the length limit
UNFINISHED = "its thought was not finished"
EMPTY = "the answer is empty"

# <think> of DeepSeek-R1, Qwen3, GLM-4.1V, Lingshu, MedVLM-R1, <seed:think> of Seed-OSS, <longcat_think> of LongCat.
_TAG = (
    "(?:think(?:ing)?|thoughts?|thought_process|reason(?:ing)?|rationale|analysis|scratchpad|seed:think|longcat_think)"
)
# Regular expressions of the marks that begin and end a thought.
_THOUGHTS = (
    (rf"<{_TAG}>", rf"</{_TAG}>"),
    (r"<\|think\|>", r"<\|/think\|>|</\|think\|>"),
    (r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    (r"<unused94>(?:thought\b)?", r"<unused95>"),  # MedGemma 27B and 1.5
    (r"<\|channel>(?:thought\b)?", r"<channel\|>"),  # Gemma 4
    (r"<\|channel\|>(?:analysis|commentary)\b[^<]*<\|message\|>", r"<\|channel\|>final\b[^<]*<\|message\|>"),  # gpt-oss
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A Reasoning
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"◁think▷", r"◁/think▷"),  # Kimi-VL
    (r"^## Thinking\b", r"^## Final Response\b"),  # HuatuoGPT-o1
)
# Tags around the answer, outer ones first.
_ANSWERS = (
    (r"<answer>", r"</answer>"),
    (r"<conclusion>", r"</conclusion>"),  # LLaVA-CoT
    (r"<\|begin_of_solution\|>", r"<\|end_of_solution\|>"),
    (r"<\|START_RESPONSE\|>", r"<\|END_RESPONSE\|>"),
    (r"<\|begin_of_box\|>", r"<\|end_of_box\|>"),  # GLM-4.1V and later
)
_FLAGS = re.IGNORECASE | re.DOTALL | re.MULTILINE
_OPENING = "|".join(opening for opening, _ in _THOUGHTS)
_MARKER = re.compile(rf"(?=[<\[◁#])(?:(?P<opening>{_OPENING})|{'|'.join(closing for _, closing in _THOUGHTS)})", _FLAGS)
_OPEN_END = re.compile(rf"(?:{_OPENING})\s*\Z", _FLAGS)
_ANSWER = [re.compile(rf"{start}((?:(?!{start}).)*?)(?:{end}|\Z)", _FLAGS) for start, end in _ANSWERS]
# gpt-oss without its special tokens: bare channel names before each channel's text.
_BARE = re.compile(r"\s*(?:analysis|commentary)(?:.*assistantfinal(?P<answer>.*)|[A-Z].*)\Z", re.DOTALL)
# Vocabulary tokens that are (part of) a mark.
_TOKENS = re.compile(
    rf"{_OPENING}|<unused9[45]>|</?{_TAG}>|</?answer>|<\|/?think\|>|\[/?THINK\]|◁/?think▷"
    r"|<\|channel>|<channel\|>|<\|(?:START|END)_(?:THINKING|RESPONSE)\|>|<\|(?:begin|end)_of_(?:thought|solution|box)\|>",
    _FLAGS,
)
_HARMONY = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>")  # gpt-oss format: all four tokens or none


@dataclass(frozen=True)
class Answer:
    """Answer to a question: either `text`, the answer without thoughts, or `failure`, the reason for none.

    `partial` is the beginning of an answer that was cut off at the length limit, which is a failure. `raw` is the full
    output, `cut` True where it was cut off, in the answer or in a thought.
    """

    text: str | None = None
    failure: str | None = None
    partial: str | None = None
    raw: str | None = field(default=None, compare=False)
    cut: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if (self.text is None) == (self.failure is None):
            raise ValueError("An answer has either a text or a failure.")

    @property
    def said(self) -> str | None:
        """Return the answer as far as it goes; None without one."""
        return self.partial if self.text is None else self.text


def read(raw: str, cut_at: int | None = None, opened: bool = False) -> Answer:
    """Return the answer in a model's full output.

    Args:
        raw: the output with its thoughts.
        cut_at: the length limit in tokens, if generation stopped at it.
        opened: True if the prompt ended within a thought (`opens`).

    Example:
        >>> read("<think>maybe no</think> Yes.").text, read("<think>maybe no", cut_at=64).failure
        ('Yes.', 'its thought was not finished within 64 tokens')
        >>> read("The left lu", cut_at=3).failure, read("The left lu", cut_at=3).said
        ('cut off at 3 tokens', 'The left lu')
    """
    raw = raw.strip()
    text = strip(raw, opened)
    if text is None:
        within = "" if cut_at is None else f" within {cut_at} tokens"
        return Answer(failure=f"{UNFINISHED}{within}", raw=raw, cut=cut_at is not None)
    if cut_at is not None:
        return Answer(failure=f"{CUT_OFF} {cut_at} tokens", partial=text or None, raw=raw, cut=True)
    if not text:
        return Answer(failure=EMPTY, raw=raw)
    return Answer(text, raw=raw)


def strip(text: str, opened: bool = False) -> str | None:
    """Return `text` without thoughts and answer tags; None where a thought is not finished.

    An end mark without a beginning closes a thought that the chat template opened. Begin marks inside a thought are
    ignored. The last of several tagged answers counts. A text without marks is returned unchanged, whitespace included,
    since published metrics see whitespace.

    Example:
        >>> strip("maybe no</think><answer>Yes.</answer>"), strip("Yes."), strip("<think>maybe no")
        ('Yes.', 'Yes.', None)
    """
    if bare := _BARE.match(text):
        return None if bare["answer"] is None else bare["answer"].strip()
    # Fast path: every mark begins with one of these, and most answers have none.
    if not opened and "<" not in text and "[" not in text and "◁" not in text and "##" not in text:
        return text
    kept, thinking, start = "", opened, 0
    for marker in _MARKER.finditer(text):
        if marker["opening"] is None:
            kept, thinking, start = (kept if thinking else ""), False, marker.end()
        elif not thinking:
            kept, thinking = kept + text[start : marker.start()], True
    if thinking:
        return None
    kept += text[start:]
    for tagged in _ANSWER:
        if found := tagged.findall(kept):
            kept = found[-1]
    return text if kept == text else kept.strip()


def ends_opened_thought(text: str) -> bool:
    """Return True where a text ends a thought that the chat template had opened."""
    first = _MARKER.search(text)
    return first is not None and first["opening"] is None


def opens(prompt: str) -> bool:
    """Return True where a rendered prompt ends with the beginning of a thought."""
    return _OPEN_END.search(prompt) is not None


def token_ids(tokenizer: Any) -> set[int]:
    """Return the ids of a tokenizer's tokens for thoughts and answers.

    Many tokenizers call them special, but a model must be able to generate them and `strip` to see them.
    """
    vocabulary: dict[str, int] = tokenizer.get_added_vocab()
    found = {number for token, number in vocabulary.items() if _TOKENS.fullmatch(token)}
    if all(token in vocabulary for token in _HARMONY):
        found |= {vocabulary[token] for token in _HARMONY}
    return found
