"""
The tables of the reference that are made from the code.

`python -m tests.docs.tables` writes them anew; a test compares them.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined
from tests.docs.pages import ROOT

from mlserve import errors
from mlserve.cache import Cache
from mlserve.http import errors as http_errors
from mlserve.observability.access_log import InferenceLine
from mlserve.observability.metrics import FAMILIES
from mlserve.records import InferenceRecord, SinkOptions
from mlserve.settings import (
    ENVIRONMENT_PREFIX,
    Batching,
    Cors,
    Limits,
    Replicas,
    Restart,
    ServerSettings,
)

REFERENCE = ROOT / "docs" / "reference"
OPTIONS = (Batching, Replicas, Restart, Limits, Cache)


def tables() -> dict[Path, dict[str, str]]:
    """Give every table by its page and the name in its markers."""
    settings = {cls.__name__: options_table(cls) for cls in OPTIONS}
    settings |= {
        "ServerSettings": settings_table(ServerSettings, ENVIRONMENT_PREFIX),
        "Cors": settings_table(Cors, f"{ENVIRONMENT_PREFIX}CORS__"),
    }
    return {
        REFERENCE / "settings.md": settings,
        REFERENCE / "metrics.md": {"families": metrics_table()},
        REFERENCE / "records.md": {
            "InferenceRecord": fields_table(InferenceRecord),
            "SinkOptions": options_table(SinkOptions),
        },
        REFERENCE / "errors.md": {"classes": error_table(), "statuses": status_table()},
    }


def options_table(cls: type) -> str:
    types, texts = _source_of(cls)
    rows = [
        (_code(name), _code(types[name]), _default(default), _unit(name), texts[name])
        for name, default in _defaults(cls).items()
    ]
    return _table(("option", "type", "default", "unit", "meaning"), rows)


def fields_table(cls: type) -> str:
    types, texts = _source_of(cls)
    rows = [(_code(name), _code(types[name]), text) for name, text in texts.items()]
    return _table(("field", "type", "meaning"), rows)


def settings_table(cls: type, prefix: str) -> str:
    types, texts = _source_of(cls)
    rows = [
        (
            _code(name),
            _code(prefix + name.upper()),
            _code(types[name]),
            _default(default),
            _unit(name),
            texts[name],
        )
        for name, default in _defaults(cls).items()
    ]
    names = ("setting", "environment variable", "type", "default", "unit", "meaning")
    return _table(names, rows)


def error_table() -> str:
    rows = []
    for name in re.findall(r"(?:├──|└──) (\w+Error)", inspect.getdoc(errors) or ""):
        cls = getattr(errors, name)
        if not _is_answered(cls):
            continue
        text = (inspect.getdoc(cls) or "").splitlines()[0]
        retry = "yes" if cls.retry_after_s is not None else ""
        rows.append((str(cls.status), _code(cls.code), _code(name), _code(cls.kind), retry, text))
    rows.sort(key=lambda row: row[0])
    return _table(("status", "code", "exception", "type", "`Retry-After`", "meaning"), rows)


def status_table() -> str:
    rows = [(str(status), _code(code)) for status, code in sorted(http_errors._CODES.items())]
    rows += [("other 4xx", _code("error")), ("other 5xx", _code("internal_error"))]
    return _table(("status", "code"), rows)


def metrics_table() -> str:
    rows = []
    for family in FAMILIES:
        [described] = family.describe()
        suffix = "_total" if described.type == "counter" else ""
        labels = ", ".join(_code(label) for label in family._labelnames)
        name = _code(described.name + suffix)
        rows.append((name, described.type, labels, described.documentation))
    return _table(("family", "type", "labels", "meaning"), rows)


def access_log_keys() -> list[str]:
    return list(InferenceLine.__annotations__)


def with_tables(page: Path, contents: dict[str, str]) -> str:
    """Give the page with its tables as they should be."""
    text = page.read_text(encoding="utf-8")
    for name, table in contents.items():
        begin, end = f"<!-- {name}, from the code -->\n", f"<!-- end of {name} -->\n"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{page} has no place for the table {name!r}.")
        text = f"{before}{begin}\n{table}\n{end}{after}"
    return text


def _is_answered(cls: type[errors.MLServeError]) -> bool:
    """Whether clients can get it; the classes in between only group others."""
    groups = (errors.RequestError, errors.CapacityError, errors.ConfigurationError)
    return cls not in groups


def _source_of(cls: type) -> tuple[dict[str, str], dict[str, str]]:
    """Read types and texts of a class's fields as they are written in its source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    types, texts = {}, {}
    for node, following in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            types[node.target.id] = ast.unparse(node.annotation).replace(" | ", " or ")
            assert isinstance(following, ast.Expr)
            assert isinstance(following.value, ast.Constant)
            texts[node.target.id] = " ".join(str(following.value.value).split())
    return types, texts


def _defaults(cls: Any) -> dict[str, Any]:
    if is_dataclass(cls):
        return {
            field.name: field.default_factory()
            if callable(field.default_factory)
            else field.default
            for field in fields(cls)
        }
    assert all(field.default is not PydanticUndefined for field in cls.model_fields.values())
    return {name: field.default for name, field in cls.model_fields.items()}


def _default(value: Any) -> str:
    if isinstance(value, int) and value >= 2**20:
        return f"`{value}` ({value // 2**20} MiB)"
    return _code(repr(value).replace("'", '"'))


def _unit(name: str) -> str:
    if name.endswith("_bytes"):
        return "bytes"
    return "seconds" if name.endswith("_s") else ""


def _code(text: str) -> str:
    return f"`{text}`"


def _table(names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [names, tuple("---" for _ in names), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    for page, contents in tables().items():
        page.write_text(with_tables(page, contents), encoding="utf-8")
