"""`OpenAIProtocol`: the routes of the protocol and the models behind them."""

from collections.abc import Callable, Sequence
from typing import Any

from mlserve.errors import ConfigurationError
from mlserve.http.errors import documented_errors
from mlserve.http.schemas import ErrorBody
from mlserve.http.versioning import ModelRoutes, Mounted
from mlserve.protocols.openai.answers import ChatCompletion, Completion, EmbeddingList
from mlserve.protocols.openai.endpoint import CHAT, COMPLETION, EMBEDDINGS, Endpoint, Kind
from mlserve.protocols.openai.errors import openai_shape
from mlserve.protocols.openai.requests import ChatRequest, CompletionRequest, EmbeddingsRequest
from mlserve.registry import Registry
from mlserve.tasks.embedding import Embedding, EmbeddingRequest
from mlserve.tasks.generation import Generation, GenerationChunk, GenerationRequest

__all__ = ["OpenAIProtocol"]

_ERRORS: dict[int | str, Any] = {
    status: response
    for status, response in documented_errors(ErrorBody).items()
    if status != 422  # every wrong request is 400 here, as OpenAI's are
} | {
    400: {"model": ErrorBody, "description": "The request is wrong; `param` names the field."},
    "default": {"model": ErrorBody, "description": "Any other error, in the same shape."},
}
_EVENTS = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}


class OpenAIProtocol:
    """
    Serves models to the clients of OpenAI's API: chat completions, completions, embeddings.

    It serves every model whose request type is `mlserve.tasks.generation.GenerationRequest` or
    `mlserve.tasks.embedding.EmbeddingRequest`. A request's `model` is a model's name, which is its
    newest version, or its name and version: `chat:v2`.

    Example:
        >>> ModelServer(title="Chat").use(OpenAIProtocol())
        <ModelServer 'Chat': >
    """

    lists_every_version = True

    def add_routes(
        self, routes: ModelRoutes, mounted: Sequence[Mounted], registry: Registry
    ) -> None:
        """
        Add the protocol's routes; called when the application is built.

        Raises:
            ConfigurationError: If a path is taken, or a model answers its task's requests with
                something else than the task's answers.
        """
        generating = [mount for mount in mounted if _takes(mount, GenerationRequest)]
        embedding = [mount for mount in mounted if _takes(mount, EmbeddingRequest)]
        for mount in generating:
            _require_answers(mount, Generation, GenerationChunk)
        for mount in embedding:
            _require_answers(mount, Embedding, None)

        def add(
            path: str,
            shown: Callable[..., Any],
            kind: Kind,
            served: list[Mounted],
            **documents: Any,
        ) -> None:
            guards = {id(mount.model): routes.guard_of(mount) for mount in served}
            answer = Endpoint(kind, guards, registry, routes.settings)
            routes.add_shared(
                path, shown, answer, served, shape=openai_shape, tags=["openai"], **documents
            )

        text: dict[str, Any] = {"responses": _ERRORS | _EVENTS}
        add("/v1/chat/completions", _chat, CHAT, generating, response_model=ChatCompletion, **text)
        add("/v1/completions", _complete, COMPLETION, generating, response_model=Completion, **text)
        vectors: dict[str, Any] = {"responses": _ERRORS, "response_model": EmbeddingList}
        add("/v1/embeddings", _embed, EMBEDDINGS, embedding, **vectors)


def _takes(mount: Mounted, wanted: type) -> bool:
    request_type = mount.model.engine.spec.contract.request_type
    return isinstance(request_type, type) and issubclass(request_type, wanted)


def _require_answers(mount: Mounted, response: type, chunk: type | None) -> None:
    contract = mount.model.engine.spec.contract
    pairs = [(contract.can_infer, contract.response.declared, response)]
    if chunk is not None:
        pairs.append((contract.can_stream, contract.chunk.declared, chunk))
    for can, declared, wanted in pairs:
        if can and not (isinstance(declared, type) and issubclass(declared, wanted)):
            raise ConfigurationError(
                f"Model `{mount.model.name}` takes `{contract.request_type.__name__}`, which is"
                f" to be answered with `{wanted.__name__}`, and answers with {declared!r}. Write"
                " the task's own types as type arguments, or another request type."
            )


async def _chat(body: ChatRequest) -> None:
    """Go on with a conversation"""  # noqa: D415 - a title in OpenAPI


async def _complete(body: CompletionRequest) -> None:
    """Go on from a text"""  # noqa: D415 - a title in OpenAPI


async def _embed(body: EmbeddingsRequest) -> None:
    """Make vectors of texts"""  # noqa: D415 - a title in OpenAPI
