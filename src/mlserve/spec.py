"""A model as it was added: what it is called, what it is and what it may use."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from mlserve.cache import Cache
from mlserve.contract import Contract
from mlserve.errors import ConfigurationError
from mlserve.handler import ModelHandler
from mlserve.settings import Batching, Limits, Replicas

__all__ = [
    "Factory",
    "HandlerSource",
    "ModelSpec",
    "as_factory",
    "limits_of",
    "option_of",
    "replicas_of",
]

OptionT = TypeVar("OptionT")

_PLAIN = ("builtins", "operator", "pydantic")

Factory = Callable[[], ModelHandler[Any, Any, Any]]
"""Gives a handler for one replica; its `load` has not been called."""

HandlerSource = (
    type[ModelHandler[Any, Any, Any]]
    | Callable[[], ModelHandler[Any, Any, Any]]
    | ModelHandler[Any, Any, Any]
)
"""What `add` takes: a class, a zero-argument callable that gives a handler, or a handler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model as it was added."""

    name: str
    """What it is called in paths."""
    version: str
    """Its version, such as `v1`."""
    contract: Contract
    """What its handler class is."""
    factory: Factory
    """Gives the handler of each replica."""
    example: ModelHandler[Any, Any, Any]
    """A handler that is not loaded, to ask for its `examples`; or the one that was added."""
    batching: Batching
    """How its requests are gathered."""
    replicas: Replicas
    """How many copies run, and where."""
    limits: Limits
    """What its requests may take."""
    cache: Cache | None = None
    """How its answers are kept; `None` = not at all."""

    def __post_init__(self) -> None:
        if self.cache is not None:
            require_cacheable(self.cache, self.contract)

    @property
    def is_instance(self) -> bool:
        """Whether a handler itself was added, which is then used as it is."""
        return self.factory() is self.example


def as_factory(
    source: HandlerSource,
) -> tuple[Factory, ModelHandler[Any, Any, Any], bool]:
    """
    Give what makes handlers, one for examples, and whether `source` itself is the handler.

    Raises:
        ConfigurationError: If it makes no handlers.
    """
    if isinstance(source, ModelHandler):
        handler: ModelHandler[Any, Any, Any] = source
        return lambda: handler, handler, True
    if not callable(source):
        raise ConfigurationError(
            f"`handler` must be a `ModelHandler` class, a callable that gives a handler, or a"
            f" handler, got {source!r}."
        )
    factory = cast("Factory", source)
    _require_no_arguments(source)
    try:
        example = factory()
    except Exception as exc:
        raise ConfigurationError(
            f"{source!r} could not make a handler: {exc}. Heavy work belongs to `load`."
        ) from exc
    if not isinstance(example, ModelHandler):
        raise ConfigurationError(
            f"{source!r} gave {type(example).__name__!r}, which is no `ModelHandler`."
        )
    return factory, example, False


def require_cacheable(cache: Cache, contract: Contract) -> None:
    """
    Refuse to keep the answers of a handler where that makes no sense.

    Raises:
        ConfigurationError: If it does not; the message says why.
    """
    name = contract.handler_class.__name__
    if not isinstance(cache, Cache):
        raise ConfigurationError(f"`cache` must be `Cache(…)`, got {cache!r}.")
    if not contract.can_infer:
        raise ConfigurationError(
            f"`{name}` only streams, and streams are not kept. Leave out `cache`, or write `infer`."
        )
    if not contract.handler_class.idempotent:
        raise ConfigurationError(
            f"`{name}` is not idempotent, so each of its requests has to be run. Leave out `cache`."
        )
    if not _tells_apart(contract.request.core_schema):
        raise ConfigurationError(
            f"The request type of `{name}` does not write all that it holds as JSON (a file, a"
            " secret, a field with `exclude` or a serializer of its own), so that unlike requests"
            " could be taken for equal ones. Leave out `cache`, or use plain fields."
        )


def _tells_apart(node: Any) -> bool:
    """Say whether values of a type that differ are written as JSON that differs."""
    if isinstance(node, list | tuple):
        return all(map(_tells_apart, node))
    if not isinstance(node, dict):
        return True
    if node.get("serialization_exclude") is True or "serialization_exclude_if" in node:
        return False
    how = node.get("serialization")
    if isinstance(how, dict) and isinstance(node.get("type"), str):
        function = how.get("function")
        module = str(getattr(function, "__module__", "")).split(".")[0]
        is_secret = "secret" in getattr(function, "__name__", "")
        if module not in _PLAIN or is_secret:
            return False
    return all(_tells_apart(value) for name, value in node.items() if name != "metadata")


def _require_no_arguments(source: Callable[..., Any]) -> None:
    try:
        inspect.signature(source).bind()
    except ValueError:  # no signature to look at
        return
    except TypeError as exc:
        name = getattr(source, "__name__", "Handler")
        raise ConfigurationError(
            f"`{name}` cannot be made without arguments ({exc}). Pass"
            f" `functools.partial({name}, …)` with them."
        ) from exc


def replicas_of(
    given: Replicas | None, example: ModelHandler[Any, Any, Any], *, is_instance: bool
) -> Replicas:
    """
    Give the replicas of a model: as given, else the handler's own, else the default.

    Raises:
        ConfigurationError: If a handler that was given itself cannot run so.
    """
    options = option_of("replicas", given, example.replicas, Replicas)
    if is_instance and options.placement == "process":
        raise ConfigurationError(
            "A handler instance cannot run in a process of its own. Pass its class, or"
            " `functools.partial` of it, or leave out `placement='process'`."
        )
    if is_instance and options.max_count != 1:
        if given is not None:
            raise ConfigurationError(
                "A handler instance can be one replica only. Pass its class, or"
                " `functools.partial` of it, to run several."
            )
        options = replace(options, count=1, threads_per_replica=None)
    return options


def limits_of(given: Limits | None, replicas: Replicas) -> Limits:
    """
    Give the limits of a model.

    Raises:
        ConfigurationError: If its replicas cannot keep them.
    """
    limits = option_of("limits", given, None, Limits)
    if limits.hard_timeout_s is not None and replicas.placement != "process":
        raise ConfigurationError(
            f"`hard_timeout_s={limits.hard_timeout_s!r}` ends a replica's process, and a thread"
            " cannot be ended: add `replicas=Replicas(placement='process')`."
        )
    return limits


def option_of(
    name: str, given: OptionT | None, own: OptionT | None, kind: type[OptionT]
) -> OptionT:
    """
    Give an option as given, else the handler's own, else the default.

    Raises:
        ConfigurationError: If it is something else.
    """
    for option in (given, own):
        if option is not None:
            if not isinstance(option, kind):
                raise ConfigurationError(f"`{name}` must be `{kind.__name__}(…)`, got {option!r}.")
            return option
    return kind()
