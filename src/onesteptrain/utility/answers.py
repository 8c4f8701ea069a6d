"""What one batched pass says of samples: of their answer tokens, and where they lie in the proxy's space."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor
from torch.nn.functional import cross_entropy

from onesteptrain.errors import ModelError
from onesteptrain.proxy import AnswerLogits, Batch, Encoded, Proxy, prepare
from onesteptrain.proxy.memory import in_memory, too_large

TokenMeasure = Callable[[AnswerLogits], Float[Tensor, " answer_token"]]
"""A number for each answer token."""


@torch.no_grad()
def answer_losses(
    proxy: Proxy, samples: Sequence[Encoded], *, batch_size: int | None
) -> list[Float64[Tensor, " answer_token"]]:
    """Loss of every answer token of each sample, in nats, in one pass; NaN of one that does not fit into memory."""

    def losses(batch: Sequence[Encoded]) -> Sequence[Tensor]:
        tokens = proxy.token_losses(prepare(proxy, batch))
        return torch.split(tokens.loss.cpu().double(), list(tokens.lengths))

    return in_memory(
        proxy.memory,
        samples,
        lambda batches: map(losses, batches),
        lambda _: torch.full((1,), float("nan"), dtype=torch.float64),
        batch_size=batch_size,
    )


@torch.no_grad()
def answer_means(
    proxy: Proxy, samples: Sequence[Encoded], measures: Sequence[TokenMeasure], *, batch_size: int | None
) -> Float64[Tensor, "sample measure"]:
    """Mean of some measures over the answer tokens of each sample by their weights, in one pass; summed in float64.

    NaN of a sample that does not fit into memory.
    """

    def means(batch: Sequence[Encoded]) -> Tensor:
        answers = proxy.answer_logits(prepare(proxy, batch))
        tokens = torch.stack([answers.weighed(measure(answers)).cpu().double() for measure in measures], dim=1)
        lengths = torch.tensor(answers.lengths)
        totals = tokens.new_zeros(len(lengths), len(measures))
        return totals.index_add(0, torch.repeat_interleave(lengths), tokens) / lengths[:, None]

    rows = in_memory(
        proxy.memory,
        samples,
        lambda batches: map(means, batches),
        lambda _: torch.full((len(measures),), float("nan"), dtype=torch.float64),
        batch_size=batch_size,
    )
    return torch.stack(rows) if rows else torch.empty(0, len(measures), dtype=torch.float64)


def token_loss(answers: AnswerLogits) -> Float[Tensor, " answer_token"]:
    """Negative log-likelihood, in nats."""
    return cross_entropy(answers.logits, answers.target, reduction="none")


def token_error(answers: AnswerLogits) -> Float[Tensor, " answer_token"]:
    """Euclidean distance of the predicted probabilities from the token that stands there, from 0 to the root of 2.

    Source: EL2N, Data Diet (arXiv:2107.07075), section 2.
    """
    others = answers.logits.softmax(-1).scatter(1, answers.target[:, None], 0.0)
    # what a probability near 1 lacks has no digits left in 1 - p; the sum of the others has all
    lacking = others.sum(-1, keepdim=True)
    lengths: Tensor = torch.linalg.vector_norm(torch.cat([others, lacking], dim=1), dim=1)
    return lengths


@torch.no_grad()
def represent(
    proxy: Proxy, samples: Sequence[Encoded], *, batch_size: int | None
) -> list[Float32[Tensor, " dim"] | str]:
    """The proxy's last hidden state at the last token of each sample, on the CPU, or the reason why there is none.

    Raises:
        ModelError: the model does not give one hidden state for each token.

    Source: DEITA (arXiv:2312.15685), the embeddings of its representation filter.
    """

    def vectors(batch: Sequence[Encoded]) -> list[Tensor | str]:
        states = _last_states(proxy, prepare(proxy, batch))
        ends = torch.stack([states[place, sample.tokens - 1] for place, sample in enumerate(batch)]).float().cpu()
        reason = "its representation is not finite; check the sample, or use float32"
        return [vector if vector.isfinite().all() else reason for vector in ends]

    return in_memory(proxy.memory, samples, lambda batches: map(vectors, batches), too_large, batch_size=batch_size)


def _last_states(proxy: Proxy, batch: Batch) -> Tensor:
    # no logits are needed; a model that can leave them out computes one
    fewer = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(proxy.model.forward).parameters else {}
    output = proxy.model(**proxy.arguments(batch), output_hidden_states=True, **fewer)
    states: Tensor = output.hidden_states[-1]
    if states.shape[:2] != batch.answer.shape:
        raise ModelError(
            f"the proxy gives hidden states of shape {tuple(states.shape)} for tokens of shape "
            f"{tuple(batch.answer.shape)}; it rearranges tokens: choose another proxy"
        )
    return states
