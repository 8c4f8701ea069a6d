"""What an error says of memory."""

from __future__ import annotations

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

__all__ = ["clear_device_cache", "out_of_memory"]

_OTHER_WORDS = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Of the driver and of cuBLAS, which have no room left where PyTorch's cache has filled a device."""


def out_of_memory(error: Exception) -> bool:
    """Whether smaller work may succeed where this was raised."""
    if isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OTHER_WORDS)
