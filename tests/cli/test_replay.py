"""`mlserve replay`: recorded requests on another version, from real databases."""

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.integrations.databases import ask, n_rows, postgres_url, sqlite_url
from typer.testing import CliRunner

from mlserve.cli import app
from mlserve.integrations.sql import SqlSink
from mlserve.records import SinkOptions
from mlserve.testing import running

MODULE = """
import os
import threading
from collections.abc import Iterator

from pydantic import BaseModel

from mlserve import ModelHandler, ModelServer


class Scored(BaseModel):
    label: str
    scores: list[float]


class Score(ModelHandler[str, Scored, str]):
    shift = 0.0

    def infer(self, inputs: list[str]) -> list[Scored]:
        return [Scored(label="<b>", scores=[0.5, len(text) + self.shift]) for text in inputs]

    def stream(self, item: str) -> Iterator[str]:
        yield from item.split()


class Near(Score):
    shift = 1e-9


class Far(Score):
    def infer(self, inputs: list[str]) -> list[Scored]:
        found = super().infer(inputs)
        for text, scored in zip(inputs, found):
            if text.startswith("odd"):
                scored.scores[1] += 0.25
        return found

    def stream(self, item: str) -> Iterator[str]:
        yield from reversed(item.split())


class Weak(Score):
    def infer(self, inputs: list[str]) -> list[Scored]:
        if any(text.startswith("odd") for text in inputs):
            raise RuntimeError("It is odd.")
        return super().infer(inputs)


class Broken(Score):
    def load(self) -> None:
        raise OSError("There are no weights.")


class Held(Score):
    def infer(self, inputs: list[str]) -> list[Scored]:
        if "odd 9" in inputs:
            print("held", flush=True)
            threading.Event().wait(20.0)
        return super().infer(inputs)


class Other(ModelHandler[int, int]):
    def infer(self, inputs: list[int]) -> list[int]:
        return inputs


near = ModelServer().add("score", Score).add("score", Near, version="v2")
far = ModelServer().add("score", Far)
weak = ModelServer().add("score", Weak)
broken = ModelServer().add("score", Broken)
held = ModelServer().add("score", Held)
other = ModelServer().add("other", Other)
changed = ModelServer().add("score", Other)
application = far.build()
"""

SINKING = """
from scoring import Score

from mlserve import ModelServer
from mlserve.integrations.sql import SqlSink

server = ModelServer(sinks=[SqlSink("sqlite+aiosqlite:///sunk.db")]).add("score", Score)
"""

