"""What the streaming client adds to the gaps between tokens: its reported TPOT beside the server's own.

A server in a process of its own sends the events of a stream on a fixed schedule and notes when it wrote each one; the
client is the one that tests use. Each repeat gives the ratio of the two medians over the streams::

    python benchmarks/client.py [--repeats 20] [--streams 1,16] [--step-ms 10]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median, quantiles

from pytest_llmperf.engines.engine import EngineRequest, EngineResponse, Sampling
from pytest_llmperf.engines.openai import OpenAIEngine

TOKENS = 128
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def main() -> None:
    """Print, for each number of streams, the median ratio client / server and its quartiles, and the client's delay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--streams", default="1,16")
    parser.add_argument("--step-ms", type=float, default=10.0)
    arguments = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs, arguments.step_ms / 1000), daemon=True)
    server.start()
    engine = OpenAIEngine(f"http://127.0.0.1:{ours.recv()}/v1")
    ours.recv()  # the stamps of the request that tried the server
    for streams in map(int, arguments.streams.split(",")):
        repeat(engine, ours, streams)  # warms up
        found = [repeat(engine, ours, streams) for _ in range(arguments.repeats)]
        low, middle, high = quantiles([one.client_ms / one.server_ms for one in found], n=4)
        print(
            f"{streams} streams: client / server {middle:.4f}, quartiles {low:.4f} to {high:.4f}; "
            f"server {median(one.server_ms for one in found):.3f} ms a token, {len(found)} repeats of {TOKENS} tokens; "
            f"gaps known of {sum(one.known_gaps for one in found)} of {streams * len(found)} streams"
        )
    engine.close()
    server.terminate()


@dataclass(frozen=True)
class Repeat:
    """One pass: TPOT in milliseconds, median over the streams."""

    client_ms: float
    """As the client reports it."""
    server_ms: float
    """As the server wrote it."""
    known_gaps: int
    """Streams whose tokens came one by one."""


def repeat(engine: OpenAIEngine, server: Connection, streams: int) -> Repeat:
    """All streams side by side, once."""
    requests = [EngineRequest(prompt=(1, 2, 3), output_tokens=TOKENS)] * streams
    responses = engine.serve(requests, max_concurrency=streams, sampling=Sampling())
    stamps: list[list[float]] = [server.recv() for _ in requests]
    return Repeat(
        client_ms=median(map(tpot_ms, responses)),
        server_ms=median(1e3 * (one[-1] - one[0]) / (len(one) - 1) for one in stamps),
        known_gaps=sum(response.gaps_s is not None for response in responses),
    )


def tpot_ms(response: EngineResponse) -> float:
    """As a test would record it."""
    return 1e3 * (response.last_s - response.first_s) / (response.output_tokens - 1)


def serve(client: Connection, step_s: float) -> None:
    """Answer each request with as many tokens as it asks for, one a step, and tell the moments of writing."""

    async def response(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if not head.startswith("post"):
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        else:
            length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
            tokens = json.loads(await reader.readexactly(length))["max_tokens"]
            writer.write(HEAD)
            client.send([await write_token(writer, step_s) for _ in range(tokens)])
            usage = {"prompt_tokens": 3, "completion_tokens": tokens}
            writer.write(event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")
        await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(response, "127.0.0.1", 0)
        client.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


async def write_token(writer: asyncio.StreamWriter, step_s: float) -> float:
    """One token after a step; the moment when it was written."""
    await asyncio.sleep(step_s)
    moment_s = time.perf_counter()
    writer.write(event({"id": "cmpl-0", "model": "m", "choices": [{"index": 0, "text": " a", "finish_reason": None}]}))
    await writer.drain()
    return moment_s


def event(data: object) -> bytes:
    """As OpenAI's protocol writes one."""
    return b"data: " + json.dumps(data).encode() + b"\n\n"


if __name__ == "__main__":
    main()
