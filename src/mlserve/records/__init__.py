"""
Records of what was asked and answered, and the sinks that they go to once the answer is sent.

`ModelServer(sinks=[…])` has every request of every model recorded, `add(…, sinks=[…])` those of
one; `mlserve.integrations.sql.SqlSink` writes them to a database.
"""

from mlserve.records.callbacks import CallbackSink, EveryN
from mlserve.records.record import InferenceRecord
from mlserve.records.sink import Sink, SinkOptions

__all__ = ["CallbackSink", "EveryN", "InferenceRecord", "Sink", "SinkOptions"]
