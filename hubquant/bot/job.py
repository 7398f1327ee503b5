"""Job: one base model under one recipe, to be made and published once."""

import hashlib
import json
from typing import Self

from hubquant import __version__
from hubquant.artifact import Base
from hubquant.recipe import Frozen, Recipe

WATCHER = "watcher"


class Job(Frozen):
    """What the queue holds. It travels as JSON and names no secret and no path: any worker can take it."""

    base: Base
    recipe: Recipe
    namespace: str
    requested_by: str = WATCHER
    hubquant_version: str = __version__

    @property
    def id(self) -> str:
        """32 hex digits over base repo, its fingerprint, recipe, version and namespace: who asked, and a changed README,
        do not make it another job."""
        parts = [self.base.repo_id, self.base.fingerprint, self.recipe.sha256, self.hubquant_version, self.namespace]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    @property
    def priority(self) -> int:
        """Smaller runs first: people wait, the watcher does not."""
        return 10 if self.requested_by == WATCHER else 1

    def canonical_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @classmethod
    def read(cls, text: str) -> Self:
        return cls.model_validate_json(text)
