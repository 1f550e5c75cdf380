"""What a run was measured on, and what else the machine did."""

import os
import platform
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["Machine", "seen"]

_BUSY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine at the start of a run."""

    cpu: str
    n_cores: int
    python: str
    system: str
    date: str
    load_average: tuple[float, float, float]
    busy: tuple[str, ...]
    """Other processes that were computing, as `name 35 %`."""
    command: str
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    """The packages of each environment."""

    def as_markdown(self) -> str:
        """Say it in a few sentences."""
        ours = ", ".join(
            f"{name} {version}" for name, version in self.versions.get("here", {}).items()
        )
        peers = sorted(
            f"{name} {version}"
            for environment, found in self.versions.items()
            if environment != "here"
            for name, version in found.items()
            if name == environment
        )
        busy = ", ".join(self.busy) or "nothing to speak of"
        return (
            f"Measured on {self.date} by `{self.command}` on {self.n_cores} cores ({self.cpu}),"
            f" {self.system}, Python {self.python}.\n"
            f"Ours and FastAPI's: {ours}. Peers: {', '.join(peers) or 'none'}.\n"
            f"Load average at the start {self.load_average[0]:.2f}; beside it ran: {busy}."
        )


def seen(command: str) -> Machine:
    """Look around, for a second."""
    return Machine(
        cpu=_cpu(),
        n_cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        load_average=os.getloadavg(),
        busy=tuple(_busy()),
        command=command,
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _busy() -> list[str]:
    """Name other processes that take more than a twentieth of a core."""
    before = _cpu_ticks()
    time.sleep(_BUSY_S)
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    shares = [
        ((ticks - before[pid][1]) / ticks_per_s / _BUSY_S, name)
        for pid, (name, ticks) in _cpu_ticks().items()
        if pid in before and pid != os.getpid()
    ]
    return [f"{name} {share:.0%}" for share, name in sorted(shares, reverse=True) if share > 0.05]


def _cpu_ticks() -> dict[int, tuple[str, int]]:
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        name = stat.partition("(")[2].rpartition(")")[0]
        fields = stat.rpartition(")")[2].split()
        found[int(folder.name)] = (name, int(fields[11]) + int(fields[12]))
    return found
