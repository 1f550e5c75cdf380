"""
What the tests and `scripts/soak` serve in a process of its own: a model in every mode.

`FAULTS_PLACEMENT=process` has each model in a further process.
"""

import os
from typing import Any

from tests.faults.table import MODES

from mlserve import Batching, Limits, ModelServer, Replicas, ServerSettings

placement: Any = os.environ.get("FAULTS_PLACEMENT", "thread")

server = ModelServer(title="faults", settings=ServerSettings(startup_wait_s=10))
for mode in MODES:
    server.add(
        mode.name,
        mode.handler,
        batching=Batching(max_size=mode.max_size),
        limits=Limits(timeout_s=10.0, stream_timeout_s=10.0),
        replicas=Replicas(placement=placement),
    )
app = server.build()


@app.post("/reload/{name}")
async def reload(name: str) -> str:
    await server.model_for(name).reload()
    return name


@app.get("/statistics/{name}")
async def statistics(name: str) -> dict[str, int]:
    found = server.model_for(name).statistics()
    return {"in_flight": found.in_flight, "queued": found.queued}
