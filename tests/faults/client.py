"""
An open-loop client on raw sockets: it sends when it is time to, however the server fares.

Every request has its own connection and asks for its end, so what is read up to the end is all
that the server ever said to it: no answer, one, or one too many.
"""

import asyncio
import json
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.faults.handler import PRIVATE, digest_of

GIVE_UP_S = 10.0
GARBAGE = b"\x00\x01 not HTTP at all\r\n\r\n"
_STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) [ -~]*")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~]*)")
_CHUNK_SIZE = re.compile(rb"[0-9a-fA-F]+")


class MalformedError(Exception):
    """What came is no HTTP answer, or not a whole one."""


@dataclass(slots=True, kw_only=True)
class Plan:
    """One request and how its client behaves."""

    id: str
    path: str
    payload: dict[str, Any]
    is_faulty: bool = False
    at_s: float = 0.0
    """When it is sent, in seconds from the start."""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    """What is sent in place of the payload."""
    behaviour: str = "patient"
    """One of `BEHAVIOURS`."""
    leave_after_s: float = 0.0
    leave_after_events: int = 0

    @property
    def wire(self) -> bytes:
        body = self.body if self.body is not None else json.dumps(self.payload).encode()
        headers = {
            "Host": "test",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            "X-Request-Id": self.id,
        }
        lines = [f"{name}: {value}" for name, value in (headers | self.headers).items()]
        head = "\r\n".join([f"POST {self.path} HTTP/1.1", *lines, "", ""])
        return head.encode() + body


@dataclass(slots=True, kw_only=True)
class Answer:
    """One well-formed answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")


@dataclass(slots=True, kw_only=True)
class Record:
    """What became of one request."""

    plan: Plan
    was_sent: bool = False
    """Whether all of it was written."""
    has_left: bool = False
    """Whether its client went away by its own will, and so is owed no answer."""
    answers: list[Answer] = field(default_factory=list)
    problem: str = ""
    """Why what came is not well-formed."""
    is_own: bool = True
    """Whether every id and digest in the answer is that of the request."""
    status: int | None = None
    code: str | None = None
    """The code of the error, in the body or as a stream's last event but one."""
    n_chunks: int = 0
    """How many chunks of a stream came before its error or end."""
    latency_s: float = 0.0
    ended_at: float = 0.0
    """When its connection ended, in monotonic seconds."""
    pid: int = 0
    """Which process has made the answer, or its last chunk."""

    @property
    def is_accepted(self) -> bool:
        """Whether it was sent completely by a client that waited for the answer."""
        return self.was_sent and not self.has_left

    @property
    def is_lost(self) -> bool:
        return self.is_accepted and (len(self.answers) != 1 or bool(self.problem))

    @property
    def outcome(self) -> tuple[int | None, str | None]:
        return self.status, self.code

    def __str__(self) -> str:
        about = f"{self.plan.id} {self.plan.payload.get('fault') or self.plan.behaviour}"
        said = f"{len(self.answers)} answers, {self.status} {self.code}, {self.n_chunks} chunks"
        return f"<{about}: {said}, own={self.is_own}, left={self.has_left}, {self.problem!r}>"


async def play(port: int, plans: Iterable[Plan]) -> list[Record]:
    """Send every request at its time and give what became of each, in the order of the plans."""
    started = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(port, plan, started)) for plan in plans]
    return [task.result() for task in tasks]


async def ask(port: int, plan: Plan, started: float | None = None) -> Record:
    """Send one request as its plan says and judge what came back."""
    loop = asyncio.get_running_loop()
    record = Record(plan=plan)
    if started is not None:
        await asyncio.sleep(started + plan.at_s - loop.time())
    began = loop.time()
    received = bytearray()
    try:
        async with asyncio.timeout(GIVE_UP_S):
            reader, writer = await _connect(port, plan)
            try:
                await BEHAVIOURS[plan.behaviour](reader, writer, record, received)
            finally:
                writer.transport.abort()
    except TimeoutError:
        record.problem = f"no end within {GIVE_UP_S:g} s"
    except OSError as exc:
        record.problem = f"the connection broke: {exc!r}"
    record.ended_at = loop.time()
    record.latency_s = record.ended_at - began
    judge(record, bytes(received))
    return record


async def _connect(port: int, plan: Plan) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    connection = socket.socket()
    if plan.behaviour == "reads_slowly":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    connection.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        return await asyncio.open_connection(sock=connection, limit=8192)
    except BaseException:
        connection.close()
        raise


async def _send(writer: asyncio.StreamWriter, record: Record) -> None:
    writer.write(record.plan.wire)
    await writer.drain()
    record.was_sent = True


async def _read_all(reader: asyncio.StreamReader, received: bytearray) -> None:
    while data := await reader.read(65_536):
        received += data


async def _patient(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: Record, received: bytearray
) -> None:
    await _send(writer, record)
    await _read_all(reader, received)


