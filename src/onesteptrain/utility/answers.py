"""What one batched pass says of the answers of samples: means over answer tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import cross_entropy

from onesteptrain.proxy import AnswerLogits, Encoded, Proxy
from onesteptrain.utility.batching import Batches, in_memory

TokenMeasure = Callable[[AnswerLogits], Float[Tensor, " answer_token"]]
"""A number for each answer token."""


@torch.no_grad()
def answer_losses(
    proxy: Proxy, samples: Sequence[Encoded], *, batch_size: int | None
) -> list[Float64[Tensor, " answer_token"]]:
    """Loss of every answer token of each sample, in nats, in one pass."""

    def work(batches: Batches) -> dict[int, Tensor]:
        losses: dict[int, Tensor] = {}
        for indices in batches:
            found = proxy.token_losses(proxy.batch([samples[index] for index in indices]))
            losses |= dict(zip(indices, torch.split(found.loss.cpu().double(), list(found.lengths)), strict=True))
        return losses

    losses = in_memory(proxy, samples, work, batch_size=batch_size)
    nothing = torch.full((1,), float("nan"), dtype=torch.float64)  # of a sample that does not fit into memory
    return [losses.get(index, nothing) for index in range(len(samples))]


@torch.no_grad()
def answer_means(
    proxy: Proxy, samples: Sequence[Encoded], measures: Sequence[TokenMeasure], *, batch_size: int | None
) -> Float64[Tensor, "sample measure"]:
    """Mean of some measures over the answer tokens of each sample, in one pass; summed in float64."""

    def work(batches: Batches) -> dict[int, Tensor]:
        means: dict[int, Tensor] = {}
        for indices in batches:
            found = proxy.answer_logits(proxy.batch([samples[index] for index in indices]))
            tokens = torch.stack([measure(found).cpu().double() for measure in measures], dim=1)
            lengths = torch.tensor(found.lengths)
            owner = torch.repeat_interleave(lengths)
            totals = tokens.new_zeros(len(lengths), len(measures)).index_add(0, owner, tokens)
            means |= dict(zip(indices, totals / lengths[:, None], strict=True))
        return means

    means = in_memory(proxy, samples, work, batch_size=batch_size)
    nothing = torch.full((len(measures),), float("nan"), dtype=torch.float64)  # of one that does not fit into memory
    rows = [means.get(index, nothing) for index in range(len(samples))]
    return torch.stack(rows) if rows else torch.empty(0, len(measures), dtype=torch.float64)


def token_loss(found: AnswerLogits) -> Float[Tensor, " answer_token"]:
    """Negative log-likelihood, in nats."""
    return cross_entropy(found.logits, found.target, reduction="none")


def token_error(found: AnswerLogits) -> Float[Tensor, " answer_token"]:
    """Euclidean distance of the predicted chances from the token that stands there, between 0 and the root of 2.

    Source: EL2N, Data Diet (arXiv:2107.07075), section 2.
    """
    others = found.logits.softmax(-1).scatter(1, found.target[:, None], 0.0)
    # what a chance near 1 lacks has no digits left in 1 - p; the sum of the other chances has all
    lacking = others.sum(-1, keepdim=True)
    lengths: Tensor = torch.linalg.vector_norm(torch.cat([others, lacking], dim=1), dim=1)
    return lengths