MINILM = """
from mlserve import ModelServer
from mlserve.huggingface import TextEmbedding
from mlserve.huggingface.samples import minilm
from mlserve.tasks.embedding import Embedding


class Shifted(TextEmbedding):
    def postprocess(self, output):
        found = super().postprocess(output)
        if found.embedding[0] > 0.05:
            found.embedding[7] += 0.01
        return found


def same():
    return TextEmbedding(minilm())


def shifted():
    return Shifted(minilm())


server = ModelServer().add("minilm", same)
different = ModelServer().add("minilm", shifted)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "scoring.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("scoring", "sinking", "embedding_models"):
        sys.modules.pop(name, None)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield sqlite_url(tmp_path)
    else:
        with postgres_url() as found:
            yield found


@pytest.fixture
def recorded(tmp_path: Path) -> str:
    url = sqlite_url(tmp_path)
    record(url)
    return url


def record(url: str, version: str = "v1", **options: Any) -> None:
    """Ask for ten even and ten odd texts, two streams and one request that is malformed."""
    scoring = importlib.import_module("scoring")
    sink = SqlSink(url, options=SinkOptions(**{"keep_payloads": True, **options}))
    server = importlib.import_module("mlserve").ModelServer(sinks=[sink])
    with running(server.add("score", scoring.Score, version=version)) as client:
        for number in range(10):
            for kind in ("even", "odd"):
                client.post(
                    f"/{version}/models/score/predict",
                    json=f"{kind} {number}",
                    headers={"X-Request-Id": f"{kind}-{number}"},
                )
        for text in ("a b c", "alone"):
            client.post(f"/{version}/models/score/stream", json=text)
        client.post(f"/{version}/models/score/predict", json=[])


def replay(url: str, target: str, *arguments: str, expected: int = 0) -> str:
    command = ["replay", url, "--against", f"scoring:{target}", *arguments]
    if ":" in target:
        command[3] = target
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, command)
    assert result.exit_code == expected, (result.output, result.exception)
    return result.output


def replayed(url: str, target: str, *arguments: str, expected: int = 0) -> dict[str, Any]:
    replay(url, target, *arguments, "--json", "report.json", expected=expected)
    found: dict[str, Any] = json.loads(Path("report.json").read_text("utf-8"))
    return found


@pytest.mark.slow
def test_a_version_that_answers_the_same_but_for_the_last_digits_has_no_differences(
    url: str,
) -> None:
    record(url)

    report = replayed(url, "near", "--fail-above", "0")

    assert (report["version"], report["against"]) == ("v1", "v2")
    assert (report["requests"], report["same"]) == (22, 22)
    assert report["share"] == 0.0
    assert report["left_out"] == {}
    assert n_rows(url) == 23


@pytest.mark.slow
def test_what_differs_is_named_with_its_place_and_size(url: str) -> None:
    record(url)

    report = replayed(url, "far", "--fail-above", "0.4", expected=1)

    assert (report["requests"], report["different"], report["failed"]) == (22, 11, 0)
    places = {place["pattern"]: place for place in report["places"]}
    assert places["/scores/*"]["n_requests"] == 10
    assert places["/scores/*"]["absolute"] == pytest.approx(0.25)
    assert places["/scores/*"]["relative"] == pytest.approx(0.25 / 5.25)
    assert set(places["/scores/*"]["request_ids"]) <= {f"odd-{n}" for n in range(10)}
    assert places["/*"]["kinds"] == ["changed"]  # of the stream
    differing = {entry["request_id"] for entry in report["differing"]}
    assert {f"odd-{n}" for n in range(10)} < differing
    assert not any(request_id.startswith("even") for request_id in differing)


@pytest.mark.slow
def test_what_succeeded_and_fails_now_is_a_difference_with_its_code(recorded: str) -> None:
    printed = replay(recorded, "weak", "--fail-above", "0.6")
    report = replayed(recorded, "weak", "--fail-above", "0.4", expected=1)

    assert report["changes"] == {"200 → 500 model_error": 10}
    assert (report["failed"], report["different"]) == (10, 0)
    assert "200 → 500 model_error" in printed
    assert "odd-" in printed


@pytest.mark.slow
def test_a_version_that_takes_other_requests_fails_them_all(recorded: str) -> None:
    report = replayed(recorded, "changed")

    assert report["changes"] == {"200 → 422 validation_error": 20, "200 → 404 not_found": 2}
    assert report["share"] == 1.0


@pytest.mark.slow
def test_errors_are_replayed_if_all_are_meant(recorded: str) -> None:
    assert replayed(recorded, "near")["requests"] == 22

    report = replayed(recorded, "near", "--only", "all")

    assert (report["requests"], report["same"]) == (23, 23)


@pytest.mark.slow
def test_the_tolerance_may_be_none_and_large(recorded: str) -> None:
    exact = replayed(recorded, "near", "--rtol", "0", "--atol", "0")
    lax = replayed(recorded, "far", "--atol", "0.3")

    assert exact["different"] == 20
    assert lax["different"] == 1


@pytest.mark.slow
def test_the_latest_requests_are_taken_and_only_those_since_then(recorded: str) -> None:
    latest = replayed(recorded, "far", "--limit", "4")
    recent = replayed(recorded, "far", "--since", "1h")

    assert latest["requests"] == 4
    assert latest["different"] == 2  # a stream, odd 9; the other stream and even 9 are the same
    assert recent["requests"] == 22
    assert "--since" in replay(recorded, "far", "--since", "2999-01-01", expected=2)


@pytest.mark.slow
def test_of_several_versions_the_newest_is_meant_unless_one_is_named(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path)
    record(url, "v9")
    record(url, "v10")

    newest = replayed(url, "near", "--against-version", "v1", "--limit", "1")
    named = replayed(url, "near", "--version", "v9", "--limit", "1")

    assert (newest["version"], newest["against"]) == ("v10", "v1")
    assert (named["version"], named["against"]) == ("v9", "v2")
    assert "v9, v10" in replay(url, "near", "--version", "v3", expected=2)


@pytest.mark.slow
def test_redacted_values_are_not_compared_and_redacted_requests_are_noted(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path)
    record(url, redact=["label"])
    ask(url, """UPDATE mlserve_records SET request = '"[redacted]"' WHERE request_id = 'odd-3'""")

    report = replayed(url, "near")

    assert [entry["request_id"] for entry in report["differing"]] == ["odd-3"]
    [note] = report["notes"]
    assert note.startswith("Replayed with redacted values")
    assert note.endswith(": 1.")


@pytest.mark.slow
def test_refusals_and_requests_of_other_protocols_are_left_out(recorded: str) -> None:
    ask(
        recorded,
        "UPDATE mlserve_records SET status = 503, code = 'queue_full' WHERE request_id = 'odd-1'",
        """
        UPDATE mlserve_records
        SET request = '{"model": "score", "input": "x"}', response = '{"object": "list"}'
        WHERE request_id = 'odd-2'
        """,
        "UPDATE mlserve_records SET response = NULL WHERE request_id = 'odd-3'",
    )

    report = replayed(recorded, "near", "--only", "all")

    assert report["requests"] == report["same"] == 20
    assert sorted(report["left_out"].values()) == [1, 1, 1]
    assert "Left out: 1 without payloads" in replay(recorded, "near", "--only", "all")


class Seen(HTMLParser):
    """Notes what a page loads, and which of its elements there are."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "data")]


