"""
Mosec: one worker process behind its server in Rust.

The worker takes what waits once it is free, so batches pay under load even where the model does
nothing, and cost a lone request the window: with nothing to gain, both are tried.
Options come from the environment (`MOSEC_PORT`, `MOSEC_TIMEOUT`, …), since it reads `sys.argv`.
"""

import os
from typing import Any

from benchmarks.peers.model import IS_BATCHED, MAX_SIZE, WINDOW_S, doubled
from mosec import Server, Worker

BATCHES = IS_BATCHED or bool(os.environ.get("BENCHMARK_BATCHED"))


class Double(Worker):
    """Doubles numbers."""

    def forward(self, data: Any) -> Any:
        """Double one number, or a batch of them."""
        if not BATCHES:
            return {"y": doubled([data["x"]])[0]}
        return [{"y": y} for y in doubled([each["x"] for each in data])]


if __name__ == "__main__":
    server = Server()
    if BATCHES:
        window_ms = round(WINDOW_S * 1000) if IS_BATCHED else 1
        server.append_worker(Double, max_batch_size=MAX_SIZE, max_wait_time=window_ms)
    else:
        server.append_worker(Double)
    server.run()
