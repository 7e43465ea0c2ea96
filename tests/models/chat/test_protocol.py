import pytest

from mmedpo.models.chat import ChatReply, parse_json


def test_a_reply_has_a_text_or_a_failure():
    with pytest.raises(ValueError):
        ChatReply()
    with pytest.raises(ValueError):
        ChatReply(text="", failure="")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<think>perhaps {"score": 0.3}</think> {"score": 0.7}', {"score": 0.7}),
        ('<think>perhaps {"score": 0.3}</think> I will not say.', None),
        ('<think>perhaps {"score": 0.3} or', None),
        ('{"score": 0.5}', {"score": 0.5}),
        ('Sure!\n```json\n{"score": 0.5}\n```\nHope it helps {smile}', {"score": 0.5}),
        ('<think>maybe {"score": 0.1}?</think>{"score": 0.9}', {"score": 0.9}),
        ('{"rationale": "braces } in { text", "score": 1}', {"rationale": "braces } in { text", "score": 1}),
        ('{"a": {"b": 1}}', {"a": {"b": 1}}),
        ('{"score": 0.5, "rationale": "the les', None),
        ("[0.5]", None),
        ("I cannot help with that.", None),
        ("", None),
        ('{"a":' * 100_000, None),
    ],
)
def test_parse_json(text, expected):
    assert parse_json(text) == expected
