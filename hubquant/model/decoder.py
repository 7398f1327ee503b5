"""A decoder run one layer at a time: embed → layer → logits, with only what is at work in memory.

The model is built from its config with every parameter on the meta device. A layer is given its weights, run over all
windows, and emptied again; the code that runs is the model's own, so nothing about an architecture is repeated here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from hubquant.errors import BadModel
from hubquant.model import mxfp4
from hubquant.model.checkpoint import Checkpoint, TensorSource
from hubquant.model.conv1d import make_linears
from hubquant.model.experts import OTHER_EXPERTS, NoMemoryForExperts, routers, take_apart
from hubquant.model.hidden import Hidden, HiddenFile
from hubquant.model.layercall import Weighted, apply_layer
from hubquant.model.layerlist import decoder_layers
from hubquant.model.naming import NamedSource, StoredNames
from hubquant.model.relay import Call, Relays

States = TypeVar("States", bound=Hidden)


def read_config(folder: Path) -> PretrainedConfig:
    """The config of a model folder. Raises BadModel: missing, unreadable, of an unknown type, or already quantized.

    MXFP4 is a form in which weights are published first (gpt-oss): such a folder is read as the dense model it stands for.
    """
    if not (folder / "config.json").exists():
        raise BadModel(f"{folder} holds no config.json; is it a model folder?")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise BadModel(f"{folder.name}/config.json cannot be used: {str(error).splitlines()[0]}") from None
    method = (getattr(config, "quantization_config", None) or {}).get("quant_method")
    if method == mxfp4.METHOD:
        del config.quantization_config
    elif method is not None:
        raise BadModel(f"{folder.name} is itself quantized (quant_method {method!r}); name its base model")
    return config


class Decoder:
    """A causal language model whose weights come from a TensorSource when they are needed.

    `dtype` is the dtype of the forward, and what weights are handed out in. Where none is named it is float32, in which every
    stored weight is exact, and bfloat16 on a GPU for weights that are stored in it. float16 is not taken: what underflows in it
    is not doubled exactly (topology.py), and on a CPU products in half precision are about 50 times slower.
    Raises BadModel: unknown architecture, or weights that do not fit the config.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        source: TensorSource,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.config = config
        self.device = device or torch.device("cpu")
        half = self.device.type == "cuda" and config.dtype == torch.bfloat16
        self.dtype = dtype or (torch.bfloat16 if half else torch.float32)
        try:
            with init_empty_weights(include_buffers=False), NoMemoryForExperts():
                self.model = AutoModelForCausalLM.from_config(config, dtype=self.dtype)
        except ValueError as error:
            why = str(error).splitlines()[0].split(". ")[0]
            raise BadModel(f"architecture {config.model_type!r} is not a causal language model: {why}") from None
        self.model.eval()
        self.transposed = make_linears(self.model)
        for buffer_owner in self.model.modules():
            for name, buffer in buffer_owner.named_buffers(recurse=False):
                setattr(buffer_owner, name, buffer.to(self.device))
        self.layers_name, self.layers = decoder_layers(self.model, config)
        self.tied = dict(self.model.all_tied_weights_keys or {})
        for copy, original in self.tied.items():
            if copy.startswith(f"{self.layers_name}.") and original.startswith(f"{self.layers_name}."):
                raise BadModel(f"its layers share weights ({copy} is {original}); it cannot be quantized layer by layer")
        self._relays = Relays(self.model, self.layers_name, self.layers, self._run_alone)
        self.names, self.experts = StoredNames(self.model), take_apart(self.model)
        for path, experts in self.experts.items():
            self.names.learn(path, experts)
        self.source = NamedSource(source, self.names, self.experts, self.transposed)
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

    def float32(self) -> set[str]:
        """Names of what is not to be rounded: stored buffers, and linears that transformers keeps in float32."""
        kept = {*(self.model._keep_in_fp32_modules or ()), *(self.model._keep_in_fp32_modules_strict or ())}
        linears = {f"{n}.weight" for n, m in self.model.named_modules() if isinstance(m, nn.Linear)}
        return self.buffers | {n for n in linears if any(part in n for part in kept)}

    def outside(self) -> list[str]:
        """Names of the parameters that belong to no decoder layer: embeddings, final norm, head."""
        return [n for n in self.shapes() if not n.startswith(self.layers_name + ".")]

    def head_name(self) -> str:
        """The weight of the head, where that is a linear of its own; "" where it is the embedding once more."""
        head = self.model.get_output_embeddings()
        found = next((f"{n}.weight" for n, m in self.model.named_modules() if m is head and isinstance(m, nn.Linear)), "")
        return "" if found in self.tied or found in self.tied.values() else found

    def embedding_name(self) -> str:
        """The weight of the token embedding."""
        return next(iter(self._embedding_names()), "")

    def left_alone(self) -> list[str]:
        """What the checkpoint holds of other models than this one, by its names there."""
        return self.source.rest(self.model, [*self.shapes(), *self.tied])

    def prefix(self, index: int) -> str:
        return f"{self.layers_name}.{index}."

    @torch.no_grad()
    def embed(self, windows: Tensor) -> Tensor:
        """Hidden states before the first layer, [n_windows, window, hidden]; also notes how each layer is called.

        `windows` are token ids [n_windows, window]. Raises BadModel for an id beyond the vocabulary.
        """
        seen: list[Tensor] = []
        self.embed_each(windows, seen.append)
        return torch.cat(seen)

    @torch.no_grad()
    def embed_each(self, windows: Tensor, take: Callable[[Tensor], None]) -> None:
        """As `embed`, giving the hidden states [1, window, hidden] of one window after the other to `take`."""
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        if int(windows.max()) >= vocabulary:
            raise BadModel(
                f"token id {int(windows.max())} is beyond the vocabulary of {vocabulary}: tokenizer and model do not match"
            )
        self._relays.forget()
        with self._materialized(self._outside_but_head()):
            backbone = self.model.base_model
            for window in windows:
                with self._relays.noting():
                    self._run_model(backbone, input_ids=window[None].to(self.device))
                states = self._relays.first
                assert states is not None
                if states.shape[:2] != (1, windows.shape[1]):
                    raise BadModel(f"its hidden states are of shape {list(states.shape)}, expected [1, {windows.shape[1]}, hidden]")
                take(states)

    def embed_to(self, windows: Tensor, path: Path) -> HiddenFile:
        """As `embed`, into a file."""
        written: HiddenFile | None = None
        count = 0

        def take(states: Tensor) -> None:
            nonlocal written, count
            if written is None:
                written = HiddenFile(path, (len(windows), *states.shape[1:]), states.dtype, self.device)
            written[count : count + 1] = states
            count += 1

        self.embed_each(windows, take)
        assert written is not None
        return written

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """The layer with its weights; they are gone when the block ends."""
        layer = self.layers[index]
        with self._materialized([n for n in self.shapes() if n.startswith(self.prefix(index))]):
            yield layer

    def call(self, index: int, window: int = 0) -> Call:
        """The keyword arguments the model calls this layer with (mask, positions) for this window, as noted by `embed`."""
        return self._relays.call(index, window)

    def windows(self, hidden: Hidden) -> Iterator[Tensor]:
        """[1, window, hidden] of each window's hidden states."""
        return (hidden[number : number + 1] for number in range(len(hidden)))

    @torch.no_grad()
    def run(
        self,
        index: int,
        layer: nn.Module,
        hidden: States,
        into: States | None = None,
        after: Callable[[Tensor], None] = lambda _: None,
    ) -> States:
        """The layer over all windows, [n, window, hidden], one by one as it was called.

        Its output is written to `into`, or over `hidden` if there is none, and returned; `after` is given that of each window."""
        into = hidden if into is None else into
        for number, window in enumerate(self.windows(hidden)):
            output = apply_layer(layer, window, self.call(index, number))
            after(output)
            into[number : number + 1] = output
        return into

    @contextmanager
    def head(self) -> Iterator[nn.Module]:
        """The part after the last layer with its weights; call `logits` inside."""
        names = [n for n in self.outside() if n not in self._embedding_names()]
        names += [target for source, target in self.tied.items() if source not in names]
        with self._materialized(names):
            yield self.model

    def run_with_gradients(self, index: int, windows: Sequence[int], *hidden: Tensor) -> tuple[Tensor, ...]:
        """The layer's outputs for several windows' hidden states, each [1, window, hidden], with weights straight from the source:
        gradients flow on into what it makes them of."""
        prefix = self.prefix(index)
        names = [n for n in self.shapes() if n.startswith(prefix)]
        weights = {n.removeprefix(prefix): self.source.tensor(n).to(self.device, self.dtype) for n in names}

        layer = Weighted(self.layers[index], weights)
        return tuple(apply_layer(layer, h, self.call(index, window)) for h, window in zip(hidden, windows, strict=True))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, window, vocabulary] in float32 from hidden states after the last layer, by the model's own final steps."""
        with self._relays.answering(hidden):
            width = self.model.get_input_embeddings().weight.shape[1]
            embeddings = hidden.new_zeros(*hidden.shape[:2], width)
            output: Tensor = self._run_model(self.model, inputs_embeds=embeddings).logits
            return output.float()

    def _run_model(self, model: nn.Module, **inputs: Tensor) -> Any:
        """The model's own code around its layers. Raises BadModel where it does not take what stands in their places."""
        try:
            return model(**inputs, use_cache=False)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BadModel(f"architecture {self.config.model_type!r} cannot be run layer by layer: {why}") from error

    def _run_alone(self, index: int, hidden: Tensor, call: Call) -> Any:
        with self.layer(index) as layer:
            return layer(hidden, **call)

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
                value = nn.Parameter(self.source.tensor(name).to(self.device).to(self.dtype), requires_grad=False)
                for place in places:
                    _set_parameter(self.model, place, value)
            self.source.release()
            yield
        finally:
            for name, places in shared.items():
                for place in places if name not in self.buffers else ():
                    old = self.model.get_parameter(place)
                    _set_parameter(self.model, place, nn.Parameter(torch.empty_like(old, device="meta"), requires_grad=False))

    def _check_fit(self, checkpoint: Checkpoint) -> None:
        for name, shape in self.shapes().items():
            stored = self.source.shape(name)
            owner = self.model.get_submodule(name.rpartition(".")[0])
            if stored is None and len(shape) == 3 and not isinstance(owner, nn.Conv1d):
                raise BadModel(f"layer weight {name} has 3 dimensions: {OTHER_EXPERTS}")
            if stored is None:
                raise BadModel(f"{checkpoint.folder.name}: tensor {name} is missing from the checkpoint; is a shard missing?")
            if stored != shape:
                found, wanted = list(stored), list(shape)
                raise BadModel(f"{checkpoint.folder.name}: tensor {name} has shape {found}; config.json asks for {wanted}")


def _set_parameter(model: nn.Module, name: str, value: nn.Parameter) -> None:
    owner, _, attribute = name.rpartition(".")
    model.get_submodule(owner)._parameters[attribute] = value
