"""The built application, and the models in an application that a user has already."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.testclient import TestClient
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send
from tests.http.answers import error_of

from mlserve import ConfigurationError, Model, ModelHandler, ModelServer
from mlserve.testing import EchoHandler

HELLO = {"text": "hello"}


def noting(events: list[str]) -> type[ModelHandler[str, str]]:
    class Noting(ModelHandler[str, str]):
        def load(self) -> None:
            events.append("load")

        def infer(self, inputs: list[str]) -> list[str]:
            return inputs

        def unload(self) -> None:
            events.append("unload")

    return Noting


def lifespan_of(events: list[str], name: str, state: Any = None) -> Callable[[Any], Any]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        events.append(f"{name} opened")
        yield state
        events.append(f"{name} closed")

    return lifespan


def test_the_users_lifespan_is_entered_before_the_load_and_left_after_the_unload() -> None:
    events: list[str] = []
    server = ModelServer(lifespan=lifespan_of(events, "pool")).add("m", noting(events))

    with TestClient(server.build()):
        events.append("serving")

    assert events == ["pool opened", "load", "serving", "unload", "pool closed"]


def test_the_users_lifespan_gives_state_to_requests() -> None:
    server = ModelServer(lifespan=lifespan_of([], "pool", {"pool": 7})).add("echo", EchoHandler)
    app = server.build()

    @app.get("/pool")
    async def pool(request: Request) -> int:
        return int(request.state.pool)

    with TestClient(app) as client:
        assert client.get("/pool").json() == 7


def test_the_models_are_unloaded_when_the_users_lifespan_fails_to_close() -> None:
    events: list[str] = []

    @asynccontextmanager
    async def fragile(app: FastAPI) -> AsyncIterator[None]:
        yield
        raise OSError("The pool is gone.")

    server = ModelServer(lifespan=fragile).add("m", noting(events))
    with pytest.raises(OSError, match="gone"), TestClient(server.build()):
        pass

    assert events == ["load", "unload"]


def test_an_application_can_be_started_again() -> None:
    events: list[str] = []
    app = ModelServer().add("m", noting(events)).build()

    for _ in range(2):
        with TestClient(app) as client:
            answer = client.post("/v1/models/m/predict", json="a")
            ready = client.get("/ready")
            assert (answer.status_code, ready.status_code) == (200, 200)

    assert events == ["load", "unload"] * 2


def test_an_application_can_be_started_again_after_a_load_that_failed() -> None:
    events: list[str] = []

    class Flaky(ModelHandler[str, str]):
        def load(self) -> None:
            events.append("load")
            if events.count("load") == 1:
                raise OSError("no weights yet")

        def infer(self, inputs: list[str]) -> list[str]:
            return inputs

        def unload(self) -> None:
            events.append("unload")

    app = ModelServer().add("m", Flaky).build()
    with pytest.raises(OSError, match="no weights yet"), TestClient(app):
        pass
    with TestClient(app) as client:
        answer = client.post("/v1/models/m/predict", json="a")

    assert answer.json() == "a"
    assert events == ["load", "unload", "load", "unload"]


def test_the_models_stand_in_the_applications_state() -> None:
    one = ModelServer().add("echo", EchoHandler)
    two = ModelServer().add("a", EchoHandler).add("a", EchoHandler, version="v2")
    two.add("b", EchoHandler)

    assert one.build().state.model is one.model_for("echo")
    state = two.build().state
    assert state.models == {"a": two.model_for("a", "v2"), "b": two.model_for("b")}
    assert not hasattr(state, "model")


class Marking:
    """A user's pure ASGI middleware."""

    def __init__(self, app: ASGIApp, mark: str, seen: list[str]) -> None:
        self.app, self.mark, self.seen = app, mark, seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.seen.append(self.mark)
        await self.app(scope, receive, send)


def test_the_users_middleware_stands_around_the_routes_outermost_first() -> None:
    seen: list[str] = []
    middleware = [Middleware(Marking, mark=mark, seen=seen) for mark in ("outer", "inner")]
    server = ModelServer(middleware=middleware).add("echo", EchoHandler)

    with TestClient(server.build()) as client:
        answer = client.post("/v1/models/echo/predict", json=HELLO)

    assert answer.json() == HELLO
    assert seen == ["outer", "inner"]


def test_an_exception_of_the_users_middleware_has_our_body() -> None:
    async def broken(request: Request, call_next: Any) -> Any:
        raise RuntimeError("/srv/secret")

    middleware = [Middleware(BaseHTTPMiddleware, dispatch=broken)]
    with TestClient(ModelServer(middleware=middleware).add("e", EchoHandler).build()) as client:
        answer = client.post("/v1/models/e/predict", json=HELLO)

    error_of(answer, 500, "internal_error")
    assert "secret" not in answer.text


