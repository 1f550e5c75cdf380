"""Bodies that are wrong: status, code, one shape, and nothing of the input in the answer."""

import json
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from ipaddress import IPv4Address
from re import Pattern
from typing import Any, Literal
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from pydantic import AnyUrl, BaseModel, Field, ImportString
from tests.http.answers import error_of

from mlserve import Limits, ModelHandler, ModelServer

CANARY = "canary-4711"
JSON = {"Content-Type": "application/json"}
PREDICT = "/v1/models/m/predict"


class Item(BaseModel):
    number: float


class Order(BaseModel):
    name: str = ""
    kind: Literal["a", "b"] = "a"
    items: list[Item] = []
    anything: Any = None


class Count(ModelHandler[Order, int]):
    def infer(self, inputs: list[Order]) -> list[int]:
        return [len(order.items) for order in inputs]

    def stream(self, item: Order) -> Iterator[int]:
        yield len(item.items)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    server = ModelServer().add("m", Count, limits=Limits(max_body_bytes=1_000_000))
    with TestClient(server.build()) as client:
        yield client


def still_works(client: TestClient) -> bool:
    answer = client.post(PREDICT, json={"items": [{"number": 1}]})
    return (answer.status_code, answer.json()) == (200, 1)


NOT_JSON = {
    "nothing": b"",
    "spaces": b"  \n ",
    "a form": f"name={CANARY}".encode(),
    "single quotes": f"{{'name': '{CANARY}'}}".encode(),
    "cut off": f'{{"name": "{CANARY}'.encode(),
    "trailing comma": f'{{"name": "{CANARY}",}}'.encode(),
    "two values": f'{{"name": "{CANARY}"}} {{}}'.encode(),
    "not UTF-8": b'{"name": "canary-4711 \xff\xfe"}',
    "latin-1": f'{{"name": "{CANARY} ä"}}'.encode("latin-1"),
    "UTF-16": f'{{"name": "{CANARY}"}}'.encode("utf-16"),
    "UTF-16 without a mark": f'{{"name": "{CANARY}"}}'.encode("utf-16-le"),
    "UTF-32": f'{{"name": "{CANARY}"}}'.encode("utf-32"),
    "a byte order mark": f'{{"name": "{CANARY}"}}'.encode("utf-8-sig"),
    "10,000 lists": b'{"anything": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "10,000 objects": b'{"anything":' * 10_000 + b"1" + b"}" * 10_000,
    "10,000 lists left open": b"[" * 10_000,
    "NaN": b'{"items": [{"number": NaN}]}',
    "Infinity": b'{"items": [{"number": Infinity}]}',
    "minus Infinity": b'{"items": [{"number": -Infinity}]}',
    "NaN in a field of any type": b'{"anything": NaN}',
    "NaN where the type is wrong as well": b'{"name": NaN}',
    "a number too large for a float": b'{"items": [{"number": 1e400}]}',
    "the same with a sign": b'{"items": [{"number": -1E+999}]}',
    "a lone surrogate": b'{"name": "canary-4711 \\ud800"}',
    "a lone low surrogate": b'{"name": "canary-4711 \\udc00 x"}',
    "a NUL": b'{"name": "canary-4711 \x00"}',
    "a bare word": CANARY.encode(),
    "5,000 digits": b'{"items": [{"number": ' + b"9" * 5000 + b"}]}",
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_not_json_is_refused_as_such(client: TestClient, body: bytes) -> None:
    answer = client.post(PREDICT, content=body, headers=JSON)

    error_of(answer, 400, "invalid_json")
    assert CANARY not in answer.text
    assert still_works(client)


AGAINST_THE_SCHEMA = {
    "a list": [CANARY],
    "a string": CANARY,
    "null": None,
    "a number": 4711,
    "a wrong field": {"name": [CANARY]},
    "a number as text": {"name": 4711},
    "a wrong literal": {"kind": CANARY},
    "an item without its field": {"items": [{"nummer": CANARY}]},
    "an item of another type": {"items": [{"number": CANARY}]},
    "items that are an object": {"items": {CANARY: 1}},
    "10,000 wrong items": {"items": [{"number": CANARY}] * 10_000},
    "200 KB of text for a number": {"items": [{"number": CANARY * 20_000}]},
    "200 KB of text for a literal": {"kind": CANARY * 20_000},
    "200 KB of text for the whole": CANARY * 20_000,
}


@pytest.mark.parametrize("value", AGAINST_THE_SCHEMA.values(), ids=AGAINST_THE_SCHEMA)
@pytest.mark.parametrize("action", ["predict", "stream"])
def test_what_does_not_fit_the_schema_is_refused_with_at_most_ten_details(
    client: TestClient, value: Any, action: str
) -> None:
    answer = client.post(f"/v1/models/m/{action}", content=json.dumps(value).encode(), headers=JSON)

    error_of(answer, 422, "validation_error")
    detail = answer.json()["detail"]
    assert 1 <= len(detail) <= 10
    assert all(entry.keys() == {"type", "loc", "msg"} for entry in detail)
    assert all(entry["loc"][0] == "body" for entry in detail)
    assert CANARY not in answer.text
    assert still_works(client)


def test_the_first_wrong_field_is_named_and_all_are_counted(client: TestClient) -> None:
    answer = client.post(PREDICT, json={"items": [{"number": "a"}] * 12})

    error = error_of(answer, 422, "validation_error")
    assert error["param"] == "items.0.number"
    assert error["message"].startswith("12 fields do not fit the schema.")


def test_more_wrong_fields_than_can_be_listed_quickly_are_only_counted(client: TestClient) -> None:
    answer = client.post(PREDICT, json={"items": [CANARY] * 20_000})

    error = error_of(answer, 422, "validation_error")
    assert error["message"].startswith("20000 fields do not fit the schema.")
    assert [entry["loc"] for entry in answer.json()["detail"]] == [["body"]]
    assert CANARY not in answer.text


def test_long_names_of_unknown_fields_are_cut() -> None:
    class Strict(BaseModel, extra="forbid"):
        name: str = ""

    class Named(ModelHandler[Strict, str]):
        def infer(self, inputs: list[Strict]) -> list[str]:
            return [item.name for item in inputs]

    with TestClient(ModelServer().add("m", Named).build()) as client:
        answer = client.post(PREDICT, json={str(n) * 2000: 1 for n in range(30)})

    error_of(answer, 422, "validation_error")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": ""},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/jsonp"},
        {"Content-Type": "text/json"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {"Content-Type": "application/json", "Content-Encoding": "deflate"},
        {"Content-Type": "application/json", "Content-Encoding": "br, gzip"},
    ],
    ids=str,
)
def test_what_is_not_declared_as_plain_json_is_refused(
    client: TestClient, headers: dict[str, str]
) -> None:
    body = json.dumps({"name": CANARY}).encode()

    answer = client.post(PREDICT, content=body, headers=headers)

    error_of(answer, 415, "unsupported_media_type")
    assert CANARY not in answer.text
    assert still_works(client)


