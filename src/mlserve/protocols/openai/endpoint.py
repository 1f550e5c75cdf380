"""One route of the protocol: reads a request, finds its model, answers whole or as a stream."""

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from mlserve.errors import (
    AbandonedError,
    BodyTooLargeError,
    InvalidInputError,
    MLServeError,
    UnsupportedParameterError,
)
from mlserve.http.aliases import choose_model, note_served
from mlserve.http.body import parse_json, read_body, require_json
from mlserve.http.disconnect import DisconnectWatch
from mlserve.http.errors import error_body
from mlserve.http.exchange import EXCHANGE, Exchange
from mlserve.http.guard import Guard
from mlserve.http.listing import find_model
from mlserve.http.predict import cache_headers, job_of, require_room
from mlserve.http.shutdown import MODEL
from mlserve.http.sse import EventStreamResponse
from mlserve.job import Job
from mlserve.model import Model
from mlserve.observability import genai
from mlserve.protocols.openai.answers import (
    Head,
    chat_answer,
    completion_answer,
    embeddings_answer,
    to_json,
)
from mlserve.protocols.openai.chunks import ChatWriter, CompletionWriter, Writer
from mlserve.protocols.openai.errors import openai_shape
from mlserve.protocols.openai.parameters import require_served
from mlserve.protocols.openai.requests import ChatRequest, CompletionRequest, EmbeddingsRequest
from mlserve.protocols.openai.together import Events, predict_all, stream_all
from mlserve.protocols.openai.translation import payloads_of
from mlserve.registry import Registry
from mlserve.settings import ServerSettings

__all__ = ["CHAT", "COMPLETION", "EMBEDDINGS", "Endpoint", "Kind"]


class Kind(Protocol):
    """What one route asks and answers. Pure."""

    asked: TypeAdapter[Any]
    """Validates what clients send."""
    verb: str
    """What a model must be able to do, for messages."""
    operation: str
    """What OpenTelemetry calls it."""

    def head(self, asked: Any) -> Head:
        """Make what stands in the answer whatever the model says."""

    def answer(self, asked: Any, head: Head, responses: Sequence[Any]) -> Any:
        """Make the whole answer."""

    def writer(self, asked: Any, head: Head) -> Writer:
        """Give what makes the chunks of a stream."""


class _Chat:
    asked: TypeAdapter[Any] = TypeAdapter(ChatRequest)
    verb = "generates text"
    operation = genai.CHAT

    def head(self, asked: ChatRequest) -> Head:
        return _head("chatcmpl", asked.model, asked.n)

    def answer(self, asked: ChatRequest, head: Head, responses: Sequence[Any]) -> Any:
        return chat_answer(head, responses[0])

    def writer(self, asked: ChatRequest, head: Head) -> Writer:
        return ChatWriter(head, includes_usage=asked.includes_usage)


class _Completion:
    asked: TypeAdapter[Any] = TypeAdapter(CompletionRequest)
    verb = "generates text"
    operation = genai.COMPLETION

    def head(self, asked: CompletionRequest) -> Head:
        return _head("cmpl", asked.model, asked.n)

    def answer(self, asked: CompletionRequest, head: Head, responses: Sequence[Any]) -> Any:
        return completion_answer(head, responses)

    def writer(self, asked: CompletionRequest, head: Head) -> Writer:
        return CompletionWriter(head, len(asked.prompt), includes_usage=asked.includes_usage)


class _Embeddings:
    asked: TypeAdapter[Any] = TypeAdapter(EmbeddingsRequest)
    verb = "embeds text"
    operation = genai.EMBEDDINGS

    def head(self, asked: EmbeddingsRequest) -> Head:
        return _head("embd", asked.model, 1)

    def answer(self, asked: EmbeddingsRequest, head: Head, responses: Sequence[Any]) -> Any:
        return embeddings_answer(
            head.model,
            responses,
            dimensions=asked.dimensions,
            is_base64=asked.encoding_format == "base64",
        )

    def writer(self, asked: EmbeddingsRequest, head: Head) -> Writer:
        raise UnsupportedParameterError("stream")


CHAT: Kind = _Chat()
COMPLETION: Kind = _Completion()
EMBEDDINGS: Kind = _Embeddings()


