"""
Every error that mlserve raises: one tree, one HTTP status and one stable code per class.

    MLServeError
    ├── RequestError                    the client should fix the request
    │   ├── InvalidJSONError            400 invalid_json
    │   ├── InvalidTimeoutError         400 invalid_timeout
    │   ├── SchemaViolationError        422 validation_error
    │   ├── InvalidInputError           422 invalid_input
    │   │   └── ContextLengthError      400 context_length_exceeded
    │   ├── ModelNotFoundError          404 model_not_found
    │   ├── UnsupportedParameterError   400 unsupported_parameter
    │   ├── UnsupportedMediaTypeError   415 unsupported_media_type
    │   ├── BodyTooLargeError           413 body_too_large
    │   ├── BodyTimeoutError            408 request_timeout
    │   └── AbandonedError              499 client_closed_request (only ever logged)
    ├── CapacityError                   the client should try again later
    │   ├── QueueFullError              503 queue_full
    │   ├── OverloadedError             503 overloaded
    │   ├── OutOfMemoryError            507 out_of_memory
    │   ├── ModelNotReadyError          503 model_not_ready
    │   ├── DrainingError               503 draining
    │   ├── ModelFailedError            503 model_failed
    │   └── DeadlineExceededError       504 deadline_exceeded
    ├── ModelError                      500 model_error: the handler broke
    │   └── ModelOutputError            500 model_error: the handler's output cannot be used
    ├── ReplicaDiedError                502 replica_died: the process that ran the request ended
    └── ConfigurationError              the developer should fix the code

This module imports nothing of mlserve. Only `mlserve.http.errors` makes responses of these.
"""

from typing import Any, ClassVar

__all__ = [
    "AbandonedError",
    "BodyTimeoutError",
    "BodyTooLargeError",
    "CapacityError",
    "ConfigurationError",
    "ContextLengthError",
    "DeadlineExceededError",
    "DrainingError",
    "InvalidInputError",
    "InvalidJSONError",
    "InvalidTimeoutError",
    "MLServeError",
    "ModelError",
    "ModelFailedError",
    "ModelNotFoundError",
    "ModelNotReadyError",
    "ModelOutputError",
    "OutOfMemoryError",
    "OverloadedError",
    "QueueFullError",
    "ReplicaDiedError",
    "RequestError",
    "SchemaViolationError",
    "UnsupportedMediaTypeError",
    "UnsupportedParameterError",
]

_LONGEST_PARAM = 128
_LONGEST_NAME = 64


class MLServeError(Exception):
    """
    Base of every error that mlserve raises.

    `str(error)` is meant for the reader that the class names (client or developer) and never
    holds paths, tracebacks or request contents. Every error can be copied and pickled; its cause
    and traceback stay behind.
    """

    status: ClassVar[int] = 500
    """The HTTP status that `mlserve.http.errors` answers with."""
    code: ClassVar[str] = "internal_error"
    """The stable, machine-readable name of the situation."""
    kind: ClassVar[str] = "ServerError"
    """What stands as `type` in the error body."""
    retry_after_s: float | None = None
    """After how many seconds another try makes sense; `None` when the error says nothing of it."""
    param: str | None = None
    """The request's field that is at fault, where one is known."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(cls: type[MLServeError], args: Any, attributes: dict[str, Any]) -> MLServeError:
    """Make an error again without its constructor, which would take facts and not a message."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


class RequestError(MLServeError):
    """The request is wrong: the same request will fail again."""

    status = 400
    code = "invalid_request"
    kind = "RequestError"


class InvalidJSONError(RequestError):
    """The body is not JSON as RFC 8259 has it: malformed, not UTF-8, too deep, or with NaN."""

    code = "invalid_json"


