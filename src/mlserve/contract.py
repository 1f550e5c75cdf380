"""
What a handler class is, read once when it is added: its hooks and its types.

Everything that can be wrong with a handler before it runs is found here, in words that say what
to write instead.
"""

import inspect
from dataclasses import dataclass, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel, TypeAdapter
from typing_extensions import get_original_bases, is_typeddict

from mlserve.conversion import OutputType, adapter_of
from mlserve.errors import ConfigurationError
from mlserve.handler import AsResponse, ModelHandler
from mlserve.payloads import Upload
from mlserve.stepped import SteppedHandler

__all__ = ["Contract", "Hook", "read_contract"]

_NO_ARGUMENTS = ("load", "warmup", "examples", "unload", "health")
_PER_REQUEST = ("preprocess", "postprocess", "stream", "cost", "batch_key")
_STEPPED = ("admit", "step", "evict")


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook of a handler class."""

    name: str
    """The method's name."""
    overridden: bool
    """Whether the user wrote it."""
    is_async: bool
    """Whether it is `async def`: it then runs on the event loop."""
    wants_call: bool
    """Whether it takes `call` (`infer`: `calls`) as well."""

    @property
    def needs_thread(self) -> bool:
        """Whether user code has to be kept off the event loop for it."""
        return self.overridden and not self.is_async


@dataclass(frozen=True, slots=True)
class Contract:
    """A handler class as the server sees it."""

    handler_class: type[ModelHandler[Any, Any, Any]]
    """The class itself."""
    request_type: Any
    """The first type argument."""
    request: TypeAdapter[Any]
    """Validates requests."""
    response: OutputType
    """Validates and writes responses."""
    chunk: OutputType
    """Validates and writes chunks."""
    upload_fields: tuple[str, ...]
    """The request's fields that are files; none = JSON."""
    hooks: dict[str, Hook]
    """Every hook by its name."""

    @property
    def is_stepped(self) -> bool:
        """Whether the handler advances all its requests together."""
        return issubclass(self.handler_class, SteppedHandler)

    @property
    def prepares_nothing(self) -> bool:
        """Whether there is no hook before the queue."""
        return not any(self.hooks[name].overridden for name in ("preprocess", "cost", "batch_key"))

    @property
    def can_infer(self) -> bool:
        """Whether the handler answers a request as a whole."""
        return self.is_stepped or self.hooks["infer"].overridden

    @property
    def can_stream(self) -> bool:
        """Whether the handler answers a request with chunks."""
        return self.is_stepped or self.hooks["stream"].overridden


def read_contract(cls: type[ModelHandler[Any, Any, Any]]) -> Contract:
    """
    Read a handler class.

    Raises:
        ConfigurationError: If type arguments are missing, neither `infer` nor `stream` is
            written, or a hook has the wrong parameters or kind.
    """
    request_type, response_type, chunk_type = _type_arguments(cls)
    hooks = {name: _read_hook(cls, name) for name in (*_NO_ARGUMENTS, *_PER_REQUEST, "infer")}
    if issubclass(cls, SteppedHandler):
        hooks |= _stepped_hooks(cls, hooks)
    elif not hooks["infer"].overridden and not hooks["stream"].overridden:
        raise ConfigurationError(
            f"`{cls.__name__}` has neither `infer` nor `stream`. Write"
            " `def infer(self, inputs: list) -> list`, one output per input."
        )
    _refuse_generators(cls, hooks)
    return Contract(
        handler_class=cls,
        request_type=request_type,
        request=adapter_of(request_type, "request"),
        response=OutputType(response_type, "response"),
        chunk=OutputType(chunk_type, "chunk"),
        upload_fields=_upload_fields(request_type),
        hooks=hooks,
    )


def _stepped_hooks(cls: type, others: dict[str, Hook]) -> dict[str, Hook]:
    hooks = {name: _read_hook(cls, name) for name in _STEPPED}
    missing = [name for name, hook in hooks.items() if not hook.overridden]
    if missing:
        raise ConfigurationError(
            f"`{cls.__name__}` is a `SteppedHandler` and has no `{missing[0]}`. Write `admit`,"
            " `step` and `evict`."
        )
    for name, hook in hooks.items():
        if hook.is_async:
            raise ConfigurationError(
                f"`{cls.__name__}.{name}` must not be `async def`: it runs in the replica's thread."
            )
    for name in ("infer", "stream", "cost", "batch_key"):
        if others[name].overridden:
            raise ConfigurationError(
                f"`{cls.__name__}` is a `SteppedHandler`, of which `{name}` is never called. Write"
                " `admit`, `step` and `evict` only, or make it a `ModelHandler`."
            )
    return hooks


def _read_hook(cls: type, name: str) -> Hook:
    function = inspect.getattr_static(cls, name)
    if isinstance(function, staticmethod | classmethod) or not callable(function):
        raise ConfigurationError(f"`{cls.__name__}.{name}` must be a method with `self`.")
    base = SteppedHandler if name in _STEPPED else ModelHandler
    overridden = function is not inspect.getattr_static(base, name)
    is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    wants_call = overridden and _wants_call(cls, name, function)
    return Hook(name, overridden, is_async, wants_call)


