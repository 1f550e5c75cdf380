"""Every fault of the matrix and what its request is answered with, in each mode."""

import json
import random
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tests.faults.client import Plan
from tests.faults.handler import N_CHUNKS, AsyncFaultyHandler, FaultyHandler

from mlserve import Batching, Limits, ModelServer, Replicas, ServerSettings

AT_CHUNK = 2
_IN_BATCHES = ("infer:", "place:", "batch:", "output:", "postprocess:")


@dataclass(frozen=True, slots=True)
class Mode:
    """How the model is served, and by which route it is asked."""

    name: str
    max_size: int
    hook: str
    handler: type[FaultyHandler] = FaultyHandler
    placement: Literal["thread", "process"] = "thread"

    @property
    def id(self) -> str:
        return self.name if self.placement == "thread" else f"{self.name}-{self.placement}"

    @property
    def path(self) -> str:
        return f"/v1/models/{self.name}/{self.hook}"

    @property
    def is_stream(self) -> bool:
        return self.hook == "stream"

    def server(
        self,
        handler: Any,
        *,
        limits: Limits | None = None,
        replicas: Replicas | None = None,
        **settings: Any,
    ) -> ModelServer:
        """Make a server of one model in this mode."""
        options = ServerSettings(freeze_gc=False, access_log=False, **settings)
        return ModelServer(title="faults", settings=options).add(
            self.name,
            handler,
            batching=Batching(max_size=self.max_size),
            limits=limits or Limits(timeout_s=10.0, stream_timeout_s=10.0),
            replicas=replace(replicas or Replicas(), placement=self.placement),
        )


MODES = (
    Mode("single", 1, "predict"),
    Mode("batched", 8, "predict"),
    Mode("streaming", 8, "stream"),
    Mode("async", 8, "predict", AsyncFaultyHandler),
)
PLACED_MODES = (*MODES, *(replace(mode, placement="process") for mode in MODES))
"""The same with the model in the server's process and in one of its own."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a request is answered with."""

    status: int | None
    """`None` = nothing, as its client leaves."""
    code: str | None = None
    n_chunks: int | None = None
    """How many chunks come before the error or the end of a stream; `None` = any number."""
    may_be_refused: bool = False
    """Whether it may be refused at once, where it can be foretold that its time will not do."""

    def allows(self, status: int | None, code: str | None, n_chunks: int) -> bool:
        if self.may_be_refused and (status, code) == (503, "overloaded"):
            return True
        return (status, code) == (self.status, self.code) and self.n_chunks in (None, n_chunks)


