"""A decoder run one layer at a time: embed → layer → logits, with only what is at work in memory.

The model is built from its config with every parameter on the meta device. A layer is given its weights, run over all
windows, and emptied again; the code that runs is the model's own, so nothing about an architecture is repeated here.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from hubquant.errors import BadModel
from hubquant.model.checkpoint import Checkpoint, TensorSource
from hubquant.model.experts import routers, take_apart
from hubquant.model.naming import NamedSource, StoredNames


def read_config(folder: Path) -> PretrainedConfig:
    """The config of a model folder. Raises BadModel: missing, unreadable, of an unknown type, or already quantized."""
    if not (folder / "config.json").exists():
        raise BadModel(f"{folder} holds no config.json; is it a model folder?")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise BadModel(f"{folder.name}/config.json cannot be used: {str(error).splitlines()[0]}") from None
    method = (getattr(config, "quantization_config", None) or {}).get("quant_method")
    if method is not None:
        raise BadModel(f"{folder.name} is itself quantized (quant_method {method!r}); name its base model")
    return config


class _Relay(nn.Module):
    """Stands in a layer's place while the rest of the model runs: notes how the layer is called, passes on what it is told."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = [layer]  # in a list, so that the layer is not registered as a submodule
        self.call: dict[str, Any] = {}
        self.output: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._layer[0], name)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        names = list(inspect.signature(self._layer[0].forward).parameters)[1:]
        self.call = dict(zip(names, args, strict=False)) | kwargs
        return hidden if self.output is None else self.output


