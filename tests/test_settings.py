"""Options refuse what is wrong where it is written, and are read from code, environment, `.env`."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mlserve.errors import ConfigurationError
from mlserve.settings import Batching, Cors, Limits, Replicas, Restart, ServerSettings

OPTIONS: list[type[Any]] = [Batching, Replicas, Limits, Restart]


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("cls", OPTIONS, ids=lambda cls: cls.__name__)
def test_options_are_frozen_and_keyword_only(cls: type[Any]) -> None:
    options = cls()
    first = dataclasses.fields(options)[0].name

    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(options, first, 1)
    with pytest.raises(TypeError, match="positional"):
        cls(1)


@pytest.mark.parametrize("cls", OPTIONS, ids=lambda cls: cls.__name__)
def test_options_are_compared_by_value(cls: type[Any]) -> None:
    assert cls() == cls()
    assert hash(cls()) == hash(cls())


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (Batching, "max_size", 0),
        (Batching, "max_size", 1.5),
        (Batching, "max_size", True),
        (Batching, "max_size", None),
        (Batching, "max_size", "8"),
        (Batching, "max_wait_s", -0.1),
        (Batching, "max_wait_s", math.inf),
        (Batching, "max_wait_s", math.nan),
        (Batching, "max_wait_s", "1s"),
        (Batching, "max_wait_s", None),
        (Batching, "max_cost", 0),
        (Batching, "max_cost", 10.0),
        (Batching, "target_latency_s", 0),
        (Batching, "target_latency_s", -1),
        (Batching, "padded", True),
        (Replicas, "count", 0),
        (Replicas, "count", None),
        (Replicas, "count", True),
        (Replicas, "count", [1, 4]),
        (Replicas, "count", (1, 4)),
        (Replicas, "placement", "fiber"),
        (Replicas, "devices", "cuda:0"),
        (Replicas, "devices", []),
        (Replicas, "devices", 5),
        (Replicas, "devices", [0, 1]),
        (Replicas, "threads_per_replica", 0),
        (Replicas, "max_streams", 0),
        (Replicas, "memory_limit_bytes", 2**30),
        (Replicas, "keep_environment", "HF_TOKEN"),
        (Replicas, "keep_environment", [1]),
        (Replicas, "keep_environment", ["MLSERVE_API_KEYS"]),
        (Replicas, "keep_environment", None),
        (Restart, "failures", 0),
        (Restart, "backoff_s", 0),
        (Restart, "max_backoff_s", 0.1),
        (Limits, "timeout_s", 0),
        (Limits, "timeout_s", -1.0),
        (Limits, "timeout_s", None),
        (Limits, "stream_timeout_s", 0),
        (Limits, "first_chunk_s", 0),
        (Limits, "idle_s", -1),
        (Limits, "hard_timeout_s", 0),
        (Limits, "hard_timeout_s", "1"),
        (Limits, "max_queue_size", 0),
        (Limits, "max_queue_size", "big"),
        (Limits, "max_body_bytes", 0),
        (Limits, "max_body_bytes", False),
    ],
)
def test_a_bad_value_is_refused_in_words_that_name_the_option(
    cls: type[Any], name: str, value: object
) -> None:
    with pytest.raises(ConfigurationError, match=f"`{name}") as caught:
        cls(**{name: value})

    assert str(caught.value).endswith(".")


def test_values_at_the_edge_are_taken() -> None:
    Batching(max_size=1, max_wait_s=0, max_cost=1, padded=True, target_latency_s=1e-6)
    Replicas(count=1, threads_per_replica=1, max_streams=1, restart=Restart(failures=1))
    Replicas(placement="process", count=(1, 1), memory_limit_bytes=1, keep_environment=())
    Restart(backoff_s=2.0, max_backoff_s=2.0)
    Limits(
        timeout_s=math.inf,
        max_queue_size=1,
        max_body_bytes=1,
        first_chunk_s=0.1,
        idle_s=math.inf,
        hard_timeout_s=0.1,
    )


def test_a_message_shows_what_was_given_and_what_was_expected() -> None:
    with pytest.raises(ConfigurationError, match=r"`max_size` must be at least 1, got 0\."):
        Batching(max_size=0)
    with pytest.raises(ConfigurationError, match="must be a whole number, got '8'"):
        Batching(max_size="8")  # type: ignore[arg-type]  # this is what must fail


def test_a_list_of_devices_is_kept_as_it_was() -> None:
    names = ["cuda:0", "cuda:1"]

    options = Replicas(devices=names)
    names.clear()

    assert options.devices == ("cuda:0", "cuda:1")


def test_a_list_of_variables_is_kept_as_it_was() -> None:
    names = ["HF_TOKEN", "WANDB_API_KEY"]

    options = Replicas(keep_environment=names)  # type: ignore[arg-type]  # is made a tuple
    names.clear()

    assert options.keep_environment == ("HF_TOKEN", "WANDB_API_KEY")
    assert Replicas().keep_environment == ("HF_TOKEN",)


@pytest.mark.parametrize(
    ("count", "least", "most"), [(1, 1, 1), (3, 3, 3), ((2, 2), 2, 2), ((1, 4), 1, 4)]
)
def test_a_count_is_a_number_or_the_least_and_the_most(
    count: int | tuple[int, int], least: int, most: int
) -> None:
    options = Replicas(count=count, placement="process")

    assert (options.min_count, options.max_count) == (least, most)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        ((0, 2), "must be at least 1, got 0"),
        ((4, 1), r"must have its smaller number first, got \(4, 1\)"),
        ((1, 2, 3), "must be a whole number or a pair"),
        ((), "must be a whole number or a pair"),
        ((1, None), "must be a whole number or a pair"),
        ((1.0, 2.0), "must be a whole number or a pair"),
        ((True, 2), "must be a whole number or a pair"),
    ],
)
def test_a_pair_that_is_none_is_refused(count: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"`count` {message}"):
        Replicas(count=count, placement="process")


def test_a_pair_of_equal_numbers_needs_no_processes() -> None:
    assert Replicas(count=(2, 2)).max_count == 2


@pytest.mark.parametrize("options", [{"count": (1, 4)}, {"memory_limit_bytes": 2**30}])
def test_what_only_processes_can_do_says_that_it_needs_them(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="add `placement='process'`"):
        Replicas(**options)

    Replicas(placement="process", **options)


@pytest.mark.parametrize("value", [0, -1, True, 1.5])
def test_a_bad_memory_limit_is_refused_with_processes_too(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="`memory_limit_bytes` must be"):
        Replicas(placement="process", memory_limit_bytes=value)


def test_every_origin_with_credentials_is_refused() -> None:
    with pytest.raises(ValidationError, match="List the origins"):
        Cors(allow_origins=("*",), allow_credentials=True)

    assert Cors(allow_origins=("*",)).allow_credentials is False
    assert Cors(allow_origins=("https://a.example",), allow_credentials=True).allow_credentials


@pytest.mark.parametrize("bad", [{"max_age_s": -1}, {"origins": ["*"]}])
def test_cors_refuses_bad_values_and_unknown_names(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(bad))):
        Cors(**bad)


@pytest.mark.parametrize("make", [Cors, ServerSettings], ids=["cors", "server settings"])
def test_cors_and_server_settings_are_frozen(make: Callable[[], Any]) -> None:
    settings = make()

    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, next(iter(type(settings).model_fields)), 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("startup_wait_s", -1),
        ("startup_wait_s", math.nan),
        ("load_timeout_s", 0),
        ("on_load_failure", "ignore"),
        ("drain_s", -1),
        ("drain_grace_s", -0.5),
        ("health_period_s", 0),
        ("max_body_bytes", 0),
        ("body_timeout_s", 0),
        ("gzip_min_bytes", -1),
        ("ping_s", 0),
        ("request_id_header", "X Request"),
        ("request_id_header", ""),
        ("cors", {"max_age_s": -1}),
    ],
)
def test_a_bad_server_setting_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        ServerSettings(**{name: value})  # type: ignore[arg-type]  # this is what must fail


@pytest.mark.parametrize("header", ["Authorization", "cookie", "X-Api-Key", "Proxy-Authorization"])
def test_credentials_are_never_forwarded_to_handlers(header: str) -> None:
    with pytest.raises(ValidationError, match=f"remove .*{header.lower()}"):
        ServerSettings(forward_headers=("X-Tenant", header))

    assert ServerSettings(forward_headers=("X-Tenant",)).forward_headers == ("X-Tenant",)


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLSERVE_DRAIN_S", "7.5")
    monkeypatch.setenv("mlserve_access_log", "false")
    monkeypatch.setenv("MLSERVE_CORS__ALLOW_ORIGINS", '["https://a.example"]')
    monkeypatch.setenv("MLSERVE_STARTUP_WAIT_S", "inf")

    settings = ServerSettings()

    assert settings.drain_s == 7.5
    assert settings.access_log is False
    assert settings.cors == Cors(allow_origins=("https://a.example",))
    assert settings.startup_wait_s == math.inf


def test_code_comes_before_the_environment_and_that_before_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(
        "MLSERVE_DRAIN_S=1\nMLSERVE_DRAIN_GRACE_S=1\nMLSERVE_BODY_TIMEOUT_S=1\n"
    )
    monkeypatch.setenv("MLSERVE_DRAIN_S", "2")
    monkeypatch.setenv("MLSERVE_DRAIN_GRACE_S", "2")

    settings = ServerSettings(drain_s=3)

    assert (settings.drain_s, settings.drain_grace_s, settings.body_timeout_s) == (3, 2, 1)


def test_a_field_that_nobody_sets_has_its_default() -> None:
    assert ServerSettings().drain_s == 30.0


def test_an_unknown_name_in_code_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Unknown settings: drain\. Known are: .*drain_s"):
        ServerSettings(drain=1)  # type: ignore[call-arg]  # this is what must fail


def test_an_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLSERVE_DRAIN_SECONDS", "1")

    with pytest.raises(ConfigurationError, match="Unknown settings: drain_seconds"):
        ServerSettings()


def test_an_unknown_nested_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLSERVE_CORS__ORIGINS", '["*"]')

    with pytest.raises(ValidationError, match="origins"):
        ServerSettings()


def test_an_unknown_key_of_ours_in_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MLSERVE_DRAIN_SECONDS=1\n")

    with pytest.raises(ConfigurationError, match="drain_seconds"):
        ServerSettings()


def test_keys_of_others_in_the_file_are_ignored(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DATABASE_URL=sqlite://\nDRAIN_S=1\nMLSERVE_DRAIN_S=2\n")

    assert ServerSettings().drain_s == 2


def test_variables_of_others_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAIN_S", "1")

    assert ServerSettings().drain_s == 30.0


def test_a_bad_variable_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLSERVE_DRAIN_S", "soon")

    with pytest.raises(ValidationError, match="drain_s"):
        ServerSettings()
