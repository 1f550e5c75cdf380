"""
BentoML: one worker; adaptive batches where they pay. Access log and tracking are off.

    bentoml serve benchmarks.peers.bentoml:Doubling
"""

import bentoml
from benchmarks.peers.model import MAX_SIZE, OBJECTIVE_S, doubled

LATENCY_MS = round((OBJECTIVE_S or 1.0) * 1000)
"""What its batching aims at; beyond that it refuses."""


@bentoml.service(
    workers=1,
    traffic={"timeout": OBJECTIVE_S or 60},
    logging={"access": {"enabled": False}},
)
class Doubling:
    """Doubles numbers."""

    @bentoml.api
    async def one(self, x: float) -> dict[str, float]:
        """Double a number in the event loop."""
        return {"y": doubled([x])[0]}

    @bentoml.api(batchable=True, max_batch_size=MAX_SIZE, max_latency_ms=LATENCY_MS)
    def many(self, numbers: list[float]) -> list[float]:
        """Double a batch in a thread."""
        return doubled(numbers)
