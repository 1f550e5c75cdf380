"""A server that speaks the protocol, and the real client of it."""

from collections.abc import Iterator
from functools import partial

import openai
import pytest
from tests.protocols.openai.parrot import Heard, Lengths, Parrot

from mlserve import Batching, ModelServer, Replicas
from mlserve.protocols.openai import OpenAIProtocol
from mlserve.testing import EchoHandler, running


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def server(heard: Heard) -> ModelServer:
    server = ModelServer().use(OpenAIProtocol())
    server.add("parrot", partial(Parrot, heard), replicas=Replicas(count=1))
    server.add("lengths", Lengths, batching=Batching(max_size=4))
    return server.add("echo", EchoHandler)


@pytest.fixture
def url(server: ModelServer) -> Iterator[str]:
    with running(server) as http:
        yield str(http.base_url)


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client
