"""
Running recorded requests once more, on another version of a model, and comparing the answers.

`mlserve replay` is this as a command.
"""

from mlserve.replay.comparing import Answer, Gap, Outcome, Tolerance, judged
from mlserve.replay.page import page
from mlserve.replay.report import Report, reported
from mlserve.replay.running import Tally, replay

__all__ = [
    "Answer",
    "Gap",
    "Outcome",
    "Report",
    "Tally",
    "Tolerance",
    "judged",
    "page",
    "replay",
    "reported",
]
