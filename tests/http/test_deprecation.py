"""Versions that clients should leave: headers, OpenAPI, and what cannot be said."""

import logging
from datetime import UTC, date, datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tests.http.answers import error_of, events_of
from tests.http.releases import Raising, Second, Versioned, two_versions

from mlserve import ConfigurationError, ModelServer

BODY = {"text": "one two"}
SINCE, SUNSET = date(2026, 11, 1), date(2999, 1, 31)
HEADERS = ("deprecation", "sunset", "link")
LINK = '</v2/models/m/predict>; rel="successor-version"'


def deprecated(**options: Any) -> ModelServer:
    wanted: dict[str, Any] = {"since": SINCE, "sunset": SUNSET, "successor": "v2", "note": "Go on."}
    return two_versions().deprecate("v1", **(wanted | options))


def test_every_answer_of_the_version_tells_dates_and_successor() -> None:
    with TestClient(deprecated().build()) as client:
        answers = [
            client.post("/v1/models/m/predict", json=BODY),
            client.post("/v1/models/m/predict", json={}),
            client.post("/v1/models/m/predict", content="{"),
            client.post("/v1/models/m/stream", json=BODY),
            client.get("/v1/models/m/stream", params=BODY),
        ]

    assert [answer.status_code for answer in answers] == [200, 422, 415, 200, 200]
    events_of(answers[3])
    for answer in answers:
        assert answer.headers["deprecation"] == "@1793491200"
        assert parsedate_to_datetime(answer.headers["sunset"]).date() == SUNSET
        assert answer.headers["sunset"].endswith(" GMT")
        assert answer.headers["link"].endswith('>; rel="successor-version"')
    assert answers[0].headers["link"] == LINK
    assert answers[3].headers["link"] == LINK.replace("predict", "stream")


def test_a_handler_that_fails_and_a_server_that_drains_tell_it_too() -> None:
    server = ModelServer().add("m", Raising).add("m", Second, version="v2")
    server.deprecate("v1", successor="v2")

    with TestClient(server.build()) as client:
        failed = client.post("/v1/models/m/predict", json=BODY)
        server.registry.begin_drain()
        refused = client.post("/v1/models/m/predict", json=BODY)

    error_of(failed, 500, "model_error")
    error_of(refused, 503, "draining")
    assert failed.headers["link"] == refused.headers["link"] == LINK


def test_other_versions_and_paths_without_one_do_not_tell_it() -> None:
    server = deprecated().route("m", {"v1": 1.0})

    with TestClient(server.build()) as client:
        answers = [client.post(f"{v}/models/m/predict", json=BODY) for v in ("/v2", "")]

    assert not [name for answer in answers for name in HEADERS if name in answer.headers]


def test_without_a_date_the_version_is_deprecated_from_now_on() -> None:
    server = two_versions().deprecate("v1")

    with TestClient(server.build()) as client:
        answer = client.post("/v1/models/m/predict", json=BODY)

    since = datetime.fromtimestamp(int(answer.headers["deprecation"].removeprefix("@")), UTC)
    assert datetime.now(UTC) - since < timedelta(minutes=1)
    assert not {"sunset", "link"} & answer.headers.keys()


def test_one_model_may_be_meant_and_goes_before_all() -> None:
    server = two_versions().add("other", Versioned)
    server.deprecate("v1", note="All.").deprecate("v1", name="m", successor="v2", note="One.")

    with TestClient(server.build()) as client:
        one = client.post("/v1/models/m/predict", json=BODY)
        other = client.post("/v1/models/other/predict", json=BODY)
        paths = client.get("/openapi.json").json()["paths"]

    assert one.headers["link"] == LINK
    assert "deprecation" in other.headers
    assert "link" not in other.headers
    assert "One." in paths["/v1/models/m/predict"]["post"]["description"]
    assert "All." in paths["/v1/models/other/predict"]["post"]["description"]


def test_the_link_leads_to_where_the_models_are_mounted() -> None:
    server = deprecated()
    inside = FastAPI()
    server.install(inside, prefix="/ml")
    outside = FastAPI()
    outside.mount("/api", inside)

    with TestClient(inside), TestClient(outside) as client:
        answer = client.post("/api/ml/v1/models/m/predict", json=BODY)

    assert answer.status_code == 200
    assert answer.headers["link"] == LINK.replace("</v2", "</api/ml/v2")


def test_openapi_marks_its_operations_and_tells_note_and_changes() -> None:
    server = ModelServer().add("m", Versioned)
    server.add("m", Second, version="v2", changes="`score` is a **share** now.")
    server.deprecate("v1", since=SINCE, sunset=SUNSET, successor="v2", note="Go on.")

    paths = server.build().openapi()["paths"]

    for path, method in (("predict", "post"), ("stream", "post"), ("stream", "get")):
        first = paths[f"/v1/models/m/{path}"][method]
        second = paths[f"/v2/models/m/{path}"][method]
        assert first["deprecated"] is True
        assert first["description"] == (
            "**Deprecated** since 2026-11-01. May be gone from 2999-01-31 on. Use `v2`. Go on."
        )
        assert "deprecated" not in second
        assert second["description"] == "**Changes in v2**: `score` is a **share** now."


def test_a_version_that_should_be_gone_is_served_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A server must not refuse to start on the day after."""
    server = two_versions()
    caplog.set_level(logging.WARNING, "mlserve")

    server.deprecate("v1", sunset=date(2020, 1, 1))

    with TestClient(server.build()) as client:
        answer = client.post("/v1/models/m/predict", json=BODY)
    assert "version.sunset.passed" in caplog.text
    assert answer.headers["sunset"] == "Wed, 01 Jan 2020 00:00:00 GMT"
    assert answer.headers["deprecation"] == "@1577836800"  # never after the sunset


def test_a_moment_may_be_given_in_any_time_zone() -> None:
    sunset = datetime(2999, 1, 31, 1, 30, tzinfo=timezone(timedelta(hours=2)))

    with TestClient(deprecated(sunset=sunset).build()) as client:
        answer = client.post("/v1/models/m/predict", json=BODY)

    assert answer.headers["sunset"] == "Wed, 30 Jan 2999 23:30:00 GMT"


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("v3", {}, "no version 'v3'"),
    ("v1", {"successor": "v3"}, "no version 'v3'"),
    ("v1", {"successor": "v1"}, "another version"),
    ("v1", {"name": "n"}, "no version 'v1' of model 'n'"),
    ("v1", {"since": date(2026, 1, 2), "sunset": date(2026, 1, 1)}, "must not be before"),
    ("v1", {"sunset": "2999-01-01"}, "must be a date"),
    ("v1", {"sunset": datetime(2999, 1, 1)}, "must have a time zone"),  # noqa: DTZ001 - that it has none
]


@pytest.mark.parametrize(("version", "options", "message"), WRONG)
def test_what_cannot_be_is_refused_in_words(
    version: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        two_versions().deprecate(version, **options)


def test_a_built_application_stays_as_it_is() -> None:
    server = two_versions()
    server.build()

    with pytest.raises(ConfigurationError, match="`add`, `use`"):
        server.deprecate("v1")
