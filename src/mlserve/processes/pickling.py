"""Sending what makes handlers to another process: by name where it has one, else by its parts."""

import functools
import io
import pickle
from typing import Any, cast

from mlserve.errors import ConfigurationError
from mlserve.functions import handler, parts_of
from mlserve.spec import Factory

__all__ = ["dumps_factory", "loads_factory"]


class _FactoryPickler(pickle.Pickler):
    """Pickles classes that `mlserve.handler` made, which no module has by their name."""

    def reducer_override(self, obj: Any) -> Any:
        parts = parts_of(obj) if isinstance(obj, type) else None
        return NotImplemented if parts is None else (functools.partial(handler, **parts), ())


def dumps_factory(factory: Factory, name: str) -> bytes:
    """
    Pickle what `ModelServer.add` was given; classes and functions go by module and name.

    Args:
        factory: A class, a function, or `functools.partial` of one.
        name: The model's name, for the message.

    Raises:
        ConfigurationError: If another process could not find it.
    """
    buffer = io.BytesIO()
    try:
        _FactoryPickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(factory)
    except Exception as exc:  # also what the user's own `__reduce__` raises
        raise ConfigurationError(
            f"The handler of model `{name}` cannot be sent to another process ({exc}). Replicas in"
            " processes need a handler that can be imported: a class at module level, or"
            " `functools.partial` of it."
        ) from exc
    return buffer.getvalue()


def loads_factory(data: bytes) -> Factory:
    """
    Give what `dumps_factory` pickled, which imports the modules that it comes from.

    In the replica's process; `__main__` must be prepared where the handler was defined there.

    Raises:
        Exception: What those imports raise.
    """
    return cast("Factory", pickle.loads(data))  # noqa: S301 - from our own process
