import time
from itertools import pairwise

import pytest
from chat_server import Answer

from mmedpo.errors import InputError
from mmedpo.models.chat.limits import Limits, Pace


def test_limits_are_shared_out_and_never_run_dry():
    limits = Limits(concurrency=32, requests_per_minute=100, max_calls=7, max_tokens=1)
    assert limits.share(3) == Limits(concurrency=10, requests_per_minute=33, max_calls=2, max_tokens=1)
    assert limits.share(1) == limits
    assert Limits(concurrency=1).share(8) == Limits(concurrency=1)


@pytest.mark.parametrize("name", ["concurrency", "requests_per_minute", "max_calls", "max_tokens"])
def test_a_limit_of_nothing_is_refused(name):
    with pytest.raises(InputError, match=rf"{name} is 0"):
        Limits(**{name: 0})


def test_requests_are_spread_over_the_minute(chat_server, endpoint, ask):
    endpoint(pace=Pace(300), concurrency=8).complete([ask(str(i)) for i in range(11)])
    times = [received.at for received in chat_server.received]
    assert times[-1] - times[0] == pytest.approx(10 * 60 / 300, rel=0.1)
    assert all(later - earlier > 0.05 for earlier, later in pairwise(times))  # no bursts, on a busy machine too


def test_retries_and_other_clients_share_the_pace(chat_server, endpoint, ask):
    chat_server.script = [Answer("no", 500)] * 3
    pace = Pace(600)
    endpoint(pace=pace).complete([ask()])
    endpoint(pace=pace, model="other").complete([ask(), ask()])
    times = [received.at for received in chat_server.received]
    assert len(times) == 3 + 1 + 2
    assert times[-1] - times[0] == pytest.approx(5 * 60 / 600, rel=0.2)


def test_a_batch_that_ends_does_not_wait_for_its_turn(chat_server, endpoint, ask):
    chat_server.answer = lambda received: Answer("no", 401)
    start = time.monotonic()
    with pytest.raises(InputError):
        endpoint(pace=Pace(6)).complete([ask(str(i)) for i in range(8)])
    assert time.monotonic() - start < 1
