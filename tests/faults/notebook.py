"""What models note and tests read, and the other way round, whichever processes they are in."""

import os
from dataclasses import dataclass
from pathlib import Path

from tests.http.waiting import until


@dataclass(frozen=True, slots=True)
class Notebook:
    """Notes by topic: one file each in a folder that whoever has the notebook may write into."""

    folder: Path

    def note(self, topic: str, *texts: str) -> None:
        """Add a line for each text, or an empty one; what is noted at once stays together."""
        lines = "".join(f"{text}\n" for text in texts or ("",))
        descriptor = os.open(self.folder / topic, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(descriptor, lines.encode())
        finally:
            os.close(descriptor)

    def read(self, topic: str) -> list[str]:
        """Give what was noted, in its order."""
        try:
            return (self.folder / topic).read_text("utf-8").splitlines()
        except FileNotFoundError:
            return []

    def has(self, topic: str) -> bool:
        return (self.folder / topic).exists()

    def wait_for(self, topic: str, timeout_s: float = 10.0) -> None:
        """Wait until anything is noted."""
        until(lambda: self.has(topic), timeout_s)
