"""What becomes of a request whose replica has ended under it; pure, but for a line of the log."""

from mlserve.errors import DeadlineExceededError, MLServeError, ModelError, ReplicaDiedError
from mlserve.observability.loggers import get_logger
from mlserve.processes.board import Mark
from mlserve.processes.client import Ticket
from mlserve.spec import ModelSpec

__all__ = ["STAGES", "error_after_death"]

logger = get_logger(__name__)

STAGES = {
    Mark.WAITING: "queue",
    Mark.PREPROCESS: "preprocess",
    Mark.INFER: "infer",
    Mark.POSTPROCESS: "postprocess",
    Mark.STREAM: "stream",
    Mark.ANSWERED: "postprocess",
}
"""What clients are told of where a request is."""


def error_after_death(
    ticket: Ticket, mark: Mark, spec: ModelSpec, *, was_hung: bool
) -> MLServeError | None:
    """
    Say why a request may not be run again, if so.

    Args:
        ticket: The request; if it was alone before and a hook ran, it is what ends replicas.
        mark: Where it was.
        spec: The model.
        was_hung: Whether the replica was ended because a hook did not return.
    """
    if mark is Mark.WAITING:
        return None
    if ticket.n_chunks or not spec.contract.handler_class.idempotent:
        return ReplicaDiedError(spec.name)
    if not (ticket.is_alone and mark.is_running):
        return None
    about = {"model": spec.name, "request_id": ticket.job.call.request_id}
    logger.error("request.poisonous", extra=about)
    return DeadlineExceededError(STAGES[mark], ticket.job.timeout_s) if was_hung else ModelError()
