"""HTML of the page's own making, in which every text of a stranger stays text."""

from pathlib import Path
from typing import Any

import jinja2

from hubquant.console import size

HERE = Path(__file__).parent
_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters["size"] = size


def render(template: str, **values: Any) -> str:
    return _templates.get_template(f"{template}.html").render(values)


def note(text: str, *, bad: bool = False) -> str:
    return render("note", text=text, bad=bad)
