"""Kernels of hubquant. Every operator has a definition in plain torch; faster implementations register beside it by device."""
