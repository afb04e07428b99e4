"""A gguf model behind the OpenAI chat API on loopback, in a process that ends with its parent. Needs xllamacpp.

From the command line it serves until its standard input closes: `python bench/quality/model_server.py MODEL.gguf`.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

START_SECONDS = 180.0  # from a cold disk, on a machine that does other work
# Threads that wait for one another sleep. Where they spin, two threads beside other work took five times the CPU time.
SLEEPING_THREADS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


@dataclass(frozen=True, slots=True)
class Served:
    """Where a served model answers."""

    api_base: str  # "http://127.0.0.1:PORT/v1"
    model: str  # as dspy.LM takes it: "openai/" and the file's name without its ending
    pid: int  # of the server's process


@contextmanager
def serve(gguf: Path, *, threads: int = 2, slots: int = 4, context: int = 8192, nice: int = 5) -> Iterator[Served]:
    """Serves the model until the block ends.

    Answers are greedy unless a request sets a temperature. Prompts that begin alike share their computed prefix. Both
    this and more than one slot change the order of floating-point sums: the same request can be answered with other
    words now and then.

    Args:
        gguf: The model's file.
        threads: CPU threads of the model, for all slots together.
        slots: Requests that are answered at the same time; more wait.
        context: Tokens of one request and its answer.
        nice: Added to the process's niceness.

    Raises:
        FileNotFoundError: No such file.
        RuntimeError: The server ended, or did not listen in time; with the last lines that it wrote.
    """
    gguf = gguf.resolve(strict=True)
    options = ["--threads", str(threads), "--slots", str(slots), "--context", str(context), "--nice", str(nice)]
    with tempfile.TemporaryFile() as log:
        # The server reads standard input and ends when it closes: this process cannot die without that.
        process = subprocess.Popen(
            [sys.executable, __file__, str(gguf), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=os.environ | SLEEPING_THREADS,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = _first_line(process.stdout)
            if not line:
                process.kill()
                process.wait()
                raise RuntimeError(f"the model server did not start: {_tail(log)}")
            yield Served(api_base=json.loads(line)["api_base"], model=f"openai/{gguf.stem}", pid=process.pid)
        finally:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def _first_line(stdout: IO[bytes]) -> bytes:
    """The line in which the server says where it listens; empty when it ended or took too long."""
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        return stdout.readline() if selector.select(START_SECONDS) else b""


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode("utf-8", "replace")[-2000:].strip() or "it wrote nothing"


def main() -> None:
    parser = argparse.ArgumentParser(description="Serves a gguf over the OpenAI chat API until standard input closes.")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--nice", type=int, default=0)
    options = parser.parse_args()
    os.nice(options.nice)

    import xllamacpp  # here, so that a reader of this module needs it only to serve

    params = xllamacpp.CommonParams()
    params.model.path = str(options.gguf)
    params.hostnames = ["127.0.0.1"]
    params.port = 0  # a free one
    params.n_ctx = options.context * options.slots  # the slots share it
    params.n_parallel = options.slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.sampling.temp = 0.0
    params.cache_ram_mib = 1024
    params.ui = params.endpoint_slots = False
    params.cors_origins = ""
    params.verbosity = 1
    server = xllamacpp.Server(params)
    print(json.dumps({"api_base": f"{server.listening_address}/v1"}), flush=True)
    sys.stdin.buffer.read()
    os._exit(0)  # an answer that is being written is not waited for


if __name__ == "__main__":
    main()
