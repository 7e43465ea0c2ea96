from itertools import count

import pytest

from mmedpo.curation.plan import open_chat, open_plan, open_source
from mmedpo.curation.settings import Settings
from mmedpo.curation.standins import StandInJudge
from mmedpo.errors import InputError, Stopped
from mmedpo.models.chat.limits import Budget, Limits


@pytest.fixture
def run(ledgers):
    return Budget(Limits(concurrency=4, requests_per_minute=600, max_calls=1)), *ledgers


def test_endpoints_share_the_limits_of_the_run(run):
    own = open_chat("http://gpu:8000/v1#org/model@main", *run, seed=7).chat
    assert (own.name, own.base_url, own.concurrency) == ("org/model@main", "http://gpu:8000/v1", 4)
    assert own.settings["seed"] == 7
    hub = open_chat("hub:org/model@together", *run).chat
    assert (hub.name, hub.base_url, hub.provider) == ("org/model", None, "together")
    assert open_chat("hub:org/model", *run).chat.provider is None
    assert own.pace is hub.pace


def test_an_opened_endpoint_has_a_memory_and_a_budget(chat_server, run, ask):
    chat = open_chat(f"{chat_server.url}#med-7b", *run)
    assert chat.name == "med-7b"
    assert chat.complete([ask("a")]) == open_chat(f"{chat_server.url}#med-7b", *run).complete([ask("a")])
    with pytest.raises(Stopped):
        chat.complete([ask("b")])
    assert len(chat_server.received) == 1


def test_a_stand_in_is_never_kept(run):
    judge = open_chat("standin:lexical", *run, seed=7)
    assert isinstance(judge, StandInJudge)
    assert judge.name == "standin:lexical"


def test_a_local_model_has_a_memory_too(tiny_model, run, ask):
    chat = open_chat(f"local:{tiny_model}", *run, batch_size=2, seed=3, max_tokens=4)
    assert (chat.chat.batch_size, chat.chat.settings["seed"], chat.chat.settings["max_tokens"]) == (2, 3, 4)
    end, passes = chat.chat.processor.tokenizer.eos_token_id, count()

    def end_after_a_word(module, inputs, logits):
        logits[..., end] += 1000 if next(passes) % 2 else -1000

    chat.chat.model.lm_head.register_forward_hook(end_after_a_word)
    replies = chat.complete([ask("Is there a nodule?"), ask("Where?")])  # a whole batch, though max_calls is 1
    assert all(reply.text is not None for reply in replies)
    assert chat.complete([ask("Where?")]) == replies[1:]
    with pytest.raises(Stopped):
        chat.complete([ask("When?")])


@pytest.mark.parametrize(
    "spec",
    ["", "gpt-4o", "standin:wise", "http://gpu:8000/v1", "http://#model", "http://gpu:port/v1#m", "hub:", "hub:model",
     "hub:org/model@", "hub:/model@x", "gpu:8000/v1#model", "local:", "hub:http://127.0.0.1:9/v1", "hub:org/a/b",
     "hub:https://evil.example/v1@hf-inference", "hub:org/..%2fmodel", "hub:org/model?x=1", "hub:org/m\n"],
)  # fmt: skip
def test_other_forms_are_refused(spec, run):
    with pytest.raises(InputError, match="http://"):
        open_chat(spec, *run)


def test_a_local_model_named_thrice_is_one_copy(tiny_model, corpus, run):
    name = f"local:{tiny_model}"
    settings = Settings(corpus, split="preference", model=str(tiny_model), chat=name, judges=[name, "standin:strict"])
    plan = open_plan(settings, open_source(settings), *run)
    assert plan.writer.chat is next(iter(plan.panel.judges.values()))
    assert plan.sampler.load().model is plan.writer.chat.chat.model