def test_the_encoding_identity_is_none(client: TestClient) -> None:
    headers = {**JSON, "Content-Encoding": "Identity"}

    assert client.post(PREDICT, content=b"{}", headers=headers).status_code == 200


@pytest.mark.parametrize("action", ["predict", "stream"])
def test_a_body_over_the_limit_is_refused(client: TestClient, action: str) -> None:
    answer = client.post(f"/v1/models/m/{action}", json={"name": CANARY * 100_000})

    assert "1000000 bytes" in error_of(answer, 413, "body_too_large")["message"]
    assert answer.headers["connection"] == "close"
    assert CANARY not in answer.text
    assert still_works(client)


def test_a_body_over_the_limit_is_refused_when_its_length_is_not_announced(
    client: TestClient,
) -> None:
    chunks = (CANARY.encode() for _ in range(100_000))

    answer = client.post(PREDICT, content=chunks, headers=JSON)

    error_of(answer, 413, "body_too_large")
    assert still_works(client)


def test_a_body_of_exactly_the_limit_is_taken() -> None:
    server = ModelServer().add("m", Count, limits=Limits(max_body_bytes=20))

    with TestClient(server.build()) as client:
        fits = client.post(PREDICT, content=b'{"name": "12345678"}', headers=JSON)
        over = client.post(PREDICT, content=b'{"name": "123456789"}', headers=JSON)

    assert fits.status_code == 200
    error_of(over, 413, "body_too_large")


@pytest.mark.parametrize("length", ["-1", "1e9", "٣", "9" * 5000])
def test_a_length_that_is_no_number_breaks_nothing(client: TestClient, length: str) -> None:
    headers = [
        (b"Content-Type", b"application/json"),
        (b"Content-Length", length.encode()),
    ]
    answer = client.post(PREDICT, content=b"{}", headers=headers)

    assert answer.status_code in (200, 413)


def test_a_bad_query_of_the_get_twin_is_a_validation_error() -> None:
    class Query(BaseModel):
        n: int

    class Counter(ModelHandler[Query, int]):
        def stream(self, item: Query) -> Iterator[int]:
            yield from range(item.n)

    with TestClient(ModelServer().add("m", Counter).build()) as client:
        wrong = client.get("/v1/models/m/stream", params={"n": CANARY})
        missing = client.get("/v1/models/m/stream")

    assert error_of(wrong, 422, "validation_error")["param"] == "n"
    assert CANARY not in wrong.text
    assert missing.json()["detail"][0]["loc"] == ["query", "n"]


def test_no_message_of_pydantics_own_types_quotes_the_input() -> None:
    class Cat(BaseModel):
        kind: Literal["cat"]

    class Dog(BaseModel):
        kind: Literal["dog"]

    class Typed(BaseModel):
        path: ImportString[Any]
        pet: Cat | Dog = Field(discriminator="kind")
        url: AnyUrl
        id: UUID
        at: datetime
        price: Decimal
        address: IPv4Address
        pattern: Pattern[str]

    class Take(ModelHandler[Typed, int]):
        def infer(self, inputs: list[Typed]) -> list[int]:
            return [1 for _ in inputs]

    wrong = dict.fromkeys(Typed.model_fields, f"({CANARY}") | {"pet": {"kind": CANARY}}
    with TestClient(ModelServer().add("m", Take).build()) as client:
        answer = client.post(PREDICT, json=wrong)

    error_of(answer, 422, "validation_error")
    assert len(answer.json()["detail"]) == len(wrong)
    assert CANARY not in answer.text
