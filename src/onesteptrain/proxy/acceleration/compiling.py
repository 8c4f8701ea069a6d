"""Compile the repeated blocks of a model: one block is compiled, and all of its kind run the result."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

_MOST_FORMS = 64
"""In which blocks are compiled: all kinds share one function, which past PyTorch's limit of 8 runs as it is."""


def compile_blocks(model: nn.Module) -> None:
    """Let `torch.compile` work on the blocks of a model, in place; they are compiled when they are first run.

    Compiling whole models of this kind takes many minutes, and breaks at what their towers do with images; a block is
    compiled once for all lengths, in about half a minute.
    """
    from torch._dynamo import config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, _MOST_FORMS)
    for block in _blocks(model):
        block.compile(dynamic=True)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Members of lists of modules of one kind; not what lies inside them."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len(child) > 1 and len({type(block) for block in child}) == 1:
            yield from child
        else:
            yield from _blocks(child)
