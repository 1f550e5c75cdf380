"""Memory that several processes map: what one writes, all read, and it changes nothing else."""

import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlserve.batching.cost_model import CostModel
from mlserve.processes.board import N_SLOTS, Board, Cause, ClientRow, Mark, ReplicaRow

COUNTS = st.integers(1, 5)
REPLICA_FIELDS = [field[0] for field in ReplicaRow._fields_]
CLIENT_FIELDS = [field[0] for field in ClientRow._fields_]


def seen_by_another(board: Board) -> Board:
    """Map the memory again, as another process does."""
    return Board(os.dup(board.fd), board.n_replicas, board.n_clients)


@settings(max_examples=25)
@given(COUNTS, COUNTS)
def test_each_figure_and_mark_has_a_place_of_its_own(n_replicas: int, n_clients: int) -> None:
    board = Board.create(n_replicas, n_clients)
    written: dict[Any, float] = {}

    def write(key: Any) -> int:
        written[key] = len(written) + 1
        return len(written)

    for number, row in enumerate(board.replicas):
        for name in REPLICA_FIELDS:
            setattr(row, name, write(("replica", number, name)))
    for index, client in enumerate(board.clients):
        for name in CLIENT_FIELDS:
            setattr(client, name, write(("client", index, name)))
        for number in range(n_replicas):
            client.sent[number] = write(("sent", index, number))
        for priority in range(10):
            client.by_priority[priority] = write(("priority", index, priority))
    marks = {
        (i, n): 1 + (i * n_replicas + n) % 250 for i in range(n_clients) for n in range(n_replicas)
    }
    for (index, number), mark in marks.items():
        board.marks(index, number)[:] = bytes([mark]) * N_SLOTS

    other = seen_by_another(board)

    assert written == {
        ("replica", number, name): getattr(other.replicas[number], name)
        for number in range(n_replicas)
        for name in REPLICA_FIELDS
    } | {
        ("client", index, name): getattr(other.clients[index], name)
        for index in range(n_clients)
        for name in CLIENT_FIELDS
    } | {
        ("sent", index, number): other.clients[index].sent[number]
        for index in range(n_clients)
        for number in range(n_replicas)
    } | {
        ("priority", index, priority): other.clients[index].by_priority[priority]
        for index in range(n_clients)
        for priority in range(10)
    }
    for (index, number), mark in marks.items():
        assert other.marks(index, number).tobytes() == bytes([mark]) * N_SLOTS


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.sampled_from(Mark)), max_size=30)
)
def test_running_are_those_with_a_hook_at_work_whoever_has_sent_them(
    entries: list[tuple[int, int, Mark]],
) -> None:
    board = Board.create(2, 2)
    for slot, (client, replica, mark) in enumerate(entries):
        board.marks(client, replica)[slot] = mark

    for number in range(2):
        running = [mark for _, replica, mark in entries if replica == number and mark.is_running]
        assert board.n_running(number) == len(running)


def test_a_hook_may_be_at_work_between_waiting_and_answered() -> None:
    assert [mark.name for mark in Mark if mark.is_running] == [
        "PREPROCESS",
        "INFER",
        "POSTPROCESS",
        "STREAM",
    ]


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 100))
def test_a_replica_has_to_do_what_it_has_and_what_is_on_its_way(
    held: int, on_the_way: int, cost: int
) -> None:
    board = Board.create(2, 2)
    row = board.replicas[1]
    row.held, row.cost = held, cost if held else 0
    total = held + on_the_way
    board.clients[0].sent[1], board.clients[1].sent[1] = total // 2, total - total // 2

    each = cost / held if held else 1.0
    assert board.load(1) == pytest.approx((cost if held else 0) + on_the_way * each)
    assert board.load(0) == 0


def test_what_a_replica_has_answered_a_moment_ago_makes_its_load_no_less_than_it_has() -> None:
    board = Board.create(1, 1)
    board.replicas[0].held = board.replicas[0].cost = 5
    board.clients[0].sent[0] = 3

    assert board.load(0) == 5


def test_requests_in_flight_are_those_of_all_processes() -> None:
    board = Board.create(2, 2)
    for client in board.clients:
        client.in_flight, client.streams = 10, 4
    board.replicas[0].active, board.replicas[0].streams = 6, 1

    assert board.in_flight() == 20
    assert board.n_waiting() == 14
    assert board.n_waiting_streams() == 7


@pytest.mark.parametrize(("active", "expected"), [(0, [16, 6, 0]), (4, [12, 2, 0]), (9, [7, 0, 0])])
def test_the_less_urgent_that_wait_are_those_that_cannot_be_at_work(
    active: int, expected: list[int]
) -> None:
    board = Board.create(2, 2)
    for client in board.clients:
        client.by_priority[0], client.by_priority[5], client.by_priority[9] = 7, 5, 3
    board.replicas[0].active, board.replicas[1].active = active // 2, active - active // 2

    assert [board.n_less_urgent(priority) for priority in (0, 5, 9)] == expected


def test_nothing_waits_when_more_is_at_work_than_in_flight() -> None:
    board = Board.create(1, 1)
    board.replicas[0].active = board.replicas[0].streams = 3
    board.clients[0].in_flight = board.clients[0].streams = 1

    assert (board.n_waiting(), board.n_waiting_streams()) == (0, 0)


def test_what_the_busiest_replica_has_learned_of_costs_is_known_to_all() -> None:
    board = Board.create(2, 1)
    model = CostModel()
    for n in (1, 2, 4, 8, 16):
        model.observe(n, 0.01 + 0.002 * n)
    board.replicas[1].publish_cost(model)

    learned = seen_by_another(board).learned_cost()

    assert board.n_observed() == 5
    assert learned.is_known
    assert learned.predict(32) == pytest.approx(model.predict(32))


def test_nothing_is_known_of_costs_at_first() -> None:
    learned = Board.create(2, 1).learned_cost()

    assert not learned.is_known
    assert learned.predict(8) == 0


def test_a_process_that_ends_leaves_its_counts_and_nothing_of_its_moment() -> None:
    board = Board.create(2, 2)
    for name in REPLICA_FIELDS:
        setattr(board.replicas[0], name, 7.0)
    board.replicas[0].clear()
    for client in board.clients:
        for name in CLIENT_FIELDS:
            setattr(client, name, 7.0)
        client.sent[1] = client.by_priority[3] = 7.0
        for number in range(2):
            board.marks(board.clients.index(client), number)[5] = Mark.INFER
    board.clear_client(0)

    kept = {name for name in REPLICA_FIELDS if getattr(board.replicas[0], name)}
    assert kept == {
        *("batches", "batched", "splits", "out_of_memory", "answered"),
        *("fixed_s", "each_s", "observed", "cause"),
    }
    gone, other = board.clients
    assert (gone.requests, gone.refused, gone.streams, gone.in_flight) == (7, 7, 0, 0)
    assert (sum(gone.sent), sum(gone.by_priority)) == (0, 0)
    assert (other.streams, other.in_flight, sum(other.sent)) == (7, 7, 7)
    assert [board.n_running(number) for number in range(2)] == [1, 1]


def test_the_reason_of_an_end_outlives_it() -> None:
    board = Board.create(1, 1)
    board.replicas[0].cause = Cause.HANG

    assert Cause(int(seen_by_another(board).replicas[0].cause)) is Cause.HANG


def test_a_board_that_is_closed_can_still_be_read() -> None:
    board = Board.create(1, 1)
    marks = board.marks(0, 0)
    marks[0] = Mark.INFER

    board.close()
    board.close()

    assert board.fd == -1
    assert board.n_running(0) == 1
