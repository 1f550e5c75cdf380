"""What the load tests share."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _served_as_fast_as_users_have_it(unmeasured: None) -> None:
    """Have each server in a process of its own do nothing but serve."""


@pytest.fixture(autouse=True)
def _as_fast_as_users_have_it(untraced: None) -> None:
    """Have servers of this process do nothing but serve, too."""
