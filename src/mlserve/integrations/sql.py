"""
Records in a database: SQLite or PostgreSQL, by SQLAlchemy.

Needs `pip install 'mlserve[sql]'`, for PostgreSQL `pip install 'mlserve[postgres]'`.
"""

import asyncio
import importlib.util
import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any

from mlserve.errors import ConfigurationError
from mlserve.observability.loggers import get_logger
from mlserve.records import InferenceRecord, SinkOptions
from mlserve.records.thread import OwnThread

try:
    import sqlalchemy as sa
    from alembic import command
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from sqlalchemy.dialects import postgresql, sqlite
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
    from sqlalchemy.pool import NullPool
except ImportError as exc:
    raise ImportError(
        "`mlserve.integrations.sql` needs SQLAlchemy and Alembic, and one is not installed."
        " Run: pip install 'mlserve[sql]'"
    ) from exc

__all__ = ["CONNECT_S", "TABLE", "VERSION_TABLE", "SqlSink", "checked_url"]

logger = get_logger(__name__)

VERSION_TABLE = "mlserve_records_version"
"""The table in which Alembic notes how far a database is; the user's own steps have another."""

_SQLITE, _POSTGRES = "sqlite+aiosqlite", "postgresql+asyncpg"
_DRIVERS = {_SQLITE: ("aiosqlite", "mlserve[sql]"), _POSTGRES: ("asyncpg", "mlserve[postgres]")}
_MIGRATIONS = Path(__file__).with_name("sql_migrations")
_WANTED = (
    "It must look like 'sqlite+aiosqlite:///records.db' or"
    " 'postgresql+asyncpg://user:password@host/database'."
)
CONNECT_S = 10.0
"""How long a connection may take, in seconds; of SQLite, how long another writer is waited for."""
_LOCK = 0x6D6C73727672  # of all advisory locks of a PostgreSQL database, ours
_DELETE_EACH_S = 600.0
_MOST_DELETED = 5_000

_TYPES: dict[Any, Any] = {
    bool: sa.Boolean,
    datetime: sa.DateTime(timezone=True),
    float: sa.Double,
    int: sa.BigInteger,
}
TABLE = sa.Table(
    "mlserve_records",
    sa.MetaData(),
    *(
        sa.Column(field.name, _TYPES.get(field.type, sa.Text), primary_key=field.name == "id")
        for field in fields(InferenceRecord)
    ),
)
"""Where the records are."""
_NAMES = tuple(field.name for field in fields(InferenceRecord))
_TIME, _ANNOTATIONS = _NAMES.index("time"), _NAMES.index("annotations")
_values_of = attrgetter(*_NAMES)

# Alembic keeps what it is at work on in globals of the process.
_migrating = threading.Lock()


class SqlSink:
    """
    Writes each record as a row of the table `mlserve_records`, which it makes and migrates itself.

    A database that cannot be reached, at the start or later, costs no answer: records wait, are
    dropped once there is no room, and `/ready` says so. Several processes may use one database.

    Args:
        url: `sqlite+aiosqlite:///records.db`, a file in the working directory, or
            `postgresql+asyncpg://user:password@host/database`, as SQLAlchemy takes it. The
            password stands in no log and no `repr`.
        retention: How old rows may get; older ones are deleted at the start and every ten minutes
            while records come. `None` = they are kept.
        options: What it gets.

    Raises:
        ConfigurationError: If the URL cannot be used or its driver is not installed.

    Example:
        >>> sink = SqlSink("sqlite+aiosqlite:///records.db", retention=timedelta(days=30))
        >>> server = ModelServer(sinks=[sink])
    """

    def __init__(
        self,
        url: str = "sqlite+aiosqlite:///records.db",
        *,
        retention: timedelta | None = None,
        options: SinkOptions | None = None,
    ) -> None:
        self._url = checked_url(url)
        if retention is not None and (
            type(retention) is not timedelta or retention <= timedelta(0)
        ):
            raise ConfigurationError(
                f"`retention` must be a time such as timedelta(days=30), got {retention!r}."
            )
        self._retention = retention
        self.options = options or SinkOptions()
        """What it gets."""
        self._engine: AsyncEngine | None = None
        self._thread = OwnThread("mlserve-migrations")
        # The statement that inserts a row, and what the driver wants for a date.
        self._insert = ""
        self._as_date: Callable[[datetime], Any] = _same
        self._delete_at = -math.inf

    async def open(self) -> None:
        """
        Bring the tables up to date, in a thread, and make the pool.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: If the database says no.
            OSError: If it cannot be reached.
        """
        await self.close()  # of a try that came to its middle
        self._thread.open()
        await self._thread.call(lambda: _migrate(self._url))
        self._engine = engine = _make_engine(self._url, pool_size=1, max_overflow=0)
        module = sqlite if self._url.drivername == _SQLITE else postgresql
        # A batch that is tried again may be there already.
        statement = module.insert(TABLE).on_conflict_do_nothing()
        self._insert = str(statement.compile(dialect=engine.dialect))
        kind = TABLE.c.time.type.dialect_impl(engine.dialect)
        self._as_date = kind.bind_processor(engine.dialect) or _same
        self._delete_at = -math.inf
        await self._delete_old()

    async def write(self, records: Sequence[InferenceRecord]) -> None:
        """
        Write the records in one transaction.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: If the database says no.
            OSError: If it cannot be reached.
        """
        # Rows go to the driver as they are: what SQLAlchemy does for each value would hold up the
        # event loop ten times as long.
        rows = [self._row_of(record) for record in records]
        async with self._opened.begin() as connection:
            await connection.exec_driver_sql(self._insert, rows)
        await self._delete_old()

    async def close(self) -> None:
        """Close the pool."""
        self._thread.close()
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.dispose()

    @property
    def _opened(self) -> AsyncEngine:
        if self._engine is None:
            raise RuntimeError("The sink is not open.")
        return self._engine

    def _row_of(self, record: InferenceRecord) -> tuple[Any, ...]:
        values = list(_values_of(record))
        values[_TIME] = self._as_date(record.time)
        values[_ANNOTATIONS] = _as_json(record.annotations)
        return tuple(values)

    async def _delete_old(self) -> None:
        """Delete some rows that are too old, if it is time to; soon again if there are more."""
        if self._retention is None or time.monotonic() < self._delete_at:
            return
        old = sa.select(TABLE.c.id).where(TABLE.c.time < datetime.now(UTC) - self._retention)
        statement = sa.delete(TABLE).where(TABLE.c.id.in_(old.limit(_MOST_DELETED)))
        async with self._opened.begin() as connection:
            deleted = await connection.execute(statement)
        if deleted.rowcount < _MOST_DELETED:
            self._delete_at = time.monotonic() + _DELETE_EACH_S

    def __repr__(self) -> str:
        url = self._url
        place = f"{url.host}:{url.port}/" if url.host else "/"
        return f"<SqlSink {url.drivername}://{place}{url.database}>"


