"""
The batch that comes next, laid out while the replicas are at work.

The thread that ends a batch takes it up at once. It would otherwise stand idle until the event
loop has had its turn, and the model with it. What is laid out waits in the queue as before: it is
counted there, may expire or be abandoned, and is never run then.
"""

from collections import deque
from collections.abc import Callable

from mlserve.batching.queue import Plan
from mlserve.batching.report import BatchReport
from mlserve.batching.turns import is_dead
from mlserve.job import Job

__all__ = ["LaidOut", "NextBatch"]


class LaidOut:
    """
    A batch that may be taken up.

    Args:
        plan: What it holds.
        done: To be told what became of it, on the event loop.
    """

    __slots__ = ("begun_at", "done", "plan")

    def __init__(self, plan: Plan[Job], done: Callable[[BatchReport], None]) -> None:
        self.plan = plan
        self.done = done
        self.begun_at = 0.0
        """When it was taken up, in monotonic seconds."""


class NextBatch:
    """A place for one batch, which goes to whoever comes first: a thread or the event loop."""

    __slots__ = ("_place", "laid_out")

    def __init__(self) -> None:
        # That something is put there or taken away is one step for every thread.
        self._place: deque[LaidOut] = deque()
        self.laid_out: LaidOut | None = None
        """What is there as far as the event loop knows; for threads a hint."""

    def lay_out(self, plan: Plan[Job], done: Callable[[BatchReport], None]) -> None:
        """Have whoever ends a batch go on with this one. Event loop only; nothing is there yet."""
        self.laid_out = laid_out = LaidOut(plan, done)
        self._place.append(laid_out)

    def take_up(self, clock: Callable[[], float]) -> LaidOut | None:
        """
        Take it, to run it. Any thread.

        Args:
            clock: Gives monotonic seconds.

        Returns:
            What was there; `None` = nothing was, or somebody in it is dead.
        """
        try:
            laid_out = self._place[0]
        except IndexError:
            return None
        now = clock()  # not before: it may be younger than the batch that has just ended
        for job in laid_out.plan.batch:
            if is_dead(job, now):
                return None
        laid_out.begun_at = now
        try:
            self._place.remove(laid_out)
        except ValueError:  # the event loop was first
            return None
        return laid_out

    def look(self) -> LaidOut | None:
        """Give what was taken up since this was asked last. Event loop only."""
        if self.laid_out is None or self._place:
            return None
        taken, self.laid_out = self.laid_out, None
        return taken

    def withdraw(self) -> None:
        """Have nobody take it up any more; `look` says whether somebody has. Event loop only."""
        if self._place:
            try:
                self._place.pop()
            except IndexError:  # a thread was first
                return
            self.laid_out = None

    def __repr__(self) -> str:
        return f"<NextBatch {'laid out' if self._place else 'empty'}>"
