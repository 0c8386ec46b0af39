"""Self-contained HTML pages: styles and pictures are inlined, nothing is loaded, all text is escaped.

Such a page can be mailed, archived and read offline, in light and dark, on a phone.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from simzss.atomic import atomic_write
from simzss.errors import printable


def write_page(path: Path, template: str, **content: Any) -> None:
    """Fill a template of this package and write the page.

    Args:
        path: HTML file to write; missing parent directories are created, an existing file is replaced.
        template: file name in this package.
        content: what the template shows. A name that it uses and does not get is an error, not an empty spot.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_source),
        finalize=_shown,
    )
    html = environment.get_template(template).render(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    # "replace": a lone surrogate in a class name must not cost the whole report.
    atomic_write(path, html.encode(errors="replace"))


def _shown(value: Any) -> Any:
    """Return what the page shows of a value: control characters of file and class names as their escapes."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "\n".join(printable(line) for line in value.split("\n"))


def _source(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