@pytest.mark.slow
def test_the_page_holds_all_it_needs_and_shows_what_clients_sent_as_text(recorded: str) -> None:
    ask(
        recorded,
        "UPDATE mlserve_records SET request_id = '<script>alert(1)</script>'"
        " WHERE request_id LIKE 'odd-%'",
    )

    replay(recorded, "far", "--html", "report.html")

    text = Path("report.html").read_text("utf-8")
    page = Seen(text)
    assert page.links == []
    assert "script" not in page.tags
    assert "&lt;script&gt;alert(1)" in text
    assert page.tags.count("svg") == 2
    assert "/scores/*" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "arguments", "words"),
    [
        ("near", ("--model", "other"), "no records of a model 'other', but of score"),
        ("near", ("--against-version", "v7"), "no model score v7, but score v1, score v2"),
        ("other", (), "no model score, but other v1"),
        ("near", ("--since", "yesterday"), "such as 30m, 24h or 7d"),
        ("near", ("--since", "999999999999d"), "such as 30m, 24h or 7d"),
        ("application", (), "must be a ModelServer"),
        ("nothing", (), "no attribute 'nothing'"),
        ("near", ("--html", "nowhere/report.html"), "no folder"),
    ],
)
def test_what_cannot_be_replayed_is_said_in_words(
    recorded: str, target: str, arguments: tuple[str, ...], words: str
) -> None:
    assert words in replay(recorded, target, *arguments, expected=2)


@pytest.mark.slow
def test_nothing_is_recorded_where_the_other_version_has_sinks(recorded: str, folder: Path) -> None:
    (folder / "sinking.py").write_text(SINKING, encoding="utf-8")

    replay(recorded, "sinking:server")

    assert not Path("sunk.db").exists()


@pytest.mark.slow
def test_a_replay_of_nothing_is_no_success(recorded: str) -> None:
    ask(recorded, "UPDATE mlserve_records SET status = 503, code = 'queue_full'")

    printed = replay(recorded, "near", "--only", "all", "--fail-above", "0", expected=2)

    assert "No record could be replayed: 23 refused" in printed


