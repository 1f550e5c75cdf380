"""`python -m mlserve` is `mlserve`."""

from mlserve.cli import app

if __name__ == "__main__":
    app()
