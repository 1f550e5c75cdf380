"""When a replica is suspected of being broken, and when it is tried again. Pure."""

from mlserve.execution.backoff import backoff_s
from mlserve.settings import Restart

__all__ = ["Breaker"]


class Breaker:
    """
    Counts batches that failed as a whole, one after another.

    A suspicion is no verdict: clients may have sent nothing but bad inputs. The handler's own
    examples decide; only if they fail too does the breaker open.

    Args:
        options: After how many failures to suspect, and how long to wait between tries.

    Example:
        >>> breaker = Breaker(Restart(failures=2))
        >>> breaker.note(has_failed=True), breaker.note(has_failed=True)
        (False, True)
    """

    def __init__(self, options: Restart) -> None:
        self._options = options
        self._n_failures = 0
        self._n_waits = 0
        self.is_open = False
        """Whether the replica takes no work."""

    def note(self, *, has_failed: bool) -> bool:
        """Learn how a batch ended, and say whether the examples should be tried now."""
        self._n_failures = self._n_failures + 1 if has_failed else 0
        if self._n_failures < self._options.failures or self.is_open:
            return False
        self._n_failures = 0
        return True

    def open(self) -> float:
        """Learn that the examples failed, and say after how many seconds to try them again."""
        self.is_open = True
        self._n_waits += 1
        return backoff_s(self._n_waits - 1, self._options.backoff_s, self._options.max_backoff_s)

    def close(self) -> None:
        """Learn that the examples went well."""
        self.is_open = False
        self._n_failures = 0
        self._n_waits = 0