@pytest.mark.slow
def test_several_models_have_to_be_told_apart(recorded: str) -> None:
    ask(recorded, "UPDATE mlserve_records SET model = 'other' WHERE request_id = 'odd-1'")

    assert "records of other, score" in replay(recorded, "near", expected=2)
    assert replayed(recorded, "near", "--model", "score")["requests"] == 21


@pytest.mark.slow
def test_records_without_payloads_are_said_to_be_so(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path)
    record(url, keep_payloads=False)

    assert "SinkOptions(keep_payloads=True)" in replay(url, "near", expected=2)


@pytest.mark.slow
def test_models_that_cannot_be_loaded_end_it_with_3(recorded: str) -> None:
    assert "There are no weights." in replay(recorded, "broken", expected=3)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:///records.db", "It must look like 'sqlite+aiosqlite:///records.db'"),
        ("sqlite+aiosqlite:///none.db", "no readable file 'none.db'"),
        ("sqlite+aiosqlite:///scoring.py", "file is not a database"),
        ("postgresql+asyncpg://u:secret@127.0.0.1:1/x", "cannot be read"),
    ],
)
def test_a_database_that_cannot_be_read_is_said_in_words(url: str, words: str) -> None:
    printed = replay(url, "near", expected=2)

    assert words in printed
    assert "secret" not in printed
    assert not Path("none.db").exists()


def test_a_database_without_records_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "records.db").touch()

    assert "no such table" in replay(sqlite_url(tmp_path), "near", expected=2)


def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mlserve.integrations.sql", "mlserve.integrations.sql_records"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)

    assert "pip install 'mlserve[sql]'" in replay(sqlite_url(tmp_path), "near", expected=2)


@pytest.fixture
def heeded() -> Iterator[None]:
    """Heed interrupts: who runs these tests in the background ignores them, for children too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("heeded")
def test_an_interrupt_prints_what_there_is(recorded: str, folder: Path) -> None:
    command = [sys.executable, "-m", "mlserve", "replay", recorded]
    options = ["--against", "scoring:held", "--concurrency", "1", "--json", "report.json"]
    measured = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
    with subprocess.Popen(
        [*command, *options],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200", **measured},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            process.send_signal(signal.SIGINT)
            printed, complained = process.communicate(timeout=40)
        finally:
            process.kill()

    assert process.returncode == 130, complained
    assert "Interrupted" in printed
    assert json.loads((folder / "report.json").read_text("utf-8"))["requests"] == 2  # the streams


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_embeddings_of_a_real_model_are_the_same_unless_they_were_changed(
    url: str, folder: Path
) -> None:
    (folder / "embedding_models.py").write_text(MINILM, encoding="utf-8")
    models = importlib.import_module("embedding_models")
    sink = SqlSink(url, options=SinkOptions(keep_payloads=True))
    server = importlib.import_module("mlserve").ModelServer(sinks=[sink])
    words = "the quick brown fox jumps over a lazy dog while it rains in spain".split()
    texts = [" ".join(words[n % 7 : n % 7 + 1 + n % 9]) + f" {n}" for n in range(200)]
    changed = 0
    with running(server.add("minilm", models.same)) as client:
        for text in texts:
            answer = client.post("/v1/models/minilm/predict", json={"text": text})
            changed += answer.json()["embedding"][0] > 0.05

    same = replayed(url, "embedding_models:server", "--fail-above", "0")
    different = replayed(
        url, "embedding_models:different", "--fail-above", "0", "--html", "report.html", expected=1
    )

    assert (same["requests"], same["same"]) == (200, 200)
    assert same["infer_ms"]["new_median"] > 0
    assert 0 < changed < 200
    assert (different["requests"], different["different"]) == (200, changed)
    [place] = different["places"]
    assert place["pattern"] == "/embedding/*"
    assert place["absolute"] == pytest.approx(0.01, rel=1e-3)
