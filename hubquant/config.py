"""hubquant.toml → Settings: what to watch, what to admit, what to make of it, where to publish."""

import tomllib
from pathlib import Path

from pydantic import Field, ValidationError

from hubquant.errors import UsageError
from hubquant.recipe import Frozen, Recipe

DERIVATIVES_ALLOWED = (
    "apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "openrail", "openrail++", "bigscience-openrail-m", "bigcode-openrail-m", "unlicense", "wtfpl",
    "artistic-2.0", "isc", "zlib", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma",
)  # fmt: skip


class Watch(Frozen):
    """Which models are looked at. Empty lists mean: no model of that kind; at least one must be set for `hubquant run`. The first
    poll of an organisation or tag takes what was created or changed in the last `lookback_days`, every later one what is new."""

    organisations: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    interval_seconds: int = Field(default=300, ge=1)
    lookback_days: float = Field(default=7, ge=0)


class Policy(Frozen):
    """Which of the models looked at are admitted. Every refusal carries a reason."""

    licenses: tuple[str, ...] = DERIVATIVES_ALLOWED
    denied_organisations: tuple[str, ...] = ()
    min_parameters: int = 0
    max_parameters: int = 80_000_000_000
    cooldown_hours: float = 0.0
    allow_gated: bool = False


class Publish(Frozen):
    """Where the results go."""

    namespace: str = ""
    private: bool = False  # leave repos private instead of making them public at the end
    collection: str = ""  # title; "" adds to none
    quantized_by: str = ""  # default: the namespace


class Settings(Frozen):
    """The whole of hubquant.toml. `state` is the folder of the bot's database, downloads and unfinished work."""

    state: Path = Path(".hubquant")
    database_url: str = ""  # default: SQLite in `state`
    endpoint: str = ""  # default: HF_ENDPOINT, else the Hugging Face Hub
    watch: Watch = Watch()
    policy: Policy = Policy()
    recipe: Recipe = Recipe()
    publish: Publish = Publish()

    @classmethod
    def read(cls, path: Path) -> "Settings":
        """Raises UsageError naming the file, the key and what is wrong with it."""
        try:
            with path.open("rb") as file:
                return cls.model_validate(tomllib.load(file))
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}; write one, or name another with --config") from None
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{path} is not valid TOML: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise UsageError(f"{path}: {key}: {first['msg']} (found {first['input']!r})") from None