class InvalidTimeoutError(RequestError):
    """The header `X-Request-Timeout` is not a positive finite number of seconds."""

    code = "invalid_timeout"

    def __init__(self) -> None:
        super().__init__(
            "The header `X-Request-Timeout` must be a positive, finite number of seconds,"
            " for example `2.5`."
        )
        self.param = "X-Request-Timeout"


class SchemaViolationError(RequestError):
    """
    The body is JSON, but not what the model's request schema asks for.

    Args:
        details: At most ten entries of `type`, `loc` and `msg`, without the input's values.
        n_errors: How many violations there were in all.
    """

    status = 422
    code = "validation_error"

    def __init__(self, details: list[dict[str, object]], n_errors: int) -> None:
        where = _field_of(details)
        what = f" First at `{where}`: {details[0]['msg']}." if where else ""
        count = "1 field does" if n_errors == 1 else f"{n_errors} fields do"
        super().__init__(f"{count} not fit the schema.{what} See `detail` for each.")
        self.details = details
        self.n_errors = n_errors
        self.param = where or None


def _field_of(details: list[dict[str, object]]) -> str:
    """Give the dotted name of the first field that is wrong, without where it was sent."""
    location = details[0].get("loc") if details else None
    found = location if isinstance(location, list) else []
    parts = found[1:] if found[:1] in (["body"], ["query"]) else found
    return ".".join(str(part) for part in parts)[:_LONGEST_PARAM]


class InvalidInputError(RequestError):
    """
    Raised by handlers: the model cannot take this input. Clients read the message.

    Args:
        message: What is wrong and what to send instead.
        param: The request's field that is at fault; at most 128 characters of it are kept.
    """

    status = 422
    code = "invalid_input"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = None if param is None else str(param)[:_LONGEST_PARAM]


class ContextLengthError(InvalidInputError):
    """The prompt and the answer together are longer than the model's context."""

    status = 400
    code = "context_length_exceeded"


class ModelNotFoundError(RequestError):
    """No model of this name, or not in this version."""

    status = 404
    code = "model_not_found"

    def __init__(self, name: str, version: str | None = None) -> None:
        which = f"model `{name[:_LONGEST_NAME]}`"  # a client's name may be of any length
        if version:
            which = f"version `{version[:_LONGEST_NAME]}` of {which}"
        super().__init__(f"There is no {which}. `GET /v1/models` lists the models.")
        self.name = name
        self.version = version


class UnsupportedParameterError(RequestError):
    """The request asks for something that would change its answer and cannot be done here."""

    code = "unsupported_parameter"

    def __init__(self, param: str, why: str = "it is not supported here") -> None:
        self.param = str(param)[:_LONGEST_PARAM]
        super().__init__(f"`{self.param}` cannot be served: {why}. Leave it out.")


class UnsupportedMediaTypeError(RequestError):
    """The body's `Content-Type` or `Content-Encoding` is not one that the route takes."""

    status = 415
    code = "unsupported_media_type"


class BodyTooLargeError(RequestError):
    """The body is larger than the route takes."""

    status = 413
    code = "body_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The body is larger than {limit_bytes} bytes. Send less at once.")
        self.limit_bytes = limit_bytes


class BodyTimeoutError(RequestError):
    """The body did not arrive in time."""

    status = 408
    code = "request_timeout"

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"The body did not arrive within {timeout_s:g} s.")
        self.timeout_s = timeout_s


class AbandonedError(RequestError):
    """The client left before its answer was there; only logs ever show it."""

    status = 499
    code = "client_closed_request"

    def __init__(self) -> None:
        super().__init__("The client left before the answer was there.")


class CapacityError(MLServeError):
    """The server cannot take the request now: the same request may succeed later."""

    status = 503
    code = "unavailable"
    kind = "CapacityError"
    retry_after_s: float | None = 1.0


