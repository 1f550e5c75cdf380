"""
The contract that users fill in: `ModelHandler`, its `Context` and the `Call` of a request.

Nothing here knows of threads, HTTP or batching; `mlserve.contract` reads a handler class and
says which hooks it has, and `mlserve.execution` calls them.
"""

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Generic

from typing_extensions import TypeVar

from mlserve.settings import Batching, Replicas

__all__ = ["AsResponse", "Call", "ChunkT", "Context", "ModelHandler", "RequestT", "ResponseT"]

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class AsResponse:
    """Stands for a third type argument that was not given: chunks are like responses."""


ChunkT = TypeVar("ChunkT", default=AsResponse)

_LONGEST_NOTE = 200
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Context:
    """
    Where a replica runs; every handler finds its own as `self.context`, set before `load`.

    Args:
        name: The model's name.
        version: The model's version, such as `v1`.
        device: The device that the replica was given, such as `cpu` or `cuda:0`.
        replica: The replica's number, from 0.
        threads: How many compute threads it should use; `None` = as many as it likes.
        batching: How its batches are bounded.
        report: Takes what `progress` is given; called in the thread of the hook that reports.
    """

    __slots__ = ("_report", "batching", "device", "name", "replica", "threads", "version")

    def __init__(
        self,
        *,
        name: str = "model",
        version: str = "v1",
        device: str = "cpu",
        replica: int = 0,
        threads: int | None = None,
        batching: Batching | None = None,
        report: Callable[[float, str], None] | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.device = device
        self.replica = replica
        self.threads = threads
        self.batching = batching or Batching()
        self._report = report

    def progress(self, fraction: float, note: str = "") -> None:
        """
        Say how far `load` has come; `GET /ready` and the terminal show it. Any thread.

        Args:
            fraction: From 0 to 1; what is outside is cut, what is no finite number counts as 0.
            note: A few words on what is being done; 200 characters of it are shown.
        """
        if self._report is not None:
            share = float(fraction)
            text = str(note)[:_LONGEST_NOTE].encode("utf-8", "replace").decode()
            self._report(min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0, text)

    def __repr__(self) -> str:
        return f"<Context {self.name}/{self.version} replica {self.replica} on {self.device}>"


class Call:
    """
    What a hook may know of the request it serves. Safe to read from any thread.

    Args:
        request_id: The id in the answer, each log line and each error.
        timeout_s: The request's whole budget in seconds.
        headers: The request's headers that the settings allow; lower-case names.
        clock: Gives monotonic seconds.
    """

    __slots__ = (
        "_cancelled",
        "_clock",
        "annotations",
        "deadline",
        "headers",
        "request_id",
        "traceparent",
    )

    def __init__(
        self,
        request_id: str = "",
        *,
        timeout_s: float = 60.0,
        headers: Mapping[str, str] = NO_HEADERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.request_id = request_id
        self.deadline = clock() + timeout_s
        """When the request's budget ends, in seconds of `time.monotonic`."""
        self.headers = headers
        self.annotations: dict[str, Any] = {}
        """What hooks have noted for the log."""
        self.traceparent: str | None = None
        """
        The request's span, as the header of that name has it; `None` = it is not traced.

        Send it along to a remote service, or make it the parent of spans of your own.
        """
        self._clock = clock
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether nobody listens any more; stays true once it is."""
        return self._cancelled

    @property
    def remaining_s(self) -> float:
        """What is left of the budget, in seconds; negative once it is spent."""
        return self.deadline - self._clock()

    def cancel(self) -> None:
        """Say that nobody listens any more."""
        self._cancelled = True

    def annotate(self, **values: Any) -> None:
        """Note values for this request's line in the log; they should be small and JSON-able."""
        self.annotations.update(values)

    def __repr__(self) -> str:
        state = "cancelled" if self._cancelled else f"{self.remaining_s:.3f} s left"
        return f"<Call {self.request_id} {state}>"


class ModelHandler(Generic[RequestT, ResponseT, ChunkT]):
    """
    A model: subclass it, give the type arguments, write `infer` or `stream`.

    The type arguments are the HTTP schema: a pydantic model, dataclass, `TypedDict` or plain JSON
    type for the request, one for the response and, where chunks differ from it, one for chunks.

    A sync `load`, `warmup`, `infer`, `health` and `unload` run in the replica's own thread, sync
    `preprocess`, `cost`, `batch_key` and `postprocess` in a second thread of the replica, one at a
    time, beside `infer`; `stream` runs in a thread per stream. A hook that is `async def` runs on
    the event loop. Hooks of one request may take one more parameter named `call` (`infer`:
    `calls`); that is what `*args` in the signatures below stands for. `__init__` should be cheap:
    heavy work belongs to `load`.

    With several replicas a request may be preprocessed by another replica than the one that infers
    it, so `preprocess` should leave its result in ordinary memory.

    Example:
        >>> class Double(ModelHandler[float, float]):
        ...     def infer(self, inputs: list[float]) -> list[float]:
        ...         return [2 * value for value in inputs]
    """

    idempotent: ClassVar[bool] = True
    """Whether a request may be run again after a failure."""
    batching: Batching | None = None
    """This handler's own default for `ModelServer.add(batching=…)`."""
    replicas: Replicas | None = None
    """This handler's own default for `ModelServer.add(replicas=…)`."""
    context: Context = Context()
    """Where this replica runs; set before `load`."""

    def load(self) -> Any:
        """Load the model: once per replica, in the replica, before traffic."""

    def warmup(self) -> Any:
        """
        Make the first request fast; an exception means that the model is not ready.

        Unless overridden, the server runs `examples` through the whole pipeline instead, at batch
        size 1 and at `Batching.max_size`.
        """

    def examples(self) -> Sequence[RequestT] | Any:
        """Give typical requests for warm-up, `mlserve check` and OpenAPI; works before `load`."""
        return []

    def preprocess(self, request: RequestT, /, *args: Any, **kwargs: Any) -> Any:
        """
        Turn a request into an input of `infer` or `stream`. Per request.

        Raises:
            InvalidInputError: If the model cannot take it; answered with 422 and its message.
            ValueError: The same, without its message.
        """
        return request

    def infer(self, inputs: list[Any], /, *args: Any, **kwargs: Any) -> Any:
        """
        Run the model on a batch.

        Args:
            inputs: What `preprocess` made, oldest first; from 1 to `Batching.max_size`.
            *args: A handler that wants them takes `calls: list[Call]`, one per input.
            **kwargs: Never given.

        Returns:
            One output per input, in order: any sequence, ndarray or tensor of that length. An
            exception object in the place of an output fails only that request.
        """
        raise NotImplementedError

    def postprocess(self, output: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Turn an output of `infer` into a response. Per request."""
        return output

    def stream(self, item: Any, /, *args: Any, **kwargs: Any) -> Any:
        """
        Yield chunks for one request, as a generator.

        It is closed at its next `yield` once nobody listens; long steps may read `call.cancelled`.
        """
        raise NotImplementedError

    def unload(self) -> Any:
        """Free what `load` took: once for each `load` that was begun, never while hooks run."""

    def cost(self, item: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Say what an input costs, as a positive int; `Batching.max_cost` bounds a batch by it."""
        return 1

    def batch_key(self, item: Any, /, *args: Any, **kwargs: Any) -> Hashable | Any:
        """Say with what an input may share a batch: only equal keys do."""
        return None

    def health(self) -> Any:
        """Raise if this replica no longer works: it is then drained and loaded anew."""