OWN = Outcome(200)
NOTHING = Outcome(None)
MODEL_ERROR = Outcome(500, "model_error")
INVALID_INPUT = Outcome(422, "invalid_input")
OUT_OF_MEMORY = Outcome(507, "out_of_memory")
TOO_LATE = Outcome(504, "deadline_exceeded", may_be_refused=True)
TOO_LATE_IN_STREAM = Outcome(200, "deadline_exceeded")


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the matrix."""

    name: str
    predict: Outcome
    stream: Outcome
    payload: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    """What the client does otherwise than others: fields of `Plan`."""
    for_stream: dict[str, Any] = field(default_factory=dict)
    """The same where it differs for streams."""

    @property
    def shares_batches(self) -> bool:
        """Whether it happens in a batch, so that it should be tried with others in the same one."""
        return self.payload.get("fault", "").startswith(_IN_BATCHES) and not self.plan

    def expected(self, mode: Mode) -> Outcome:
        return self.stream if mode.is_stream else self.predict

    def request(self, mode: Mode, number: int, dice: random.Random) -> Plan:
        """Make one faulty request."""
        options = self.plan | (self.for_stream if mode.is_stream else {})
        return new_plan(mode, f"faulty-{number}", dice, self.payload, is_faulty=True, **options)


def new_plan(
    mode: Mode, name: str, dice: random.Random, payload: dict[str, Any] | None = None, **plan: Any
) -> Plan:
    """Make a request with a text of its own."""
    request_id = f"{name}-{dice.randrange(2**40):010x}"
    text = request_id + "." * dice.randrange(200)
    plan = {"at_s": dice.random() * 0.03} | plan
    return Plan(id=request_id, path=mode.path, payload={"text": text, **(payload or {})}, **plan)


def _told(fault: str, predict: Outcome, stream: Outcome, hold_s: float = 0.0, **plan: Any) -> Fault:
    """Make a fault that the payload tells the handler to have."""
    payload = {"fault": fault, "at": AT_CHUNK, "hold_s": hold_s}
    return Fault(fault.replace(":", "_"), predict, stream, payload, plan)


def _raised() -> list[Fault]:
    faults = []
    codes = {"refused": INVALID_INPUT} | dict.fromkeys(("oom", "oom_cpu", "memory"), OUT_OF_MEMORY)
    whats = ("error", "refused", "exit", "interrupt", "cancelled", "generator_exit", "stop")
    for what in (*whats, "oom", "oom_cpu", "memory"):
        outcome = codes.get(what, MODEL_ERROR)
        faults.append(_told(f"infer:{what}", outcome, outcome))
        after = Outcome(200, outcome.code, AT_CHUNK)
        faults.append(_told(f"place:{what}", outcome, after))
    for what in whats:
        outcome = codes.get(what, MODEL_ERROR)
        faults.append(_told(f"preprocess:{what}", outcome, outcome))
        after = Outcome(200, outcome.code, N_CHUNKS)
        faults.append(_told(f"postprocess:{what}", outcome, after))
    faults.append(_told("preprocess:value", INVALID_INPUT, INVALID_INPUT))
    return faults


def _unusable() -> list[Fault]:
    after = Outcome(200, "model_error", AT_CHUNK)
    faults = [
        _told(f"output:{what}", MODEL_ERROR, after)
        for what in ("nan", "infinite", "object", "type")
    ]
    faults += [
        _told(f"batch:{what}", MODEL_ERROR, MODEL_ERROR)
        for what in ("long", "none", "generator", "dict", "string")
    ]
    # A stream that yields nothing is a stream.
    faults.append(_told("batch:short", MODEL_ERROR, Outcome(200, None, 0)))
    return faults


def _late() -> list[Fault]:
    headers = {"X-Request-Timeout": "0.06"}
    return [
        _told("infer:hold", TOO_LATE, TOO_LATE, 0.2, headers=headers),
        _told("preprocess:hold", TOO_LATE, TOO_LATE, 0.2, headers=headers),
        _told("postprocess:hold", TOO_LATE, TOO_LATE_IN_STREAM, 0.2, headers=headers),
    ]


def _of_clients() -> list[Fault]:
    def client(name: str, outcome: Outcome, **options: Any) -> Fault:
        payload = options.pop("payload", {})
        for_stream = options.pop("for_stream", {})
        return Fault(name, outcome, outcome, payload, options, for_stream)

    hold = {"fault": "infer:hold", "hold_s": 0.1}
    leaves = {"behaviour": "leaves"}
    leaves_in_stream = {"behaviour": "leaves_in_stream"}
    no_json = json.dumps({"text": "never ends"}).encode()[:-1]
    return [
        client("sends_slowly", OWN, behaviour="sends_slowly"),
        client("leaves_in_head", NOTHING, behaviour="leaves_in_head", leave_after_s=0.02),
        client("leaves_in_body", NOTHING, behaviour="leaves_in_body", leave_after_s=0.02),
        client("leaves_at_once", NOTHING, **leaves),
        client("leaves_in_infer", NOTHING, payload=hold, leave_after_s=0.05, **leaves),
        client(
            "leaves_after_its_answer",
            NOTHING,
            leave_after_s=0.05,
            **leaves,
            for_stream=leaves_in_stream | {"leave_after_events": 2},
        ),
        client(
            "leaves_in_the_middle",
            NOTHING,
            payload={"padding": 100_000, "chunks": 50},
            leave_after_events=3,
            **leaves,
            for_stream=leaves_in_stream,
        ),
        client(
            "reads_slowly",
            OWN,
            payload={"padding": 100_000},
            behaviour="reads_slowly",
        ),
        client(
            "sends_garbage_behind",
            OWN,
            behaviour="sends_garbage_behind",
            headers={"Connection": "keep-alive"},
        ),
        client("no_json", Outcome(400, "invalid_json"), body=no_json),
        client("no_schema", Outcome(422, "validation_error"), body=b'{"txt": 1}'),
        client(
            "no_timeout",
            Outcome(400, "invalid_timeout"),
            headers={"X-Request-Timeout": "NaN"},
        ),
        client(
            "no_content_type",
            Outcome(415, "unsupported_media_type"),
            headers={"Content-Type": "text/plain"},
        ),
    ]


FAULTS: list[Fault] = [*_raised(), *_unusable(), *_late(), *_of_clients()]
