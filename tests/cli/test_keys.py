"""`mlserve keys new`, and keys and the warning in a server that is run by the command."""

from pathlib import Path

import pytest
from tests.cli.projects import run_command, serving, write_project
from tests.http.waiting import until

from mlserve.access.keys import find_key, parse_keys

pytestmark = pytest.mark.slow

GUARDED = """
from fastapi import Depends
from mlserve import ModelServer, Replicas, api_keys
from mlserve.testing import EchoHandler



class Echo(EchoHandler):
    pass  # of this module, which the replica's process therefore imports


server = ModelServer(dependencies=[Depends(api_keys())])
server.add("echo", Echo, replicas=Replicas(placement="process"))
app = server.build()
"""


@pytest.mark.parametrize(
    ("options", "name", "scopes"),
    [
        ([], "key-1", {"infer"}),
        (["--name", "ci"], "ci", {"infer"}),
        (["--name", "ops", "--scope", "admin"], "ops", {"admin"}),
        (["--name", "ops", "--scope", "admin", "--scope", "infer"], "ops", {"admin", "infer"}),
    ],
)
def test_a_new_key_fits_the_entry_beside_it(
    tmp_path: Path, options: list[str], name: str, scopes: set[str]
) -> None:
    code, out, err = run_command(tmp_path, "keys", "new", *options)

    key, entry = (line.split()[1] for line in out.splitlines())
    (parsed,) = parse_keys([entry])
    assert code == 0
    assert key not in entry + err
    assert find_key([parsed], key.encode()) is parsed
    assert (parsed.name, set(parsed.scopes)) == (name, scopes)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--scope", "admin"], "needs a --name"),
        (["--name", "a", "--scope", "root"], "must be one of infer, admin"),
        (["--name", "two words"], "--name must be"),
    ],
)
def test_what_would_make_no_entry_is_refused(
    tmp_path: Path, options: list[str], reason: str
) -> None:
    code, out, err = run_command(tmp_path, "keys", "new", *options)

    assert (code, out) == (2, "")
    assert reason in " ".join(err.replace("│", " ").split())


def test_a_server_whose_keys_are_missing_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "guarded.py").write_text(GUARDED)

    code, _, err = run_command(tmp_path, "run", "guarded:server", "--port", "0")

    assert code == 2
    assert "No API key is configured" in err


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_guarded_server_runs_with_replicas_that_never_see_its_keys(
    tmp_path: Path, workers: str
) -> None:
    (tmp_path / "guarded.py").write_text(GUARDED)
    arguments = ["guarded:app", "--host", "0.0.0.0", "--workers", workers]  # noqa: S104

    with serving(tmp_path, *arguments, MLSERVE_API_KEYS="ci=canary-key-of-a-client") as served:
        _, port = served.address()
        with served.client() as client:
            client.base_url = f"http://127.0.0.1:{port}"
            until(lambda: client.get("/ready").status_code == 200)
            path, body = "/v1/models/echo/predict", {"text": "hello"}
            refused = client.post(path, json=body)
            admitted = client.post(path, json=body, headers={"X-API-Key": "canary-key-of-a-client"})

    assert (refused.status_code, admitted.json()) == (401, body)
    assert [line for line in served.lines if "canary" in line or "ANYBODY" in line] == []


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_open_server_in_the_network_says_so_at_its_start(tmp_path: Path, workers: str) -> None:
    write_project(tmp_path)
    arguments = ["reviews:server", "--host", "0.0.0.0", "--workers", workers]  # noqa: S104

    with serving(tmp_path, *arguments) as served:
        served.wait_for("ANYBODY WHO REACHES 0.0.0.0 MAY USE THIS SERVER")
        served.address()

    assert sum("ANYBODY" in line for line in served.lines) == 1
