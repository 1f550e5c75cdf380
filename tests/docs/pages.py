"""README and docs as the tests see them: pages, and the fenced blocks in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHOWN_URL = "http://127.0.0.1:8000"
"""Where the server is in the pages; the tests put their own in its place."""

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    """Where its first line stands in the page, from 1."""
    language: str
    text: str
    is_output: bool
    """Whether it stands right behind a block that runs: it is then what that block prints."""

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"

    @property
    def is_command(self) -> bool:
        return self.language == "bash" and self.text.startswith("curl ")

    @property
    def file_name(self) -> str | None:
        """The file that the block is, where its first line says so, as in `# reviews.py`."""
        found = re.match(r"# (\w+\.py)\b", self.text)
        return found[1] if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CurlCommand:
    """What the pages use of curl."""

    path: str
    method: str = "GET"
    json: str | None = None
    headers: dict[str, str]
    form: dict[str, str]
    """The fields of a form; a value such as `@cat.png` is a file."""
    file: str | None = None
    """The file that is sent as the body."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[Block]:
    source = page.read_text(encoding="utf-8")
    blocks: list[Block] = []
    end = 0
    for match in _FENCE.finditer(source):
        follows = bool(blocks) and not source[end : match.start()].strip()
        runs = bool(blocks) and (blocks[-1].language == "python" or blocks[-1].is_command)
        blocks.append(
            Block(
                page=page,
                line=source.count("\n", 0, match.start(2)) + 1,
                language=match[1],
                text=match[2],
                is_output=follows and runs and match[1] in ("text", "json"),
            )
        )
        end = match.end()
    return blocks


def parse_curl(command: str) -> CurlCommand:
    """Read a curl command; an option that the pages should not use is an error."""
    words = iter(shlex.split(command.replace("\\\n", " "))[1:])
    method, path, json, file = "GET", "", None, None
    headers: dict[str, str] = {}
    form: dict[str, str] = {}
    for word in words:
        match word:
            case "-N" | "-s":
                continue
            case "--json":
                method, json = "POST", next(words)
            case "-H":
                name, _, value = next(words).partition(": ")
                headers[name] = value
            case "-F":
                name, _, value = next(words).partition("=")
                method, form[name] = "POST", value
            case "--data-binary":
                method, file = "POST", next(words).removeprefix("@")
            case _ if word.startswith(SHOWN_URL):
                path = word.removeprefix(SHOWN_URL)
            case _:
                raise ValueError(f"The pages should not use {word!r} of curl: {command}")
    return CurlCommand(path=path, method=method, json=json, headers=headers, form=form, file=file)
