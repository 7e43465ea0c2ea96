"""One function reads the answer out of all that a model said, in the manner of every family that thinks aloud."""

from __future__ import annotations

import pytest

from mmedpo.models import thoughts
from mmedpo.models.thoughts import Answer

MANNERS = {
    "DeepSeek-R1, Qwen3": ("<think>", "</think>"),
    "upper case": ("<THINK>", "</Think>"),
    "thinking": ("<thinking>", "</thinking>"),
    **{
        name: (f"<{name}>", f"</{name}>")
        for name in ("thought", "thought_process", "reason", "rationale", "analysis", "scratchpad", "longcat_think")
    },
    "think between bars": ("<|think|>", "<|/think|>"),
    "reasoning": ("<reasoning>", "</reasoning>"),
    "Seed-OSS": ("<seed:think>", "</seed:think>"),
    "Magistral": ("[THINK]", "[/THINK]"),
    "MedGemma": ("<unused94>thought\n", "<unused95>"),
    "Gemma 4": ("<|channel>thought\n", "<channel|>"),
    "gpt-oss": ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    "Command A": ("<|START_THINKING|>", "<|END_THINKING|>"),
    "Kimi-VL": ("◁think▷", "◁/think▷"),
}
DRAFT = 'maybe {"score": 0.1} or no'


@pytest.mark.parametrize(("start", "end"), MANNERS.values(), ids=MANNERS)
def test_strip_every_manner_of_thinking(start, end):
    assert thoughts.strip(f"{start}{DRAFT}{end}\nYes.") == "Yes."
    assert thoughts.strip(f"{start}{end}Yes.") == "Yes."
    assert thoughts.strip(f"{DRAFT}{end}Yes.") == "Yes."  # the template opened it
    assert thoughts.strip(f"{DRAFT}{end}Yes.", opened=True) == "Yes."
    assert thoughts.strip(f"{start}a{end}Yes, {start}b{end}there is.") == "Yes, there is."
    assert thoughts.strip(f"{start}a {start}b{end} c{end}Yes.") == "Yes."
    assert thoughts.strip(f"{start}a {start}b{end}Yes.") == "Yes."  # begun twice: by the template and by the model
    assert thoughts.strip(f"{start}{DRAFT}") is None
    assert thoughts.strip(f"Yes. {start}or no") is None
    assert thoughts.strip(f"{start}a{end}{start}b") is None
    assert thoughts.opens(f"<user> Is it normal? <assistant> {start}")
    assert not thoughts.opens(f"<user> Is it normal? <assistant> {start}\n\n{end}\n\n")  # thinking is off
    assert thoughts.ends_opened_thought(f"{DRAFT}{end}Yes.") and not thoughts.ends_opened_thought(f"{start}a{end}Yes.")


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("<think>a <answer>no</answer></think><answer> Yes. </answer>", "Yes."),
        ("The answer is <|begin_of_box|>yes<|end_of_box|>.", "yes"),
        ("<answer><|begin_of_box|>yes<|end_of_box|></answer>", "yes"),
        ("<answer>no</answer> Wait. <ANSWER>yes</ANSWER>", "yes"),
        ("<answer>The left lower", "The left lower"),  # cut off
        ("<SUMMARY>a</SUMMARY><REASONING>b</REASONING><CONCLUSION>left\nlung</CONCLUSION>", "left\nlung"),
        ("<think>a</think><answer></answer>", ""),
        ("analysisIs it? No.assistantanalysisMaybe.assistantfinalYes.", "Yes."),  # gpt-oss without its tokens
        ("analysis of the image shows no mass", "analysis of the image shows no mass"),
        ("Analysis: no.", "Analysis: no."),
        ("Yes. <reason>It is white.</reason>", "Yes."),
        ("## Thinking\n\nmaybe no\n\n## Final Response\n\nYes.", "Yes."),  # HuatuoGPT-o1
        ("No [THINKING] of it: 3 < 5 cm, [1].", "No [THINKING] of it: 3 < 5 cm, [1]."),
        ("  I think so.\n", "  I think so.\n"),  # published metrics see white space
        ("I thought: no.", "I thought: no."),
        ("", ""),
    ],
)
def test_strip_reads_answer_tags_and_leaves_plain_text_alone(said, answer):
    assert thoughts.strip(said) == answer
    assert thoughts.strip(answer) == answer


@pytest.mark.parametrize(
    ("said", "cut_at", "opened", "answer"),
    [
        ("<think>a</think>Yes.", None, False, Answer("Yes.")),
        ("Yes.", None, False, Answer("Yes.")),
        (" \n", None, False, Answer(failure="the answer is empty")),
        ("<think>a</think>", None, False, Answer(failure="the answer is empty")),
        ("Yes.", None, True, Answer(failure="its thought was not finished")),
        ("analysisWe need to look", 64, False, Answer(failure="its thought was not finished within 64 tokens")),
        ("<think>Yes", 64, False, Answer(failure="its thought was not finished within 64 tokens")),
        ("<think>a</think>The left", 64, False, Answer(failure="cut off at 64 tokens", partial="The left")),
        ("<think>a</think>", 64, False, Answer(failure="cut off at 64 tokens")),
    ],
)
def test_read_says_why_there_is_no_answer(said, cut_at, opened, answer):
    found = thoughts.read(said, cut_at, opened)
    assert found == answer
    assert found.raw == said.strip()
    assert found.said == (answer.text or answer.partial)


def test_an_answer_is_a_text_or_a_failure():
    for given in ({}, {"text": "a", "failure": "b"}):
        with pytest.raises(ValueError):
            Answer(**given)


class Vocabulary:
    def __init__(self, *tokens: str) -> None:
        self.tokens = dict(zip(tokens, range(len(tokens)), strict=True))

    def get_added_vocab(self) -> dict[str, int]:
        return self.tokens


def test_token_ids_are_the_marks_of_thoughts_and_answers_alone():
    marks = ["<think>", "</think>", "[THINK]", "[/THINK]", "<unused94>", "<unused95>", "<|begin_of_box|>", "<channel|>"]
    others = ["<image>", "<unused93>", "<|end|>", "<|im_start|>", "[INST]", "<|channel|>"]
    assert thoughts.token_ids(Vocabulary(*marks, *others)) == set(range(len(marks)))
    grammar = ["<|channel|>", "<|message|>", "<|start|>", "<|end|>"]  # of gpt-oss: all four
    assert thoughts.token_ids(Vocabulary(*grammar, "<|call|>")) == {0, 1, 2, 3}
