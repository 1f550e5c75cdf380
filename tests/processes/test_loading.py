"""How the process of a replica comes to be: its environment, its load, and what it tells of it."""

import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.processes.handlers import Noting, WarmedUp
from tests.processes.loading import Fragile, Talking, Unloadable
from tests.processes.serving import QUICK, Served, served, until

from mlserve import ModelFailedError, Restart, ServerSettings
from mlserve.execution.devices import available_cores

pytestmark = pytest.mark.slow


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


def test_a_process_has_its_share_of_the_machine_and_none_of_the_secrets(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLSERVE_DRAIN_S", "1")
    monkeypatch.setenv("STRIPE_API_KEY", "sk-1")
    monkeypatch.setenv("DB_PASSWORD", "hunter2")
    monkeypatch.setenv("HF_TOKEN", "hf-1")
    monkeypatch.setenv("MODEL_DIR", "/models")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    options: dict[str, Any] = {"count": 2, "devices": ["cuda:0", "cuda:1"]}

    with served(partial(Noting, notes), replicas=options | {"threads_per_replica": 3}) as model:
        environment = model.ask("environment")
        places = {model.ask_all(["place"] * 4)[n] for n in range(4)}
        threads = model.ask("variable OMP_NUM_THREADS")
        devices = set(model.ask_all(["variable CUDA_VISIBLE_DEVICES"] * 8))
        passed = [model.ask(f"variable {name}") for name in ("HF_TOKEN", "MODEL_DIR")]

    for secret in ("MLSERVE_DRAIN_S", "sk-1", "hunter2"):
        assert secret not in environment
    assert places <= {"cuda:0 0 3", "cuda:0 1 3"}
    assert threads == "3"
    assert devices <= {"5", "7"}
    assert passed == ["hf-1", "/models"]


def test_compute_threads_are_shared_out_unless_they_are_given(notes: Path) -> None:
    with served(partial(Noting, notes), replicas={"count": 2}) as model:
        place = model.ask("place")

    assert place.split()[2] == str(max(1, available_cores() // 2))


def test_what_load_reports_and_logs_arrives_here(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tests.talking")

    with served(Talking) as model:
        model.ask("hello")
        progress = dict(model.model.engine.progress)
        model.wait(lambda: "It went wrong." in caplog.messages)
        pid = model.pid()

    assert progress == {0: (0.75, "three quarters")}
    records = [record for record in caplog.records if record.name == "tests.talking"]
    assert [record.getMessage() for record in records] == [
        "Loaded on cpu.",
        "Seen ['hello'].",
        "With a lock.",
        "It went wrong.",
    ]
    assert [record.levelname for record in records] == ["INFO", "WARNING", "WARNING", "ERROR"]
    assert records[1].__dict__["n_inputs"] == 1
    assert "ValueError: Only noted." in (records[3].exc_text or "")
    assert {record.process for record in records} == {pid}


@pytest.mark.parametrize(
    ("way", "kind", "text"),
    [("key", KeyError, "weights"), ("odd", RuntimeError, "OddLoadError: model.bin, line 7")],
)
def test_what_the_first_load_raises_is_raised_here_once(
    notes: Path, way: str, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text) as raised, served(partial(Unloadable, notes, way)):
        pass

    assert type(raised.value) is kind
    assert "in load" in raised.value.__notes__[0]
    assert "loading.py" in raised.value.__notes__[0]
    assert notes.read_text() == "load\n"


def test_a_first_load_that_dies_is_tried_again(tmp_path: Path) -> None:
    with served(partial(WarmedUp, load=f"once {tmp_path / 'mark'} exit")) as model:
        answer = model.ask("a")

    assert answer["text"] == "a"


def test_a_first_load_that_dies_each_time_is_a_failure_in_the_end(notes: Path) -> None:
    restart = Restart(failures=3, backoff_s=0.01, max_backoff_s=0.01)

    with (
        pytest.raises(RuntimeError, match="exit code 5"),
        served(partial(Unloadable, notes, "exit"), restart=restart),
    ):
        pass

    assert notes.read_text() == "load\n" * 3


def test_a_first_load_that_hangs_is_ended(notes: Path) -> None:
    begun = time.monotonic()

    with (
        pytest.raises(TimeoutError, match="longer than 1 s"),
        served(
            partial(Unloadable, notes, "hang"),
            settings=ServerSettings(load_timeout_s=1.0, drain_s=0.1),
            restart=QUICK,
        ),
    ):
        pass

    assert time.monotonic() - begun < 10.0


def test_a_model_that_crashes_again_and_again_is_out_of_order_and_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is loaded at first; later loads die until the cause is gone."""
    broken = tmp_path / "broken"
    restart = Restart(failures=3, backoff_s=0.01, max_backoff_s=0.05)

    with served(partial(Fragile, broken), restart=restart) as model:
        broken.touch()
        model.kill()
        model.wait(lambda: model.model.state == "failed")
        life = repr(model.model.engine.lifecycle)
        with pytest.raises(ModelFailedError, match="could not be loaded") as refused:
            model.ask("a")
        broken.unlink()
        model.wait(lambda: model.model.state == "ready")
        answer = model.ask("a")

    assert refused.value.status == 503
    assert "could not be loaded" in life
    assert answer == "a"
    assert caplog.messages.count("replica.load.failed") >= 2


def test_who_waits_for_a_replica_that_does_not_come_back_is_told(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    restart = Restart(failures=2, backoff_s=0.01, max_backoff_s=10.0)

    async def scenario(model: Served) -> list[Any]:
        model.kill()
        await until(lambda: model.model.state == "restarting")
        return await model.gather(["a", "b"])

    with served(partial(Fragile, broken), restart=restart) as model:
        broken.touch()
        answers = model.run(scenario(model))

    assert [type(answer) for answer in answers] == [ModelFailedError] * 2
