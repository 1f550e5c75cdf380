"""
What every system serves, so that they differ only in how. Standard library only.

The model doubles a number. As an accelerator it needs 5 ms and 0.1 ms for each request of a batch,
does one batch at a time, and holds no interpreter while it works, as a GPU.
"""

import os
import threading
import time

WORKLOAD = os.environ.get("BENCHMARK_WORKLOAD", "noop")
PORT = int(os.environ.get("BENCHMARK_PORT", "8000"))
OBJECTIVE_S = float(os.environ.get("BENCHMARK_OBJECTIVE_S", "0")) or None
"""Within which time an answer is of use, where the server may know; `None` = always."""

FIXED_S, EACH_S, MAX_SIZE = 0.005, 0.0001, 32
WINDOW_S = 0.005
"""How long the systems with a fixed window gather a batch: about as long as the model works."""

IS_BATCHED = WORKLOAD not in ("noop", "sse")
"""Whether peers batch: where there is nothing to gain, it only costs them."""

_device = threading.Lock()


def doubled(numbers: list[float]) -> list[float]:
    """Double some numbers, at once or in the time that the accelerator needs."""
    if WORKLOAD in ("accelerator", "overload"):
        with _device:
            time.sleep(FIXED_S + EACH_S * len(numbers))
    return [2 * number for number in numbers]
