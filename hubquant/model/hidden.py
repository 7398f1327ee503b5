"""Hidden states in a file: read and written window by window, so that memory holds one window of them, however many there are."""

import os
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


class Hidden(Protocol):
    """Hidden states [windows, window, hidden] before a layer: a tensor, or a HiddenFile."""

    def __len__(self) -> int: ...

    def __getitem__(self, windows: slice, /) -> Tensor: ...

    def __setitem__(self, windows: slice, states: Tensor, /) -> None: ...


class HiddenFile:
    """A file of hidden states `shape` [windows, window, hidden] of `dtype`; what is read comes to `device`.

    It is not mapped: pages of a mapped file would count as the process's memory until the system takes them back.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.dtype, self._device = shape, dtype, device
        self._window_bytes = prod(shape[1:]) * dtype.itemsize
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")

    def alike(self, path: Path) -> "HiddenFile":
        """Another one of that shape, as it lies there or to be written."""
        return HiddenFile(path, self.shape, self.dtype, self._device)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, windows: slice, /) -> Tensor:
        start, stop, _ = windows.indices(len(self))
        states = torch.empty(stop - start, *self.shape[1:], dtype=self.dtype)
        self._file.seek(start * self._window_bytes)
        read = self._file.readinto(states.view(torch.uint8).numpy().data)
        assert read == states.nbytes, f"{self._file.name} ends after {read} of {states.nbytes} bytes"
        return states.to(self._device)

    def __setitem__(self, windows: slice, states: Tensor, /) -> None:
        start, _, _ = windows.indices(len(self))
        self._file.seek(start * self._window_bytes)
        self._file.write(states.cpu().to(self.dtype).contiguous().view(torch.uint8).numpy().data)

    def sync(self) -> None:
        """Returns when the disk has it."""
        self._file.flush()
        os.fsync(self._file.fileno())
