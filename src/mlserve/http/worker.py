"""
The main program of one of several HTTP processes of a server; `workers` starts it.

It imports what is to be served as the supervisor has done, loads the models that run in threads,
shares the replicas in processes with the others, and serves until it is told otherwise.
"""

import faulthandler
import os
import socket
import sys

from mlserve.errors import ConfigurationError
from mlserve.http.runner import STARTUP_FAILURE, Place, configure_logging, make_config, serve
from mlserve.http.tally import Tally
from mlserve.http.workers import WorkerBoot
from mlserve.observability.loggers import get_logger
from mlserve.processes.board import Board
from mlserve.processes.boot import prepare_main, read_boot
from mlserve.processes.parent import Inheritance, inherit
from mlserve.processes.placement import ProcessPlacement
from mlserve.processes.sharing import SharedFleet, Supervision
from mlserve.registry import Registry

__all__ = ["main"]

logger = get_logger(__name__)

_CHANGED = (
    "The models in this process are others than those that its supervisor found: the module must"
    " make the same server each time that it is imported."
)


def main() -> None:
    """Serve until told otherwise."""
    inherited = inherit()
    faulthandler.enable()
    boot: WorkerBoot = read_boot(inherited.control)
    configure_logging(boot.log_level)
    supervision = Supervision(inherited.control, inherited.door)
    try:
        prepare_main(boot.main)
        found = boot.find()
        _share(found.registry, boot, supervision, inherited)
    except Exception:
        logger.critical("worker.start.failed", exc_info=True, extra={"worker": boot.index})
        sys.exit(STARTUP_FAILURE)
    config = make_config(found.app, found.registry, timeout_keep_alive=boot.timeout_keep_alive_s)
    tally_fd, *fds = inherited.fds
    place = Place(
        index=boot.index,
        sockets=[socket.socket(fileno=fd) for fd in fds[: boot.n_sockets]],
        tally=Tally(tally_fd, boot.n_workers),
        supervision=supervision,
    )
    os.close(tally_fd)
    serve(config, found.registry, place=place)


def _share(
    registry: Registry | None, boot: WorkerBoot, supervision: Supervision, inherited: Inheritance
) -> None:
    """
    Have the models whose replicas are in processes use those that the supervisor has.

    Raises:
        ConfigurationError: If the server is made of other models than the supervisor found.
    """
    fleets = dict(zip(boot.fleets, inherited.fds[1 + boot.n_sockets :], strict=True))
    for model in registry or ():
        engine, placement = model.engine, model.engine.placement
        engine.n_processes = boot.n_workers
        if isinstance(placement, ProcessPlacement):
            key = engine.spec.name, engine.spec.version
            n_replicas = engine.spec.replicas.max_count
            fd = fleets.pop((*key, n_replicas), None)
            if fd is None:
                raise ConfigurationError(_CHANGED)
            board = Board(fd, n_replicas, boot.n_workers)
            board.close()
            _install(placement, boot.index, supervision.share(key, board))
    if fleets:
        raise ConfigurationError(_CHANGED)


def _install(placement: ProcessPlacement, index: int, fleet: SharedFleet) -> None:
    placement.index = index
    placement.open_fleet = lambda _spec, _factory: fleet
