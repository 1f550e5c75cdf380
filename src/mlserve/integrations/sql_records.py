"""
Reading the records that `SqlSink` has written; nothing in the database is changed.

Needs `pip install 'mlserve[sql]'`, for PostgreSQL `pip install 'mlserve[postgres]'`.
"""

import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from mlserve.errors import ConfigurationError
from mlserve.integrations.sql import CONNECT_S, TABLE, checked_url
from mlserve.records import InferenceRecord
from mlserve.records.selection import Kept, Selection

try:
    import sqlalchemy as sa
    from sqlalchemy.engine import URL
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
    from sqlalchemy.pool import NullPool
except ImportError as exc:
    raise ImportError(
        "`mlserve.integrations.sql_records` needs SQLAlchemy, which is not installed."
        " Run: pip install 'mlserve[sql]'"
    ) from exc

__all__ = ["SqlRecords"]

_PAGE = 50  # bodies of up to 1 MiB each, twice


class SqlRecords:
    """
    The records of a database, read only. Event loop only.

    Each page of records is read in a transaction of its own, so that a slow reader holds up
    neither whoever writes nor what cleans up.

    Args:
        url: As `SqlSink` takes it.

    Raises:
        ConfigurationError: If the URL cannot be used, its driver is not installed, or there is no
            such file.

    Example:
        >>> records = SqlRecords("sqlite+aiosqlite:///records.db")
    """

    def __init__(self, url: str) -> None:
        self._url = checked_url(url)
        is_file = self._url.get_backend_name() == "sqlite"
        if is_file and not os.access(str(self._url.database), os.R_OK):
            raise ConfigurationError(f"There is no readable file {self._url.database!r}.")
        self._engine: AsyncEngine = _make_engine(self._url)

    async def kept(self) -> list[Kept]:
        """
        List the versions of which there are records, and of how many requests.

        Raises:
            ConfigurationError: If the database cannot be read.
        """
        columns = TABLE.c.model, TABLE.c.version
        rows = await self._rows(sa.select(*columns, sa.func.count()).group_by(*columns))
        return [Kept(*row) for row in rows]

    async def count(self, selection: Selection) -> tuple[int, int]:
        """
        Count the records that are meant, whatever the limit, and those with payloads among them.

        Raises:
            ConfigurationError: If the database cannot be read.
        """
        counts = sa.func.count(), sa.func.count(sa.case((_has_payloads(), 1)))
        [row] = await self._rows(sa.select(*counts).where(_is_meant(selection)))
        return int(row[0]), int(row[1])

    async def read(self, selection: Selection) -> AsyncIterator[InferenceRecord]:
        """
        Give the records with payloads that are meant, the latest first.

        Raises:
            ConfigurationError: If the database cannot be read.
        """
        time, key = TABLE.c.time, TABLE.c.id
        query = (
            sa.select(TABLE)
            .where(_is_meant(selection), _has_payloads())
            .order_by(time.desc(), key.desc())
        )
        left, page = selection.limit, query
        while left > 0:
            rows = await self._rows(page.limit(min(left, _PAGE)))
            for row in rows:
                yield _record_of(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name
            left -= len(rows)
            if len(rows) < _PAGE:
                return
            last = rows[-1]
            page = query.where(sa.or_(time < last.time, sa.and_(time == last.time, key < last.id)))

    async def close(self) -> None:
        """Let go of the database."""
        await self._engine.dispose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _rows(self, query: sa.Executable) -> list[Any]:
        with self._in_words():
            async with self._engine.connect() as connection:
                return list((await connection.execute(query)).all())

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, OSError) as exc:
            cause = getattr(exc, "orig", None) or exc  # without the statement
            place = self._url.database if self._url.host is None else self._url.host
            raise ConfigurationError(
                f"The records in {place!r} cannot be read: {str(cause).strip() or repr(cause)}."
                f" It must be a database to which `SqlSink` has written."
            ) from exc

    def __repr__(self) -> str:
        return f"<SqlRecords {self._url.render_as_string()}>"


def _make_engine(url: URL) -> AsyncEngine:
    """Make an engine that can only read, and whose errors never show what was written."""
    options: dict[str, Any] = {"poolclass": NullPool, "hide_parameters": True}
    if url.get_backend_name() == "sqlite":
        path = f"file:{quote(str(Path(str(url.database)).absolute()))}"
        url = url.set(database=path).update_query_dict({"mode": "ro", "uri": "true"})
        return create_async_engine(url, connect_args={"timeout": CONNECT_S}, **options)
    return create_async_engine(
        url,
        connect_args={"timeout": CONNECT_S},
        execution_options={"postgresql_readonly": True},
        **options,
    )


def _is_meant(selection: Selection) -> sa.ColumnElement[bool]:
    conditions = [TABLE.c.model == selection.model, TABLE.c.version == selection.version]
    if selection.since is not None:
        # SQLite has no type for a time: what is compared is UTC without a zone.
        conditions.append(TABLE.c.time >= selection.since.astimezone(UTC))
    if selection.only == "ok":
        conditions += [TABLE.c.status == 200, TABLE.c.code.is_(None)]
    return sa.and_(*conditions)


def _has_payloads() -> sa.ColumnElement[bool]:
    is_ok = sa.and_(TABLE.c.status == 200, TABLE.c.code.is_(None))
    # Of an error its status and code are enough.
    has_answer = sa.or_(sa.not_(is_ok), TABLE.c.response.is_not(None))
    return sa.and_(TABLE.c.request.is_not(None), has_answer)


def _record_of(row: Any) -> InferenceRecord:
    values = dict(row)
    time: datetime = values["time"]
    values["time"] = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    values["annotations"] = json.loads(values["annotations"] or "{}")
    return InferenceRecord(**values)
