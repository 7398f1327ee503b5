"""What the tests found out about each model family in llama.cpp, for the README's table."""

import json
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

KEPT = Path(__file__).parents[2] / "benchmarks" / "results" / "families" / "gguf.json"


class FamilyResults:
    """`family_result("gemma2", logits_kl=1e-7)`. Of several numbers of one family the worst is kept, and one False is enough."""

    def __init__(self) -> None:
        self.families: dict[str, dict[str, Any]] = {}

    def __call__(
        self,
        name: str,
        *,
        loads: bool | None = None,
        logits_kl: float | None = None,
        perplexity: dict[str, float] | None = None,
        tokenizer: str | None = None,
        from_pretrained: bool | None = None,
    ) -> None:
        """`name`: of a model of RANDOM_MODELS. `logits_kl`: mean, F16. `perplexity`: mixture → llama.cpp's / ours - 1.
        `tokenizer`: "199 of 200", strings that become the same tokens. `from_pretrained`: transformers loads the file."""
        found = self.families.setdefault(name.partition(":")[0], {})
        for key, value in (("loads", loads), ("from_pretrained", from_pretrained)):
            if value is not None:
                found[key] = value and found.get(key, True)
        if logits_kl is not None:
            found["logits_kl"] = max(logits_kl, found.get("logits_kl", 0.0))
        if tokenizer is not None:
            found["tokenizer"] = min(tokenizer, found.get("tokenizer", tokenizer), key=lambda text: int(text.split()[0]))
        for mixture, difference in (perplexity or {}).items():
            worst = found.setdefault("perplexity", {})
            worst[mixture] = max(difference, worst.get(mixture, 0.0), key=abs)

    def keep(self) -> None:
        """Writes the families of this run into the kept file; what it did not touch stays."""
        kept = json.loads(KEPT.read_text()) if KEPT.exists() else {"families": {}}
        for name, found in self.families.items():
            kept["families"][name] = kept["families"].get(name, {}) | found
        with suppress(ModuleNotFoundError):  # a run of the tests that need no llama.cpp
            kept["llama-cpp-python"] = version("llama-cpp-python")
        kept["transformers"] = version("transformers")
        kept["families"] = {name: dict(sorted(kept["families"][name].items())) for name in sorted(kept["families"])}
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
