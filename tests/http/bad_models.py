"""Models of every kind of request type: what bad inputs are sent to."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AnyUrl, BaseModel, Field, TypeAdapter
from tests.http.wire import request_of
from typing_extensions import TypedDict

from mlserve import Limits, ModelHandler, ModelServer, ServerSettings, Upload

__all__ = [
    "ADAPTERS",
    "HEALTHY",
    "JSON",
    "MAX_BODY_BYTES",
    "Ask",
    "path_of",
    "server_of_all",
]

JSON = b"Content-Type: application/json"
MAX_BODY_BYTES = 3_000_000
PATIENCE_S = 10.0


class Item(BaseModel):
    number: float
    size: int | Literal["small", "large"] = 1


class Order(BaseModel):
    name: str
    kind: Literal["a", "b"]
    items: list[Item]
    either: int | list[float] | None = None
    limits: dict[str, float] = {}
    anything: Any = None


class Closed(BaseModel, extra="forbid"):
    items: list["Closed"] = []
    limits: dict[str, "Closed"] = {}


class Letter(Enum):
    A = "a"
    B = "b"


class Typed(BaseModel):
    at: datetime
    took: timedelta
    price: Decimal
    id: UUID
    url: AnyUrl
    letter: Letter
    raw: bytes
    pair: tuple[int, str]
    numbers: set[float]


class Cat(BaseModel):
    kind: Literal["a"]
    x: float


class Dog(BaseModel):
    kind: Literal["b"]
    name: str


@dataclass
class Point:
    x: float
    y: int = 0
    label: str | None = None


class Row(TypedDict):
    name: str
    values: list[float]


class Ask(BaseModel):
    text: str
    n: int = 1
    share: float = 0.5
    tone: Literal["kind", "rude"] = "kind"


class Photo(BaseModel):
    image: Upload
    n: int = 1


class Raw(BaseModel):
    image: Upload


JSON_REQUESTS: dict[str, Any] = {
    "order": Order,
    "closed": Closed,
    "typed": Typed,
    "pet": Annotated[Cat | Dog, Field(discriminator="kind")],
    "point": Point,
    "row": Row,
    "text": str,
    "whole": int,
    "vector": list[float],
    "table": dict[str, list[float | None]],
    "any": Any,
}
ADAPTERS: dict[str, TypeAdapter[Any]] = {
    **{name: TypeAdapter(declared) for name, declared in JSON_REQUESTS.items()},
    "ask": TypeAdapter(Ask),
}
"""What validates the requests of each model that takes JSON; `ask` is the one that streams."""


class Asking(ModelHandler[Ask, str]):
    def infer(self, inputs: list[Ask]) -> list[str]:
        return [ask.text[:9] for ask in inputs]

    def stream(self, item: Ask) -> Iterator[str]:
        yield item.text[:9]


def server_of_all(patience_s: float = PATIENCE_S) -> ModelServer:
    """
    Make a server with a model of each request type.

    Args:
        patience_s: How long heads and bodies are waited for.
    """
    settings = ServerSettings(
        head_timeout_s=patience_s, body_timeout_s=patience_s, access_log=False
    )
    limits = Limits(max_body_bytes=MAX_BODY_BYTES, priorities=True)
    server = ModelServer(settings=settings)
    for name, declared in {**JSON_REQUESTS, "photo": Photo, "raw": Raw}.items():
        server.add(name, _counting(declared), limits=limits)
    return server.add("ask", Asking, limits=limits)


def path_of(model: str) -> str:
    """Give where a model is asked."""
    return f"/v1/models/{model}/{'stream' if model == 'ask' else 'predict'}"


def _counting(declared: Any) -> type[ModelHandler[Any, int]]:
    class Count(ModelHandler[declared, int]):
        def infer(self, inputs: list[Any]) -> list[int]:
            return [1 for _ in inputs]

    return Count


HEALTHY = request_of("POST", path_of("text"), b'"hello"', JSON)
