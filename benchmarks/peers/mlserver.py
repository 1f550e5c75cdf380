"""
MLServer: adaptive batches; the model in the server's own process, since that is faster on one core.

Debug mode, and with it the access log, is off; so are metrics.
"""

import asyncio
import socket

import numpy as np
from benchmarks.peers.model import IS_BATCHED, MAX_SIZE, PORT, WINDOW_S, WORKLOAD, doubled
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Double(MLModel):
    """Doubles numbers."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Double a batch, in a thread where the model takes time."""
        numbers = NumpyCodec.decode_input(payload.inputs[0]).ravel().tolist()
        found = await asyncio.to_thread(doubled, numbers) if IS_BATCHED else doubled(numbers)
        output = NumpyCodec.encode_output("y", np.array(found).reshape(-1, 1))
        return InferenceResponse(model_name=self.name, outputs=[output])


class Embed(MLModel):
    """Encodes texts."""

    async def load(self) -> bool:
        """Load the model."""
        from benchmarks.peers.encoder import Encoder

        self._encode = Encoder()
        self._one_at_a_time = asyncio.Lock()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Encode a batch."""
        texts = StringCodec.decode_input(payload.inputs[0])
        async with self._one_at_a_time:
            vectors = await asyncio.to_thread(self._encode, texts)
        output = NumpyCodec.encode_output("embedding", np.array(vectors, dtype=np.float32))
        return InferenceResponse(model_name=self.name, outputs=[output])


async def main() -> None:
    """Serve."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        grpc_port = probe.getsockname()[1]
    settings = Settings(
        host="127.0.0.1",
        http_port=PORT,
        grpc_port=grpc_port,
        metrics_endpoint=None,
        parallel_workers=0,
        debug=False,
    )
    batching = {"max_batch_size": MAX_SIZE, "max_batch_time": WINDOW_S} if IS_BATCHED else {}
    implementation = Embed if WORKLOAD == "minilm" else Double
    model = ModelSettings(name="model", implementation=implementation, **batching)
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(main())
