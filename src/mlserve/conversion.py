"""
From what a handler returns to what its response type declares, and on to JSON bytes.

numpy and torch values are recognised by what they can do (`tolist`), so neither is imported.
Pure: no clock, no thread; called in whichever thread holds the output.
"""

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import PydanticSerializationError, to_json

from mlserve.errors import ConfigurationError, ModelOutputError
from mlserve.payloads import Binary

__all__ = ["OutputType", "to_plain"]

_QUOTING_INPUT = {"union_tag_invalid": "Input tag does not match any of the expected tags"}
_ATOMS = frozenset({str, int, float, bool, bytes, type(None)})
_is_doubtful = re.compile(rb"null|NaN|Infinity").search


def to_plain(value: Any) -> Any:
    """
    Replace numpy and torch values by Python ones, at any depth of the containers that hold them.

    Dicts, lists, tuples and dataclasses are looked into; what is given is not changed.

    Example:
        >>> to_plain({"scores": array("f", [1.0, 2.0])})
        {'scores': [1.0, 2.0]}
    """
    if type(value) in _ATOMS:
        return value
    if isinstance(value, Mapping):
        return {_plain_atom(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return _with_plain_items(value)
    if is_dataclass(value) and not isinstance(value, type):
        return _with_plain_fields(value)
    return _plain_atom(value)


def _plain_atom(value: Any) -> Any:
    if isinstance(value, type) or not hasattr(value, "tolist"):
        return value
    plain = value.tolist()
    # An array of Python objects may hold arrays again.
    return to_plain(plain) if str(getattr(value, "dtype", "")) == "object" else plain


def _with_plain_items(value: Any) -> Any:
    if _ATOMS.issuperset(map(type, value)):
        return value
    items = [to_plain(item) for item in value]
    if hasattr(value, "_fields"):  # a named tuple
        return type(value)(*items)
    return tuple(items) if isinstance(value, tuple) else items


def _with_plain_fields(value: Any) -> Any:
    """Give the dataclass itself, or a copy if one of its fields has to change."""
    before = {field.name: getattr(value, field.name) for field in fields(value)}
    after = {name: to_plain(item) for name, item in before.items()}
    if all(after[name] is item for name, item in before.items()):
        return value
    plain = copy.copy(value)
    for name, item in after.items():
        object.__setattr__(plain, name, item)  # a frozen dataclass is filled in this way, too
    return plain


class OutputType:
    """
    A declared response or chunk type: takes outputs in, gives JSON bytes out.

    Args:
        declared: The type argument of the handler.
        role: What it is, for messages: `response` or `chunk`.

    Raises:
        ConfigurationError: If pydantic cannot validate the type.
    """

    def __init__(self, declared: Any, role: str) -> None:
        self.declared = declared
        self.role = role
        self.is_binary = declared is Binary
        self._instance_of = declared if _is_model_class(declared) else None
        self._adapter = adapter_of(declared, role)
        self._serializer = self._adapter.serializer  # the adapter's own method takes twice as long

    @property
    def name(self) -> str:
        """The type's name, for messages."""
        return getattr(self.declared, "__name__", None) or str(self.declared)

    def json_schema(self) -> dict[str, Any]:
        """Give the type as JSON schema; nothing for what is no JSON."""
        if self.is_binary:
            return {}
        try:
            return self._adapter.json_schema(mode="serialization")
        except PydanticInvalidForJsonSchema:
            return {}

    def accept(self, output: Any) -> Any:
        """
        Validate an output and drop what is not declared.

        Raises:
            ModelOutputError: If it does not fit; the message names fields, never values.
        """
        if self._instance_of is not None and isinstance(output, self._instance_of):
            return output if isinstance(output, BaseModel) else to_plain(output)
        try:
            return self._adapter.validate_python(to_plain(output), from_attributes=True)
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the value itself"
            what = _QUOTING_INPUT.get(first["type"], first["msg"])
            raise ModelOutputError(
                f"The handler's output does not fit its {self.role} type `{self.name}`"
                f" (at {where}: {what}). Return what the type declares."
            ) from exc

    def encode(self, value: Any) -> bytes:
        """
        Write an accepted value as JSON, UTF-8.

        Raises:
            ModelOutputError: If it holds NaN or infinity, or cannot be written as JSON.
        """
        try:
            encoded = self._serializer.to_json(value, by_alias=True, warnings="error")
        except (PydanticSerializationError, ValueError, TypeError, RecursionError) as exc:
            raise ModelOutputError(
                f"The handler's output cannot be written as JSON of its {self.role} type"
                f" `{self.name}`."
            ) from exc
        # pydantic writes non-finite numbers as null: only then is a closer look needed.
        if _is_doubtful(encoded) and self._has_non_finite(value):
            raise ModelOutputError(
                "The handler's output holds NaN or infinity, which JSON cannot carry."
                " Replace them in `postprocess`."
            )
        return encoded

    def decode(self, encoded: bytes) -> Any:
        """
        Read back what `encode` has written.

        Raises:
            pydantic.ValidationError: If the type does not take what it writes.
        """
        return self._adapter.validate_json(encoded)

    def _has_non_finite(self, value: Any) -> bool:
        """Look at what is written: it knows of excluded, computed and converted fields."""
        plain = self._adapter.dump_python(value, warnings=False)
        return _may_hold_non_finite(plain) and _holds_non_finite(plain)


def adapter_of(declared: Any, role: str) -> TypeAdapter[Any]:
    """
    Build pydantic's adapter of a declared type.

    Raises:
        ConfigurationError: If pydantic cannot; the message says which types work.
    """
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(declared)
        if not adapter.pydantic_complete:  # a name in it is not defined: better said now
            adapter.rebuild(raise_errors=True)
        return adapter
    except (PydanticUserError, NameError, TypeError) as exc:
        raise ConfigurationError(
            f"The {role} type {declared!r} cannot be validated: {exc}. Use a pydantic model, a"
            " dataclass, a `typing_extensions.TypedDict` or a plain JSON type."
        ) from exc


def _is_model_class(declared: Any) -> bool:
    return isinstance(declared, type) and (
        issubclass(declared, BaseModel | Binary) or is_dataclass(declared)
    )


def _may_hold_non_finite(value: Any) -> bool:
    """Rule out in one pass of compiled code what the walk in Python would look for."""
    try:
        written = to_json(value, inf_nan_mode="constants")
    except (PydanticSerializationError, ValueError, TypeError, RecursionError):
        return True  # such as arrays, which only the walk knows
    return b"NaN" in written or b"Infinity" in written


def _holds_non_finite(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(_holds_non_finite(item) for item in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return any(_holds_non_finite(item) for item in value)
    return hasattr(value, "tolist") and _holds_non_finite(value.tolist())
