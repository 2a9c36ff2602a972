"""A page for people: sections of text, tables and charts, as one HTML file that needs nothing else.

All text is escaped by the template. Scripts are let run by their SHA-256 alone, so that none that came in with data
would, and nothing may be fetched.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

EXTRA = "pip install 'esmtune[report]'"


@dataclass(frozen=True)
class Text:
    """A paragraph; a `warning` stands out."""

    text: str
    warning: bool = False
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Items:
    """A list."""

    items: Sequence[str]
    kind: ClassVar[str] = "items"


@dataclass(frozen=True)
class Code:
    """Something to copy, as it stands."""

    text: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Rows:
    """A table. Columns named in `numbers` stand to the right; `strong` are rows that stand out, by their place."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()
    strong: frozenset[int] = frozenset()
    kind: ClassVar[str] = "rows"


@dataclass(frozen=True)
class Chart:
    """A figure of plotly, what it shows in words, and the same as a table where that is not too long.

    Colors of the figure are names (`@blue`) that the page has for light and dark; `note` says what is not shown.
    """

    title: str
    figure: dict[str, Any]
    description: str
    table: Rows | None = None
    note: str = ""
    wide: bool = True
    kind: ClassVar[str] = "chart"


@dataclass(frozen=True)
class Tiles:
    """A few numbers, large: each with its name and a line below it."""

    tiles: Sequence[tuple[str, str, str]]
    kind: ClassVar[str] = "tiles"


Part = Text | Items | Code | Rows | Chart | Tiles


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; `name` is its anchor."""

    name: str
    title: str
    parts: Sequence[Part] = field(default_factory=tuple)


@dataclass(frozen=True)
class Page:
    """A title, a line below it, and sections; those without parts are left out."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    foot: str


def is_possible() -> bool:
    """Whether what makes pages is installed: the extra `report`."""
    return all(find_spec(name) is not None for name in ("jinja2", "plotly"))


def require() -> None:
    """Refuse to make a page where that is not so.

    Raises:
        ValueError: naming the extra.
    """
    if not is_possible():
        raise ValueError(f"a page needs plotly and jinja2, which are not installed here: {EXTRA}.")


def rendered(page: Page) -> str:
    """The page as HTML, with the plotting library in it if there are charts."""
    sections = [section for section in page.sections if section.parts]
    figures = [part.figure for section in sections for part in section.parts if isinstance(part, Chart)]
    scripts = [_asset("page.js")]
    library = _library() if figures else None
    allowed = [*scripts, *([library.source] if library else [])]
    return _template().render(
        page=page, sections=sections, style=_asset("page.css"), scripts=scripts,
        library=library.packed if library else None, policy=_policy(allowed),
        figures=[_as_json(figure) for figure in figures],
    )  # fmt: skip


def write_page(page: Page, path: Path) -> None:
    """Write a page as a whole file."""
    from esmtune.writers import whole_file

    text = rendered(page)
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def short(text: object, most: int = 28) -> str:
    """Text, cut if it is long.

    >>> short("a" * 50, 4)
    'aaa…'
    """
    whole = str(text)
    return whole if len(whole) <= most else whole[: most - 1] + "…"


def plain(text: object, most: int = 40) -> str:
    """Text of the user's for a figure, where plotly would take some marks for its own: escaped, and cut if it is long.

    >>> plain("<b>x</b>")
    '&lt;b&gt;x&lt;/b&gt;'
    """
    return short(text, most).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


@dataclass(frozen=True)
class _Library:
    source: str
    packed: str  # gzipped, as base64: a third of the size


@cache
def _library() -> _Library:
    """plotly.js as the Python package carries it; the package itself, slow to import, is not."""
    found = find_spec("plotly")
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).with_name("package_data").joinpath("plotly.min.js").read_text(encoding="utf-8")
    source = source.replace("\r\n", "\n").replace("\r", "\n")  # as a browser reads it, for the checksum
    return _Library(source, base64.b64encode(gzip.compress(source.encode(), 6, mtime=0)).decode())


@cache
def _asset(name: str) -> str:
    return resources.files("esmtune").joinpath(name).read_text(encoding="utf-8").strip()


@cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(_asset("page.html"))


def _policy(scripts: Sequence[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _as_json(figure: dict[str, Any]) -> str:
    """A figure as JSON that ends no script element, whatever stands in it."""
    text = json.dumps(figure, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").replace("\u2028", "\\u2028")
