"""Real databases, and ways to look into them and to cut them off."""

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # the package carries none
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

NO_POSTGRES = "the PostgreSQL server is missing (Debian: apt-get install postgresql)"


def sqlite_url(folder: Path) -> str:
    return f"sqlite+aiosqlite:///{folder / 'records.db'}"


@contextmanager
def postgres_url() -> Iterator[str]:
    """Make a database of its own and give its URL; skip where there is no server."""
    server = os.environ.get("TEST_POSTGRES_URL")
    if server is None:
        pytest.skip(NO_POSTGRES)
    name = f"records_{os.urandom(4).hex()}"

    async def run(command: str) -> None:
        connection = await asyncpg.connect(server)
        await connection.execute(command)
        await connection.close()

    asyncio.run(run(f"CREATE DATABASE {name}"))
    yield (
        make_url(server)
        .set(drivername="postgresql+asyncpg", database=name)
        .render_as_string(hide_password=False)
    )
    asyncio.run(run(f"DROP DATABASE {name} WITH (FORCE)"))


def ask(url: str, *statements: str) -> list[dict[str, Any]]:
    """Run statements and give the rows of the last one."""

    async def run() -> list[dict[str, Any]]:
        engine = create_async_engine(url, poolclass=NullPool)
        rows: list[dict[str, Any]] = []
        async with engine.begin() as connection:
            for statement in statements:
                result = await connection.execute(sa.text(statement))
                rows = [dict(row) for row in result.mappings()] if result.returns_rows else []
        await engine.dispose()
        return rows

    return asyncio.run(run())


def n_rows(url: str) -> int:
    [row] = ask(url, "SELECT count(*) AS n FROM mlserve_records")
    return int(row["n"])


class Line:
    """
    A port that leads to a database, and can be cut.

    Args:
        url: Of the database.
    """

    def __init__(self, url: str) -> None:
        there = make_url(url)
        self._there = (str(there.host), int(there.port or 0))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        self.url = there.set(host="127.0.0.1", port=self._port).render_as_string(
            hide_password=False
        )
        self._listener: socket.socket | None = None
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def connect(self) -> None:
        """Listen from now on."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._start(self._accept, self._listener)

    def cut(self) -> None:
        """Break every connection and refuse new ones."""
        ends = [end for end in (self._listener, *self._ends) if end is not None]
        self._listener, self._ends = None, []
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join(5)
        self._threads = []

    def _start(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                here, _ = listener.accept()
                there = socket.create_connection(self._there)
                self._ends += [here, there]
                self._start(self._copy, here, there)
                self._start(self._copy, there, here)

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
