"""Whatever is sent, the answer is one small error of the common shape, and the line lives on."""

from collections.abc import Iterator

import httpx2
import pytest
from tests.http.bad_inputs import FAMILIES
from tests.http.bad_models import HEALTHY, server_of_all
from tests.http.failures import Failures
from tests.http.malformed import MALFORMED
from tests.http.wire import Line

from mlserve.testing import running

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(failures: Failures) -> Iterator[httpx2.Client]:
    with running(server_of_all()) as client:
        yield client


@pytest.mark.parametrize("family", FAMILIES)
def test_each_bad_input_gets_one_small_answer_on_a_line_that_lives_on(
    client: httpx2.Client, failures: Failures, family: str
) -> None:
    complaints = {}
    with Line(client, HEALTHY) as line:
        for name, request, statuses in FAMILIES[family]():
            if complaint := line.complaint(request, statuses):
                complaints[name] = complaint

    assert complaints == {}
    assert failures.seen() == []


def test_the_corpus_holds_thousands_of_different_bad_inputs() -> None:
    requests = {
        hash(bad.request)
        for make in FAMILIES.values()
        for bad in make()
        if 200 not in bad.statuses  # these are bad whatever the model
    }

    assert len(requests) + len(MALFORMED) >= 3_000