class Decoder:
    """A causal language model whose weights come from a TensorSource when they are needed.

    `dtype` is the dtype of the forward: on a CPU float32, because half-precision matrix products are about 50 times slower.
    Raises BadModel: unknown architecture, or weights that do not fit the config.
    """

    def __init__(self, config: PretrainedConfig, source: TensorSource, device: torch.device | None = None) -> None:
        self.config = config
        self.device = device or torch.device("cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        try:
            with init_empty_weights(include_buffers=False):
                self.model = AutoModelForCausalLM.from_config(config, dtype=self.dtype)
        except ValueError as error:
            why = str(error).splitlines()[0].split(". ")[0]
            raise BadModel(f"architecture {config.model_type!r} is not a causal language model: {why}") from None
        self.model.eval()
        for buffer_owner in self.model.modules():
            for name, buffer in buffer_owner.named_buffers(recurse=False):
                setattr(buffer_owner, name, buffer.to(self.device))
        self.layers_name, self.layers = _decoder_layers(self.model, config)
        self.tied = dict(self.model.all_tied_weights_keys or {})
        self._relays = [_Relay(layer) for layer in self.layers]
        self.names, self.experts = StoredNames(self.model), take_apart(self.model)
        for path, experts in self.experts.items():
            self.names.learn(path, experts)
        self.source = NamedSource(source, self.names, self.experts)
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        stored = self.model.state_dict(keep_vars=True)
        # buffers that a checkpoint holds are weights too (DeepSeek-V3's bias of the choice of experts); others are computed
        self.buffers = {n for n in stored if n not in parameters and self.source.find(n) is not None}
        if isinstance(source, Checkpoint):
            self._check_fit(source)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every stored parameter by the name of its module with its shape; tied copies are left out, experts stand alone."""
        shapes = {n: tuple(p.shape) for n, p in self.model.named_parameters(remove_duplicate=False) if n not in self.tied}
        return shapes | {n: tuple(self.model.get_buffer(n).shape) for n in sorted(self.buffers)}

    def routers(self) -> set[str]:
        """Names of the weights that choose among experts."""
        return routers(self.model, self.experts)

    def outside(self) -> list[str]:
        """Names of the parameters that belong to no decoder layer: embeddings, final norm, head."""
        return [n for n in self.shapes() if not n.startswith(self.layers_name + ".")]

    def prefix(self, index: int) -> str:
        return f"{self.layers_name}.{index}."

    @torch.no_grad()
    def embed(self, windows: Tensor) -> Tensor:
        """Hidden states before the first layer, [n_windows, window, hidden]; also notes how each layer is called.

        `windows` are token ids [n_windows, window]. Raises BadModel for an id beyond the vocabulary.
        """
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        if int(windows.max()) >= vocabulary:
            raise BadModel(
                f"token id {int(windows.max())} is beyond the vocabulary of {vocabulary}: tokenizer and model do not match"
            )
        first = self._relays[0]
        seen: list[Tensor] = []
        handle = first.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach().clone()))
        try:
            with self._materialized(self._outside_but_head()), self._relayed():
                backbone = self.model.base_model
                for window in windows:
                    backbone(input_ids=window[None].to(self.device), use_cache=False)
        finally:
            handle.remove()
        return torch.cat(seen)

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """The layer with its weights; they are gone when the block ends."""
        layer = self.layers[index]
        with self._materialized([n for n in self.shapes() if n.startswith(self.prefix(index))]):
            yield layer

    def call(self, index: int) -> Mapping[str, Any]:
        """The keyword arguments the model calls this layer with (mask, positions), as noted by `embed`."""
        return self._relays[index].call

    @torch.no_grad()
    def run(self, index: int, layer: nn.Module, hidden: Tensor, batch: int = 4) -> Tensor:
        """The layer over all windows, [n, window, hidden]; `hidden` is overwritten and returned."""
        for start in range(0, hidden.shape[0], batch):
            hidden[start : start + batch] = apply_layer(layer, hidden[start : start + batch], self.call(index))
        return hidden

    @contextmanager
    def head(self) -> Iterator[nn.Module]:
        """The part after the last layer with its weights; call `logits` inside."""
        names = [n for n in self.outside() if n not in self._embedding_names()]
        names += [target for source, target in self.tied.items() if source not in names]
        with self._materialized(names):
            yield self.model

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, window, vocabulary] in float32 from hidden states after the last layer, by the model's own final steps."""
        self._relays[-1].output = hidden
        try:
            with self._relayed():
                positions = torch.zeros_like(hidden)
                output: Tensor = self.model(inputs_embeds=positions, use_cache=False).logits
                return output.float()
        finally:
            self._relays[-1].output = None

    def _embedding_names(self) -> list[str]:
        embedding = self.model.get_input_embeddings()
        return [n for n, p in self.model.named_parameters() if any(p is q for q in embedding.parameters())]

    def _outside_but_head(self) -> list[str]:
        head = self.model.get_output_embeddings()
        own = {id(p) for p in head.parameters()} if head is not None else set()
        keep = set(self._embedding_names())
        named = dict(self.model.named_parameters(remove_duplicate=False))
        return [n for n in self.outside() if n in keep or id(named.get(n)) not in own]

    @contextmanager
    def _relayed(self) -> Iterator[None]:
        """Relays in the layers' places."""
        parent_name, _, attribute = self.layers_name.rpartition(".")
        parent = self.model.get_submodule(parent_name)
        setattr(parent, attribute, nn.ModuleList(self._relays))
        try:
            yield
        finally:
            setattr(parent, attribute, self.layers)

    @contextmanager
    def _materialized(self, names: list[str]) -> Iterator[None]:
        """Real values in the named parameters, and in those tied to them; meta again afterwards."""
        shared: dict[str, list[str]] = {name: [name] for name in names}
        for copy, original in self.tied.items():
            if original in shared:
                shared[original].append(copy)
        try:
            for name, places in shared.items():
                if name in self.buffers:
                    self.model.get_buffer(name).copy_(self.source.tensor(name))
                    continue
                value = nn.Parameter(self.source.tensor(name).to(self.device, self.dtype), requires_grad=False)
                for place in places:
                    _set_parameter(self.model, place, value)
            yield
        finally:
            for name, places in shared.items():
                for place in places if name not in self.buffers else ():
                    old = self.model.get_parameter(place)
                    _set_parameter(self.model, place, nn.Parameter(torch.empty_like(old, device="meta"), requires_grad=False))

    def _check_fit(self, checkpoint: Checkpoint) -> None:
        for name, shape in self.shapes().items():
            stored = self.source.shape(name)
            if stored is None:
                raise BadModel(f"{checkpoint.folder.name}: tensor {name} is missing from the checkpoint; is a shard missing?")
            if stored != shape:
                found, wanted = list(stored), list(shape)
                raise BadModel(f"{checkpoint.folder.name}: tensor {name} has shape {found}; config.json asks for {wanted}")


def apply_layer(layer: nn.Module, hidden: Tensor, call: Mapping[str, Any]) -> Tensor:
    """One layer's output for [n, window, hidden]; layers that return tuples give their first element."""
    output = layer(hidden, **call)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


def _decoder_layers(model: nn.Module, config: PretrainedConfig) -> tuple[str, nn.ModuleList]:
    """The list of modules that holds most of the language model's weights, by name; of several, the one as long as the config says."""
    wanted = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    lists = {
        n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and all(any(True for _ in x.parameters()) for x in m)
    }
    outer = {n: m for n, m in lists.items() if not any(n.startswith(other + ".") for other in lists)}
    if not outer:
        raise BadModel(f"architecture {config.model_type!r}: no list of decoder layers found in its modules")
    name = max(outer, key=lambda n: (len(outer[n]) == wanted, sum(p.numel() for p in outer[n].parameters())))
    return name, outer[name]


def _set_parameter(model: nn.Module, name: str, value: nn.Parameter) -> None:
    owner, _, attribute = name.rpartition(".")
    model.get_submodule(owner)._parameters[attribute] = value
