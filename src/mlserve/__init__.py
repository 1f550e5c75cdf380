"""
mlserve turns a model class into a production FastAPI application.

Write a `ModelHandler`, hand it to a `ModelServer`, and `build()` gives the application.
"""

from mlserve.cache import Cache
from mlserve.errors import (
    AbandonedError,
    BodyTimeoutError,
    BodyTooLargeError,
    CapacityError,
    ConfigurationError,
    ContextLengthError,
    DeadlineExceededError,
    DrainingError,
    InvalidInputError,
    InvalidJSONError,
    InvalidTimeoutError,
    MLServeError,
    ModelError,
    ModelFailedError,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelOutputError,
    OutOfMemoryError,
    OverloadedError,
    QueueFullError,
    ReplicaDiedError,
    RequestError,
    SchemaViolationError,
    UnsupportedMediaTypeError,
    UnsupportedParameterError,
)
from mlserve.functions import handler
from mlserve.handler import Call, Context, ModelHandler
from mlserve.http.guards import api_keys, feature_flag, rate_limit, require_flag
from mlserve.model import Model
from mlserve.payloads import Binary, Upload
from mlserve.server import ModelServer
from mlserve.settings import Batching, Cors, Limits, Replicas, Restart, ServerSettings
from mlserve.statistics import Statistics
from mlserve.stepped import Advance, SteppedHandler
from mlserve.traffic import Shadow

__version__ = "0.1.0"

__all__ = [
    "AbandonedError",
    "Advance",
    "Batching",
    "Binary",
    "BodyTimeoutError",
    "BodyTooLargeError",
    "Cache",
    "Call",
    "CapacityError",
    "ConfigurationError",
    "Context",
    "ContextLengthError",
    "Cors",
    "DeadlineExceededError",
    "DrainingError",
    "InvalidInputError",
    "InvalidJSONError",
    "InvalidTimeoutError",
    "Limits",
    "MLServeError",
    "Model",
    "ModelError",
    "ModelFailedError",
    "ModelHandler",
    "ModelNotFoundError",
    "ModelNotReadyError",
    "ModelOutputError",
    "ModelServer",
    "OutOfMemoryError",
    "OverloadedError",
    "QueueFullError",
    "ReplicaDiedError",
    "Replicas",
    "RequestError",
    "Restart",
    "SchemaViolationError",
    "ServerSettings",
    "Shadow",
    "Statistics",
    "SteppedHandler",
    "UnsupportedMediaTypeError",
    "UnsupportedParameterError",
    "Upload",
    "api_keys",
    "feature_flag",
    "handler",
    "rate_limit",
    "require_flag",
]
