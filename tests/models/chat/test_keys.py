"""Keys of endpoints over real environments; what is sent is asked of the loopback server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chat_server import ChatServer

from mmedpo.errors import InputError
from mmedpo.evaluation.settings import Settings
from mmedpo.models.chat import ChatRequest, keys
from mmedpo.models.chat.endpoint import EndpointChat
from mmedpo.models.chat.keys import Keys, variable
from mmedpo.models.chat.limits import Budget, Limits
from mmedpo.models.chat.opening import open_endpoint
from mmedpo.runs import recipes
from mmedpo.runs.hosts import ONLY_IN_RECIPES

ASK = ChatRequest(prompt="judge@2", variables={}, text="question")
A, B = "https://a.org/v1", "https://b.org/v1"


@pytest.fixture
def other_server() -> Iterator[ChatServer]:
    with ChatServer() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    monkeypatch.delenv("MMEDPO_API_KEY", raising=False)
    monkeypatch.setattr(keys, "_SENT", {})
    ONLY_IN_RECIPES.clear()


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://judges.org/v1", "JUDGES_ORG"),
        ("https://Judges.org:443/v1", "JUDGES_ORG"),
        ("https://my-clinic.org:8443/v1", "MY__CLINIC_ORG___8443"),
        ("https://my.clinic.org:8443/v1", "MY_CLINIC_ORG___8443"),
        ("https://me:a-password@my--clinic.org", "MY____CLINIC_ORG"),
        ("http://127.0.0.1:8000/v1", "127_0_0_1___8000"),
        ("http://localhost:8000/v1", "LOCALHOST___8000"),
        ("https://my_clinic.org", None),  # not to be told from my.clinic.org
        ("https://a.-b.org", None),
        ("http://[::1]:8000/v1", None),
    ],
)
def test_variable_is_of_one_host(url, name):
    assert variable(url) == (name and f"MMEDPO_API_KEY__{name}")


def test_each_host_is_sent_its_own_key(chat_server, other_server, monkeypatch):
    servers, budget = [chat_server, other_server], Budget(Limits())
    for i, server in enumerate(servers):
        monkeypatch.setenv(str(variable(server.url)), f"sk-{i}")
    for client in [open_endpoint(f"{server.url}#m", budget) for server in servers]:
        client.complete([ASK])
    assert [[one.headers["authorization"] for one in server.received] for server in servers] == [
        ["Bearer sk-0"], ["Bearer sk-1"],
    ]  # fmt: skip


@pytest.mark.parametrize("own", [(), (0,), (1,)], ids=["neither has its own", "the first has", "the second has"])
def test_the_key_of_no_host_is_not_sent_to_two(chat_server, other_server, monkeypatch, own):
    urls, budget = [chat_server.url, other_server.url], Budget(Limits())
    monkeypatch.setenv("MMEDPO_API_KEY", "sk-plain")
    for i in own:
        monkeypatch.setenv(str(variable(urls[i])), "sk-own")
    open_endpoint(f"{urls[0]}#m", budget)
    open_endpoint(f"{urls[0]}#another", budget)  # the same host
    with pytest.raises(InputError) as caught:
        open_endpoint(f"{urls[1]}#m", budget)
    assert all(str(variable(url)) in str(caught.value) for url in urls) and "sk-" not in str(caught.value)


def test_a_client_alone_binds_the_key_of_no_host_to_its_own(chat_server, other_server, monkeypatch):
    monkeypatch.setenv("MMEDPO_API_KEY", "sk-plain")
    for _ in range(2):
        EndpointChat("m", chat_server.url).complete([ASK])
    with pytest.raises(InputError, match="is a key for one host") as caught:
        EndpointChat("m", other_server.url)
    own = str(variable(other_server.url))
    assert own in str(caught.value) and "sk-" not in str(caught.value)
    monkeypatch.setenv(own, "sk-own")
    EndpointChat("m", other_server.url).complete([ASK])
    assert [[one.headers["authorization"] for one in server.received] for server in (chat_server, other_server)] == [
        ["Bearer sk-plain"] * 2, ["Bearer sk-own"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("url", "given", "environment"),
    [
        ("http://judges.org/v1", None, {"MMEDPO_API_KEY": "sk-1"}),
        ("HTTP://judges.org/v1", None, {"MMEDPO_API_KEY__JUDGES_ORG": "sk-1"}),
        ("http://judges.org/v1", "sk-1", {}),
        ("http://me:sk-1@judges.org/v1", None, {}),
        ("http://localhost.judges.org/v1", "sk-1", {}),
        ("http://localhost@judges.org/v1", "sk-1", {}),
    ],
)
def test_no_key_crosses_a_network_over_http(monkeypatch, url, given, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"judges\.org over http") as caught:
        Keys().of(url, given)
    assert "sk-1" not in str(caught.value)


@pytest.mark.parametrize(
    ("urls", "environment", "found"),
    [
        ([A, B], {}, [None, None]),
        ([A], {"MMEDPO_API_KEY": "sk"}, ["sk"]),
        ([A, B], {"MMEDPO_API_KEY__A_ORG": "sk-a"}, ["sk-a", None]),
        ([A], {"MMEDPO_API_KEY": "sk", "MMEDPO_API_KEY__A_ORG": " sk-a\n"}, ["sk-a"]),
        (["https://me:mine@a.org"], {"MMEDPO_API_KEY": "sk", "MMEDPO_API_KEY__A_ORG": "sk-a"}, [None]),
        (["http://judges.org/v1"], {}, [None]),
        (["https://x.endpoints.huggingface.cloud/v1", A], {}, ["hf_token", None]),
        ([r"https://a.org\@x.huggingface.co/v1"], {}, [None]),
        (["https://xhuggingface.co/v1"], {}, [None]),
        (["https://x.endpoints.huggingface.cloud/v1"], {"MMEDPO_API_KEY": "sk"}, ["sk"]),
    ],
)
def test_key_of_a_host(monkeypatch, urls, environment, found):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run = Keys()
    assert [run.of(url) for url in urls] == found


@pytest.mark.parametrize("typed", [False, True])
def test_a_host_that_only_a_recipe_names_is_sent_its_own_key_alone(chat_server, monkeypatch, tmp_path, typed):
    monkeypatch.setenv("MMEDPO_API_KEY", "sk-plain")
    (tmp_path / "theirs.yaml").write_text(f"source: d\nmodel: {chat_server.url}#m\n")
    words = ["--model", f"{chat_server.url}#m"] if typed else []
    (settings,) = recipes.parse(["--config", str(tmp_path / "theirs.yaml"), *words], [Settings], "mmedpo evaluate")
    open_endpoint(settings.model, Budget(Limits())).complete([ASK])
    monkeypatch.setenv(str(variable(chat_server.url)), "sk-own")
    open_endpoint(settings.model, Budget(Limits())).complete([ASK])
    sent = [one.headers.get("authorization") for one in chat_server.received]
    assert sent == ["Bearer sk-plain" if typed else None, "Bearer sk-own"]


def test_an_endpoint_of_the_hub_that_only_a_recipe_names_is_sent_no_token():
    url = "https://theirs.endpoints.huggingface.cloud/v1"
    assert Keys().of(url) == "hf_token"
    ONLY_IN_RECIPES.add("theirs.endpoints.huggingface.cloud")
    assert Keys().of(url) is None
