"""Guards: FastAPI dependencies that say who may ask, how much and for what."""

from mlserve.http.guards.flags import feature_flag, require_flag
from mlserve.http.guards.keys import api_keys
from mlserve.http.guards.rates import rate_limit

__all__ = ["api_keys", "feature_flag", "rate_limit", "require_flag"]
