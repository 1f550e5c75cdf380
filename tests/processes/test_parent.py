"""Programs whose replicas are in processes: what is found in `__main__`, and who ends with them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.processes.test_supervision import children_of, wait_for_end

pytestmark = pytest.mark.slow

PROGRAM = """
import asyncio, ctypes, os, sys
from dataclasses import dataclass
from pydantic import BaseModel
from mlserve import ModelHandler, ModelServer, Replicas

class Question(BaseModel):
    text: str
    verb: str = ""

@dataclass
class Answer:
    text: str
    pid: int

class Teller(ModelHandler[Question, Answer]):
    def infer(self, inputs):
        for question in inputs:
            if question.verb == "hang":
                ctypes.PyDLL(None).sleep(300)
            assert type(question) is Question
        return [Answer(question.text.upper(), os.getpid()) for question in inputs]

async def main():
    replicas = Replicas(placement="process", count=2)
    server = ModelServer().add("m", Teller, replicas=replicas)
    async with server.started():
        model = server.model_for("m")
        answer = await model.predict(Question(text="hello"))
        print(type(answer) is Answer, answer.text, answer.pid != os.getpid(), flush=True)
        if "stay" in sys.argv:
            asked = asyncio.ensure_future(model.predict(Question(text="a", verb="hang")))
            await asyncio.sleep(0.2)
            print("hangs", flush=True)
            await asked

if __name__ == "__main__" or "unguarded" in sys.argv:
    asyncio.run(main())
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def running(program: Path) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen([sys.executable, program, "stay"], stdout=subprocess.PIPE, text=True)
    with process:
        yield process
        process.kill()


def test_what_is_defined_in_the_main_program_is_found_by_its_processes(program: Path) -> None:
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=15, check=True
    )

    assert done.stdout.split() == ["True", "HELLO", "True"]


def test_a_main_program_that_starts_itself_when_it_is_imported_is_told(program: Path) -> None:
    done = subprocess.run(
        [sys.executable, program, "unguarded"],
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )

    assert done.returncode == 1
    assert "if __name__ == '__main__':" in done.stderr


def test_processes_end_with_the_one_that_has_started_them_whatever_they_do(
    running: "subprocess.Popen[str]",
) -> None:
    """One of them idles, and the other one holds the GIL for ever."""
    assert running.stdout is not None
    assert [running.stdout.readline() for _ in range(2)] == ["True HELLO True\n", "hangs\n"]
    pids = list(map(int, children_of(running.pid)))

    os.kill(running.pid, signal.SIGKILL)
    running.wait(5)

    assert len(pids) == 2
    assert wait_for_end(pids) < 2.0
