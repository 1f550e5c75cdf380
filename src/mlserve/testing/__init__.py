"""The public test kit: a running server, a fake clock, an echo model."""

from mlserve.testing.clock import FakeClock
from mlserve.testing.echo import Echo, EchoHandler
from mlserve.testing.running import running

__all__ = ["Echo", "EchoHandler", "FakeClock", "running"]
