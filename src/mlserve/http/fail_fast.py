"""
Validators that stop at the first wrong item: what large bodies are validated with.

pydantic notes every wrong item of a list, each in a few hundred bytes: four million of them, which
fit into a body of 16 MB, would take gigabytes and hold the event loop for seconds.
"""

from typing import Any
from weakref import WeakKeyDictionary

from pydantic import TypeAdapter
from pydantic_core import SchemaError, SchemaValidator

__all__ = ["fail_fast_validator"]

_STOPPING = frozenset(
    {"counter", "deque", "dict", "frozendict", "frozenset", "list", "ordered-dict", "set", "tuple"}
)
"""Kinds of core schemas that can stop at their first wrong item."""
_VALUES = frozenset({"cls", "default", "expected", "metadata", "serialization"})
"""Members of a core schema that hold no schemas to validate with."""
_made: WeakKeyDictionary[TypeAdapter[Any], Any] = WeakKeyDictionary()


def fail_fast_validator(adapter: TypeAdapter[Any]) -> Any:
    """
    Give a validator of the same type, whose collections stop at their first wrong item.

    It takes what the adapter takes and gives the same values. Runs on the event loop; made once.

    Args:
        adapter: Validates the type; its own validator is given where pydantic cannot stop.
    """
    validator = _made.get(adapter)
    if validator is None:
        validator = _made[adapter] = _make(adapter)
    return validator


def _make(adapter: TypeAdapter[Any]) -> Any:
    schema = _stopping(adapter.core_schema)
    try:
        # Else the models within would be validated by the validators of their own classes.
        return SchemaValidator(schema, _use_prebuilt=False)
    except (TypeError, SchemaError):  # an older pydantic
        return adapter.validator


def _stopping(node: Any) -> Any:
    """Copy a core schema, with the flag wherever it belongs."""
    if isinstance(node, list):
        return [_stopping(item) for item in node]
    if isinstance(node, tuple):
        return tuple(map(_stopping, node))
    if not isinstance(node, dict):
        return node
    kind = node.get("type")
    is_schema = isinstance(kind, str)  # else it is a table of fields, one of which may be `type`
    copied = {
        name: value if is_schema and name in _VALUES else _stopping(value)
        for name, value in node.items()
    }
    if is_schema and kind in _STOPPING:
        copied["fail_fast"] = True
    return copied
