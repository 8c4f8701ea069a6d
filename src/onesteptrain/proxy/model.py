"""A vision-language model seen as a function from weights and samples to losses of answer tokens."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from onesteptrain.errors import ModelError, ScoreError
from onesteptrain.proxy.acceleration.plan import PassPlan
from onesteptrain.proxy.acceleration.probes import ModelProbes
from onesteptrain.proxy.encoding import Batch, Encoded, Encoder, collate, sent
from onesteptrain.proxy.memory import MemoryBudget
from onesteptrain.proxy.quiet import quiet

Direction = Mapping[str, Tensor]
"""A direction in weight space: one tensor for each parameter in scope that it moves."""


class TokenLosses(NamedTuple):
    """Losses of the answer tokens of a batch, sample after sample, in reading order."""

    loss: Float[Tensor, " answer_token"]
    """Negative log-likelihood of each answer token, in nats, times what the token counts among those of its sample."""

    sample: Int[Tensor, " answer_token"]
    """Which sample of the batch each token belongs to."""

    lengths: Sequence[int]
    """Answer tokens of each sample."""

    def means(self) -> Float[Tensor, " sample"]:
        """Mean loss over the answer tokens of each sample: the loss that the paper calls l(z)."""
        total = self.loss.new_zeros(len(self.lengths)).index_add(0, self.sample, self.loss)
        return total / sent(torch.tensor(self.lengths), total.device)


class AnswerLogits(NamedTuple):
    """What the model predicts where answer tokens stand, sample after sample, in reading order."""

    logits: Float[Tensor, "answer_token vocabulary"]
    """In float32 at least."""

    target: Int[Tensor, " answer_token"]
    """The token that stands there."""

    sample: Int[Tensor, " answer_token"]
    """Which sample of the batch each token belongs to."""

    lengths: Sequence[int]
    """Answer tokens of each sample."""

    weight: Float[Tensor, " answer_token"] | None = None
    """What each token counts, 1 in the mean of each sample; None stands for 1 everywhere."""

    def weighed(self, values: Float[Tensor, " answer_token"]) -> Float[Tensor, " answer_token"]:
        """Something of each token, times what it counts: its plain mean over a sample is the weighted one."""
        return values if self.weight is None else values * self.weight


@dataclass(frozen=True)
class Proxy:
    """A model, its encoder and the parameters that take the step."""

    model: Any
    encoder: Encoder
    parameters: Mapping[str, nn.Parameter]
    """The parameters in scope by name; all others are frozen."""

    memory: MemoryBudget = field(default_factory=MemoryBudget, repr=False)
    """How much fits a forward pass."""

    backward_memory: MemoryBudget = field(default_factory=MemoryBudget, repr=False)
    """How much fits a pass that goes back too, which forward passes need not learn of."""

    probes: ModelProbes | None = field(default=None, repr=False)
    """What was learned of the model, which makes passes cheaper (`prepare`); None runs them in full."""

    compiled: bool = False
    """Whether blocks of the model are compiled."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(next(iter(self.model.parameters())).device)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters in scope."""
        return next(iter(self.parameters.values())).dtype

    def batch(
        self, samples: Sequence[Encoded], plan: Callable[[Mapping[str, Tensor]], PassPlan] | None = None
    ) -> Batch:
        """Pad samples to one batch on the model's device; `prepare` makes one whose passes are cheaper.

        Args:
            samples: The samples.
            plan: Says how passes over the batch run, from its inputs before they go to the device; by default in full.
        """
        batch = collate(samples, pad_token_id=self.encoder.processor.tokenizer.pad_token_id)
        pixel_type = next(iter(self.model.parameters())).dtype
        planned = batch if plan is None else batch._replace(plan=plan(batch.inputs))
        return planned.to(self.device, pixel_type)

    def arguments(self, batch: Batch) -> dict[str, Any]:
        """What the model is called with for a batch."""
        return batch.plan.arguments(batch.inputs, training=self.model.training)

    def eagerly(self) -> AbstractContextManager[Any]:
        """Run the model without what is compiled, where its modules are looked into."""
        return torch.compiler.set_stance("force_eager") if self.compiled else contextlib.nullcontext()

    def token_losses(self, batch: Batch, weights: Mapping[str, Tensor] | None = None) -> TokenLosses:
        """Loss of each answer token; arguments and errors are those of `answer_logits`."""
        answers = self.answer_logits(batch, weights)
        losses = nn.functional.cross_entropy(answers.logits, answers.target, reduction="none")
        return TokenLosses(answers.weighed(losses), answers.sample, answers.lengths)

    def answer_logits(self, batch: Batch, weights: Mapping[str, Tensor] | None = None) -> AnswerLogits:
        """Logits of each answer token; the vocabulary is only computed where an answer token is predicted.

        Args:
            batch: The samples.
            weights: Tensors to use in place of the parameters of these names (for forward-mode differentiation).

        Raises:
            ModelError: the model does not give one row of logits for each token.
        """
        answers = batch.answers
        arguments = self.arguments(batch)
        with contextlib.ExitStack() as stack:
            stack.enter_context(batch.plan.running(self.model))
            stack.enter_context(_head_only_at(answers.place, batch.answer.shape, self.model))
            if weights is None:
                logits = self.model(**arguments).logits
            else:
                logits = torch.func.functional_call(self.model, dict(weights), args=(), kwargs=arguments).logits
        logits = _at(answers.place, batch.answer.shape, logits)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return AnswerLogits(logits.to(wide), answers.target, answers.sample, answers.lengths, answers.weight)

    def gradient(self, batches: Iterable[Batch], *, count: int | None = None) -> tuple[float, dict[str, Tensor]]:
        """Mean sample loss over some batches, in nats a token, and its gradient.

        A parameter that does not enter the loss (such as the last vision layer of LLaVA) has no entry. Gradients of
        half precision are added up in float32, and divided there: float16 has no numbers small enough.

        Args:
            batches: One after the other, so that they may be made as they are wanted.
            count: Samples of all batches; counted if it is not said, for which they must all be there.

        Raises:
            ScoreError: the loss is not finite.
        """
        if count is None:
            batches = list(batches)
            count = sum(batch.answer.shape[0] for batch in batches)
        add_up = self._in_float32 if self.dtype in (torch.bfloat16, torch.float16) else self._in_place
        losses, gradient = add_up(batches, count)
        total = sum(torch.stack(losses).tolist())
        if problem := not_finite(total):
            raise ScoreError(problem)
        return total, gradient

    def _in_place(self, batches: Iterable[Batch], count: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        self._drop_gradients()
        losses = []
        try:
            for batch in batches:
                with torch.enable_grad():
                    loss = self.token_losses(batch).means().sum() / count
                    loss.backward()  # type: ignore[no-untyped-call]
                losses.append(loss.detach())
            return losses, {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        finally:
            self._drop_gradients()

    def _in_float32(self, batches: Iterable[Batch], count: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        losses, gradient = [], dict[str, Tensor]()
        for batch in batches:
            with torch.enable_grad():
                loss = self.token_losses(batch).means().sum()
                slopes = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
            losses.append(loss.detach() / count)
            for name, value in zip(self.parameters, slopes, strict=True):
                if value is not None:
                    gradient[name] = value.float().add_(gradient.get(name, 0))
        return losses, {name: value.div_(count) for name, value in gradient.items()}

    @contextlib.contextmanager
    def shifted(self, direction: Direction, size: float) -> Iterator[None]:
        """The weights moved by size times a direction, and put back bit for bit."""
        with self._put_back(direction):
            with torch.no_grad():
                for name, step in direction.items():
                    self.parameters[name].add_(step, alpha=size)
            yield

    @contextlib.contextmanager
    def holding(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Other values for some of the parameters in scope, such as a checkpoint's; the old ones are put back."""
        with self._put_back(weights):
            with torch.no_grad():
                for name, value in weights.items():
                    self.parameters[name].copy_(value)
            yield

    def save(self, folder: Path) -> None:
        """Save weights (adapters alone, if there are any) and processor as a checkpoint folder."""
        with quiet():
            self.model.save_pretrained(folder)
            self.encoder.processor.save_pretrained(folder)

    @contextlib.contextmanager
    def _put_back(self, names: Iterable[str]) -> Iterator[None]:
        """Put some parameters back bit for bit, whatever the block does to them."""
        before = {name: self.parameters[name].detach().clone() for name in names}
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in before.items():
                    self.parameters[name].copy_(value)

    def _drop_gradients(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None


def not_finite(loss: float) -> str | None:
    """Why a loss cannot be used, if it cannot."""
    return None if math.isfinite(loss) else f"the loss is {loss}; check the weights of the proxy, or use float32"


@contextlib.contextmanager
def _head_only_at(places: Int[Tensor, " answer_token"], shape: torch.Size, model: Any) -> Iterator[None]:
    """Let the head see the tokens at some places only, in one row.

    `logits_to_keep` of transformers does the same with a mask, in which a device has to look for them.
    """

    def keep(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        fits = bool(given) and isinstance(given[0], Tensor) and given[0].shape[:-1] == shape
        return (given[0].flatten(0, 1)[places], *given[1:]) if fits else None

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:  # all logits, then
        yield
        return
    hook = head.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        hook.remove()


def _at(
    places: Int[Tensor, " answer_token"], shape: torch.Size, logits: Tensor
) -> Float[Tensor, "answer_token vocabulary"]:
    """Logits at some places; most models have left out the others already, a few cannot."""
    if logits.shape[:-1] == shape:
        return logits.flatten(0, 1)[places]
    if logits.ndim != 2 or len(logits) != len(places):  # rows and vocabulary
        raise ModelError(
            f"the model gives logits of shape {tuple(logits.shape)} for tokens of shape {tuple(shape)}; "
            "it rearranges tokens, so its answers cannot be found: choose another proxy"
        )
    return logits
