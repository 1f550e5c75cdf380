"""Records in real databases: SQLite, and PostgreSQL where it is installed."""

import asyncio
import json
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from tests.http.waiting import until
from tests.integrations.databases import Line, ask, n_rows, postgres_url, sqlite_url
from tests.records.sinks import Doubling, double, serving_doubles, state_of

from mlserve import Call, ConfigurationError, ModelHandler, ModelServer, Replicas
from mlserve.integrations.sql import SqlSink
from mlserve.records import InferenceRecord, SinkOptions
from mlserve.testing import running

QUICK = SinkOptions(max_wait_s=0.01)
SQLITE = "sqlite+aiosqlite:///records.db"
RECORD = InferenceRecord(
    id="a-1",
    request_id="r",
    model="m",
    version="v1",
    time=datetime.now(UTC),
    status=200,
    annotations={},
)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield sqlite_url(tmp_path)
    else:
        with postgres_url() as found:
            yield found


@pytest.fixture
def postgres() -> Iterator[str]:
    with postgres_url() as found:
        yield found


def write(url: str, *batches: list[InferenceRecord], **options: Any) -> None:
    async def run() -> None:
        sink = SqlSink(url, **options)
        await sink.open()
        for batch in batches:
            await sink.write(batch)
        await sink.close()

    asyncio.run(run())


class Noting(ModelHandler[str, str]):
    def preprocess(self, request: str, call: Call) -> str:
        call.annotate(language="en", score=float("nan"), prompt_tokens=10**30)
        return request

    def infer(self, inputs: list[str]) -> list[str]:
        if "break" in inputs:
            raise OSError("weights")
        return inputs


def test_each_request_is_one_row_whatever_its_outcome(url: str) -> None:
    began = datetime.now(UTC)
    sink = SqlSink(url, options=SinkOptions(keep_payloads=True))

    with running(ModelServer(sinks=[sink]).add("note", Noting)) as client:
        for text in ("fine \0 \u00e9", "break", 7):
            client.post("/v1/models/note/predict", json=text, headers={"X-Request-Id": "same"})

    rows = ask(url, "SELECT * FROM mlserve_records ORDER BY time")
    assert [(row["status"], row["code"]) for row in rows] == [
        (200, None),
        (500, "model_error"),
        (422, "validation_error"),
    ]
    first = rows[0]
    assert (first["request_id"], first["model"], first["version"]) == ("same", "note", "v1")
    assert (first["batch_size"], bool(first["is_stream"]), first["key"]) == (1, False, None)
    assert json.loads(first["request"]) == json.loads(first["response"]) == "fine \0 \u00e9"
    assert json.loads(first["annotations"])["language"] == "en"
    assert first["tokens"] == 2**63 - 1
    assert 0 < first["infer_ms"] < first["total_ms"]
    time = first["time"]
    if isinstance(time, str):  # SQLite has no type for it: it is UTC
        time = datetime.fromisoformat(time).replace(tzinfo=UTC)
    assert began < time < datetime.now(UTC)


def test_without_a_url_rows_go_to_a_file_of_sqlite_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with running(ModelServer(sinks=[SqlSink(options=QUICK)]).add("double", Doubling)) as client:
        double(client, 1.5)

    with closing(sqlite3.connect(tmp_path / "records.db")) as database:
        assert database.execute("SELECT count(*) FROM mlserve_records").fetchone() == (1,)


def test_a_batch_that_is_written_again_is_there_once(url: str) -> None:
    batch = [replace(RECORD, id=f"a-{number}") for number in range(3)]

    write(url, batch, batch, [*batch, replace(RECORD, id="b")])

    assert n_rows(url) == 4


def test_whatever_hooks_have_noted_fits_a_row(url: str) -> None:
    circle: list[Any] = []
    circle.append(circle)

    class Unprintable:
        def __repr__(self) -> str:
            raise ValueError("no")

    annotations = {"circle": circle, "odd": Unprintable(), "key": {(1, 2): 3}, "text": "x"}

    write(url, [replace(RECORD, annotations=annotations)])

    [row] = ask(url, "SELECT annotations FROM mlserve_records")
    noted = json.loads(row["annotations"])
    assert (noted["text"], noted["odd"], noted["key"]) == ("x", "Unprintable", "{(1, 2): 3}")


def test_many_sinks_that_open_at_once_make_the_tables_once(url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(
            pool.map(
                lambda number: write(url, [replace(RECORD, id=f"a-{number}")]), range(6), timeout=15
            )
        )

    assert n_rows(url) == 6
    assert ask(url, "SELECT version_num FROM mlserve_records_version") == [{"version_num": "0001"}]


def test_tables_and_steps_of_others_stay_as_they_are(url: str) -> None:
    ask(
        url,
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)",
        "INSERT INTO alembic_version VALUES ('theirs')",
    )

    write(url, [RECORD])
    write(url, [replace(RECORD, id="a-2")])

    assert ask(url, "SELECT version_num FROM alembic_version") == [{"version_num": "theirs"}]
    assert n_rows(url) == 2


