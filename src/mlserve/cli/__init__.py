"""The command line: what `mlserve` and `python -m mlserve` do."""

from functools import partial
from typing import Annotated

import typer

import mlserve
from mlserve.cli import keys
from mlserve.cli.bench import bench
from mlserve.cli.check import check_server
from mlserve.cli.openapi import openapi
from mlserve.cli.progress import show_progress
from mlserve.cli.replay import replay
from mlserve.cli.target import Target, find, load_target
from mlserve.cli.tune import tune
from mlserve.http.runner import run_server
from mlserve.http.workers import run_workers

__all__ = ["app"]

app = typer.Typer(
    help="Serve machine-learning models over HTTP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(keys.app, name="keys")
app.command()(bench)
app.command()(openapi)
app.command()(replay)
app.command()(tune)


@app.command()
def run(
    target: Target,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 = any.")] = 8000,
    workers: Annotated[
        int, typer.Option(min=1, help="How many processes serve HTTP, on shared replicas.")
    ] = 1,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    timeout_keep_alive: Annotated[
        int, typer.Option(min=0, help="Seconds until an idle connection is closed.")
    ] = 5,
) -> None:
    """Serve until Ctrl+C or SIGTERM."""
    if log_level not in ("debug", "info", "warning", "error"):
        raise typer.BadParameter(f"--log-level must be debug, info, warning or error: {log_level}")
    found = find(target)
    if workers > 1:
        run_workers(
            partial(load_target, target),
            found.registry,
            workers=workers,
            host=host,
            port=port,
            log_level=log_level,
            timeout_keep_alive_s=timeout_keep_alive,
        )
        return
    with show_progress(found.registry):
        run_server(
            found.app,
            found.registry,
            host=host,
            port=port,
            log_level=log_level,
            timeout_keep_alive_s=timeout_keep_alive,
        )


@app.command()
def check(target: Target) -> None:
    """Load the models, warm them up, run their examples, print timings."""
    found = find(target)
    if found.server is None:
        raise typer.BadParameter("`mlserve check` needs a ModelServer, as reviews:server.")
    if not check_server(found.server):
        raise typer.Exit(1)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(mlserve.__version__)