def _wants_call(cls: type, name: str, function: Any) -> bool:
    """Say whether the hook takes the call, or raise if its parameters are not those of a hook."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    required = [
        parameter
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if name in _NO_ARGUMENTS or name == "step":
        if required:
            raise ConfigurationError(
                f"`{cls.__name__}.{name}` must take no argument but `self`, it takes"
                f" `{required[0].name}`."
            )
        return False
    expected, extra = ("inputs", "calls") if name == "infer" else (_ARGUMENT[name], "call")
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    wants_call = len(required) == 2 or any(p.name == extra for p in positional[1:])
    if not positional or len(required) > 2 or any(p.kind is p.KEYWORD_ONLY for p in required):
        raise ConfigurationError(
            f"`{cls.__name__}.{name}` must have the parameters `(self, {expected})` or"
            f" `(self, {expected}, {extra})`, it has `{inspect.signature(function)}`."
        )
    return wants_call


_ARGUMENT = {
    "preprocess": "request",
    "postprocess": "output",
    "stream": "input",
    "cost": "input",
    "batch_key": "input",
    "admit": "input",
    "evict": "sequence",
}


def _refuse_generators(cls: type, hooks: dict[str, Hook]) -> None:
    for name in hooks:
        function = inspect.getattr_static(cls, name)
        yields = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        if name == "stream" and inspect.iscoroutinefunction(function):
            raise ConfigurationError(
                f"`{cls.__name__}.stream` must be a generator: `yield` each chunk instead of"
                " returning them."
            )
        if yields and name != "stream":
            hint = " Name it `stream` to send chunks." if name == "infer" else ""
            raise ConfigurationError(
                f"`{cls.__name__}.{name}` must return its result, not `yield` it.{hint}"
            )


def _type_arguments(cls: type) -> tuple[Any, Any, Any]:
    arguments = _arguments_of(cls)
    if arguments is None or any(_is_open(argument) for argument in arguments):
        raise ConfigurationError(
            f"`{cls.__name__}` does not say its request and response types. Write"
            f" `class {cls.__name__}(ModelHandler[Request, Response])`, for example with two"
            " pydantic models."
        )
    request, response = arguments[0], arguments[1]
    chunk = arguments[2] if len(arguments) > 2 else AsResponse
    return request, response, response if chunk is AsResponse else chunk


def _arguments_of(cls: type) -> tuple[Any, ...] | None:
    """Find the arguments of `ModelHandler[…]` through generic classes in between."""
    if cls is ModelHandler:
        return tuple(getattr(ModelHandler, "__parameters__", ()))
    for base in get_original_bases(cls):
        origin = get_origin(base) or base
        if not (isinstance(origin, type) and issubclass(origin, ModelHandler)):
            continue
        inherited = _arguments_of(origin)
        if inherited is None:
            continue
        given = dict(zip(getattr(origin, "__parameters__", ()), get_args(base), strict=False))
        return tuple(_filled_in(argument, given) for argument in inherited)
    return None


def _filled_in(argument: Any, given: dict[Any, Any]) -> Any:
    """Put types in the place of type variables, also within other types such as `list[T]`."""
    if isinstance(argument, TypeVar):
        return given.get(argument, argument)
    parameters = getattr(argument, "__parameters__", ())
    if not any(parameter in given for parameter in parameters):
        return argument
    return argument[tuple(given.get(parameter, parameter) for parameter in parameters)]


def _is_open(argument: Any) -> bool:
    """Say whether a type variable is left; a generic class without arguments is a type as it is."""
    if isinstance(argument, TypeVar):
        return True
    return not isinstance(argument, type) and bool(getattr(argument, "__parameters__", ()))


def _upload_fields(request_type: Any) -> tuple[str, ...]:
    if not (isinstance(request_type, type) and issubclass(request_type, BaseModel)):
        if _holds_upload(request_type, set()):
            raise ConfigurationError(
                f"The request type {request_type!r} holds `Upload`, which only a field of a"
                " pydantic model can be. Make the request a pydantic model with that field."
            )
        return ()
    return tuple(
        name
        for name, info in request_type.model_fields.items()
        if _mentions_upload(info.annotation)
    )


def _holds_upload(annotation: Any, seen: set[type]) -> bool:
    """Look for files also within dataclasses and typed dicts."""
    if annotation is Upload:
        return True
    parts: tuple[Any, ...] = get_args(annotation)
    if isinstance(annotation, type) and (is_dataclass(annotation) or is_typeddict(annotation)):
        if annotation in seen:
            return False
        seen.add(annotation)
        try:
            parts = tuple(get_type_hints(annotation).values())
        except NameError:  # a name that is local to where the type is made
            parts = tuple(annotation.__annotations__.values())
    return any(_holds_upload(part, seen) for part in parts)


def _mentions_upload(annotation: Any) -> bool:
    return annotation is Upload or any(_mentions_upload(part) for part in get_args(annotation))
