"""
A long run of a real server: healthy requests, faults, clients that leave, reloads, all at once.

With `--kill-every` each replica is in a process of its own, and one is killed every so often. The
load is open: requests come at random times, however the server fares. Memory and descriptors of
the server's process are read once a second.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from tests.faults.client import Plan, Record, ask
from tests.faults.processes import APP, ServedProcess, serving
from tests.faults.table import FAULTS, MODES, Mode, new_plan

SLOPE_MB_PER_MIN = 1.0
SLOPE_NEEDS_S = 300.0
MORE_DESCRIPTORS = 5
RELOAD_EVERY_S = 5.0
REPORT_EVERY_S = 60.0
LEAST_SAMPLES = 3
SHARE_OF_FAULTS = 0.4


@dataclass(slots=True)
class Summary:
    """What a run has shown."""

    seed: int
    minutes: float
    sent: int = 0
    accepted: int = 0
    answered_once: int = 0
    lost: int = 0
    crossed: int = 0
    not_as_expected: int = 0
    faults: int = 0
    left: int = 0
    reloads: int = 0
    failed_reloads: int = 0
    kills: int = 0
    broken_streams: int = 0
    in_flight_at_end: int = 0
    exit_code: int | None = None
    rss_first_mb: float = 0.0
    rss_last_mb: float = 0.0
    rss_slope_mb_per_min: float = 0.0
    fds_min: int = 0
    fds_max: int = 0
    fds_growth: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """List why the run has failed; none = it has not."""
        is_long = self.minutes * 60 >= SLOPE_NEEDS_S
        found = {
            f"{self.lost} answers were lost": self.lost > 0,
            f"{self.crossed} answers were crossed": self.crossed > 0,
            f"{self.not_as_expected} healthy requests were not answered with 200": (
                self.not_as_expected > 0
            ),
            f"{self.failed_reloads} reloads failed": self.failed_reloads > 0,
            f"{self.in_flight_at_end} requests were left in flight": self.in_flight_at_end > 0,
            f"the server ended with {self.exit_code}": self.exit_code != 0,
            f"memory grows by {self.rss_slope_mb_per_min:.2f} MB/min": (
                is_long and self.rss_slope_mb_per_min >= SLOPE_MB_PER_MIN
            ),
            f"there are {self.fds_growth:g} more descriptors": self.fds_growth > MORE_DESCRIPTORS,
        }
        return [text for text, is_so in found.items() if is_so]


@dataclass(frozen=True, slots=True)
class Sample:
    """The server's process at one moment."""

    at_s: float
    rss_mb: float
    n_fds: int


