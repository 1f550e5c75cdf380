"""Handlers from functions, for those who want no class: `mlserve.handler(...)`."""

import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

from mlserve.errors import ConfigurationError
from mlserve.handler import ModelHandler

__all__ = ["handler", "parts_of"]

_PARTS = "_made_of"


def handler(
    *,
    request: Any,
    response: Any,
    infer: Callable[..., Any],
    load: Callable[[], Any] | None = None,
    preprocess: Callable[..., Any] | None = None,
    postprocess: Callable[..., Any] | None = None,
    examples: Sequence[Any] = (),
) -> type[ModelHandler[Any, Any, Any]]:
    """
    Make a handler class of functions.

    With `load`, what it returns is passed as first argument to the other functions. They run in
    the same threads as the hooks of their names, and may be `async def`.

    Args:
        request: The request type, as the first type argument of `ModelHandler`.
        response: The response type.
        infer: Takes (the loaded object and) a list of inputs, gives one output per input.
        load: Takes nothing, gives the loaded object; once per replica.
        preprocess: Takes (the loaded object and) a request, gives an input.
        postprocess: Takes (the loaded object and) an output, gives a response.
        examples: Typical requests, for warm-up, `mlserve check` and OpenAPI.

    Raises:
        ConfigurationError: If one of them cannot be called.

    Example:
        >>> Double = handler(request=float, response=float, infer=lambda xs: [2 * x for x in xs])
        >>> Double().infer([1.5])
        [3.0]
    """
    body: dict[str, Any] = {"__doc__": infer.__doc__, "loaded": None}
    given = {"infer": infer, "preprocess": preprocess, "postprocess": postprocess}
    for name, function in given.items():
        if function is not None:
            body[name] = _as_hook(name, function, bind=load is not None)
    if examples:
        body["examples"] = lambda self: list(examples)
    if load is not None:
        body["load"] = _as_load(load)
    base = ModelHandler[request, response]
    name = getattr(infer, "__name__", "infer").replace("<lambda>", "infer")
    parts = {"request": request, "response": response, "load": load, "examples": examples}
    body[_PARTS] = parts | given
    return types.new_class(f"handler_of_{name}", (base,), exec_body=lambda ns: ns.update(body))


def parts_of(cls: type) -> dict[str, Any] | None:
    """Give the keyword arguments that `handler` made this very class of; `None` = it did not."""
    return vars(cls).get(_PARTS)


def _as_hook(name: str, function: Callable[..., Any], *, bind: bool) -> Callable[..., Any]:
    if not callable(function):
        raise ConfigurationError(f"`{name}` must be a function, got {function!r}.")
    if inspect.iscoroutinefunction(function):

        async def async_hook(self: Any, value: Any) -> Any:
            return await (function(self.loaded, value) if bind else function(value))

        return async_hook

    def hook(self: Any, value: Any) -> Any:
        return function(self.loaded, value) if bind else function(value)

    return hook


def _as_load(load: Callable[[], Any]) -> Callable[..., Any]:
    if not callable(load):
        raise ConfigurationError(f"`load` must be a function, got {load!r}.")
    if inspect.iscoroutinefunction(load):

        async def async_load(self: Any) -> None:
            self.loaded = await load()

        return async_load

    def sync_load(self: Any) -> None:
        self.loaded = load()

    return sync_load
