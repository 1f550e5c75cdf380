"""A model as it stands in an application, and what stands behind one of its paths."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from fastapi.params import Depends
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from mlserve.errors import RequestError
from mlserve.http.documented import example_values
from mlserve.http.predict import PredictEndpoint, require_room
from mlserve.http.route import Answer, Opened
from mlserve.http.stream import StreamEndpoint
from mlserve.model import Model
from mlserve.observability.listeners import Listeners
from mlserve.settings import ServerSettings

__all__ = ["Entrance", "Mounted", "as_function", "entrance_of"]


class Mounted:
    """
    One model as it stands in the application.

    Args:
        model: The model.
        dependencies: The user's, run before its requests are read.
        path: Its predict path below the version, instead of `/models/{name}/predict`.
        tags: Under which OpenAPI shows it.
        changes: What is other than in the version before, for OpenAPI.
    """

    def __init__(
        self,
        model: Model,
        *,
        dependencies: Sequence[Depends] = (),
        path: str | None = None,
        tags: Sequence[str] | None = None,
        changes: str | None = None,
    ) -> None:
        self.model = model
        self.dependencies = list(dependencies)
        self.predict_path = path or f"/models/{model.name}/predict"
        self.stream_path = f"/models/{model.name}/stream"
        self.examples = example_values(model.engine.spec)
        """The handler's examples as JSON values."""
        self.request_schema = model.engine.spec.contract.request.json_schema()
        """The request type as JSON schema."""
        self.tags = list(tags) if tags is not None else [f"{model.name} {model.version}"]
        self.changes = changes

    def can(self, action: str) -> bool:
        """Whether the model does this: `predict` or `stream`."""
        contract = self.model.engine.spec.contract
        return contract.can_infer if action == "predict" else contract.can_stream

    def path(self, action: str) -> str:
        """Give the path of an action, below the version."""
        return self.predict_path if action == "predict" else self.stream_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrance:
    """What stands behind one path."""

    name: str
    """The model's name."""
    version: str
    """Its version, or what stands for it in the log until it is known."""
    answer: Answer
    """Answers a request."""
    require_room: Callable[[Scope], None]
    """Refuses a request by its head, where there is no room."""
    max_body_bytes: int
    """How large a body may be."""
    dependencies: Sequence[Depends]
    """What is asked before, beside what the server asks."""
    listeners: Listeners | None = None
    """Who is told of the requests."""
    opened: tuple[Opened, ...] = ()
    """Called with each exchange when it begins."""
    notes: list[str] = field(default_factory=list)
    """What OpenAPI says of it."""
    predicts: Model | None = None
    """The model whose predictions in JSON are answered, if that is all."""
    is_deprecated: bool = False
    """Whether OpenAPI advises against it."""


def entrance_of(mount: Mounted, action: str, settings: ServerSettings) -> Entrance:
    """Give what stands behind the path of one model in one version."""
    model = mount.model
    kind = PredictEndpoint if action == "predict" else StreamEndpoint
    is_plain = action == "predict" and not model.engine.spec.contract.upload_fields
    notes = [f"**Changes in {model.version}**: {mount.changes}"] if mount.changes else []
    return Entrance(
        name=model.name,
        version=model.version,
        answer=as_function(kind(model, settings)),
        require_room=_door_of(model, is_stream=action == "stream"),
        max_body_bytes=model.engine.spec.limits.max_body_bytes,
        dependencies=mount.dependencies,
        listeners=model.engine.listeners,
        notes=notes,
        predicts=model if is_plain else None,
    )


def as_function(answer: Answer) -> Answer:
    """Wrap a callable object in a coroutine function, which is what FastAPI looks for."""

    async def call(request: Request) -> Response:
        return await answer(request)

    return call


def _door_of(model: Model, *, is_stream: bool) -> Callable[[Scope], None]:
    """Make what refuses a request by its head where the model is crowded."""

    def require(scope: Scope) -> None:
        if model.engine.is_crowded:
            with suppress(RequestError):  # a header that is malformed is the route's to refuse
                require_room(Headers(scope=scope), model, is_stream=is_stream)

    return require
