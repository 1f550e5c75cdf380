"""`mlserve keys`: API keys for `api_keys()`."""

from typing import Annotated

import typer

from mlserve.access.keys import NAME, SCOPES, new_key

__all__ = ["app"]

app = typer.Typer(help="Make API keys.", no_args_is_help=True)


@app.callback()
def keys() -> None:
    """Make API keys."""


@app.command()
def new(
    name: Annotated[
        str | None, typer.Option(help="What records and logs call the key, as ci.")
    ] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="What it is for: infer or admin; may be given twice.")
    ] = None,
) -> None:
    """Print a new key, for a client, and the entry to configure, which is no secret."""
    scopes = scope or []
    for wanted in scopes:
        if wanted not in SCOPES:
            raise typer.BadParameter(f"--scope must be one of {', '.join(SCOPES)}: {wanted}")
    if name is not None and not NAME.fullmatch(name):
        raise typer.BadParameter(
            "--name must be 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or"
            f" digit: {name}"
        )
    if scopes and name is None:
        raise typer.BadParameter("--scope needs a --name.")
    key, entry = new_key()
    about = (name or "") + (f":{'+'.join(dict.fromkeys(scopes))}" if scopes else "")
    typer.echo(f"key    {key}")
    typer.echo(f"entry  {about}={entry}" if about else f"entry  {entry}")
    typer.echo(
        "Give the key to the client: it is shown only here. Configure the entry, as a line of the"
        " file of `api_keys('keys.txt')` or in MLSERVE_API_KEYS.",
        err=True,
    )
