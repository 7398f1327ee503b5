from pathlib import Path
from typing import Any

import pytest
import torch

from hubquant.calibrate.text import load_tokenizer
from hubquant.errors import UsageError
from hubquant.evaluate.perplexity import adds_bos, perplexity, windows


@pytest.fixture(scope="session")
def tokenizer(bundled: Path) -> Any:
    return load_tokenizer(bundled)


class WithBos:
    """The tokenizer with a BOS put in front, as Llama's does."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.bos_token_id = tokenizer, 0

    def __call__(self, text: str, **kwargs: Any) -> dict[str, list[int]]:
        return {"input_ids": [0, *self.tokenizer(text, **kwargs)["input_ids"]]}


def test_gptq_scores_every_prediction_of_every_window(tokenizer: Any) -> None:
    found = windows("gptq-128", "prose-eval", tokenizer, 1000)
    assert found.tokens.shape == (7, 128) and found.first_scored == 0
    assert found.protocol.n_tokens == 7 * 127 and found.protocol.scored == "all"
    whole = torch.tensor(tokenizer(Path(str(_text())).read_text(), verbose=False)["input_ids"])
    assert torch.equal(found.tokens.flatten(), whole[: 7 * 128])


def _text() -> Path:
    from importlib.resources import files

    return Path(str(files("hubquant"))) / "texts" / "prose-eval.txt"


def test_llamacpp_scores_the_second_half_and_replaces_the_first_token(tokenizer: Any) -> None:
    found = windows("llamacpp-128", "prose-eval", WithBos(tokenizer), 1000)
    assert found.tokens[:, 0].tolist() == [0] * 7
    assert found.first_scored == 64
    assert found.protocol.n_tokens == 7 * 63, "n_ctx - n_ctx/2 - 1 predictions a window"
    assert found.protocol.bos == "replaces first token of each window"


def test_without_a_bos_nothing_is_replaced(tokenizer: Any) -> None:
    assert not adds_bos(tokenizer) and adds_bos(WithBos(tokenizer))
    found = windows("llamacpp-128", "prose-eval", tokenizer, 1000)
    assert found.protocol.bos == "as tokenized"
    assert torch.equal(found.tokens, windows("gptq-128", "prose-eval", tokenizer, 1000).tokens)


@pytest.mark.parametrize("name", ["gptq", "gptq-", "gptq-2", "wiki-512", "gptq-512x", ""])
def test_unknown_protocols_name_the_known_ones(tokenizer: Any, name: str) -> None:
    with pytest.raises(UsageError, match="known: gptq-N, llamacpp-N"):
        windows(name, "prose-eval", tokenizer, 1000)


def test_a_text_shorter_than_a_window(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Call me Ishmael.")
    with pytest.raises(UsageError, match="fewer than one window of 128"):
        windows("gptq-128", str(tmp_path / "short.txt"), tokenizer, 1000)


def test_perplexity_of_a_uniform_guess_is_the_number_of_choices() -> None:
    assert perplexity(10 * torch.tensor(50.0, dtype=torch.float64).log().item(), 10) == pytest.approx(50)
