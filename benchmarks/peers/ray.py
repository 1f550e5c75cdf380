"""
Ray Serve: one replica; batches with a window where they pay. Access log and usage reports are off.

`max_ongoing_requests` is raised: its default of 5 would keep batches from filling.
"""

import asyncio
import signal

import ray
from benchmarks.peers.model import (
    IS_BATCHED,
    MAX_SIZE,
    OBJECTIVE_S,
    PORT,
    WINDOW_S,
    doubled,
)
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=512, ray_actor_options={"num_cpus": 0.1})
class Double:
    """Doubles numbers."""

    async def __call__(self, request: Request) -> dict[str, float]:
        """Double a number, alone or in a batch."""
        x = (await request.json())["x"]
        return {"y": await self.many(x) if IS_BATCHED else doubled([x])[0]}

    @serve.batch(max_batch_size=MAX_SIZE, batch_wait_timeout_s=WINDOW_S)
    async def many(self, numbers: list[float]) -> list[float]:
        """Double a batch in a thread."""
        return await asyncio.to_thread(doubled, numbers)


def main() -> None:
    """Serve until SIGTERM."""
    signals = {signal.SIGTERM, signal.SIGINT}
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    serve.start(
        http_options={"host": "127.0.0.1", "port": PORT, "request_timeout_s": OBJECTIVE_S},
        logging_config=LoggingConfig(enable_access_log=False, log_level="ERROR"),
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    serve.run(Double.bind(), name="model", route_prefix="/")
    signal.sigwait(signals)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
