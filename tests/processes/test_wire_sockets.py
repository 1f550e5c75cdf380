"""Sockets that are passed from process to process."""

import errno
import socket
from collections.abc import Iterator

import pytest

from mlserve.processes.wire import recv_socket, send_socket

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


def test_a_passed_socket_is_the_same_connection(pair: Pair) -> None:
    ours, clients = socket.socketpair()
    with clients:
        with ours:
            send_socket(pair[0], 2**40 + 3, ours)
        passed = recv_socket(pair[1])
        assert passed is not None
        tag, received = passed
        with received:
            clients.sendall(b"ping")

            assert tag == 2**40 + 3
            assert received.recv(4) == b"ping"
            assert (received.family, received.type) == (socket.AF_UNIX, socket.SOCK_STREAM)
            assert not received.get_inheritable()
        assert clients.recv(1) == b""


def test_passed_sockets_keep_their_order(pair: Pair) -> None:
    with socket.socket() as first, socket.socket(type=socket.SOCK_DGRAM) as second:
        send_socket(pair[0], 1, first)
        send_socket(pair[0], 2, second)

    received = [recv_socket(pair[1]), recv_socket(pair[1])]

    kinds = []
    for passed in received:
        assert passed is not None
        tag, sock = passed
        kinds.append((tag, sock.type))
        sock.close()
    assert kinds == [(1, socket.SOCK_STREAM), (2, socket.SOCK_DGRAM)]


def test_a_channel_without_a_socket_does_not_block(pair: Pair) -> None:
    pair[1].setblocking(False)

    with pytest.raises(BlockingIOError):
        recv_socket(pair[1])


def n_until_full(channel: socket.socket, sock: socket.socket) -> int:
    for n_sent in range(1000):
        try:
            send_socket(channel, n_sent, sock)
        except BlockingIOError:
            return n_sent
    pytest.fail("The channel was never full.")


def test_a_full_channel_does_not_block(pair: Pair) -> None:
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    pair[0].setblocking(False)

    with socket.socket() as sock:
        n_sent = n_until_full(pair[0], sock)
        tags = []
        for _ in range(n_sent):
            passed = recv_socket(pair[1])
            assert passed is not None
            tags.append(passed[0])
            passed[1].close()

    assert n_sent > 0
    assert tags == list(range(n_sent))


def test_a_channel_whose_other_end_is_gone_says_so(pair: Pair) -> None:
    pair[0].close()

    assert recv_socket(pair[1]) is None


def test_a_socket_that_did_not_arrive_is_an_error_of_its_own(pair: Pair) -> None:
    """This is what is left of a socket where the receiver has no descriptor free."""
    pair[0].sendall(bytes(8))
    with socket.socket() as sock:
        send_socket(pair[0], 5, sock)

    with pytest.raises(OSError, match="Too many open files") as raised:
        recv_socket(pair[1])
    passed = recv_socket(pair[1])

    assert raised.value.errno == errno.EMFILE
    assert passed is not None
    assert passed[0] == 5
    passed[1].close()