def checked_url(text: str) -> URL:
    """
    Read a URL; what is said of a wrong one never has its text, which may hold a password.

    Raises:
        ConfigurationError: If it cannot be used or its driver is not installed.
    """
    try:
        url = make_url(text)
    except Exception:  # noqa: BLE001 - whatever cannot be read
        raise ConfigurationError(f"The URL of `SqlSink` is none. {_WANTED}") from None
    if url.drivername not in _DRIVERS:
        raise ConfigurationError(f"`SqlSink` cannot use {url.drivername!r}. {_WANTED}")
    if url.database in (None, "", ":memory:"):
        raise ConfigurationError(f"The URL of `SqlSink` names no database. {_WANTED}")
    driver, extra = _DRIVERS[url.drivername]
    if importlib.util.find_spec(driver) is None:
        raise ConfigurationError(
            f"`SqlSink` needs {driver}, which is not installed. Run: pip install '{extra}'"
        )
    return url


def _make_engine(url: URL, **options: Any) -> AsyncEngine:
    engine = create_async_engine(url, **_options_of(url), **options)
    _note_events(engine.sync_engine)
    return engine


def _options_of(url: URL) -> dict[str, Any]:
    return {
        "hide_parameters": True,  # errors never show what was written
        "pool_pre_ping": url.drivername == _POSTGRES,
        "connect_args": {"timeout": CONNECT_S},
    }


def _note_events(engine: sa.Engine) -> None:
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says so
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # Whoever reads first and writes then is refused where another has written meanwhile.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _migrate(url: URL) -> None:
    """Take the steps that a database lacks, one process at a time. In a thread of its own."""
    with _migrating:
        if url.drivername == _POSTGRES:
            asyncio.run(_migrate_postgres(url))
        else:
            _migrate_sqlite(url)


async def _migrate_postgres(url: URL) -> None:
    engine = _make_engine(url, poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            await connection.run_sync(_take_steps)
    finally:
        await engine.dispose()


def _migrate_sqlite(url: URL) -> None:
    # Not by aiosqlite: its thread would outlive an event loop that ends with a failure.
    engine = sa.create_engine(url.set(drivername="sqlite"), poolclass=NullPool, **_options_of(url))
    _note_events(engine)
    with engine.begin() as connection:
        _take_steps(connection)


def _take_steps(connection: sa.Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {step.revision for step in ScriptDirectory.from_config(config).walk_revisions()}
    options = {"version_table": VERSION_TABLE}
    current = MigrationContext.configure(connection, opts=options).get_current_heads()
    if set(current) <= known:
        command.upgrade(config, "head")
    else:  # a newer mlserve has been here, whose tables have what this one writes
        logger.warning("sink.database.newer", extra={"revision": ", ".join(current)})


def _as_json(annotations: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(annotations), default=str, allow_nan=False)
    except Exception:  # noqa: BLE001 - hooks annotate what they like
        return json.dumps({name: _as_text(value) for name, value in annotations.items()})


def _as_text(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - likewise
        return type(value).__name__


def _same(value: datetime) -> datetime:
    return value
