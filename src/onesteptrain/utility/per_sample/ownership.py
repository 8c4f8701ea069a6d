"""Which rows of what a module is given belong to which sample of a batch.

A module sees a batch in one of four ways: one entry a sample (or so many rows a sample, flattened), so many rows an
image (tiles, or the packed patches of all images, in the order of the samples), one row an answer token (the head), or
something that all share (positions). Which it is, is read from how its number of rows grows when a sample is doubled
and a short text is added, so that no name or class of a model needs to be known.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from onesteptrain.proxy import Encoded, Proxy, prepare

Kind = Literal["samples", "images", "answers", "shared"]

Place = tuple[str, int]
"""A module by name, and which of its calls in one pass."""


class UnfitError(Exception):
    """The samples of a batch cannot be told apart in what a module is given; take them one by one."""


class Rows(NamedTuple):
    """How the rows of one call follow from the batch."""

    kind: Kind
    per_unit: Fraction
    """Rows for each sample, row of the image tensor, or answer token."""

    dimensions: int
    """Of the output."""


class Shares(NamedTuple):
    """How much of a batch belongs to each of its samples."""

    images: Sequence[int]
    """Rows of the image tensor."""

    answers: Sequence[int]
    """Answer tokens."""

    def bounds(self, rows: Rows, count: int) -> list[int]:
        """Where the rows of each sample begin, and where the last ones end.

        Raises:
            UnfitError: the rows do not divide as they should.
        """
        units = {"images": self.images, "answers": self.answers}.get(rows.kind, [1] * len(self.answers))
        total = sum(units)
        flattened = rows.kind == "samples" and rows.per_unit != 1  # as many rows as the longest sample has tokens
        if (
            not total
            or any(count * unit % total for unit in units)
            or not (flattened or count == rows.per_unit * total)
        ):
            raise UnfitError(f"{count} rows cannot be divided among {list(units)}")
        return [0, *itertools.accumulate(count * unit // total for unit in units)]


def shares_of(samples: Sequence[Encoded]) -> Shares:
    """What each sample brings to a batch."""
    return Shares([_image_rows(sample) for sample in samples], [int(sample.answer[1:].sum()) for sample in samples])


def find_rows(proxy: Proxy, sample: Encoded) -> dict[Place, Rows]:
    """See how each call of each module grows; what follows no known rule is left out.

    Args:
        proxy: The model; two passes over up to three samples are run.
        sample: With all inputs that the batches have.
    """
    answers, images = int(sample.answer[1:].sum()), _image_rows(sample)
    text = _text(sample, answers=1 if answers != 1 else 2)
    once, more = _leading(proxy, [sample]), _leading(proxy, [sample, sample, text])
    grown = {
        (name, call): (before, after, dimensions)
        for name, calls in once.items()
        if len(calls) == len(more.get(name, []))
        for call, ((before, dimensions), (after, _)) in enumerate(zip(calls, more[name], strict=True))
    }
    added = int(text.answer[1:].sum())
    rows = {}
    for place, (before, after, dimensions) in grown.items():
        if (before, after) == (answers, 2 * answers + added):
            rows[place] = Rows("answers", Fraction(1), dimensions)
        elif after == 3 * before:
            rows[place] = Rows("samples", Fraction(before), dimensions)
        elif after == 2 * before and images:
            rows[place] = Rows("images", Fraction(before, images), dimensions)
        elif after == before == 1:
            rows[place] = Rows("shared", Fraction(1), dimensions)
    return rows


def shared_by(rows: Mapping[Place, Rows], name: str) -> Rows:
    """Among what a shared output is shared: the rows of the smallest module around it that has any.

    Raises:
        UnfitError: there is none.
    """
    parts = name.split(".")
    for length in range(len(parts) - 1, -1, -1):
        around = rows.get((".".join(parts[:length]), 0))
        if around is not None and around.kind in ("samples", "images") and around.per_unit == 1:
            return around
    raise UnfitError(f"{name} gives something that all samples share")


def first_tensor(values: Any) -> Tensor | None:
    """The first tensor with rows among the arguments or the output of a module."""
    return next((leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor) and leaf.ndim), None)


def _leading(proxy: Proxy, samples: Sequence[Encoded]) -> dict[str, list[tuple[int, int]]]:
    """Rows and dimensions of the output of each call, by module."""
    batch = prepare(proxy, samples)
    leading: dict[str, list[tuple[int, int]]] = {}
    names = {module: name for name, module in proxy.model.named_modules()}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        leaf = first_tensor(output)
        leading.setdefault(names[module], []).append((0, 0) if leaf is None else (leaf.shape[0], leaf.ndim))

    hooks = [module.register_forward_hook(note) for module in names]
    try:
        with proxy.eagerly():
            proxy.answer_logits(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return leading


def _text(sample: Encoded, *, answers: int) -> Encoded:
    """A short text without images: one of the sample's answer tokens, again and again."""
    token = int(sample.answer.nonzero()[-1])
    inputs = {
        name: value[:, token : token + 1].expand(1, answers + 1)
        for name, value in sample.inputs.items()
        if value.shape == (1, sample.tokens)
    }
    answer = torch.ones(answers + 1, dtype=torch.bool)
    answer[0] = False
    return Encoded(inputs, answer)


def _image_rows(sample: Encoded) -> int:
    """Rows of the image tensor; where images are bundled by sample, those of all its images."""
    pixels = [value for value in sample.inputs.values() if value.is_floating_point() and value.ndim > 1]
    if not pixels:
        return 0
    largest = max(pixels, key=lambda value: value.numel())
    bundled = largest.ndim == 5  # sample, image, channel, height, width
    return largest.shape[0] * (largest.shape[1] if bundled else 1)
