"""Where a sample lies in the proxy's space: the last hidden state at its last token."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor

from onesteptrain.errors import ModelError
from onesteptrain.proxy import Batch, Encoded, Proxy
from onesteptrain.utility.batching import Batches, in_memory, too_large


@torch.no_grad()
def represent(
    proxy: Proxy, samples: Sequence[Encoded], *, batch_size: int | None
) -> list[Float32[Tensor, " dim"] | str]:
    """The proxy's last hidden state at the last token of each sample, image and answer included, on the CPU.

    Args:
        proxy: The model; DEITA takes the one that is to be trained, or one like it.
        samples: The samples to represent.
        batch_size: Samples in one pass.

    Returns:
        For each sample its vector, or the reason why there is none.

    Raises:
        ModelError: the model does not give one hidden state for each token.

    Source: DEITA (arXiv:2312.15685), the embeddings of its representation filter.
    """

    def work(batches: Batches) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}
        for indices in batches:
            states = _last_states(proxy, proxy.batch([samples[index] for index in indices]))
            found |= {index: states[place, samples[index].tokens - 1] for place, index in enumerate(indices)}
        return {index: vector.float().cpu() for index, vector in found.items()}

    found = in_memory(proxy, samples, work, batch_size=batch_size)
    return [_usable(found[index]) if index in found else too_large(one) for index, one in enumerate(samples)]


def _last_states(proxy: Proxy, batch: Batch) -> Tensor:
    # no logits are needed; a model that can leave them out computes one
    spared = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(proxy.model.forward).parameters else {}
    output = proxy.model(**proxy.arguments(batch), output_hidden_states=True, **spared)
    states: Tensor = output.hidden_states[-1]
    if states.shape[:2] != batch.answer.shape:
        raise ModelError(
            f"the proxy gives hidden states of shape {tuple(states.shape)} for tokens of shape "
            f"{tuple(batch.answer.shape)}; it rearranges tokens: choose another proxy"
        )
    return states


def _usable(vector: Tensor) -> Tensor | str:
    return vector if vector.isfinite().all() else "its representation is not finite; check the sample, or use float32"
