"""Gradients as LESS collects them: one row at a time, as one long vector, and projected 16 rows at a time.

LESS cannot be installed beside a current transformers, and its `prepare_batch` wants a GPU; what it does to each row
with SGD gradients is repeated here, with the projector that it falls back to without a GPU (`BasicProjector` of
traker). It takes cosines of Adam's updates in the end; here the inner product of gradients, as everywhere.

Source: `collect_grads` and `obtain_gradients` of the code of LESS (arXiv:2402.04333).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from cases import Loaded, mean_losses
from clock import Clock
from torch import Tensor

from onesteptrain.proxy import Encoded

_DIMENSIONS = 512
"""LESS takes 8192, which takes 16 times as long: without a GPU, minutes for each 16 rows of the smallest model."""

_ROWS_AT_ONCE = 16


def gradients(case: Loaded, clock: Clock) -> Tensor:
    """Without projection."""
    return _score(case, clock, lambda vectors: vectors)


def projected(case: Loaded, clock: Clock) -> Tensor:
    """Rademacher projection. The anchors' mean is projected, and not each of them, to save time."""
    from trak.projectors import BasicProjector, ProjectionType

    size = sum(parameter.numel() for parameter in case.proxy.parameters.values())
    projector = BasicProjector(
        grad_dim=size,
        proj_dim=_DIMENSIONS,
        seed=0,
        proj_type=ProjectionType.rademacher,
        device=torch.device("cpu"),
        dtype=torch.float32,
        block_size=128,
    )
    # the projector's matrix has entries of 1 and -1, so that inner products are `_DIMENSIONS` times as large
    return _score(case, clock, lambda vectors: projector.project(vectors, model_id=0)) / _DIMENSIONS


def _score(case: Loaded, clock: Clock, project: Callable[[Tensor], Tensor]) -> Tensor:
    means = [torch.stack(list(_vectors(case, group))).mean(0) for group in case.grouped]
    directions = project(torch.stack(means))
    clock.touch()
    scores = []
    for start in range(0, len(case.rows), _ROWS_AT_ONCE):
        vectors = torch.stack(list(_vectors(case, case.rows[start : start + _ROWS_AT_ONCE])))
        scores.append(project(vectors) @ directions.T)
    return torch.cat(scores)


def _vectors(case: Loaded, samples: Sequence[Encoded]) -> Iterator[Tensor]:
    """The gradient of each sample, all parameters in a row."""
    for sample in samples:
        mean_losses(case.proxy.model, case.collate([sample])).sum().backward()
        # a copy: what is there is set to zero and written again
        yield torch.cat([p.grad.flatten() for p in case.proxy.parameters.values() if p.grad is not None])
        case.proxy.model.zero_grad()
