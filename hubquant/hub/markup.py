"""Text of strangers inside Markdown: escaped by default, so that a name with a pipe, a newline or a tag stays a name.

Every `{{ … }}` of a template is escaped unless a filter made it `Markup`.
"""

import re
from importlib import resources
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CHARACTERS = 300
SPECIAL = re.compile(r"([\\`*{}\[\]#|~!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")  # inside a word an underscore is no markup


class Markup(str):
    """Markdown of our own making."""


def escape(value: object) -> Markup:
    """One line of Markdown that shows `value` as it is: no markup, no HTML, no table cell of its own, no link."""
    line = " ".join(str(value).split())
    if len(line) > MAX_CHARACTERS:
        line = line[:MAX_CHARACTERS] + "…"
    line = "".join(character for character in line if character.isprintable())
    line = SPECIAL.sub(r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    return Markup(line.replace("://", "&#58;//"))


def code(value: object) -> Markup:
    """As a code span on one line, also inside a table."""
    line = " ".join(verbatim(value).split()).replace("|", "")
    return Markup(f"`{line[:MAX_CHARACTERS]}`")


def verbatim(value: object) -> Markup:
    """Inside a code block: lines stay, backticks and what does not print go."""
    text = str(value).replace("`", "'")
    return Markup("".join(character for character in text if character.isprintable() or character == "\n"))


def link(text: str, url: str) -> Markup:
    """`url` must be of our own making."""
    return Markup(f"[{escape(text)}]({url})")


def join_cells(cells: tuple[object, ...]) -> Markup:
    return Markup(" | ".join(_finalize(cell) for cell in cells))


def _finalize(value: object) -> str:
    return value if isinstance(value, Markup) else escape(value)


def render(template: str, values: dict[str, Any]) -> str:
    """A template of this package; a name that it uses and `values` lacks is an error."""
    environment = ImmutableSandboxedEnvironment(
        finalize=_finalize, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters.update(code=code, verbatim=verbatim, join_cells=join_cells)
    source = resources.files("hubquant.hub").joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(source).render(values)