def test_middleware_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Middleware"):
        ModelServer(middleware=[Marking])  # type: ignore[list-item]  # the mistake


def host_app(events: list[str] | None = None, **options: Any) -> FastAPI:
    """Make an application with routes and error bodies of its own."""
    lifespan = lifespan_of(events, "host", {"db": 1}) if events is not None else None
    app = FastAPI(lifespan=lifespan, **options)

    @app.get("/own")
    async def own(status: int = 200) -> str:
        if status == 500:
            raise RuntimeError("own trouble")
        if status != 200:
            raise HTTPException(status, "own words")
        return "own"

    return app


def test_installed_models_load_inside_the_hosts_lifespan() -> None:
    events: list[str] = []
    app = host_app(events)
    ModelServer(lifespan=lifespan_of(events, "ours")).add("m", noting(events)).install(app)

    with TestClient(app) as client:
        events.append(client.post("/v1/models/m/predict", json="served").json())

    assert events == [
        "host opened",
        "ours opened",
        "load",
        "served",
        "unload",
        "ours closed",
        "host closed",
    ]


def test_the_hosts_lifespan_state_is_kept() -> None:
    app = host_app([])
    ModelServer().add("echo", EchoHandler).install(app)

    @app.get("/db")
    async def db(request: Request) -> int:
        return int(request.state.db)

    with TestClient(app) as client:
        assert client.get("/db").json() == 1


def test_the_hosts_routes_keep_their_own_error_bodies() -> None:
    app = host_app()
    ModelServer().add("echo", EchoHandler).install(app, prefix="/ml")

    with TestClient(app, raise_server_exceptions=False) as client:
        raised = client.get("/own", params={"status": 409})
        invalid = client.get("/own", params={"status": "x"})
        unknown = client.get("/nowhere")
        broken = client.get("/own", params={"status": 500})

    assert raised.json() == {"detail": "own words"}
    assert invalid.json()["detail"][0]["input"] == "x"
    assert unknown.json() == {"detail": "Not Found"}
    assert (broken.status_code, broken.text) == (500, "Internal Server Error")


def test_the_hosts_handlers_answer_its_routes_and_ours_the_models() -> None:
    app = host_app()

    for kind in (HTTPException, RequestValidationError, Exception):

        @app.exception_handler(kind)
        async def own_body(request: Request, error: Exception) -> JSONResponse:
            return JSONResponse({"own": type(error).__name__}, 418)

    ModelServer().add("echo", EchoHandler).install(app, prefix="/ml")
    with TestClient(app, raise_server_exceptions=False) as client:
        own = [
            client.get("/own", params={"status": status}).json()["own"]
            for status in (409, 500, "x")
        ]
        error_of(client.post("/ml/v1/models/echo/predict", json=1), 422, "validation_error")
        error_of(client.post("/ml/v1/models/x/predict", json=1), 404, "model_not_found")
        error_of(client.put("/ml/models/echo/predict"), 405, "method_not_allowed")

    assert own == ["HTTPException", "RuntimeError", "RequestValidationError"]


@pytest.mark.parametrize("path", ["/ml/v1/models/unknown", "/ml/v1/models/unknown/stream"])
def test_an_unknown_model_of_an_installed_server_is_not_found(path: str) -> None:
    app = host_app()
    ModelServer().add("echo", EchoHandler).install(app, prefix="/ml")

    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.get(path)

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/v1/models", "/v1/models/echo", "/playground"]
)
def test_a_prefix_stands_before_every_route(path: str) -> None:
    app = host_app()
    ModelServer().add("echo", EchoHandler).install(app, prefix="/ml")

    with TestClient(app) as client:
        assert client.get("/ml" + path).status_code == 200
        assert client.get(path).status_code == 404


def test_the_listing_of_installed_models_names_their_real_routes() -> None:
    app = host_app()
    ModelServer().add("echo", EchoHandler).install(app, prefix="/ml")

    with TestClient(app) as client:
        routes = client.get("/ml/v1/models/echo").json()["routes"]
        answer = client.post(routes["predict"], json=HELLO)

    assert answer.json() == HELLO


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/health"), ("GET", "/{anything:path}"), ("POST", "/v1/models/{name}/predict")],
)
def test_a_path_that_is_taken_is_refused(method: str, path: str) -> None:
    app = FastAPI()
    app.add_api_route(path, lambda: None, methods=[method])

    with pytest.raises(ConfigurationError, match="is taken in the application"):
        ModelServer().add("echo", EchoHandler).install(app)