async def _sends_slowly(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: Record, received: bytearray
) -> None:
    wire = record.plan.wire
    size = max(1, len(wire) // 10)
    for start in range(0, len(wire), size):
        writer.write(wire[start : start + size])
        await writer.drain()
        await asyncio.sleep(0.01)
    record.was_sent = True
    await _read_all(reader, received)


async def _leaves_in_head(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: Record, received: bytearray
) -> None:
    wire = record.plan.wire
    writer.write(wire[: wire.index(b"\r\n\r\n") // 2])
    await writer.drain()
    await asyncio.sleep(record.plan.leave_after_s)
    record.has_left = True


async def _leaves_in_body(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: Record, received: bytearray
) -> None:
    wire = record.plan.wire
    writer.write(wire[: (wire.index(b"\r\n\r\n") + len(wire)) // 2])
    await writer.drain()
    await asyncio.sleep(record.plan.leave_after_s)
    record.has_left = True


async def _leaves(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: Record, received: bytearray
) -> None:
    await _send(writer, record)
    record.has_left = True
    await asyncio.sleep(record.plan.leave_after_s)


async def _leaves_in_stream(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: Record, received: bytearray
) -> None:
    await _send(writer, record)
    while received.count(b"data: ") < record.plan.leave_after_events:
        if not (data := await reader.read(256)):
            return  # the stream was shorter than that
        received += data
    record.has_left = True


async def _reads_slowly(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: Record, received: bytearray
) -> None:
    await _send(writer, record)
    for _ in range(20):
        received += await reader.read(1024)
        await asyncio.sleep(0.01)
    await _read_all(reader, received)


async def _sends_garbage_behind(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: Record, received: bytearray
) -> None:
    # At once: what comes behind a whole answer would be refused with an answer of its own.
    writer.write(record.plan.wire + GARBAGE)
    await writer.drain()
    record.was_sent = True
    await _read_all(reader, received)


BEHAVIOURS = {
    "patient": _patient,
    "sends_slowly": _sends_slowly,
    "leaves_in_head": _leaves_in_head,
    "leaves_in_body": _leaves_in_body,
    "leaves": _leaves,
    "leaves_in_stream": _leaves_in_stream,
    "reads_slowly": _reads_slowly,
    "sends_garbage_behind": _sends_garbage_behind,
}


def judge(record: Record, received: bytes) -> None:
    """Read what came and write into the record whether it is what the request may get."""
    if record.has_left:
        return
    if PRIVATE.encode() in received:
        record.problem = "the text of an exception was sent"
        return
    try:
        record.answers = answers_in(received)
        if record.answers:
            _judge_answer(record, record.answers[0])
    except (MalformedError, ValueError, KeyError, TypeError) as exc:
        record.problem = record.problem or f"{type(exc).__name__}: {exc}"


def answers_in(data: bytes) -> list[Answer]:
    """
    Split what a connection carried into its answers.

    Raises:
        MalformedError: If the last one is not whole, or anything is not HTTP/1.1.
    """
    answers = []
    while data:
        head, found, rest = data.partition(b"\r\n\r\n")
        if not found:
            raise MalformedError(f"half a head: {data[:60]!r}")
        status_line, *lines = head.split(b"\r\n")
        if not (status := _STATUS_LINE.fullmatch(status_line)):
            raise MalformedError(f"no status line: {status_line[:60]!r}")
        headers: dict[str, str] = {}
        for line in lines:
            if not (header := _HEADER.fullmatch(line)):
                raise MalformedError(f"no header: {line[:60]!r}")
            headers[header[1].decode().lower()] = header[2].decode()
        if headers.get("transfer-encoding") == "chunked":
            body, data = _dechunked(rest)
        else:
            length = int(headers["content-length"])
            if len(rest) < length:
                raise MalformedError(f"{len(rest)} of {length} bytes")
            body, data = rest[:length], rest[length:]
        answers.append(Answer(status=int(status[1]), headers=headers, body=body))
    return answers


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    """
    Read one answer from a connection that stays open, as it came.

    Raises:
        asyncio.IncompleteReadError: If the connection ends before the answer does.
    """
    head = await reader.readuntil(b"\r\n\r\n")
    if length := re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE):
        return head + await reader.readexactly(int(length[1]))
    received = head
    while True:
        size_line = await reader.readuntil(b"\r\n")
        chunk = await reader.readexactly(int(size_line, 16) + 2)
        received += size_line + chunk
        if chunk == b"\r\n":
            return received


def _dechunked(data: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        size_line, found, rest = data.partition(b"\r\n")
        if not (found and _CHUNK_SIZE.fullmatch(size_line)):
            raise MalformedError(f"cut off at a chunk: {size_line[:40]!r}")
        size = int(size_line, 16)
        if rest[size : size + 2] != b"\r\n":
            raise MalformedError("cut off in a chunk")
        if size == 0:
            return body, rest[2:]
        body += rest[:size]
        data = rest[size + 2 :]


def _judge_answer(record: Record, answer: Answer) -> None:
    record.status = answer.status
    record.is_own = answer.headers["x-request-id"] == record.plan.id
    if answer.is_stream:
        _judge_stream(record, answer.body)
        return
    body = json.loads(answer.body)
    if "error" in body:
        _note_error(record, body["error"])
    else:
        _note_receipt(record, body, 0)


def _judge_stream(record: Record, body: bytes) -> None:
    *events, rest = body.split(b"\n\n")
    if rest:
        raise MalformedError(f"the last event has no end: {rest[:40]!r}")
    datas = [event.removeprefix(b"data: ") for event in events if not event.startswith(b":")]
    if not all(event.startswith((b"data: ", b": ")) for event in events):
        raise MalformedError("an event is not `data: …`")
    if datas.count(b"[DONE]") != 1 or datas[-1] != b"[DONE]":
        raise MalformedError(f"{datas.count(b'[DONE]')} times [DONE], last {datas[-1:]!r}")
    for data in datas[:-1]:
        if record.code is not None:
            raise MalformedError("something comes after the error")
        event = json.loads(data)
        if "error" in event:
            _note_error(record, event["error"])
        else:
            _note_receipt(record, event, record.n_chunks)
            record.n_chunks += 1


def _note_error(record: Record, error: dict[str, Any]) -> None:
    record.code = error["code"]
    record.is_own &= error["request_id"] == record.plan.id


def _note_receipt(record: Record, receipt: dict[str, Any], number: int) -> None:
    expected = (record.plan.id, number, digest_of(record.plan.payload["text"], number))
    record.pid = receipt["pid"]
    record.is_own &= (receipt["id"], receipt["number"], receipt["digest"]) == expected
