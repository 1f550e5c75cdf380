"""
Whether every value of one JSON schema is one of another, as far as schemas of types say it. Pure.

A schema is taken apart into alternatives, each of one type and with at most one constant; each
alternative of the one must fit into one of the other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Document", "Schemas", "narrowed"]

Schema = Mapping[str, Any]

_ANYTHING: Schema = {}
_NOTHING: Schema = {"enum": []}

_LOWER = (("minLength", 0), ("minItems", 0), ("minProperties", 0))
_UPPER = ("maxLength", "maxItems", "maxProperties")
_EXACT = ("pattern", "format", "multipleOf", "uniqueItems")
_TYPES = {
    bool: "boolean", int: "integer", float: "number", str: "string", dict: "object", list: "array",
    type(None): "null",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Document:
    """An OpenAPI document, in which schemas lead to others."""

    root: Mapping[str, Any]

    def resolved(self, schema: Any) -> Schema:
        """Follow `$ref` to what it names."""
        for _ in range(32):  # a chain of references that ends nowhere is no schema
            if not isinstance(schema, Mapping):
                return _NOTHING if schema is False else _ANYTHING
            reference = schema.get("$ref")
            if reference is None:
                return schema
            schema = self._at(reference)
        return _ANYTHING

    def alternatives(self, schema: Any) -> list[Schema]:
        """Take a schema apart: each part has at most one type and one constant."""
        simple = self._merged(self.resolved(schema))
        for word in ("anyOf", "oneOf"):
            if word in simple:
                rest = {key: value for key, value in simple.items() if key != word}
                return [
                    alternative
                    for part in simple[word]
                    for alternative in self.alternatives({**rest, **self.resolved(part)})
                ]
        if isinstance(types := simple.get("type"), list):
            return [part for name in types for part in self.alternatives({**simple, "type": name})]
        if (values := simple.get("enum")) is not None:
            rest = {key: value for key, value in simple.items() if key != "enum"}
            return [{**rest, "const": value} for value in values]
        return [simple]

    def _merged(self, schema: Schema) -> Schema:
        """Put what all parts of `allOf` say into one schema."""
        if "allOf" not in schema:
            return schema
        merged: dict[str, Any] = {}
        parts = [self._merged(self.resolved(part)) for part in schema["allOf"]]
        for part in [*parts, {key: value for key, value in schema.items() if key != "allOf"}]:
            properties = {**merged.get("properties", {}), **part.get("properties", {})}
            required = [*merged.get("required", ()), *part.get("required", ())]
            merged |= part
            if properties:
                merged["properties"] = properties
            if required:
                merged["required"] = required
        return merged

    def _at(self, reference: Any) -> Any:
        found: Any = self.root
        for part in str(reference).removeprefix("#/").split("/"):
            name = part.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, Mapping) else None
        return found


class Schemas:
    """
    The schemas of two documents.

    Args:
        old: The document that values of the first schema are of.
        new: The one of the second schema.
    """

    def __init__(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        self.old = Document(old)
        self.new = Document(new)

    @property
    def swapped(self) -> "Schemas":
        """The same the other way round."""
        return Schemas(self.new.root, self.old.root)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two schemas on the way down, and where they stand."""

    schemas: Schemas
    answers: bool
    path: tuple[str, ...] = ()
    above: frozenset[tuple[int, int]] = field(default=frozenset())

    def __str__(self) -> str:
        return f" at `{'.'.join(self.path)}`" if self.path else ""

    def at(self, name: str) -> "_Pair":
        return _Pair(self.schemas, self.answers, (*self.path, name), self.above)

    def below(self, given: Any, taken: Any) -> "_Pair":
        seen = self.above | {(id(given), id(taken))}
        return _Pair(self.schemas, self.answers, self.path, seen)


def narrowed(schemas: Schemas, given: Any, taken: Any, *, answers: bool = False) -> Iterator[str]:
    """
    Say which values of one schema another does not take; nothing if it takes them all.

    Args:
        schemas: The documents of both.
        given: The schema of the values that there are.
        taken: The schema that is to take them.
        answers: Whether they are answers: what `taken` declares must still be there then.

    Yields:
        What is wrong, to go on behind the name of the whole.
    """
    yield from dict.fromkeys(_compare(_Pair(schemas, answers), given, taken))


def _compare(pair: _Pair, given: Any, taken: Any) -> Iterator[str]:
    given, taken = pair.schemas.old.resolved(given), pair.schemas.new.resolved(taken)
    if (id(given), id(taken)) in pair.above:
        return  # it holds itself: what is wrong is found further up
    pair = pair.below(given, taken)
    takers = pair.schemas.new.alternatives(taken)
    for one in pair.schemas.old.alternatives(given):
        if any(not other.keys() - _COMMENTS for other in takers):
            continue  # it takes anything
        tried = [
            list(_in_type(pair, one, other))
            for other in takers
            if _fits(_type_of(one), _type_of(other)) and _has_value(one, other)
        ]
        if not tried:
            yield _not_taken(pair, one)
        elif all(tried):
            yield from min(tried, key=len)


