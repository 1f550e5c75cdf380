"""`POST …/stream`, and its `GET` twin for browsers: chunks as server-sent events."""

from starlette.requests import Request
from starlette.responses import Response

from mlserve.errors import AbandonedError, MLServeError
from mlserve.http.disconnect import DisconnectWatch
from mlserve.http.errors import error_body
from mlserve.http.exchange import EXCHANGE, Exchange
from mlserve.http.predict import new_job
from mlserve.http.sse import EventStreamResponse
from mlserve.model import Model
from mlserve.settings import ServerSettings

__all__ = ["StreamEndpoint"]


class StreamEndpoint:
    """
    Answers streams of one model.

    Args:
        model: The model.
        settings: The server's settings.
    """

    def __init__(self, model: Model, settings: ServerSettings) -> None:
        self._model = model
        self._settings = settings

    async def __call__(self, request: Request) -> Response:
        """Read one request, wait for its first chunk and begin the answer."""
        engine = self._model.engine
        encode = engine.spec.contract.chunk.encode
        job = await new_job(request, self._model, self._settings, is_stream=True)
        exchange: Exchange = request.scope[EXCHANGE]

        def encode_error(error: MLServeError) -> bytes:
            exchange.code = error.code
            return error_body(error, exchange.request_id)

        def leave() -> None:
            exchange.code = AbandonedError.code
            engine.abandon(job)

        stream = engine.stream(job)
        watch = DisconnectWatch(request, leave, after_s=0)
        try:
            first: bytes | None = encode(await stream.next())
        except StopAsyncIteration:
            first = None
        except BaseException:
            watch.stop()
            await stream.aclose()
            raise
        response = EventStreamResponse(
            stream,
            first,
            encode=encode,
            encode_error=encode_error,
            watch=watch,
            ping_s=self._settings.ping_s,
        )
        exchange.on_end = response.aclose
        return response
