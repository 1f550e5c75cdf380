"""Payloads that are not JSON: `Upload` in requests, `Binary` in answers."""

from dataclasses import dataclass
from typing import Any, Self

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

__all__ = ["Binary", "Upload"]


class _FilePayload:
    """What both share: pydantic takes an instance as it is, and OpenAPI shows a file."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.is_instance_schema(
            cls, serialization=core_schema.to_string_ser_schema(when_used="json")
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "format": "binary"}


@dataclass(frozen=True, slots=True)
class Upload(_FilePayload):
    """
    A file that a client sent, as a field of a request model.

    A model with `Upload` fields is taken as a multipart form, or as the raw body when it has only
    this one field.

    Example:
        >>> Upload(b"GIF89a", content_type="image/gif", name="dot.gif")
        <Upload 'dot.gif' image/gif, 6 bytes>
    """

    content: bytes
    """The file's bytes."""
    content_type: str = "application/octet-stream"
    """What the client says the bytes are; not checked."""
    name: str | None = None
    """The file's name as the client gave it; never use it as a path."""

    def __repr__(self) -> str:
        return f"<Upload {self.name!r} {self.content_type}, {len(self.content)} bytes>"

    __str__ = __repr__


@dataclass(frozen=True, slots=True)
class Binary(_FilePayload):
    """
    An answer that is sent as it is, such as an image.

    Example:
        >>> Binary(b"GIF89a", media_type="image/gif")
        <Binary image/gif, 6 bytes>
    """

    content: bytes
    """The body's bytes."""
    media_type: str = "application/octet-stream"
    """The answer's `Content-Type`."""

    @classmethod
    def from_text(cls, text: str, media_type: str = "text/plain; charset=utf-8") -> Self:
        """Make an answer of text, encoded as UTF-8."""
        return cls(text.encode(), media_type)

    def __repr__(self) -> str:
        return f"<Binary {self.media_type}, {len(self.content)} bytes>"

    __str__ = __repr__
