"""Serve a transformers model that is split over the processes of torchrun by its ``tp_plan``, one request at a time.

Start it with::

    torchrun --nproc-per-node 2 docs/examples/serve_tp.py MODEL --port 8000

Rank 0 takes requests of OpenAI's streaming completions, on this machine alone; all ranks generate.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import torch
from torch import distributed
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.distributed import DistributedConfig

PATIENCE = timedelta(days=1)  # between two requests; torch gives up after minutes


def main() -> None:
    """Load on all ranks; then rank 0 listens and the others follow it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    distributed.init_process_group(timeout=PATIENCE)
    split = DistributedConfig(tp_plan="auto")
    model = AutoModelForCausalLM.from_pretrained(arguments.model, distributed_config=split, dtype="auto").eval()
    if distributed.get_rank() == 0:
        Handler.model, Handler.tokenizer = model, AutoTokenizer.from_pretrained(arguments.model)
        HTTPServer(("127.0.0.1", arguments.port), Handler).serve_forever()
    while True:
        generate(model, None, 0, lambda _: None)


def generate(model: Any, ids: list[int] | None, output_tokens: int, on_token: Callable[[int], object]) -> None:
    """Generate exactly so many tokens, on every rank; rank 0 says of what."""
    work = [ids, output_tokens]
    distributed.broadcast_object_list(work, src=0)
    prompt = torch.tensor([work[0]], device=model.device)
    length = {"min_new_tokens": work[1], "max_new_tokens": work[1]}
    with torch.inference_mode():
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, streamer=Tokens(on_token), **length
        )


class Tokens:
    """A streamer that hands on each output token. Its first call carries the prompt."""

    def __init__(self, on_token: Callable[[int], object]) -> None:
        self._take: Callable[[int], object] = lambda _: None
        self._on_token = on_token

    def put(self, value: torch.Tensor) -> None:
        """A token, or at first the prompt."""
        self._take(int(value.flatten()[0]))
        self._take = self._on_token

    def end(self) -> None:
        """Nothing is held back."""


class Handler(BaseHTTPRequestHandler):
    """One request: an event a token, and how many there were."""

    model: Any
    tokenizer: Any

    def do_POST(self) -> None:
        """Completions of a text or of token ids."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked.get("temperature"):
            self.send_error(400, "greedy alone")
            return
        ids = asked["prompt"] if isinstance(asked["prompt"], list) else self.tokenizer(asked["prompt"])["input_ids"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        generate(self.model, ids, asked["max_tokens"], self._tell_token)
        usage = {"prompt_tokens": len(ids), "completion_tokens": asked["max_tokens"]}
        self._tell({"choices": [], "usage": usage})

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""

    def _tell_token(self, token: int) -> None:
        self._tell({"choices": [{"index": 0, "text": self.tokenizer.decode([token]) or "?"}]})

    def _tell(self, event: object) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()


if __name__ == "__main__":
    main()
