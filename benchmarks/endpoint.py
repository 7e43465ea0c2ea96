"""Throughput of the chat client: 2,000 judge's calls, 32 in flight, to a server of 200 ms.

Run     python benchmarks/endpoint.py [--images]
Prints  JSON. `ideal` is concurrency / latency, in calls per second. `client` is what a curation runs (a cached endpoint
        client with an empty cache), `plain` a bare httpx2 loop that posts the same bodies; the server has a process of
        its own. Read `client.share_of_ideal` (required: 0.95) and `client_to_plain` (1: the client costs nothing).
        `again` is the same batch answered from the cache. With --images each call carries a 512 x 512 PNG of noise.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # where chat_server.py is

from chat_server import Answer, ChatServer

from mmedpo.curation.relevance import JUDGE
from mmedpo.models.chat import ChatRequest
from mmedpo.models.chat.cache import CachedChat
from mmedpo.models.chat.endpoint import EndpointChat
from mmedpo.models.chat.limits import Budget, Limits
from mmedpo.models.chat.transport import as_messages
from mmedpo.runs.ledger import Ledger

ANSWER = '{"score": 0.7, "rationale": "The side is wrong, which would mislead the operating team."}'
PROMPT = "Question {number}: score the answer 'left lung' to 'Which side?', whose gold answer is 'right lung'. " * 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds")
    parser.add_argument("--images", action="store_true")
    arguments = parser.parse_args()
    os.environ["NO_PROXY"] = "127.0.0.1"
    images = (noise_png(),) if arguments.images else ()
    requests = [ChatRequest(JUDGE, {}, PROMPT.format(number=i), images) for i in range(arguments.calls)]
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there, arguments.latency), daemon=True)
    server.start()
    url = here.recv()
    ideal = arguments.concurrency / arguments.latency

    def rate(work: Callable[[], Any]) -> dict[str, float]:
        start, cpu = time.perf_counter(), time.process_time()
        work()
        seconds = time.perf_counter() - start
        found = arguments.calls / seconds
        used = (time.process_time() - cpu) / arguments.calls
        return {
            "calls_per_second": round(found, 1),
            "share_of_ideal": round(found / ideal, 3),
            "cpu_ms_per_call": round(1000 * used, 2),
        }

    with tempfile.TemporaryDirectory() as folder:
        limits = Limits(concurrency=arguments.concurrency)
        ledgers = Ledger(Path(folder) / "cache"), Ledger(Path(folder) / "used")
        chat = CachedChat(EndpointChat("m", base_url=url, concurrency=limits.concurrency), Budget(limits), *ledgers)
        plain = rate(lambda: asyncio.run(post_all(url, requests, arguments.concurrency, dict(chat.chat.settings))))
        client = rate(lambda: chat.complete(requests))
        again = rate(lambda: chat.complete(requests))
        for ledger in ledgers:
            ledger.close()
    here.send("done")
    print(json.dumps({
        "settings": vars(arguments), "ideal": ideal, "client": client, "plain": plain,
        "client_to_plain": round(client["calls_per_second"] / plain["calls_per_second"], 3),
        "again": again["calls_per_second"], "cpus": os.cpu_count(), "python": platform.python_version(),
        "versions": {name: version(name) for name in ("mmedpo", "httpx2", "huggingface-hub", "tenacity")},
    }, indent=2))  # fmt: skip


def serve(pipe: Connection, latency: float) -> None:
    with ChatServer() as server:
        server.answer = lambda received: Answer(ANSWER, delay=latency, usage=(200, 20))
        pipe.send(server.url)
        pipe.recv()


async def post_all(url: str, requests: list[ChatRequest], concurrency: int, settings: dict[str, Any]) -> None:
    import httpx2

    pending = iter(requests)
    pool = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx2.AsyncClient(limits=pool, timeout=60) as client:

        async def work() -> None:
            for request in pending:
                body = {"model": "m", "messages": as_messages(request), **settings}
                response = await client.post(f"{url}/chat/completions", json=body)
                assert response.json()["choices"][0]["message"]["content"] == ANSWER

        await asyncio.gather(*(work() for _ in range(concurrency)))


def noise_png() -> bytes:
    import numpy as np
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 512), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    main()
