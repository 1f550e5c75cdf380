"""The command, end to end: real servers, loads of a fraction of a second."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.__main__ import main
from benchmarks.compare.environments import NotInstalledError, python_of
from benchmarks.compare.servers import FailedError, check, started
from benchmarks.compare.systems import SYSTEMS
from benchmarks.compare.workloads import WORKLOADS


@pytest.fixture(autouse=True)
def _keep_cores() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_mlserve_and_bare_fastapi_are_measured_and_reported(tmp_path: Path) -> None:
    names = ["--systems", "mlserve,fastapi", "--workloads", "noop,sse"]

    status = main(["run", "--quick", "--share", "0.05", *names, "--out", str(tmp_path)])

    assert status == 0
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    measured = {(s["workload"], s["system"], s["cell"]) for s in found["samples"]}
    assert ("noop", "mlserve", "64 connections") in measured
    assert ("noop", "fastapi", "1 connection") in measured
    assert ("sse", "fastapi-events", "8 streams") in measured
    for sample in found["samples"]:
        assert sample["figures"]["n_bad"] == 0, sample
        assert sample["figures"][WORKLOADS[sample["workload"]].measure] > 0, sample
    assert found["absences"] == []
    assert found["footprint"]["idle_mb"] > 20
    assert found["machine"]["versions"]["here"]["mlserve"]
    report = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| P1 |" in report
    assert "| mlserve |" in report
    assert (tmp_path / "noop-64.svg").exists()


@pytest.mark.slow
def test_a_wrong_answer_is_noticed() -> None:
    # The streams of the server that is running here are not what the workload asks for.
    system, workload = SYSTEMS["fastapi"], WORKLOADS["noop"]
    with started(system, workload, python_of(None, Path())) as running:
        assert check(system, workload, running) is None
        with pytest.raises(FailedError, match="answers 404"):
            check(SYSTEMS["recipe"], workload, running)


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--systems", "tensorflow"]) == 2
    assert "Unknown systems: tensorflow" in capsys.readouterr().err
    assert main(["run", "--workloads", "rain"]) == 2
    assert "Unknown workloads: rain" in capsys.readouterr().err


def test_a_peer_that_cannot_be_installed_says_why(tmp_path: Path) -> None:
    # An environment whose interpreter does nothing but fail.
    python = tmp_path / "mosec" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho no network >&2\nexit 1\n", encoding="utf-8")
    python.chmod(0o755)

    with pytest.raises(NotInstalledError, match="no network"):
        python_of("mosec", tmp_path)


def test_the_list_names_systems_and_workloads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*SYSTEMS, *WORKLOADS))
