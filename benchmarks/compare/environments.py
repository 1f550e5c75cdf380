"""A virtual environment for each peer, made from PyPI once and kept."""

import hashlib
import subprocess
import sys
from pathlib import Path

__all__ = ["NotInstalledError", "python_of", "versions_of"]

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "benchmarks" / "peers"
_STAMP = "installed"


class NotInstalledError(Exception):
    """A peer cannot be installed here; the message says why."""


def python_of(peer: str | None, cache: Path, *, with_encoder: bool = False) -> Path:
    """
    Give the interpreter that runs a peer, and install the peer first if it is not there.

    Args:
        peer: The name of its requirements in `benchmarks/peers`; `None` = what runs this.
        cache: Where the environments are kept.
        with_encoder: Whether it also needs torch and transformers.

    Raises:
        NotInstalledError: If pip fails.
    """
    if peer is None:
        return Path(sys.executable)
    folder = cache / peer
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making the environment of {peer} in {folder}", flush=True)
        _run([sys.executable, "-m", "venv", str(folder)])
    _install(python, peer, [])
    if with_encoder:
        _install(python, "encoder", ["-c", str(ROOT / "constraints.txt")])
    return python


def versions_of(python: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Give the versions of some packages, as an interpreter sees them; absent ones are left out."""
    code = (
        "import importlib.metadata as m, sys\n"
        "for d in m.distributions():\n"
        "    if d.name.lower() in sys.argv[1:]: print(d.name.lower(), d.version)\n"
    )
    found = _run([str(python), "-c", code, *names])
    return dict(line.split() for line in sorted(set(found.splitlines())))


def _install(python: Path, name: str, options: list[str]) -> None:
    requirements = PEERS / f"{name}.txt"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    stamp = python.parents[1] / f"{_STAMP}-{name}"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    print(f"installing {requirements.name} for {python}", flush=True)
    _run([str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements), *options])
    stamp.write_text(wanted, encoding="utf-8")


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
        raise NotInstalledError(f"`{' '.join(command[1:4])}` failed: {last[-1]}")
    return done.stdout
