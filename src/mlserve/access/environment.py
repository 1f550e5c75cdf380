"""What the guards read of the environment: kept out of the settings, which hold no secrets."""

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from mlserve.settings import ENVIRONMENT_PREFIX

__all__ = ["Secrets", "read_secrets"]


class Secrets(BaseSettings):
    """Secrets of the server: from `MLSERVE_…` variables, else the file `.env`."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, env_file=".env", extra="ignore", frozen=True
    )

    api_keys: SecretStr | None = None
    """The keys of clients, with commas in between; see `mlserve.access.keys`."""


def read_secrets() -> Secrets:
    """Read them."""
    return Secrets()
