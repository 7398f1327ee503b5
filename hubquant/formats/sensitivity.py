"""What an error of a linear costs the model: for choices of bits by measured sensitivity, in every format.

A linear's relative output error reaches the residual stream by the share that its branch (attention or feed-forward) adds to it,
and is then carried to the logits. So the cost is error × share, with the energies of the branches' outputs from the calibration
tokens; embeddings and head reach the stream whole.
"""

from torch import Tensor

from hubquant.formats.writer import State
from hubquant.model.layer import Layer

Branch = tuple[str, str]  # the layer's prefix and the child of the layer; "" for linears that are its own


class Sensitivity:
    """Filled as the pass goes by: the embedding, then the layers in order, each in one part or several."""

    def __init__(self) -> None:
        self._energy: dict[Branch, float] = {}
        self._branches: dict[str, Branch] = {}
        self._embedding_energy = 0.0
        self._n_tokens = 1

    def add_embedding(self, tensor: Tensor) -> None:
        """`tensor` [vocabulary, hidden]."""
        self._embedding_energy = float(tensor.square().sum(1).mean())

    def add_layer(self, layer: Layer) -> None:
        self._n_tokens = max([self._n_tokens, *(s.n_tokens for s in layer.statistics.values())])
        last = {linear.rpartition(".")[0]: linear for read in layer.inputs for linear in read.linears}
        width = next((s.width for s in layer.statistics.values()), 0)
        for read in layer.inputs:
            for linear in read.linears:
                weight, owner = layer.tensors[f"{linear}.weight"], linear.rpartition(".")[0]
                branch = (layer.prefix, owner.partition(".")[0])
                self._branches[f"{layer.prefix}{linear}.weight"] = branch
                # of a block the linear that is read last writes to the stream; a router or a gate beside it is of another width
                if last[owner] == linear and weight.shape[0] == width:
                    added = layer.statistics[read.name].energy(weight)
                    self._energy[branch] = self._energy.get(branch, 0.0) + added

    def state(self) -> State:
        energy = [[*branch, energy] for branch, energy in self._energy.items()]
        branches = {name: [*branch] for name, branch in self._branches.items()}
        return {"energy": energy, "branches": branches, "embedding": self._embedding_energy, "n_tokens": self._n_tokens}

    def restore(self, state: State) -> None:
        self._energy = {(layer, part): energy for layer, part, energy in state["energy"]}
        self._branches = {name: (layer, part) for name, (layer, part) in state["branches"].items()}
        self._embedding_energy, self._n_tokens = state["embedding"], state["n_tokens"]

    def shares(self) -> dict[Branch, float]:
        """Of each branch in the energy of the stream after it, if what the branches add is not correlated."""
        stream, shares = self._embedding_energy, {}
        for branch, energy in self._energy.items():
            added = energy / self._n_tokens
            stream += added
            shares[branch] = added / stream if stream > 0 else 1.0
        return shares

    def of(self, names: list[str]) -> dict[str, float]:
        """By the full name of a weight; 1 outside the layers, and where a branch writes nothing that was found."""
        shares = self.shares()
        return {name: shares.get(self._branches.get(name, ("", "")), 1.0) for name in names}
