"""A vision-language model seen as a function from weights and samples to losses of answer tokens."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from onesteptrain.errors import ModelError, ScoreError
from onesteptrain.proxy.acceleration.causality import can_be_continued, continued, without_mask
from onesteptrain.proxy.acceleration.positions import longest, positions_of, works_out_positions
from onesteptrain.proxy.acceleration.prefix_cache import NOTHING, REFUSALS, Upstream, agrees, find_upstream, replayed
from onesteptrain.proxy.acceleration.traits import Trait
from onesteptrain.proxy.encoding import Batch, Encoded, Encoder, collate, kind_of, sent
from onesteptrain.proxy.memory import out_of_memory

_MOVE = 3e-2
"""Share of its own size that each weight is moved by, to see what depends on it."""

_LEAST = 1e-2
"""Size that a weight of zero is taken to have."""

BATCH_TOKENS = 16384
"""By default, one pass holds no more tokens."""

CPU_TOKENS = 1024
"""And no more for each thread of a CPU: what a layer makes of many more tokens leaves the caches."""

CPU_ROWS = 16
"""Rows of one pass on a CPU, unless a batch size is given."""

Direction = Mapping[str, Tensor]
"""A direction in weight space: one tensor for each parameter in scope that it moves."""


class TokenLosses(NamedTuple):
    """Losses of the answer tokens of a batch, sample after sample, in reading order."""

    loss: Float[Tensor, " answer_token"]
    """Negative log-likelihood of each answer token, in nats."""

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


@dataclass
class Room:
    """What is known of the memory that a proxy works in."""

    tokens: int | None = None
    """Tokens that one pass may hold, padding included; fewer once a pass has failed. None where something else than
    the length of the samples fills the memory."""

    samples: int | None = None
    """Samples that one pass may hold, where tokens do not say; None as long as nothing has failed."""

    together: int | None = None
    """Batches that may be held at once; None as long as nothing has failed."""


@dataclass(frozen=True)
class Proxy:
    """A model, its encoder and the parameters that take the step."""

    model: Any
    encoder: Encoder
    parameters: Mapping[str, nn.Parameter]
    """The parameters in scope by name; all others are frozen."""

    batch_tokens: int | None = None
    """Most tokens of one pass, padding included; None leaves that to the device."""

    compiled: bool = False
    """Whether blocks of the model are compiled."""

    @functools.cached_property
    def room(self) -> Room:
        """How much fits; learned while working."""
        return Room(self.tokens_at_once)

    @functools.cached_property
    def backward_room(self) -> Room:
        """How much fits a pass that goes back too, which forward passes need not learn of."""
        return Room(self.tokens_at_once)

    @functools.cached_property
    def findings(self) -> dict[str, Any]:
        """What others found out about the model while working, to be found out once."""
        return {}

    def rows_at_once(self, asked: int | None) -> int:
        """How many samples one pass takes at most; tokens and memory may allow fewer."""
        if asked is not None:
            return asked
        return CPU_ROWS if self.device.type == "cpu" else self.tokens_at_once

    @property
    def tokens_at_once(self) -> int:
        """How many tokens one pass takes at most; memory may allow fewer."""
        if self.batch_tokens is not None:
            return self.batch_tokens
        return min(BATCH_TOKENS, CPU_TOKENS * torch.get_num_threads()) if self.device.type == "cpu" else BATCH_TOKENS

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(next(iter(self.model.parameters())).device)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters in scope."""
        return next(iter(self.parameters.values())).dtype

    def batch(self, samples: Sequence[Encoded], *, keep: bool = False) -> Batch:
        """Pad samples to one batch on the model's device.

        With the first samples of a kind the model is run, to find what their answers need; with more of them, as long
        as they do not tell.

        Args:
            samples: The samples.
            keep: Keep what the scope does not change from the first pass on, for a batch that several passes go over.
        """
        keep = keep and self._may_keep
        self._find_out(samples, keep)
        batch = self._collated(samples)
        return batch._replace(kept={}) if keep else batch

    def arguments(self, batch: Batch) -> dict[str, Any]:
        """What the model is called with for a batch."""
        unmasked = batch.unmasked and not self.model.training  # dropout draws for each weight of attention
        positions = {} if batch.positions is None else {"position_ids": batch.positions}
        return {**(without_mask(batch.inputs) if unmasked else batch.inputs), **positions, "use_cache": False}

    def _find_out(self, samples: Sequence[Encoded], keep: bool) -> None:
        """Look into what is not known yet of samples of this kind, each time at the shortest that can tell."""
        if self.model.training:  # dropout lets no two passes agree
            return
        kind = kind_of(samples)

        def look(trait: Trait[Any], find: Callable[[Encoded], Any], tells: Callable[[Encoded], bool]) -> None:
            if kind in trait.known:
                return
            telling = [one for one in samples if tells(one) and kind_of([one]) == kind]
            if telling:
                one = min(telling, key=lambda sample: sample.tokens)
                trait.look(kind, one.tokens, lambda: find(one))

        look(self._numbered, self._may_be_numbered, lambda _: self._may_number)
        look(self._causal, self._is_causal, lambda one: 2 * one.tokens <= self._longest and can_be_continued(one))
        look(self._upstream, self._find_upstream, lambda _: keep)

    def _collated(self, samples: Sequence[Encoded], *, numbered: bool | None = None) -> Batch:
        pixel_type = next(iter(self.model.parameters())).dtype
        padding = self.encoder.processor.tokenizer.pad_token_id
        batch = collate(samples, pad_token_id=padding)
        kind = batch.kind
        batch = batch._replace(unmasked=self._causal.of(kind), upstream=self._upstream.of(kind))
        if self._numbered.of(batch.kind) if numbered is None else numbered:
            batch = batch._replace(positions=positions_of(self.model, batch.inputs))
        return batch.to(self.device, pixel_type)

    @functools.cached_property
    def _may_keep(self) -> bool:
        """Whether anything lies outside the scope."""
        return len(self.parameters) < sum(1 for _ in self.model.parameters())

    @functools.cached_property
    def _may_number(self) -> bool:
        return works_out_positions(self.model)

    @functools.cached_property
    def _longest(self) -> int:
        return longest(self.model)

    @functools.cached_property
    def _numbered(self) -> Trait[bool]:
        """Whether positions are worked out with a batch."""
        return Trait(False)

    @functools.cached_property
    def _causal(self) -> Trait[bool]:
        """Whether tokens see nothing that follows them."""
        return Trait(False)

    @functools.cached_property
    def _upstream(self) -> Trait[Upstream]:
        """What the scope does not reach."""
        return Trait(NOTHING)

    @torch.no_grad()
    def _may_be_numbered(self, sample: Encoded) -> bool | None:
        """Whether a model gives the same logits with positions worked out before."""
        try:
            with self.eagerly():
                own, given = (
                    self.answer_logits(self._collated([sample], numbered=one)).logits for one in (False, True)
                )
        except REFUSALS as error:
            if out_of_memory(error):
                raise
            return False  # whatever its method wants, the model calls it better
        return torch.equal(own, given) if own.isfinite().all() else None

    @torch.no_grad()
    def _is_causal(self, sample: Encoded) -> bool | None:
        batches = [self._collated([continued(sample, turn)]) for turn in range(2)]
        try:
            with self.eagerly():
                one, other = (self.answer_logits(batch).logits for batch in batches)
        except REFUSALS as error:
            if out_of_memory(error):
                raise
            return False
        # the same operations on the same numbers, up to what follows
        return torch.equal(one, other) if one.isfinite().all() else None

    def _find_upstream(self, sample: Encoded) -> Upstream | None:
        """What lies upstream of the scope; nothing where relying on it would change a logit."""
        batch = self._collated([sample])
        with self.eagerly():
            upstream = find_upstream(self.model, lambda: self.answer_logits(batch).logits)
        if not upstream:
            return upstream
        remembering = batch._replace(kept={}, upstream=upstream)
        with torch.no_grad():
            before = self.answer_logits(remembering).logits
            with self.shifted(self.anyhow(0), 1.0):
                plain, again = (self.answer_logits(one).logits for one in (batch, remembering))
        if not (before.isfinite().all() and plain.isfinite().all()):
            return None
        return upstream if agrees(plain, again, before) else NOTHING

    def anyhow(self, seed: int) -> dict[str, Tensor]:
        """A move of all parameters in scope, by a few hundredths of their size: what depends on them shows.

        They grow by a part of themselves, which changes their length, and by as much at random, which moves a weight of
        zero too: fresh adapters begin there.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn = {}
        for name, value in self.parameters.items():
            size = max(float(value.detach().square().mean().sqrt()), _LEAST)
            drawn[name] = _MOVE * (value.detach() + (size * torch.randn(value.shape, generator=generator)).to(value))
        return drawn

    def eagerly(self) -> AbstractContextManager[Any]:
        """Run the model without what is compiled, where its modules are looked into."""
        return torch.compiler.set_stance("force_eager") if self.compiled else contextlib.nullcontext()

    def token_losses(self, batch: Batch, weights: Mapping[str, Tensor] | None = None) -> TokenLosses:
        """Loss of each answer token; arguments and errors are those of `answer_logits`."""
        found = self.answer_logits(batch, weights)
        losses = nn.functional.cross_entropy(found.logits, found.target, reduction="none")
        return TokenLosses(losses, found.sample, found.lengths)

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
            stack.enter_context(replayed(self.model, batch.upstream, batch.kept))
            stack.enter_context(_head_only_at(answers.place, batch.answer.shape, self.model))
            if weights is None:
                logits = self.model(**arguments).logits
            else:
                logits = torch.func.functional_call(self.model, dict(weights), args=(), kwargs=arguments).logits
        logits = _at(answers.place, batch.answer.shape, logits)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return AnswerLogits(logits.to(wide), answers.target, answers.sample, answers.lengths)

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
                found = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
            losses.append(loss.detach() / count)
            for name, value in zip(self.parameters, found, strict=True):
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


def in_batches(samples: Sequence[Encoded], batch_size: int, batch_tokens: int | None = None) -> list[list[int]]:
    """Positions of samples grouped into batches of similar length, so that little is padded.

    Args:
        samples: What is grouped.
        batch_size: Most samples of a batch.
        batch_tokens: Most tokens of a batch, padding included; a longer sample is a batch alone.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(samples)), key=lambda index: (samples[index].tokens, index)):
        rows = len(batches[-1]) + 1 if batches else 1
        fits = rows <= batch_size and (batch_tokens is None or rows * samples[index].tokens <= batch_tokens)
        if batches and fits:
            batches[-1].append(index)  # the longest yet
        else:
            batches.append([index])
    return batches