class QueueFullError(CapacityError):
    """As many requests are waiting as the queue takes."""

    code = "queue_full"

    def __init__(self, model: str, limit: int, retry_after_s: float = 1.0) -> None:
        super().__init__(
            f"The queue of model `{model}` is full ({limit} requests are waiting)."
            " Send the request again later, or raise `max_queue_size`."
        )
        self.model = model
        self.limit = limit
        self.retry_after_s = retry_after_s


class OverloadedError(CapacityError):
    """The request would have to wait longer than it has time."""

    code = "overloaded"

    def __init__(self, model: str, wait_s: float, retry_after_s: float = 1.0) -> None:
        super().__init__(
            f"Model `{model}` is overloaded: the request would wait about {wait_s:.2g} s, which is"
            " too long for its time limit. Send it again later, or allow it more time."
        )
        self.model = model
        self.wait_s = wait_s
        self.retry_after_s = retry_after_s


class OutOfMemoryError(CapacityError):
    """
    There is not enough memory for this request, even alone.

    Or, if the handler is not idempotent, for a batch that had to be run at once.

    Args:
        batch_size: How many requests were run at once; the next batches are smaller.
    """

    status = 507
    code = "out_of_memory"
    retry_after_s = None

    def __init__(self, model: str, batch_size: int = 1) -> None:
        if batch_size > 1:
            super().__init__(
                f"Model `{model}` had not enough memory for the {batch_size} requests of a batch"
                " at once. Send the request again: the next batches will be smaller."
            )
            self.retry_after_s = 1.0
        else:
            super().__init__(
                f"Model `{model}` has not enough memory for this request, even alone. Send a"
                " smaller one."
            )
        self.model = model
        self.batch_size = batch_size


class ModelNotReadyError(CapacityError):
    """The model is still being loaded or warmed up."""

    code = "model_not_ready"

    def __init__(self, model: str, state: str) -> None:
        super().__init__(f"Model `{model}` is not ready ({state}). `GET /ready` shows progress.")
        self.model = model
        self.state = state


class DrainingError(CapacityError):
    """The server is shutting down and takes no new work."""

    code = "draining"

    def __init__(self, model: str | None = None) -> None:
        what = "The server" if model is None else f"Model `{model}`"
        super().__init__(f"{what} is shutting down. Send the request to another server.")
        self.model = model


class ModelFailedError(CapacityError):
    """The model could not be loaded, or broke down and is being restarted."""

    code = "model_failed"
    retry_after_s = 5.0

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"Model `{model}` is out of order: {reason}.")
        self.model = model
        self.reason = reason


class DeadlineExceededError(CapacityError):
    """
    The request's time ran out.

    Args:
        stage: Where it was then: `queue`, `preprocess`, `infer`, `postprocess` or `stream`.
    """

    status = 504
    code = "deadline_exceeded"
    retry_after_s = None

    def __init__(self, stage: str, timeout_s: float) -> None:
        super().__init__(f"The request did not finish within {timeout_s:g} s (stage: {stage}).")
        self.stage = stage
        self.timeout_s = timeout_s


class ModelError(MLServeError):
    """The handler raised: its exception is in the log, never in the answer."""

    status = 500
    code = "model_error"
    kind = "ModelError"

    def __init__(self, message: str = "The model failed on this request.") -> None:
        super().__init__(message)


class ModelOutputError(ModelError):
    """The handler returned something that cannot be used; the message says what to return."""


class ReplicaDiedError(MLServeError):
    """The process that ran the request ended, and the request could not be run once more."""

    status = 502
    code = "replica_died"
    retry_after_s = 1.0

    def __init__(self, model: str) -> None:
        super().__init__(
            f"The process of model `{model}` that ran the request ended. The request may or may not"
            " have had an effect: part of its stream was sent, or its handler is not idempotent,"
            " so it was not run again. Send it again only if twice does no harm."
        )
        self.model = model


class ConfigurationError(MLServeError, ValueError):
    """The server was put together wrongly; raised while it is built, never while it serves."""

    code = "configuration_error"
    kind = "ConfigurationError"
