"""Reading records back from real databases."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from tests.integrations.databases import n_rows, postgres_url, sqlite_url

from mlserve.integrations.sql import SqlSink
from mlserve.integrations.sql_records import SqlRecords
from mlserve.records import InferenceRecord
from mlserve.records.selection import Kept, Selection

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        (tmp_path / "a folder #1?").mkdir()  # a URI, which the reader makes of it, has these quoted
        yield sqlite_url(tmp_path / "a folder #1%3F")
    else:
        with postgres_url() as found:
            yield found


def record(number: int, **facts: Any) -> InferenceRecord:
    given: dict[str, Any] = {
        "id": f"a-{number:04d}",
        "request_id": f"r-{number}",
        "model": "m",
        "version": "v1",
        "time": NOW - timedelta(seconds=number // 7),  # several have the same
        "status": 200,
        "annotations": {"number": number},
        "request": "1",
        "response": "2",
    }
    return InferenceRecord(**{**given, **facts})


def write(url: str, *records: InferenceRecord) -> None:
    async def run() -> None:
        sink = SqlSink(url)
        await sink.open()
        await sink.write(records)
        await sink.close()

    asyncio.run(run())


def read(url: str, **selection: Any) -> tuple[list[InferenceRecord], tuple[int, int]]:
    async def run() -> tuple[list[InferenceRecord], tuple[int, int]]:
        meant = Selection(model="m", version="v1", **selection)
        async with SqlRecords(url) as records:
            return [each async for each in records.read(meant)], await records.count(meant)

    return asyncio.run(run())


def test_records_are_read_as_they_were_written_each_once_and_the_latest_first(url: str) -> None:
    written = [record(number) for number in range(180)]
    write(url, *written)

    found, counts = read(url)

    assert counts == (180, 180)
    assert sorted(found, key=lambda each: each.id) == written
    assert found == sorted(found, key=lambda each: (each.time, each.id), reverse=True)


@pytest.mark.parametrize("limit", [1, 50, 51, 100])
def test_no_more_are_read_than_asked_for(url: str, limit: int) -> None:
    write(url, *(record(number) for number in range(120)))

    found, counts = read(url, limit=limit)

    assert (len(found), counts) == (limit, (120, 120))


def test_only_what_is_meant_is_read(url: str) -> None:
    write(
        url,
        record(0),
        record(1, version="v2"),
        record(2, model="other"),
        record(3, status=422, code="validation_error", response=None),
        record(4, code="model_error"),
        record(5, request=None),
        record(6, response=None),
        record(7, time=NOW - timedelta(days=2)),
    )

    def numbers(**selection: Any) -> tuple[list[int], tuple[int, int]]:
        found, counts = read(url, **selection)
        return sorted(each.annotations["number"] for each in found), counts

    assert numbers() == ([0, 7], (4, 2))
    assert numbers(only="all") == ([0, 3, 4, 7], (6, 4))
    # Whatever the zone: 13:00 two hours east of UTC is an hour ago.
    since = datetime.fromisoformat("2026-11-01T13:00+02:00")
    assert numbers(since=since) == ([0], (3, 1))


def test_the_versions_that_there_are_can_be_listed(url: str) -> None:
    write(url, record(1), record(2), record(3, version="v2"))

    async def run() -> list[Kept]:
        async with SqlRecords(url) as records:
            return await records.kept()

    assert set(asyncio.run(run())) == {Kept("m", "v1", 2), Kept("m", "v2", 1)}


def test_nothing_can_be_written(url: str) -> None:
    write(url, record(1))

    async def run() -> None:
        async with SqlRecords(url) as records, records._engine.begin() as connection:
            await connection.execute(sa.text("DELETE FROM mlserve_records"))

    with pytest.raises(DBAPIError, match=r"readonly|read-only"):
        asyncio.run(run())
    assert n_rows(url) == 1