class Soak:
    """
    One run.

    Args:
        served: The server.
        summary: What is counted.
        rate: Requests per second.
        kill_every_s: How often the process of a replica is killed, in seconds; 0 = never.
    """

    def __init__(
        self, served: ServedProcess, summary: Summary, rate: float, kill_every_s: float
    ) -> None:
        self._kill_every_s = kill_every_s
        self._served = served
        self._summary = summary
        self._rate = rate
        self._dice = random.Random(summary.seed)
        self._statuses: Counter[str] = Counter()
        self.samples: list[Sample] = []

    async def run(self) -> None:
        """Send requests for the whole time, then wait for their answers."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        end = started + self._summary.minutes * 60
        async with asyncio.TaskGroup() as group:
            watching = [
                group.create_task(self._sample(started)),
                group.create_task(self._report(end)),
            ]
            if self._kill_every_s:
                watching.append(group.create_task(self._kill()))
            reloading = group.create_task(self._reload(end))
            async with asyncio.TaskGroup() as requests:
                due = started
                while (due := due + self._dice.expovariate(self._rate)) < end:
                    await asyncio.sleep(due - loop.time())
                    requests.create_task(self._ask())
            await reloading
            await self._look_for_leftovers()
            for task in watching:
                task.cancel()
        self._summary.statuses = dict(sorted(self._statuses.items()))

    async def _ask(self) -> None:
        mode = self._dice.choice(MODES)
        record = await ask(self._served.port, self._plan(mode))
        summary = self._summary
        summary.sent += 1
        summary.faults += record.plan.is_faulty
        summary.left += record.has_left
        summary.accepted += record.is_accepted
        summary.answered_once += record.is_accepted and not record.is_lost
        summary.lost += record.is_lost
        summary.crossed += not record.is_own
        self._statuses[f"{record.status} {record.code or ''}".strip()] += 1
        # A stream cannot be begun anew once a part of it was sent.
        is_broken = self._kill_every_s > 0 and record.outcome == (200, "replica_died")
        summary.broken_streams += is_broken
        is_good = is_broken or record.outcome == (200, None)
        is_unexpected = not record.plan.is_faulty and not is_good
        summary.not_as_expected += is_unexpected
        if record.is_lost or not record.is_own or is_unexpected:
            complain(record)

    def _plan(self, mode: Mode) -> Plan:
        number = self._summary.sent
        if self._dice.random() < SHARE_OF_FAULTS:
            return self._dice.choice(FAULTS).request(mode, number, self._dice)
        return new_plan(mode, f"healthy-{number}", self._dice)

    async def _reload(self, end: float) -> None:
        loop = asyncio.get_running_loop()
        async with httpx2.AsyncClient(base_url=self._served.url, timeout=30) as client:
            while loop.time() + RELOAD_EVERY_S < end:
                await asyncio.sleep(RELOAD_EVERY_S)
                answer = await client.post(f"/reload/{self._dice.choice(MODES).name}")
                self._summary.reloads += 1
                self._summary.failed_reloads += answer.status_code != 200

    async def _kill(self) -> None:
        while True:
            await asyncio.sleep(self._kill_every_s)
            os.kill(self._dice.choice(children_of(self._served.process.pid)), signal.SIGKILL)
            self._summary.kills += 1

    async def _sample(self, started: float) -> None:
        loop = asyncio.get_running_loop()
        process = Path("/proc") / str(self._served.process.pid)
        while True:
            await asyncio.sleep(1.0)
            status = (process / "status").read_text(encoding="ascii")
            [rss_kb] = [line.split()[1] for line in status.splitlines() if "VmRSS" in line]
            n_fds = len(os.listdir(process / "fd"))
            self.samples.append(Sample(loop.time() - started, int(rss_kb) / 1024, n_fds))

    async def _report(self, end: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            summary, left_s = self._summary, end - loop.time()
            last = self.samples[-1]
            print(
                f"{summary.sent} sent, {summary.lost} lost, {summary.crossed} crossed,"
                f" {last.rss_mb:.1f} MB, {last.n_fds} descriptors, {max(left_s, 0) / 60:.1f}"
                " minutes left",
                flush=True,
            )

    async def _look_for_leftovers(self) -> None:
        """Count what is still in flight, once the streams that were left have had a second."""
        await asyncio.sleep(1.0)
        async with httpx2.AsyncClient(base_url=self._served.url, timeout=10) as client:
            for mode in MODES:
                found = (await client.get(f"/statistics/{mode.name}")).json()
                self._summary.in_flight_at_end += found["in_flight"] + found["queued"]


def children_of(pid: int) -> list[int]:
    """Give the processes that any thread of a process has started."""
    listed = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for children in listed for child in children.split()]


def complain(record: Record) -> None:
    print(f"NOT AS IT SHOULD BE: {record}", file=sys.stderr, flush=True)


def evaluate(summary: Summary, samples: list[Sample]) -> None:
    """Write into the summary how memory and descriptors went after the warm-up."""
    warm_up_s = min(60.0, samples[-1].at_s / 3)
    warm = [sample for sample in samples if sample.at_s >= warm_up_s]
    third = max(1, len(warm) // 3)
    summary.rss_first_mb = round(warm[0].rss_mb, 1)
    summary.rss_last_mb = round(warm[-1].rss_mb, 1)
    if len(warm) >= LEAST_SAMPLES:
        line = statistics.linear_regression([s.at_s / 60 for s in warm], [s.rss_mb for s in warm])
        summary.rss_slope_mb_per_min = round(line.slope, 3)
    summary.fds_min = min(sample.n_fds for sample in warm)
    summary.fds_max = max(sample.n_fds for sample in warm)
    first = statistics.median(sample.n_fds for sample in warm[:third])
    summary.fds_growth = statistics.median(sample.n_fds for sample in warm[-third:]) - first


def soak(minutes: float, seed: int, rate: float, kill_every_s: float = 0.0) -> Summary:
    """Run a server under load and say what came of it."""
    summary = Summary(seed, minutes)
    environment: dict[str, Any] = {
        "MLSERVE_ACCESS_LOG": "false",
        "FAULTS_PLACEMENT": "process" if kill_every_s else "thread",
    }
    with serving(APP, "--log-level", "error", **environment) as served:
        run = Soak(served, summary, rate, kill_every_s)
        asyncio.run(run.run())
        evaluate(summary, run.samples)
        served.process.terminate()
        summary.exit_code = served.process.wait(30)
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=60.0, help="requests per second")
    parser.add_argument("--kill-every", type=float, default=0.0, help="seconds; 0 = never")
    parser.add_argument("--json", type=Path, help="where to write the summary, too")
    options = parser.parse_args()
    summary = soak(options.minutes, options.seed, options.rate, options.kill_every)
    for name, value in asdict(summary).items():
        print(f"{name:24} {value}")
    if options.json:
        options.json.write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf-8")
    problems = summary.problems()
    print("\n".join(f"FAILED: {problem}." for problem in problems) or "All is as it should be.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
