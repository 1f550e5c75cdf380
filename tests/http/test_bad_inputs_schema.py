"""What our own OpenAPI document promises is true of every operation, for right and wrong data."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, TypeAlias

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.http.bad_models import server_of_all
from tests.http.failures import Failures
from tests.http.wire import TALLY, Answered, complaint_of

from mlserve.testing import running

pytestmark = pytest.mark.slow

Operation: TypeAlias = APIOperation[Any, Any, Any, Any]
law = settings(
    max_examples=10,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
CONFORMANCE: list[CheckFunction] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
]


@pytest.fixture(scope="module")
def schema(failures: Failures) -> Iterator[BaseSchema]:
    with running(server_of_all()) as client:
        yield schemathesis.openapi.from_url(str(client.base_url.join("/openapi.json")))


def checks_of(operation: Operation, mode: GenerationMode) -> list[CheckFunction]:
    checks = list(CONFORMANCE)
    if "/stream" not in operation.path:  # there the schema is of a chunk, not of its event
        checks.append(response_schema_conformance)
    # Models have names that the schema does not tell, and pydantic's schema of decimal numbers
    # allows more than it takes.
    is_told = not operation.path.endswith(("{name}", "/typed/predict"))
    if mode is GenerationMode.POSITIVE and is_told:
        checks.append(positive_data_acceptance)
    return checks


def ask_all(operation: Operation, mode: GenerationMode, session: requests.Session) -> int:
    """Check the answers to what is made for an operation; give their number."""
    checks = checks_of(operation, mode)
    n_asked = 0

    @law
    @given(operation.as_strategy(mode))
    def ask(case: Case[Any]) -> None:
        nonlocal n_asked
        n_asked += 1
        response = case.call(session=session)
        case.validate_response(response, checks=checks)
        sent = f"{response.request.method} {response.request.url} {response.request.body!r}"
        TALLY.count(sent.encode(), response.status_code, len(response.content))
        if response.status_code >= 250:
            headers = {name: values[0] for name, values in response.headers.items()}
            answer = Answered(response.status_code, headers, response.content)
            assert complaint_of(answer, canary="no canary") is None

    with suppress(Unsatisfiable):  # where there is nothing that does not fit
        ask()
    return n_asked


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_answer_to_generated_data_is_as_documented(
    schema: BaseSchema, failures: Failures, mode: GenerationMode
) -> None:
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]

    with requests.Session() as session:
        n_asked = {operation.label: ask_all(operation, mode, session) for operation in operations}

    assert len(n_asked) >= 30
    assert sum(n_asked.values()) >= 250
    assert failures.seen() == []
