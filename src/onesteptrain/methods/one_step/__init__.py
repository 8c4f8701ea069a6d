"""One-Step-Train: score a sample by what one simulated training step on it does to the anchor loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from onesteptrain.errors import AnchorError, ConfigError
from onesteptrain.methods import Scorer, Setting, check_batch_size
from onesteptrain.methods.one_step.extras import Ablations, Extra, Gradients, GroupGradients, Representations, stacked
from onesteptrain.methods.one_step.scorers import Directions, Exact, FirstOrder, Referenced
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.proxy.model import Direction
from onesteptrain.storage.phases import begin_phase
from onesteptrain.utility import (
    AnchorGroup,
    ExactSteps,
    Preconditioner,
    check_direction,
    check_forward_mode,
    choose_shift,
    measure_anchors,
    read_preconditioner,
    shift_is_sound,
)
from onesteptrain.utility.anchoring import in_parts, together
from onesteptrain.utility.encoded import anchor_groups
from onesteptrain.utility.gradients import gradient_norm

NO_MOMENTS = "optimizer adam needs the second moments of a warm-up; give the folder of `ost warmup` as --proxy"
"""What is said where there are none."""

_PROBES = 16

_FEW_PROBES = 2
"""Anchors that forward mode is put to the test on."""

_FAR = "at this shift the anchors' loss, or its slope, is not that of the proxy; leave it out, so that one is chosen"

_NO_SHIFT = (
    "estimator fd finds no shift of the weights that leaves the anchors' loss and its slope as they are; use --dtype "
    "float64, or --estimator jvp"
)

CROSSOVER = 3
"""Groups from which on one gradient a sample is cheaper than passes for each: `python benchmarks/groups.py`."""

_GONE = ("cascade", "landmarks")
"""Estimators that there were once."""

_TOKENS_ONLY = ("store_tokens", "intervals", "ablate", "agreement", "sketch", "representation")
"""Options of the first-order estimators alone."""


@dataclass(frozen=True)
class OneStep:
    """One-step utility (arXiv:2605.07488): the fall of the anchor loss after one step on the sample."""

    estimator: Literal["auto", "exact", "fd", "jvp"] = "auto"
    """exact takes the step and measures the anchors; fd and jvp are first-order and need forward passes only:
    fd by a central difference, jvp in forward mode. auto is fd, or jvp in half precision and where no shift is right
    for fd."""

    step_size: float = 1e-3
    """Learning rate of the simulated step."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """Rule of the step; adam divides each coordinate by the root of its second moment from the warm-up."""

    group_by: str | None = None
    """Column of the anchors that splits them into groups, each with a column utility.GROUP."""

    group_route: Literal["auto", "passes", "gradient"] = "auto"
    """How a sample is measured by the groups: passes go over it for each group; gradient takes one forward and one
    backward pass for all of them. auto takes the cheaper one. exact needs neither."""

    fd_epsilon: float | None = None
    """Shift of the central difference along the anchor gradient; by default chosen on the anchors."""

    batch_size: int | None = None
    """Samples in one pass; by default 16 on a CPU, and elsewhere as many as batch_tokens allows."""

    store_tokens: bool = False
    """Keep utility and loss of every answer token, in the columns token_utility and token_loss."""

    reference_folds: int = 10
    """Parts that the anchors are split into, so that each anchor is measured by the others: what clean rows look like,
    for the trust gate of `ost select`. 0 leaves that out."""

    corrupted: int = 300
    """Corrupted copies of anchors that are measured too, spread over all kinds of harm: which of them the trust gate
    would notice. 0 leaves that out, and nothing is then known about it."""

    intervals: int = 0
    """Parts that the anchors are split into for an interval around each score; every part costs two passes a sample.
    0 gives no intervals, 8 is enough for good ones."""

    ablate: bool = False
    """Score each sample again with blank pictures and with an anchor's: does it need its own? Four more passes."""

    agreement: bool = False
    """Add the length of each sample's gradient and its cosine with the anchor gradient, by one backward pass."""

    sketch: int = 0
    """Dimensions of a sketch of each sample's gradient, for set-wise selection, by one backward pass."""

    representation: bool = False
    """Keep the proxy's last hidden state, for selection by coverage; one more pass."""

    def __post_init__(self) -> None:
        if self.estimator in _GONE:
            raise ConfigError(f"estimator {self.estimator} is gone; use auto, and `ost audit` to compare it with exact")
        sizes = {"step_size": self.step_size} | ({} if self.fd_epsilon is None else {"fd_epsilon": self.fd_epsilon})
        for name, size in sizes.items():
            if not 0 < size < math.inf:
                raise ConfigError(f"{name} is {size}; it must be positive and finite")
        check_batch_size(self.batch_size)
        for name in ("reference_folds", "intervals"):
            if getattr(self, name) < 0 or getattr(self, name) == 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 0 or at least 2")
        if self.corrupted < 0:
            raise ConfigError(f"corrupted is {self.corrupted}; it is a number of copies of anchors, or 0 for none")
        if self.sketch < 0:
            raise ConfigError(f"sketch is {self.sketch}; it is a number of dimensions, such as 512, or 0 for none")
        given = [name for name in _TOKENS_ONLY if getattr(self, name)]
        if self.estimator == "exact" and given:
            raise ConfigError(f"estimator exact has no utility per token; use fd or jvp with {given[0]}")

    def prepare(self, setting: Setting, /) -> Scorer:
        """Measure the anchors once, for all samples.

        Raises:
            AnchorError: an anchor cannot be encoded, or has no such group, or there are too few for the intervals.
            ConfigError: the estimator cannot work with the proxy's type of weights or with the model, or there is no
                direction to measure along.
            ScoreError: the anchor loss is not finite.
        """
        proxy = setting.need_proxy("one_step")
        estimator = self._estimator(proxy)
        groups = anchor_groups(proxy.encoder, setting.need_anchors("one_step"), self.group_by)
        preconditioner = self._preconditioner(setting, proxy)
        begin_phase("anchor gradient")
        again = estimator == "exact"  # the others measure the anchors once
        anchors = measure_anchors(proxy, groups, preconditioner=preconditioner, batch_size=self.batch_size, keep=again)
        if estimator == "exact":
            return Exact(ExactSteps(proxy, anchors, self.step_size, preconditioner))
        everyone = [anchor for members in groups.values() for anchor in members]
        total = together(anchors)
        by_gradient = self._by_gradient(proxy, anchors)
        parts = self._parts(proxy, everyone, preconditioner, setting.seed)
        each = anchors if self.group_by is not None and by_gradient is None else [total]
        along = [group for group in each if group.name or not parts]  # parts stand for what has no name
        named = {group.name: (groups[group.name], group.direction) for group in along if group.name}
        estimator, shifts = self._shifts(proxy, {"": (everyone, total.direction)} | named, estimator)
        epsilon = shifts[""]
        epsilons = [epsilon] * len(parts) + [shifts[group.name] for group in along]
        scorer = FirstOrder(
            proxy=proxy,
            directions=Directions(parts, along, epsilons, estimator),
            step_size=self.step_size,
            batch_size=self.batch_size,
            store_tokens=self.store_tokens,
            extras=self._extras(setting, total),
            by_gradient=by_gradient,
        )
        return self._with_reference(scorer, setting, total, epsilon, preconditioner)

    def _with_reference(
        self, scorer: FirstOrder, setting: Setting, total: AnchorGroup, epsilon: float, preconditioner: Preconditioner
    ) -> Scorer:
        """The scorer, with what clean rows look like to it where that is asked for and can be said."""
        if not self.reference_folds or len(setting.anchors) < 2:
            return scorer
        return Referenced(
            scorer=scorer,
            total=total,
            epsilon=epsilon,
            preconditioner=preconditioner,
            anchors=setting.anchors,
            copies=self.corrupted,
            folds=self.reference_folds,
            seed=setting.seed,
        )

    def _estimator(self, proxy: Proxy) -> Literal["exact", "fd", "jvp"]:
        half = proxy.dtype in (torch.bfloat16, torch.float16)
        if self.estimator == "auto":
            return "jvp" if half else "fd"
        if half and self.estimator != "jvp":
            raise ConfigError(
                f"estimator {self.estimator} moves the weights, and {proxy.dtype} weights swallow a small step; "
                "use --dtype float32, or --estimator jvp"
            )
        return self.estimator

    def _by_gradient(self, proxy: Proxy, anchors: Sequence[AnchorGroup]) -> GroupGradients | None:
        """The groups as one backward pass measures them, where that is asked for or cheaper."""
        named = [group for group in anchors if group.name]
        if len(named) < {"passes": math.inf, "gradient": 1, "auto": CROSSOVER}[self.group_route]:
            return None
        names = [group.name for group in named]
        return GroupGradients(proxy, names, stacked(named), step_size=self.step_size, batch_size=self.batch_size)

    def _preconditioner(self, setting: Setting, proxy: Proxy) -> Preconditioner:
        if self.optimizer == "sgd":
            return {}
        if setting.second_moments is None:
            raise ConfigError(NO_MOMENTS)
        return read_preconditioner(setting.second_moments, proxy)

    def _shifts(
        self, proxy: Proxy, measured: Mapping[str, tuple[Sequence[Encoded], Direction]], estimator: Literal["fd", "jvp"]
    ) -> tuple[Literal["fd", "jvp"], dict[str, float]]:
        """How the anchors and each group of them are differentiated along: the estimator, and its shifts for fd."""
        for _, direction in measured.values():
            check_direction(direction)
        if estimator == "fd":
            shifts = {name: self._shift(proxy, members[:_PROBES], along) for name, (members, along) in measured.items()}
            known = {name: shift for name, shift in shifts.items() if shift is not None}
            if known.keys() == shifts.keys():
                return "fd", known
            if self.estimator == "fd" or self.fd_epsilon is not None:
                raise ConfigError(_NO_SHIFT if self.fd_epsilon is None else f"fd_epsilon is {self.fd_epsilon}: {_FAR}")
        try:
            everyone, direction = measured[""]
            check_forward_mode(proxy, everyone[:_FEW_PROBES], direction)
        except ConfigError as error:
            raise error if estimator == "jvp" else ConfigError(f"{_NO_SHIFT}; {error}") from error
        return "jvp", dict.fromkeys(measured, 0.0)

    def _shift(self, proxy: Proxy, probes: Sequence[Encoded], direction: Direction) -> float | None:
        if self.fd_epsilon is None:
            return choose_shift(proxy, probes, direction, batch_size=self.batch_size)
        sound = shift_is_sound(proxy, probes, direction, self.fd_epsilon, batch_size=self.batch_size)
        return self.fd_epsilon if sound else None

    def _parts(
        self, proxy: Proxy, anchors: Sequence[Encoded], preconditioner: Preconditioner, seed: int
    ) -> list[AnchorGroup]:
        """Parts of the anchors, drawn at random, as directions of their own."""
        if not self.intervals:
            return []
        if len(anchors) < self.intervals:
            raise AnchorError(
                f"intervals asks for {self.intervals} parts of {len(anchors)} anchors; give more anchors or fewer parts"
            )
        drawn = {str(part): members for part, members in enumerate(in_parts(anchors, self.intervals, seed=seed))}
        return measure_anchors(proxy, drawn, preconditioner=preconditioner, batch_size=self.batch_size)

    def _extras(self, setting: Setting, total: AnchorGroup) -> list[Extra]:
        """What is measured beside the utility, because it was asked for."""
        proxy = setting.need_proxy("one_step")
        extras: list[Extra] = []
        if self.agreement or self.sketch:
            gradients = Gradients(
                proxy=proxy,
                reach=self.step_size * gradient_norm(total.direction),
                dimensions=self.sketch,
                seed=setting.seed,
                batch_size=self.batch_size,
                norms=self.agreement,
            )
            extras.append(gradients)
        if self.representation:
            extras.append(Representations(proxy, self.batch_size))
        if self.ablate:
            extras.append(Ablations(proxy.encoder, setting.anchors, setting.seed))
        return extras