class Endpoint:
    """
    Answers one route of the protocol, for all models that can.

    Args:
        kind: What the route asks and answers.
        guards: The models that can, by `id`, each with what its own dependencies say.
        registry: Finds models by name.
        settings: The server's settings.
    """

    def __init__(
        self,
        kind: Kind,
        guards: Mapping[int, Guard],
        registry: Registry,
        settings: ServerSettings,
    ) -> None:
        self._kind = kind
        self._guards = guards
        self._registry = registry
        self._settings = settings

    async def __call__(self, request: Request) -> Response:
        """Read, run and answer one request."""
        require_json(request.headers)
        body = await read_body(request, self._settings.body_timeout_s)
        asked = parse_json(self._kind.asked, body)
        model = self._find(request, asked.model)
        limit_bytes = model.engine.spec.limits.max_body_bytes
        if len(body) > limit_bytes:
            raise BodyTooLargeError(limit_bytes)
        exchange: Exchange = request.scope[EXCHANGE]
        exchange.operation = self._kind.operation
        if exchange.keeps_payloads:
            exchange.body = body
        is_stream = bool(getattr(asked, "stream", False))

        async def answer(request: Request) -> Response:
            require_served(asked)
            jobs = self._jobs(request, model, asked, is_stream=is_stream)
            head = self._kind.head(asked)
            if is_stream:
                return await self._stream(request, model, jobs, self._kind.writer(asked, head))
            return await self._predict(request, model, jobs, asked, head)

        return await self._guards[id(model)](request, answer)

    def _find(self, request: Request, name: str) -> Model:
        """Find the model that a request names, and note whose request it is."""
        exchange: Exchange = request.scope[EXCHANGE]
        chosen = None
        if ":" not in name:
            chosen = choose_model(self._registry, name, request.scope, self._settings)
        model = chosen or find_model(self._registry, name)
        if chosen is not None:
            note_served(exchange, model)
        else:
            exchange.name_model(model.name, model.version, model.engine.listeners)
        request.scope[MODEL] = model.name
        if id(model) not in self._guards:
            raise InvalidInputError(
                f"Model `{model.name}` is not one that {self._kind.verb}: ask it by its own route,"
                " which `GET /v1/models` names.",
                param="model",
            )
        return model

    def _jobs(self, request: Request, model: Model, asked: Any, *, is_stream: bool) -> list[Job]:
        contract = model.engine.spec.contract
        if is_stream and not contract.can_stream:
            raise UnsupportedParameterError("stream", f"model `{model.name}` does not stream")
        if not (is_stream or contract.can_infer):
            raise InvalidInputError(
                f"Model `{model.name}` answers by streams only: ask with `stream`.", param="stream"
            )
        tenant = request.scope[EXCHANGE].key
        budget_s, priority = require_room(
            request.headers, model, is_stream=is_stream, tenant=tenant
        )
        jobs = [
            job_of(request, model, self._settings, payload, budget_s=budget_s, priority=priority)
            for payload in payloads_of(asked, contract.request)
        ]
        exchange: Exchange = request.scope[EXCHANGE]
        exchange.job, exchange.jobs = jobs[0], jobs
        return jobs

    async def _predict(
        self, request: Request, model: Model, jobs: list[Job], asked: Any, head: Head
    ) -> Response:
        engine = model.engine

        def leave() -> None:
            for job in jobs:
                engine.abandon(job)

        with DisconnectWatch(request, leave):
            responses = await predict_all(engine, jobs)
        if len(jobs) == 1:
            request.scope[EXCHANGE].headers += cache_headers(jobs[0])
        answer = self._kind.answer(asked, head, responses)
        return Response(to_json(answer), media_type="application/json")

    async def _stream(
        self, request: Request, model: Model, jobs: list[Job], writer: Writer
    ) -> Response:
        engine = model.engine
        exchange: Exchange = request.scope[EXCHANGE]

        def encode_error(error: MLServeError) -> bytes:
            exchange.code = error.code
            return error_body(error, exchange.request_id, openai_shape)

        def leave() -> None:
            exchange.code = AbandonedError.code
            for job in jobs:
                engine.abandon(job)

        events = Events(await stream_all(engine, jobs), writer)
        watch = DisconnectWatch(request, leave, after_s=0)
        try:
            first: bytes | None = await events.next()
        except StopAsyncIteration:
            first = None
        except BaseException:
            watch.stop()
            await events.aclose()
            raise
        response = EventStreamResponse(
            events,
            first,
            encode=bytes,
            encode_error=encode_error,
            watch=watch,
            ping_s=self._settings.ping_s,
        )
        exchange.on_end = response.aclose
        return response


def _head(prefix: str, model: str, n: int | None) -> Head:
    created = int(time.clock_gettime(time.CLOCK_REALTIME))
    return Head(f"{prefix}-{uuid.uuid4().hex}", created, model, n or 1)
