"""The bodies that mlserve itself answers with, as OpenAPI shows them."""

from typing import Any

from pydantic import BaseModel, ConfigDict

__all__ = ["ErrorBody", "ErrorInfo", "HealthBody", "ModelInfo", "ModelList", "ReadyBody"]


class ErrorInfo(BaseModel):
    """What went wrong."""

    code: str
    type: str
    message: str
    request_id: str
    retry_after_s: float | None = None
    param: str | None = None


class ErrorBody(BaseModel):
    """The one body of every error; `detail` stands there for schema violations only."""

    error: ErrorInfo
    detail: list[dict[str, Any]] | None = None


class HealthBody(BaseModel):
    """The process accepts connections."""

    status: str = "ok"


class ModelReadiness(BaseModel):
    """One model's readiness."""

    name: str
    version: str
    state: str
    reason: str | None = None
    progress: float
    note: str | None = None


class SinkReadiness(BaseModel):
    """How one sink of records does."""

    name: str
    state: str
    waiting: int
    written: int
    dropped: int
    failed: int


class ReadyBody(BaseModel):
    """Whether every model is loaded and warm, and why not."""

    status: str
    models: list[ModelReadiness]
    error: ErrorInfo | None = None
    sinks: list[SinkReadiness] | None = None
    troubles: dict[str, str] | None = None


class ModelInfo(BaseModel):
    """One model, in the shape of OpenAI's list with more facts."""

    model_config = ConfigDict(protected_namespaces=())

    id: str
    object: str = "model"
    created: int
    owned_by: str = "mlserve"
    version: str
    versions: list[str]
    state: str
    routes: dict[str, str]
    request_schema: dict[str, Any]
    example: Any = None
    statistics: dict[str, Any]


class ModelList(BaseModel):
    """The models of one version."""

    object: str = "list"
    data: list[ModelInfo]
