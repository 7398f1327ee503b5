"""A checkpoint's chat templates → tokenizer.chat_template*."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubquant.formats.gguf.metadata import Value


def chat_template_values(folder: Path, options: Mapping[str, Any]) -> dict[str, Value]:
    """tokenizer.chat_template: chat_template.jinja, else tokenizer_config.json's (`options`); further ones by their names."""
    templates: dict[str, str] = {}
    stated = options.get("chat_template")
    if isinstance(stated, str):
        templates["default"] = stated
    elif isinstance(stated, list):
        templates |= {str(t["name"]): str(t["template"]) for t in stated if isinstance(t, dict) and {"name", "template"} <= set(t)}
    files = [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    for file in files:
        if file.is_file():
            name = "default" if file.parent == folder else file.stem
            templates[name] = file.read_text(encoding="utf-8", errors="replace")
    default = templates.pop("default", None)
    named = {"".join(c if c.isascii() and c.isalnum() else "_" for c in name): text for name, text in templates.items()}
    values: dict[str, Value] = {f"tokenizer.chat_template.{name}": text for name, text in named.items()}
    if named:
        values["tokenizer.chat_templates"] = list(named)
    if default is not None:
        values["tokenizer.chat_template"] = default
    return values
