"""What a replica's process gets of the server's environment. Pure functions."""

import itertools
import re
from collections.abc import Collection, Mapping

from mlserve.errors import ConfigurationError
from mlserve.settings import ENVIRONMENT_PREFIX, Replicas

__all__ = ["replica_environment", "threads_for"]

# What the libraries that compute on the CPU read when they are loaded, and never again.
_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_CUDA = re.compile(r"cuda:(\d+)")

_WORKING_DIRECTORY = "PWD"  # is set by shells; `MYSQL_PWD` is a password
_SECRET = re.compile(
    r"""
    (?:PASSWORDS?|PASSWD|PASSPHRASE|SECRETS?|TOKEN|CREDENTIALS?|APIKEYS?) \d* (?:_|$)
    | (?:^|_) (?:PASS|PWD|AUTH|AUTHORIZATION|CREDS?|DSN|JWT|PAT|SSHPASS) \d* (?:_|$)
    | (?:^|_) (?:ACCESS|API|AUTH) _TOKENS (?:_|$)
    | (?:^|_) (?:ACCESS|API|PRIVATE|ENCRYPTION|SIGNING) _KEYS? \d* (?:_|$)
    | _KEYS? (?:_?\d+)? $
    | (?:^|_) (?:DATABASE|DB|POSTGRES|POSTGRESQL|PG|MYSQL|MONGO|MONGODB|REDIS|AMQP|RABBITMQ|BROKER
        |SQLALCHEMY|WEBHOOK) _UR[IL] (?:_|$)
    | (?:^|_) CONNECTION_STRING (?:_|$)
    """,
    re.VERBOSE,
)
"""
Words of names whose values are secrets, between underscores or the ends of the name; the words of
the first line may end a longer one, as in `PGPASSWORD`.
"""


def replica_environment(
    parent: Mapping[str, str], *, device: str, threads: int, keep: Collection[str]
) -> tuple[dict[str, str], str]:
    """
    Choose the environment of a replica's process, and the name its device has in there.

    The server's own settings stay behind, and what looks like a secret: a model is often code and
    data of somebody else. A process with an NVIDIA device sees only that one, as its first.

    Args:
        parent: The server's environment.
        device: The replica's device as the server calls it, such as `cpu` or `cuda:1`.
        threads: How many threads the numeric libraries should use.
        keep: Names that are passed on though they look like secrets.

    Raises:
        ConfigurationError: If the server's `CUDA_VISIBLE_DEVICES` does not have the device.
    """
    environment = {name: value for name, value in parent.items() if _may_pass(name, keep)}
    environment |= dict.fromkeys(_THREADS, str(threads))
    if match := _CUDA.fullmatch(device):
        environment[_VISIBLE] = _visible_device(parent.get(_VISIBLE), int(match[1]))
        device = "cuda:0"
    return environment, device


def threads_for(options: Replicas, *, n_cores: int) -> int:
    """Say how many compute threads each replica gets: its share of the cores, unless given."""
    if options.threads_per_replica is not None:
        return options.threads_per_replica
    return max(1, n_cores // options.max_count)


def _may_pass(name: str, keep: Collection[str]) -> bool:
    upper = name.upper()
    if upper.startswith(ENVIRONMENT_PREFIX):
        return False
    return name in keep or upper == _WORKING_DIRECTORY or not _SECRET.search(upper)


def _visible_device(visible: str | None, number: int) -> str:
    """Give the entry of a device's number; as CUDA does, ignore what follows a bad entry."""
    if visible is None:
        return str(number)
    entries = [entry.strip() for entry in visible.split(",")]
    devices = list(itertools.takewhile(lambda entry: entry not in ("", "-1"), entries))
    if number >= len(devices):
        raise ConfigurationError(
            f"There is no device `cuda:{number}`: `{_VISIBLE}={visible}` shows {len(devices)}."
            " Name others in `Replicas(devices=…)`, or show more."
        )
    return devices[number]
