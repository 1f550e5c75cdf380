"""
Options: frozen, keyword-only, validated where they are written, with units in their names.

`Batching`, `Replicas` and `Limits` belong to one model, `ServerSettings` to the whole server.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from mlserve.errors import ConfigurationError

__all__ = ["Batching", "Cors", "Limits", "Replicas", "Restart", "ServerSettings"]

ENVIRONMENT_PREFIX = "MLSERVE_"
_SECRETS = frozenset({f"{ENVIRONMENT_PREFIX}API_KEYS"})
"""Variables that only the guards read: settings hold no secrets."""


def _at_least(name: str, value: Any, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ConfigurationError(f"`{name}` must be a number, got {value!r}.")
    if value < least:
        raise ConfigurationError(f"`{name}` must be at least {least:g}, got {value!r}.")


def _positive(name: str, value: Any) -> None:
    _at_least(name, value, 0)
    if value == 0:
        raise ConfigurationError(f"`{name}` must be more than 0, got {value!r}.")


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(f"`{name}` must be a whole number, got {value!r}.")
    _at_least(name, value, least)


def _counts(name: str, value: Any) -> tuple[int, int]:
    """Give the least and the most of what is one number or a pair of numbers."""
    pair = value if isinstance(value, tuple) else (value, value)
    are_whole = all(isinstance(n, int) and not isinstance(n, bool) for n in pair)
    if len(pair) != 2 or not are_whole:
        raise ConfigurationError(
            f"`{name}` must be a whole number or a pair such as (1, 4), got {value!r}."
        )
    least, most = pair
    _at_least(name, least, 1)
    if least > most:
        raise ConfigurationError(f"`{name}` must have its smaller number first, got {value!r}.")
    return least, most


def _is_list_of_names(value: object) -> bool:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return False
    return all(isinstance(name, str) for name in value)


def _kept_names(names: object) -> tuple[str, ...]:
    if not _is_list_of_names(names):
        raise ConfigurationError(
            f"`keep_environment` must be a list of names such as ['HF_TOKEN'], got {names!r}."
        )
    kept: tuple[str, ...] = tuple(names)  # type: ignore[arg-type]  # as was just seen
    for name in kept:
        if name.upper().startswith(ENVIRONMENT_PREFIX):
            raise ConfigurationError(
                f"`keep_environment` cannot name {name!r}: the server's own settings never reach"
                " the process of a replica."
            )
    return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """
    How requests are gathered for `infer`.

    Raises:
        ConfigurationError: If a value is out of range, on creation.
    """

    max_size: int = 32
    """The most requests in one batch; 1 switches batching off."""
    max_wait_s: float = 0.0
    """How long the oldest request may be held for a fuller batch, in seconds from its arrival."""
    max_cost: int | None = None
    """The most that a batch may cost, in the unit of the handler's `cost`; `None` = no bound."""
    padded: bool = False
    """Whether a batch costs longest × count (padded tensors) instead of the sum."""
    target_latency_s: float | None = None
    """The longest that one call of `infer` should take, in seconds; bounds the batch's size."""

    def __post_init__(self) -> None:
        _whole("max_size", self.max_size, 1)
        _at_least("max_wait_s", self.max_wait_s, 0)
        if math.isinf(self.max_wait_s):
            raise ConfigurationError("`max_wait_s` must be finite.")
        if self.max_cost is not None:
            _whole("max_cost", self.max_cost, 1)
        if self.target_latency_s is not None:
            _positive("target_latency_s", self.target_latency_s)
        if self.padded and self.max_cost is None:
            raise ConfigurationError(
                "`padded=True` says how a batch's cost is counted, so it needs `max_cost`."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """How a replica that broke down is brought back."""

    failures: int = 5
    """After how many failed restarts in a row only every `max_backoff_s` another one is tried."""
    backoff_s: float = 0.5
    """The wait before the second attempt, in seconds; doubles with each further one."""
    max_backoff_s: float = 30.0
    """The longest wait between two attempts, in seconds."""

    def __post_init__(self) -> None:
        _whole("failures", self.failures, 1)
        _positive("backoff_s", self.backoff_s)
        _at_least("max_backoff_s", self.max_backoff_s, self.backoff_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """
    How many copies of the handler run, and where.

    Raises:
        ConfigurationError: If a value is out of range, on creation.
    """

    count: int | tuple[int, int] = 1
    """How many replicas there are, over all devices; `(1, 4)`: as many as the load asks for."""
    placement: Literal["thread", "process"] = "thread"
    """Where a replica runs: in a thread of the server's process, or in a process of its own."""
    devices: Literal["auto"] | Sequence[str] = "auto"
    """The devices that replicas are given in turn, such as `["cuda:0", "cuda:1"]`."""
    threads_per_replica: int | None = None
    """How many compute threads a replica should use; handlers read it from their context."""
    max_streams: int = 8
    """How many streams run at once in one replica; the next ones wait for their turn."""
    memory_limit_bytes: int | None = None
    """How much memory a replica's process may take; `None` = no bound. Only with processes."""
    keep_environment: tuple[str, ...] = ("HF_TOKEN",)
    """The variables that reach a replica's process though their names look like secrets."""
    restart: Restart = field(default_factory=Restart)
    """How a replica is brought back whose `health` fails or, in a process, that has died."""

    def __post_init__(self) -> None:
        least, most = _counts("count", self.count)
        if self.placement not in ("thread", "process"):
            raise ConfigurationError(
                f"`placement` must be 'thread' or 'process', got {self.placement!r}."
            )
        if least != most:
            self._require_processes("count")
        if self.devices != "auto":
            if not self.devices or not _is_list_of_names(self.devices):
                raise ConfigurationError(
                    "`devices` must be 'auto' or a list of device names such as ['cuda:0'],"
                    f" got {self.devices!r}."
                )
            object.__setattr__(self, "devices", tuple(self.devices))
        if self.threads_per_replica is not None:
            _whole("threads_per_replica", self.threads_per_replica, 1)
        _whole("max_streams", self.max_streams, 1)
        if self.memory_limit_bytes is not None:
            _whole("memory_limit_bytes", self.memory_limit_bytes, 1)
            self._require_processes("memory_limit_bytes")
        object.__setattr__(self, "keep_environment", _kept_names(self.keep_environment))
        if not isinstance(self.restart, Restart):
            raise ConfigurationError(f"`restart` must be `Restart(…)`, got {self.restart!r}.")

    @property
    def min_count(self) -> int:
        """How many replicas there are at least."""
        return self.count if isinstance(self.count, int) else self.count[0]

    @property
    def max_count(self) -> int:
        """How many replicas there are at most."""
        return self.count if isinstance(self.count, int) else self.count[1]

    def _require_processes(self, name: str) -> None:
        if self.placement != "process":
            raise ConfigurationError(
                f"`{name}={getattr(self, name)!r}` needs replicas in processes of their own:"
                " add `placement='process'`."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """
    What one model's requests may take.

    Raises:
        ConfigurationError: If a value is out of range, on creation.
    """

    timeout_s: float = 60.0
    """A request's whole budget in seconds: queue, preprocess, infer and postprocess."""
    stream_timeout_s: float = 600.0
    """A stream's whole budget in seconds, from its request to its last chunk."""
    hard_timeout_s: float | None = None
    """
    How long a hook may work before its replica's process is ended, in seconds; `None` = until one
    second after the deadline of what it works for. Only with processes.
    """
    max_queue_size: int | Literal["auto"] = "auto"
    """How many requests may wait; `"auto"`: what is served in a third of `timeout_s`."""
    max_body_bytes: int = 16 * 2**20
    """The largest request body of this model's routes, in bytes."""
    first_chunk_s: float | None = None
    """How long a stream's first chunk may take, in seconds; `None` = the stream's budget."""
    idle_s: float | None = None
    """How long each further chunk may take, in seconds; `None` = the stream's budget."""
    priorities: bool = False
    """Whether clients may set `X-Request-Priority`."""

    def __post_init__(self) -> None:
        _positive("timeout_s", self.timeout_s)
        _positive("stream_timeout_s", self.stream_timeout_s)
        for name in ("first_chunk_s", "idle_s", "hard_timeout_s"):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        if self.max_queue_size != "auto":
            _whole("max_queue_size", self.max_queue_size, 1)
        _whole("max_body_bytes", self.max_body_bytes, 1)


class Cors(BaseModel):
    """
    Which web pages of other origins may call the server.

    Raises:
        pydantic.ValidationError: If `"*"` is combined with `allow_credentials`, on creation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow_origins: tuple[str, ...] = ()
    """Origins such as `https://app.example.com`; `("*",)` for all."""
    allow_methods: tuple[str, ...] = ("GET", "POST")
    """The methods that they may use."""
    allow_headers: tuple[str, ...] = ("Content-Type", "Authorization", "X-API-Key")
    """The request headers that they may send."""
    allow_credentials: bool = False
    """Whether they may send cookies and HTTP authentication."""
    expose_headers: tuple[str, ...] = (
        "X-Request-Id",
        "X-Model-Version",
        "Server-Timing",
        "Retry-After",
        "RateLimit",
    )
    """The response headers that they may read."""
    max_age_s: int = Field(default=600, ge=0)
    """How long a browser may keep the answer to its preflight request, in seconds."""

    @model_validator(mode="after")
    def _refuse_credentials_for_everybody(self) -> Self:
        if self.allow_credentials and "*" in self.allow_origins:
            raise ValueError(
                "`allow_credentials` with the origin '*' would let any web page act for your"
                " users. List the origins."
            )
        return self


class ServerSettings(BaseSettings):
    """
    Settings of the whole server: from code, else `MLSERVE_…` variables, else the file `.env`.

    Nested values use two underscores: `MLSERVE_CORS__ALLOW_ORIGINS='["https://a.example"]'`.

    Raises:
        pydantic.ValidationError: If a value is out of range, on creation.
        ConfigurationError: If a key is unknown.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        env_file=".env",
        extra="ignore",
        frozen=True,
    )

    startup_wait_s: float = Field(default=2.0, ge=0)
    """How long the start waits for models, in seconds; `inf` = until they are loaded."""
    load_timeout_s: float | None = Field(default=None, gt=0)
    """How long load and warm-up of a model may take, in seconds; `None` = no bound."""
    on_load_failure: Literal["exit", "serve"] = "exit"
    """Whether a model that cannot be loaded ends the process or is only reported."""
    drain_grace_s: float = Field(default=0.0, ge=0)
    """How long `/ready` says no before new work is refused at shutdown, in seconds."""
    drain_s: float = Field(default=30.0, ge=0)
    """How long running requests may take at shutdown, in seconds."""
    flush_s: float = Field(default=5.0, ge=0, allow_inf_nan=False)
    """How long sinks may then take to write the records that wait, in seconds."""
    health_period_s: float = Field(default=30.0, gt=0)
    """How often the `health` hook of each replica is called, in seconds."""
    max_body_bytes: int = Field(default=16 * 2**20, ge=1)
    """The largest request body of all routes that belong to no model, in bytes."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """How long a request's body may take to arrive, in seconds."""
    max_header_bytes: int = Field(default=65_536, ge=1024)
    """The largest request line and headers under `mlserve run`, in bytes."""
    head_timeout_s: float = Field(default=10.0, gt=0)
    """How long they may take to arrive under `mlserve run`, in seconds."""
    send_timeout_s: float = Field(default=60.0, gt=0)
    """How long a client may read nothing of its answer under `mlserve run`, in seconds."""
    cors: Cors | None = None
    """Which other origins may call the server; `None` = none."""
    gzip_min_bytes: int | None = Field(default=None, ge=0)
    """From which size on answers are compressed, in bytes; `None` = never. Never for streams."""
    ping_s: float = Field(default=15.0, gt=0)
    """After how many idle seconds a stream gets a `: ping` comment."""
    access_log: bool = True
    """Whether each inference is logged, as one line of the logger `mlserve.access`."""
    forward_headers: tuple[str, ...] = ()
    """The request headers that handlers may read in `call.headers`; credentials never are."""
    request_id_header: str = Field(default="X-Request-Id", pattern=r"^[A-Za-z][A-Za-z0-9-]*$")
    """The header that carries the request id, in requests and answers."""
    expose_docs: bool = True
    """Whether `/docs`, `/openapi.json` and `/playground` are served."""
    expose_metrics: bool = True
    """Whether `/metrics` is served."""
    swagger_assets_url: str | None = None
    """Where `/docs` finds `swagger-ui-bundle.js` and `swagger-ui.css`; `None` = FastAPI's CDN."""
    freeze_gc: bool = True
    """Whether the garbage collector is relieved of what the models allocated while loading."""
    flags: dict[str, bool | str] = Field(default={})
    """The feature flags: `true`, `false` or a share of callers such as `"25%"`, by name."""
    flags_file: Path | None = None
    """A JSON object of flags, which wins over `flags` and is read again when it changes."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Refuse keys that no field has, then read code, environment and `.env`, in this order."""
        prefix = ENVIRONMENT_PREFIX.lower()
        variables = [*os.environ, *getattr(dotenv_settings, "env_vars", ())]
        variables = [name for name in variables if name.upper() not in _SECRETS]
        given = dict.fromkeys(getattr(init_settings, "init_kwargs", {}))
        given |= {
            name.lower().removeprefix(prefix).split("__")[0]: None
            for name in variables
            if name.lower().startswith(prefix)
        }
        if unknown := sorted(given.keys() - cls.model_fields.keys()):
            raise ConfigurationError(
                f"Unknown settings: {', '.join(unknown)}."
                f" Known are: {', '.join(sorted(cls.model_fields))}."
            )
        return init_settings, env_settings, dotenv_settings

    @model_validator(mode="after")
    def _refuse_to_forward_credentials(self) -> Self:
        secret = {"authorization", "cookie", "proxy-authorization", "x-api-key"}
        if found := sorted(secret & {name.lower() for name in self.forward_headers}):
            raise ValueError(f"Handlers never see credentials: remove {found} from the headers.")
        return self
