"""What the load tests share."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _served_as_fast_as_users_have_it(unmeasured: None) -> None:
    """Have each server that is loaded do nothing but serve."""
