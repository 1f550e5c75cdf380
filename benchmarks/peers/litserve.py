"""
LitServe: one worker, one API server; batches with a window, but not where nothing is gained.

Logs are off. `fast_queue` is left off: in this version it changes nothing.
"""

import json
from collections.abc import Iterator
from typing import Any

import litserve as ls
from benchmarks.peers.model import (
    IS_BATCHED,
    MAX_SIZE,
    OBJECTIVE_S,
    PORT,
    WINDOW_S,
    WORKLOAD,
    doubled,
)


class Double(ls.LitAPI):
    """Doubles numbers."""

    def setup(self, device: str) -> None:
        """Load nothing."""

    def decode_request(self, request: dict[str, float]) -> float:
        """Take the number."""
        return request["x"]

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Leave the batch a list: there is nothing to stack."""
        return inputs

    def predict(self, x: Any) -> Any:
        """Double one number, or a batch of them."""
        return doubled(x) if IS_BATCHED else doubled([x])[0]

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Give back the list."""
        return output

    def encode_response(self, output: float) -> dict[str, float]:
        """Make the answer."""
        return {"y": output}


class Embed(Double):
    """Encodes texts."""

    def setup(self, device: str) -> None:
        """Load the model."""
        from benchmarks.peers.encoder import Encoder

        self.encode = Encoder()

    def decode_request(self, request: dict[str, str]) -> Any:
        """Take the text."""
        return request["text"]

    def predict(self, x: Any) -> Any:
        """Encode a batch."""
        return self.encode(x)

    def encode_response(self, output: Any) -> dict[str, Any]:
        """Make the answer."""
        return {"embedding": output}


class Counting(ls.LitAPI):
    """Streams events, framed by hand: plain streams of LitServe have no framing of their own."""

    def setup(self, device: str) -> None:
        """Load nothing."""

    def decode_request(self, request: dict[str, int]) -> int:
        """Take the number of events."""
        return request["n"]

    def predict(self, n: int) -> Iterator[dict[str, int]]:
        """Count."""
        for i in range(n):
            yield {"i": i}

    def encode_response(self, output: Iterator[dict[str, int]]) -> Any:
        """Frame each event; a type of its own would be taken for that of a whole answer."""
        for event in output:
            yield f"data: {json.dumps(event)}\n\n"


def main() -> None:
    """Serve."""
    if WORKLOAD == "sse":
        api: ls.LitAPI = Counting(stream=True)
    else:
        batching = {"max_batch_size": MAX_SIZE, "batch_timeout": WINDOW_S} if IS_BATCHED else {}
        api = (Embed if WORKLOAD == "minilm" else Double)(**batching)
    server = ls.LitServer(api, accelerator="cpu", devices=1, timeout=OBJECTIVE_S or 30)
    server.run(
        host="127.0.0.1",
        port=PORT,
        num_api_servers=1,
        generate_client_file=False,
        log_level="error",
    )


if __name__ == "__main__":
    main()
