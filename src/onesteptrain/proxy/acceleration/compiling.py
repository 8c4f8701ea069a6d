"""Compile the repeated blocks of a model: one block is compiled, and all of its kind run the result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from onesteptrain.errors import ConfigError

_MOST_FORMS = 64
"""In which blocks are compiled: those of towers and language, for one sample or several, with gradients and without."""


def compile_blocks(model: nn.Module) -> None:
    """Let `torch.compile` work on the blocks of a model, in place; they are compiled when they are first run.

    Compiling whole models of this kind takes many minutes, and breaks at what their towers do with images; a block is
    compiled once for all lengths, in about half a minute. PyTorch's limit on forms of one function is raised for the
    process.

    Raises:
        ConfigError: nothing can be compiled here.
    """
    from torch._dynamo import config as dynamo

    _check_compiler()
    # blocks of all kinds share one function of transformers, and past PyTorch's own limit of 8 all would run uncompiled
    dynamo.recompile_limit = max(dynamo.recompile_limit, _MOST_FORMS)
    for block in _blocks(model):
        block.compile(dynamic=True)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Members of lists of modules of one kind; not what lies inside them."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len(child) > 1 and len({type(one) for one in child}) == 1:
            yield from child
        else:
            yield from _blocks(child)


def _check_compiler() -> None:
    def probe(value: Tensor) -> Any:
        return value.sin() + 1

    try:
        torch.compile(probe)(torch.ones(2))
    except Exception as error:  # the compiler's own errors have no common class
        raise ConfigError(
            f"torch.compile does not work here ({str(error).strip().splitlines()[0]}); "
            "install a C++ compiler, or leave out --compile"
        ) from error
