"""What a replica's process makes of the requests of one HTTP process, and how it answers them."""

import socket
import sys
from typing import Any

import pytest
from tests.processes.hosting import Scene, play
from tests.processes.serving import until

from mlserve import InvalidInputError, ModelFailedError
from mlserve.processes import messages
from mlserve.processes.board import Mark
from mlserve.processes.frames import encode, pack
from mlserve.processes.wire import Link, connect


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlserve.processes.guest._PATIENCE_S", 0.05)


async def connected(scene: Scene, heard: list[tuple[Any, ...]] | None = None) -> Link:
    """Give the end of an HTTP process, which may note what it hears."""
    ours, theirs = socket.socketpair()
    await scene.host.connect(0, theirs)
    link = Link((heard if heard is not None else []).extend, lambda: None)
    await connect(ours, link)
    return link


def submit(link: Link, number: int, slot: int) -> None:
    link.send((messages.SUBMIT, number, slot, 0, "id", 1e9, 60.0, 0, None, None, pack("payload")))


def test_marks_that_a_dead_process_has_left_stay_until_their_http_process_has_seen_them() -> None:
    async def script(scene: Scene) -> None:
        scene.board.marks(0, 0)[7] = Mark.INFER
        link = await connected(scene)
        assert scene.board.n_running(0) == 1
        link.close()

    play(script)


def test_a_hook_that_runs_on_does_not_touch_the_mark_of_the_next_request() -> None:
    async def script(scene: Scene) -> None:
        marks, jobs = scene.board.marks(0, 0), scene.lane.predicted
        link = await connected(scene)
        submit(link, 1, 3)
        await until(lambda: len(jobs) == 1)
        jobs[0].mark(Mark.INFER)
        assert marks[3] == Mark.INFER
        link.send((messages.CANCEL, 1))
        marks[3] = Mark.WAITING
        submit(link, 2, 3)
        await until(lambda: len(jobs) == 2)
        jobs[0].mark(Mark.POSTPROCESS)
        assert marks[3] == Mark.WAITING
        jobs[1].mark(Mark.INFER)
        assert marks[3] == Mark.INFER
        link.close()

    play(script)


def test_a_request_is_let_go_with_its_answer() -> None:
    async def script(scene: Scene) -> None:
        link = await connected(scene)
        submit(link, 1, 3)
        await until(lambda: len(scene.lane.predicted) == 1)
        scene.lane.predicted[0].result("answer")
        n_kept = sys.getrefcount(scene.lane.predicted[0])
        assert n_kept == 2  # the list, and the argument of the question
        link.close()

    play(script)


async def stuck(scene: Scene) -> socket.socket:
    """Give the end of an HTTP process that does not take the answer to its request."""
    ours, theirs = socket.socketpair()
    await scene.host.connect(1, theirs)
    message = (messages.SUBMIT, 1, 0, 0, "id", 1e9, 60.0, 0, None, None, pack("payload"))
    ours.sendall(b"".join(encode([message])))
    await until(lambda: len(scene.lane.predicted) == 1)
    scene.lane.predicted[0].result(b"x" * (8 << 20))
    await until(lambda: scene.host.is_congested)
    return ours


def test_a_process_that_does_not_take_its_answers_holds_batches_up_if_there_is_no_other() -> None:
    async def script(scene: Scene) -> None:
        end = await stuck(scene)
        n_wakes = scene.lane.batcher.n_wakes
        await until(lambda: scene.lane.batcher.n_wakes > n_wakes)
        assert scene.host.is_congested
        end.close()
        await until(lambda: not scene.host.is_congested)

    play(script)


def test_a_process_that_does_not_take_its_answers_holds_others_up_for_a_moment_only() -> None:
    async def script(scene: Scene) -> None:
        end = await stuck(scene)
        link = await connected(scene)
        assert scene.host.is_congested
        n_wakes = scene.lane.batcher.n_wakes
        await until(lambda: scene.lane.batcher.n_wakes > n_wakes)
        assert not scene.host.is_congested
        link.close()
        end.close()

    play(script)


def test_batches_that_were_held_up_for_a_process_begin_when_it_ends() -> None:
    async def script(scene: Scene) -> None:
        end = await stuck(scene)
        link = await connected(scene)
        n_wakes = scene.lane.batcher.n_wakes
        end.close()
        await until(lambda: not scene.host.is_congested)
        assert scene.lane.batcher.n_wakes > n_wakes
        link.close()

    play(script)


def test_a_request_has_its_own_mark_even_if_a_hook_has_marked_its_slot_meanwhile() -> None:
    async def script(scene: Scene) -> None:
        marks, jobs = scene.board.marks(0, 0), scene.lane.predicted
        link = await connected(scene)
        marks[3] = Mark.POSTPROCESS
        submit(link, 1, 3)
        await until(lambda: len(jobs) == 1)
        assert marks[3] == Mark.WAITING
        link.close()

    play(script)


@pytest.mark.parametrize(
    ("mark", "error", "kind"),
    [
        (Mark.WAITING, ModelFailedError("m", "it is broken"), messages.NOT_BEGUN),
        (Mark.PREPROCESS, ModelFailedError("another", "it is down"), messages.ERROR),
        (Mark.INFER, ModelFailedError("another", "it is down"), messages.ERROR),
        (Mark.WAITING, InvalidInputError("No."), messages.ERROR),
    ],
)
def test_what_is_refused_before_a_hook_is_at_work_was_not_begun(
    mark: Mark, error: Exception, kind: int
) -> None:
    async def script(scene: Scene) -> None:
        heard: list[tuple[Any, ...]] = []
        link = await connected(scene, heard)
        submit(link, 1, 3)
        await until(lambda: len(scene.lane.predicted) == 1)
        scene.lane.predicted[0].mark(mark)
        scene.lane.predicted[0].fail(error)
        await until(lambda: bool(heard))
        assert [message[:2] for message in heard] == [(kind, 1)]
        link.close()

    play(script)