_COMMENTS = {
    "title", "description", "default", "examples", "example", "deprecated", "readOnly",
    "writeOnly", "contentMediaType", "contentEncoding", "$defs", "discriminator",
}  # fmt: skip


def _not_taken(pair: _Pair, one: Schema) -> str:
    what = repr(one["const"]) if "const" in one else f"`{_type_of(one) or 'anything'}`"
    return f"{pair} may be {what} now." if pair.answers else f"{pair} no longer takes {what}."


def _type_of(schema: Schema) -> str | None:
    if "type" in schema:
        return str(schema["type"])
    if "const" in schema:
        return _TYPES.get(type(schema["const"]))
    if "properties" in schema or "required" in schema:
        return "object"
    return "array" if "items" in schema or "prefixItems" in schema else None


def _fits(given: str | None, taken: str | None) -> bool:
    return taken is None or given == taken or (given, taken) == ("integer", "number")


def _has_value(given: Schema, taken: Schema) -> bool:
    """Whether the constant of the one, if it has one, is the value of the other."""
    if "const" not in taken:
        return True
    return "const" in given and repr(given["const"]) == repr(taken["const"])


def _in_type(pair: _Pair, given: Schema, taken: Schema) -> Iterator[str]:
    if "const" not in given:
        yield from _in_bounds(pair, given, taken)
    if _type_of(given) == "object":
        yield from _in_properties(pair, given, taken)
        yield from _in_others(pair, given, taken)
    if _type_of(given) == "array":
        if "items" in taken:
            yield from _compare(pair.at("*"), given.get("items"), taken["items"])
        pairs = zip(given.get("prefixItems", ()), taken.get("prefixItems", ()), strict=False)
        for index, (one, other) in enumerate(pairs):
            yield from _compare(pair.at(str(index)), one, other)


def _in_bounds(pair: _Pair, given: Schema, taken: Schema) -> Iterator[str]:
    kind = "wider" if pair.answers else "narrower"
    for word, least in _LOWER:
        if taken.get(word, least) > given.get(word, least):
            yield f"{pair} has a {kind} `{word}` now."
    for word in _UPPER:
        if word in taken and given.get(word, float("inf")) > taken[word]:
            yield f"{pair} has a {kind} `{word}` now."
    for sign, word, strict_word in (
        (1, "minimum", "exclusiveMinimum"),
        (-1, "maximum", "exclusiveMaximum"),
    ):
        if _bound(taken, sign, word, strict_word) > _bound(given, sign, word, strict_word):
            yield f"{pair} has a {kind} `{word}` now."
    for word in _EXACT:
        if taken.get(word) not in (None, False, given.get(word)):
            yield f"{pair} has another `{word}` now."


def _bound(schema: Schema, sign: int, word: str, strict_word: str) -> tuple[float, bool]:
    """Give a lower bound, and whether it is itself outside; an upper one with the other sign."""
    bounds = [(-float("inf"), False)]
    if word in schema:
        bounds.append((sign * schema[word], False))
    if strict_word in schema:
        bounds.append((sign * schema[strict_word], True))
    return max(bounds)


def _in_properties(pair: _Pair, given: Schema, taken: Schema) -> Iterator[str]:
    ours, theirs = given.get("properties", {}), taken.get("properties", {})
    for name in taken.get("required", ()):
        if name in given.get("required", ()) or (pair.answers and name not in ours):
            continue
        what = "may be missing now" if pair.answers else "must be sent now"
        yield f"{pair.at(name)} {what}."
    for name, schema in theirs.items():
        if name in ours:
            yield from _compare(pair.at(name), ours[name], schema)
        elif pair.answers:
            yield f"{pair.at(name)} is gone."


def _in_others(pair: _Pair, given: Schema, taken: Schema) -> Iterator[str]:
    """Compare what the properties may be that the second schema does not name."""
    others = taken.get("additionalProperties", True)
    if others is True or (pair.answers and others is False):
        return  # further properties of an answer are additions
    theirs = taken.get("properties", {})
    for name, schema in given.get("properties", {}).items():
        if name in theirs:
            continue
        if others is False:
            yield f"{pair.at(name)} is no longer taken."
        else:
            yield from _compare(pair.at(name), schema, others)
    own = given.get("additionalProperties", True)
    if own is False:
        return
    if others is False:
        yield f"{pair} takes no further properties now."
    elif isinstance(own, Mapping) or not pair.answers:
        yield from _compare(pair.at("*"), _ANYTHING if own is True else own, others)
