"""Running our files in llama.cpp, for the tests that are marked llamacpp."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from hubquant.formats.gguf.reader import GgufSource
from hubquant.model.conv1d import make_linears
from hubquant.model.experts import take_apart

llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python; run make test-gguf")


def load(path: Path, **options: Any) -> Any:
    """A llama_cpp.Llama that computes from the weights as stored. One thread: several wait for each other by spinning."""
    defaults = llama_cpp.llama_cpp.llama_model_default_params

    def without_repacking() -> Any:
        # repacked weights take code paths (AMX) that some virtual machines announce and then refuse
        params = defaults()
        params.use_extra_bufts = False
        return params

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(llama_cpp.llama_cpp, "llama_model_default_params", without_repacking)
        return llama_cpp.Llama(str(path), n_threads=1, n_threads_batch=1, verbose=False, **options)


def logits(model: Any, tokens: list[int]) -> Tensor:
    """[n, vocabulary], float64."""
    model.reset()
    model.eval(tokens)
    return torch.from_numpy(np.array(model.scores[: len(tokens)], dtype=np.float64))


@torch.no_grad()
def torch_logits(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """[n, vocabulary]"""
    return model(torch.tensor([tokens])).logits[0]


def decoded(folder: Path, path: Path) -> PreTrainedModel:
    """transformers' model of a checkpoint folder with the weights of a published file, in float32."""
    source = GgufSource(path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    make_linears(model)
    take_apart(model)
    weights = {name: source.tensor(name) for name in source.names()}
    missing = model.load_state_dict(weights, strict=False, assign=True).missing_keys
    assert not set(missing) - set(model.all_tied_weights_keys)
    model.tie_weights()
    return model


def mean_kl(base: Tensor, other: Tensor) -> float:
    p, q = base.double().log_softmax(-1), other.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def perplexity(predict: Callable[[list[int]], Tensor], windows: list[list[int]], bos: int | None) -> float:
    """llama-perplexity's protocol: every window by itself, its first token replaced by BOS where the model adds one, the
    predictions of its second half scored."""
    losses = []
    for window in windows:
        tokens = window if bos is None else [bos, *window[1:]]
        half = len(window) // 2
        log_p = predict(tokens)[half:-1].double().log_softmax(-1)
        losses.append(-log_p.gather(1, torch.tensor(window[half + 1 :])[:, None]))
    return float(torch.cat(losses).mean().exp())