def test_a_path_with_another_method_is_not_taken() -> None:
    app = FastAPI()
    app.add_api_route("/v1/models/echo/predict", lambda: "page", methods=["GET"])
    ModelServer().add("echo", EchoHandler).install(app)

    with TestClient(app) as client:
        page = client.get("/v1/models/echo/predict")
        answer = client.post("/v1/models/echo/predict", json=HELLO)

    assert (page.json(), answer.json()) == ("page", HELLO)


def test_the_hosts_dependencies_and_middleware_apply_to_the_models() -> None:
    seen: list[str] = []

    def guard(request: Request) -> None:
        if "x-key" not in request.headers:
            raise HTTPException(401, "Key?")

    app = host_app(dependencies=[Depends(guard)])
    app.add_middleware(Marking, mark="host", seen=seen)
    ModelServer().add("echo", EchoHandler).install(app)

    with TestClient(app) as client:
        refused = client.post("/v1/models/echo/predict", json=HELLO)
        answer = client.post("/v1/models/echo/predict", json=HELLO, headers={"X-Key": "a"})

    error_of(refused, 401, "unauthorized")
    assert answer.json() == HELLO
    assert seen == ["host", "host"]


def test_installed_models_are_injected_into_the_hosts_endpoints() -> None:
    app = host_app()
    server = ModelServer().add("echo", EchoHandler)
    server.install(app)

    @app.get("/shout")
    async def shout(text: str, model: Annotated[Model, Depends(server.model("echo"))]) -> str:
        return str((await model.predict({"text": text})).text).upper()

    @app.get("/state", response_class=PlainTextResponse)
    async def state(request: Request) -> str:
        return str(request.app.state.models["echo"].state)

    with TestClient(app) as client:
        assert client.get("/shout", params={"text": "hi"}).json() == "HI"
        assert client.get("/state").text == "ready"


def test_installed_models_stand_in_the_hosts_openapi() -> None:
    app = host_app()
    ModelServer().add("echo", EchoHandler).install(app, prefix="/ml")

    assert {"/own", "/ml/v1/models/echo/predict", "/ml/health"} <= app.openapi()["paths"].keys()


@pytest.mark.parametrize("prefix", ["ml", "/", "/ml/", "/{name}", "//ml", "/a b"])
def test_a_prefix_that_is_no_path_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="prefix"):
        ModelServer().add("echo", EchoHandler).install(FastAPI(), prefix=prefix)


def test_two_servers_share_an_application_under_two_prefixes() -> None:
    app = FastAPI()
    ModelServer().add("a", EchoHandler).install(app, prefix="/x")
    ModelServer().add("b", EchoHandler).install(app, prefix="/y")

    with TestClient(app) as client:
        answers = [
            client.post(f"/{prefix}/v1/models/{name}/predict", json=HELLO).status_code
            for prefix, name in (("x", "a"), ("y", "b"), ("x", "b"))
        ]

    assert answers == [200, 200, 404]
    assert app.state.models.keys() == {"a", "b"}


def test_models_belong_to_one_application_only() -> None:
    installed = ModelServer().add("echo", EchoHandler)
    installed.install(FastAPI())
    built = ModelServer().add("echo", EchoHandler)
    built.build()

    with pytest.raises(ConfigurationError):
        installed.build()
    with pytest.raises(ConfigurationError):
        installed.install(FastAPI())
    with pytest.raises(ConfigurationError):
        built.install(FastAPI())


@pytest.mark.parametrize("path", ["/ml/health", "/ml/ready", "/ml/v1/models", "/ml/v1/models/echo"])
def test_a_wrong_method_of_an_installed_plain_route_has_our_body(path: str) -> None:
    app = host_app()
    ModelServer().add("echo", EchoHandler).install(app, prefix="/ml")

    with TestClient(app) as client:
        answer = client.post(path)

    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    assert answer.json()["error"]["code"] == "method_not_allowed"


def test_the_states_of_both_lifespans_are_there_for_requests() -> None:
    app = host_app([])
    server = ModelServer(lifespan=lifespan_of([], "ours", {"pool": 7})).add("echo", EchoHandler)
    server.install(app)

    @app.get("/state")
    async def state(request: Request) -> list[int]:
        return [request.state.db, request.state.pool]

    with TestClient(app) as client:
        assert client.get("/state").json() == [1, 7]


@pytest.mark.parametrize("name", ["a", "b"])
def test_an_application_with_two_models_names_none_as_its_only_one(name: str) -> None:
    app = FastAPI()
    first = ModelServer().add("a", EchoHandler)
    first.install(app, prefix="/x")
    assert app.state.model is first.model_for("a")

    ModelServer().add(name, EchoHandler).install(app, prefix="/y")

    assert not hasattr(app.state, "model")
