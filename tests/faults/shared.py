"""
What `mlserve run --workers 2` serves in the tests: models that die, in processes that all share.

`FAULTS_NOTES` names the folder of their notebooks.
"""

import os
import time
from functools import partial
from pathlib import Path

from tests.faults.deadly import Careful, Deadly
from tests.faults.notebook import Notebook

from mlserve import Batching, Limits, ModelServer, Replicas, ServerSettings

folder = Path(os.environ["FAULTS_NOTES"])
server = ModelServer(settings=ServerSettings(access_log=False))
for name, handler in (("shared", Deadly), ("careful", Careful)):
    server.add(
        name,
        partial(handler, Notebook(folder / name)),
        batching=Batching(max_size=8),
        limits=Limits(timeout_s=10.0),
        replicas=Replicas(placement="process"),
    )
app = server.build()


@app.get("/pid")
async def pid() -> int:
    return os.getpid()


@app.post("/block/{seconds}")
async def block(seconds: float) -> int:
    """Hold up everything in this process."""
    time.sleep(seconds)  # noqa: ASYNC251 - that is what it is for
    return os.getpid()
