"""The texts that calibration and evaluation read, by name or file, and their hashes. Imports no torch: the bot hashes recipes."""

import hashlib
from importlib.resources import files
from pathlib import Path

from hubquant.errors import UsageError
from hubquant.recipe import Recipe

BUNDLED = ("prose-calib", "prose-eval")


def read_text(source: str) -> str:
    """The text of that name (see BUNDLED), or of that UTF-8 file. Raises UsageError if there is none or it is empty."""
    try:
        if source in BUNDLED:
            text = (files("hubquant") / "texts" / f"{source}.txt").read_text(encoding="utf-8")
        else:
            text = Path(source).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read text {source!r}: {error.strerror}; give a file or one of {', '.join(BUNDLED)}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"text {source!r} is not UTF-8 (byte {error.start}); convert it") from None
    if not text.strip():
        raise UsageError(f"text {source!r} is empty")
    return text


def text_sha256(source: str) -> str:
    return hashlib.sha256(read_text(source).encode()).hexdigest()


def text_name(source: str) -> str:
    """The name a card shows: a bundled name, or the file's name without its folder."""
    return source if source in BUNDLED else Path(source).name


def with_texts(recipe: Recipe) -> Recipe:
    """The recipe with the hashes of its texts filled in, so that its own hash stands for their contents too."""
    calibration = recipe.calibration.model_copy(update={"text_sha256": text_sha256(recipe.calibration.source)})
    evaluation = recipe.evaluation.model_copy(update={"text_sha256": text_sha256(recipe.evaluation.source)})
    return recipe.model_copy(update={"calibration": calibration, "evaluation": evaluation})
