"""How tensors are stored that are not stored as they are: pieces that the families compose."""

from torch import Tensor

from hubquant.errors import BadModel
from hubquant.formats.gguf.families.family import Form, Parameters, Place, View, whole_number


def pairs(heads: str) -> View:
    """Rows of each head in pairs: llama.cpp rotates dimensions (2i, 2i+1) together where transformers rotates (i, i + d/2).

    `heads`: the hyperparameter that says how many there are.
    """

    def view(tensor: Tensor, parameters: Parameters) -> Tensor:
        n = whole_number(parameters, heads)
        if tensor.shape[0] % (2 * n):
            raise BadModel(f"{tensor.shape[0]} rows, which {n} heads cannot share evenly")
        return tensor.unflatten(0, (n, 2, -1)).transpose(1, 2)

    return view


_Q, _K = Form((Place(pairs("attention.head_count")),)), Form((Place(pairs("attention.head_count_kv")),))
# q and k of the architectures whose rope llama.cpp interleaves (LLAMA_ROPE_TYPE_NORM) and transformers does not
ROTATED_PAIRS = {
    "self_attn.q_proj.weight": _Q,
    "self_attn.q_proj.bias": _Q,
    "self_attn.k_proj.weight": _K,
    "self_attn.k_proj.bias": _K,
}

# A norm that multiplies by 1 + weight in transformers, by the stored weight in llama.cpp
ONE_MORE = Form((Place(plus=1.0),))


def stacked(name: str, dims: int = 3) -> Form:
    """One expert's matrix in the stack [experts, out, in] that is called `name`, or with two `dims` its bias in [experts, out]."""
    return Form((Place(lambda matrix, _: matrix[None], name, dims=dims),), shape=lambda stored, _: stored[0][1:])
