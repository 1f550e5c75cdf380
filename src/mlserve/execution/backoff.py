"""How long to wait before what has failed is tried again. Pure."""

__all__ = ["backoff_s"]

# The largest power of two that a float can hold; any wait is beyond its bound by then.
_MOST_DOUBLINGS = 1023


def backoff_s(n_waits: int, first_s: float, max_s: float) -> float:
    """
    Say how long to wait before the next try: twice as long each time, up to a bound.

    Args:
        n_waits: How many waits there were before this one.
        first_s: How long the first one is, in seconds.
        max_s: How long the longest one is, in seconds; not less than the first.

    Example:
        >>> [backoff_s(n_waits, 1.0, 5.0) for n_waits in range(4)]
        [1.0, 2.0, 4.0, 5.0]
    """
    return min(first_s * 2.0 ** min(n_waits, _MOST_DOUBLINGS), max_s)