def test_a_database_that_a_newer_mlserve_has_migrated_is_written_to(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(url, [RECORD])
    ask(
        url,
        "ALTER TABLE mlserve_records ADD COLUMN shade TEXT",
        "UPDATE mlserve_records_version SET version_num = '9999'",
    )

    write(url, [replace(RECORD, id="a-2")])

    assert n_rows(url) == 2
    assert [r.message for r in caplog.records].count("sink.database.newer") == 1


def test_rows_that_are_too_old_are_deleted_and_no_others(url: str) -> None:
    now = datetime.now(UTC)
    days = [replace(RECORD, id=f"day-{n}", time=now - timedelta(days=n)) for n in range(10)]
    write(url, days)

    write(url, retention=timedelta(days=4, hours=12))

    rows = ask(url, "SELECT id FROM mlserve_records ORDER BY id")
    assert [row["id"] for row in rows] == [f"day-{n}" for n in range(5)]


def test_more_old_rows_than_are_deleted_at_once_go_with_the_next_batches(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlserve.integrations.sql._MOST_DELETED", 2)
    old = datetime.now(UTC) - timedelta(days=1)
    write(url, [replace(RECORD, id=f"old-{n}", time=old) for n in range(5)])

    write(url, [RECORD], [replace(RECORD, id="a-2")], retention=timedelta(hours=1))

    assert [row["id"] for row in ask(url, "SELECT id FROM mlserve_records")] == ["a-1", "a-2"]


def test_what_replicas_in_processes_have_answered_is_written(url: str) -> None:
    server = ModelServer(sinks=[SqlSink(url)])
    server.add("double", Doubling, replicas=Replicas(placement="process"))

    with running(server) as client:
        double(client, 4)

    [row] = ask(url, "SELECT status, infer_ms FROM mlserve_records")
    assert row["status"] == 200
    assert row["infer_ms"] > 0


def test_a_database_that_is_down_at_the_start_gets_its_records_once_it_is_up(
    postgres: str, caplog: pytest.LogCaptureFixture
) -> None:
    line = Line(postgres)
    sink = SqlSink(line.url, options=QUICK)

    with running(serving_doubles(sink)) as client:
        double(client)
        until(lambda: state_of(client, "SqlSink")["state"] == "failing")
        ready = client.get("/ready")
        line.connect()
        until(lambda: state_of(client, "SqlSink")["written"] == 1)
    line.cut()

    assert ready.status_code == 200
    assert n_rows(postgres) == 1
    assert "canary-password" in line.url
    assert "canary-password" not in caplog.text + ready.text + repr(sink)


def test_a_database_that_goes_away_and_comes_back_loses_nothing(postgres: str) -> None:
    line = Line(postgres)
    line.connect()

    with running(serving_doubles(SqlSink(line.url, options=QUICK))) as client:
        double(client)
        until(lambda: state_of(client, "SqlSink")["written"] == 1)
        line.cut()
        for value in range(5):
            double(client, value)
        until(lambda: state_of(client, "SqlSink")["state"] == "failing")
        line.connect()
        until(lambda: state_of(client, "SqlSink")["written"] == 6)
    line.cut()

    assert n_rows(postgres) == 6


def test_tries_to_open_that_fail_leave_no_thread_and_no_connection_behind(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(sink: SqlSink) -> None:
        await delete_old(sink)
        raise OSError("cut off")

    delete_old = SqlSink._delete_old
    monkeypatch.setattr(SqlSink, "_delete_old", fail)
    before = set(threading.enumerate())

    async def open_often() -> int:
        sink = SqlSink(url, retention=timedelta(days=1))
        for _ in range(5):
            with pytest.raises(OSError, match="cut off"):
                await sink.open()
        n_more = len(set(threading.enumerate()) - before)
        await sink.close()
        return n_more

    # Of the last try there may be the thread of the steps and that of a connection.
    assert asyncio.run(open_often()) <= 2


def test_a_wrong_password_is_said_without_it(
    postgres: str, caplog: pytest.LogCaptureFixture
) -> None:
    sink = SqlSink(postgres.replace("canary-password", "canary-wrong"))

    with running(serving_doubles(sink)) as client:
        double(client)
        until(lambda: state_of(client, "SqlSink")["state"] == "failing")
        ready = client.get("/ready")

    assert "password authentication failed" in caplog.text
    assert "canary" not in caplog.text + ready.text + repr(sink)


def test_what_cannot_be_written_is_not_in_the_log(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = SinkOptions(keep_payloads=True, max_tries=1, max_wait_s=0.01)

    with running(ModelServer(sinks=[SqlSink(url, options=options)]).add("n", Noting)) as client:
        until(lambda: state_of(client, "SqlSink")["state"] == "ready")
        ask(url, "DROP TABLE mlserve_records")
        client.post("/v1/models/n/predict", json="my canary prompt")
        until(lambda: state_of(client, "SqlSink")["failed"] == 1)

    assert "sink.write.failed" in caplog.text
    assert "canary" not in caplog.text


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("", "is none"),
        ("nonsense", "is none"),
        (None, "is none"),
        ("postgresql://u:canary@h/d", "cannot use 'postgresql'"),
        ("mysql+aiomysql://u:canary@h/d", r"cannot use 'mysql\+aiomysql'"),
        ("sqlite+aiosqlite://", "names no database"),
        ("sqlite+aiosqlite:///:memory:", "names no database"),
        ("postgresql+asyncpg://u:canary@h:port/d", "is none"),
        ("postgresql+asyncpg://u:canary@h", "names no database"),
    ],
)
def test_a_url_that_cannot_work_is_refused_without_its_password(url: Any, wanted: str) -> None:
    with pytest.raises(ConfigurationError, match=wanted) as caught:
        SqlSink(url)

    assert "sqlite+aiosqlite:///records.db" in str(caught.value)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("retention", [timedelta(0), timedelta(days=-1), 30, "30 days"])
def test_a_retention_is_a_positive_time(retention: Any) -> None:
    with pytest.raises(ConfigurationError, match="`retention` must be a time such as"):
        SqlSink(SQLITE, retention=retention)


@pytest.mark.parametrize(
    ("url", "driver", "extra"),
    [
        (SQLITE, "aiosqlite", r"mlserve\[sql\]"),
        ("postgresql+asyncpg://h/d", "asyncpg", r"mlserve\[postgres\]"),
    ],
)
def test_a_driver_that_is_missing_is_named_with_its_extra(
    url: str, driver: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, driver, None)

    with pytest.raises(ConfigurationError, match=rf"needs {driver}.*pip install '{extra}'"):
        SqlSink(url)


def test_whoever_reads_sqlite_holds_up_nobody_who_writes(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path)
    write(url, [RECORD])

    [mode] = ask(url, "PRAGMA journal_mode")
    with closing(sqlite3.connect(make_url(url).database or "")) as reader:
        reader.execute("BEGIN")
        before = reader.execute("SELECT count(*) FROM mlserve_records").fetchone()
        write(url, [replace(RECORD, id="a-2")])
        during = reader.execute("SELECT count(*) FROM mlserve_records").fetchone()

    assert mode["journal_mode"] == "wal"
    assert before == during == (1,)
    assert n_rows(url) == 2


def test_another_writer_of_sqlite_is_waited_for(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path)
    write(url, [RECORD])

    with ThreadPoolExecutor(1) as pool, locked(url):
        writing = pool.submit(write, url, [replace(RECORD, id="a-2")])
        with pytest.raises(TimeoutError):
            writing.result(0.3)
    writing.result(15)

    assert n_rows(url) == 2


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Keep everybody else from writing."""
    is_sqlite = url.startswith("sqlite")
    lock = "BEGIN IMMEDIATE" if is_sqlite else "LOCK TABLE mlserve_records"
    may_end, is_locked = threading.Event(), threading.Event()

    async def hold() -> None:
        options = {"isolation_level": "AUTOCOMMIT"} if is_sqlite else {}
        engine = create_async_engine(url, poolclass=NullPool, **options)
        async with engine.connect() as connection:
            await connection.exec_driver_sql(lock)
            is_locked.set()
            await asyncio.to_thread(may_end.wait, 15)
            await connection.exec_driver_sql("ROLLBACK")
        await engine.dispose()

    holding = threading.Thread(target=asyncio.run, args=(hold(),))
    holding.start()
    assert is_locked.wait(10)
    try:
        yield
    finally:
        may_end.set()
        holding.join(10)


def test_a_database_that_does_not_answer_costs_no_answer_and_no_record(url: str) -> None:
    options = SinkOptions(max_wait_s=0.01, write_timeout_s=0.3)

    with running(serving_doubles(SqlSink(url, options=options))) as client:
        double(client)
        until(lambda: state_of(client, "SqlSink")["written"] == 1)
        with locked(url):
            for value in range(5):
                assert double(client, value) == 2 * value
            until(lambda: state_of(client, "SqlSink")["state"] == "failing")
            assert client.get("/ready").status_code == 200
        until(lambda: state_of(client, "SqlSink")["written"] == 6, timeout_s=15)

    assert n_rows(url) == 6
