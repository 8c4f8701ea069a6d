"""What a comparison is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from onesteptrain.errors import ConfigError
from onesteptrain.evaluation import EvaluateOptions
from onesteptrain.jobs.assembling import job_from_plain
from onesteptrain.jobs.reading import from_plain, read_yaml, refuse_renamed
from onesteptrain.jobs.recipe import Recipe
from onesteptrain.jobs.reweighting import Harmful, refuse_untold, selecting
from onesteptrain.methods import Method, method_class
from onesteptrain.proxy import ScopeOptions
from onesteptrain.selection import SelectOptions
from onesteptrain.training import FinetuneOptions

Protocol = Literal["A", "B"]

OWN_ARMS = ("untuned", "full", "oracle")
"""Arms that are no method: no training, the whole pool, clean rows by the planted labels."""

_PRESETS = {
    "ost": "{method: one_step, select: {prefer: top}}",
    "ost-set": "{method: one_step, second_pass: true}",
}
"""What arms of these names did in earlier versions, by their names alone."""


@dataclass(frozen=True)
class MethodArm:
    """One method of a comparison: how it scores, and which rows it keeps."""

    method: str
    """Installed method; in a file, by default the one with the arm's name."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the method."""

    select: SelectOptions = field(default_factory=SelectOptions)
    """What is dropped, and which of the other rows are preferred; draw_seed is the training's."""

    keep: tuple[str, ...] = ()
    """Budgets, such as 20%, 5000 or ">=0.5"; by default the shares of the comparison."""

    proxy: str | None = None
    """Checkpoint in place of the comparison's proxy; it is warmed up in the same way."""

    warmup_share: float | None = None
    """Share of the pool that its proxy is warmed up on, in place of the comparison's."""

    second_pass: bool = False
    """Measure the losses again with a proxy that has learned from rows that pass the trust gate, as `ost run` does."""

    harmful: Harmful = "drop"
    """What becomes of rows that the trust gate drops, as in `ost run`."""

    def __post_init__(self) -> None:
        if self.harmful != "drop":
            if self.method != "one_step":
                raise ConfigError(f"harmful {self.harmful} needs method one_step, not {self.method}")
            stored = bool(self.options.get("store_tokens"))
            refuse_untold(self.harmful, stores_tokens=stored, key="options.store_tokens")
        selecting(self.select, self.harmful)
        if self.second_pass and self.method != "one_step":
            raise ConfigError(f"a second pass needs method one_step, not {self.method}")

    @property
    def selecting(self) -> SelectOptions:
        """How rows are selected, whatever becomes of harmful ones."""
        return selecting(self.select, self.harmful)

    def make(self, name: str) -> Method:
        """The method with its options, for an arm of this name.

        Raises:
            ConfigError: there is no such method, or it has no such options.
        """
        made: Method = from_plain(method_class(self.method), dict(self.options), where=f"methods.{name}.options")
        return made


TOP = MethodArm("one_step", select=SelectOptions(prefer="top"))
"""The paper's rule: keep the highest scores. Called ost in tables."""

SET = MethodArm("one_step", second_pass=True)
"""What `ost run` does: a second pass, then the default rule of `ost select`. Called ost-set in tables."""

RANDOM = MethodArm("random")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison of methods on one pool, one target and one benchmark."""

    recipe: Recipe
    """Pool, anchors and proxy; in a file, its keys stand beside the others."""

    target: str
    """Checkpoint that every arm fine-tunes."""

    benchmark: Path
    """Questions with an answer column."""

    out: Path
    """Directory for all that is made; scores and trained arms in it are used again."""

    methods: Mapping[str, MethodArm] = field(default_factory=lambda: {"ost": TOP, "random": RANDOM})
    """The methods by the names they have in the results."""

    shares: tuple[str, ...] = ("20%", "50%")
    """Budgets of every method that names none of its own."""

    protocols: tuple[Protocol, ...] = ("B",)
    """A trains every arm for train.epochs, B for train.steps."""

    seeds: int = 5
    """Trainings of each arm; arm by arm the same seeds, and so the same rules of order."""

    warmup_checkpoints: int = 0
    """States of the warm-up to keep, for less."""

    train: FinetuneOptions = field(default_factory=FinetuneOptions)
    """How targets are trained; its seed is set by the comparison."""

    train_scope: ScopeOptions = field(default_factory=ScopeOptions)
    """Which parameters of the target are trained."""

    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)
    """How answers are generated; its first column of `by` is the skill in the results."""

    truth: Path | None = None
    """Parquet table with row, uid and clean, of a pool whose noise is planted: it adds the oracle arms."""

    references: tuple[str, ...] = ("full", "judge", "random", "untuned")
    """Arms that the others are compared with, question by question."""

    keep_checkpoints: bool = False
    """Keep the trained targets."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"seeds is {self.seeds}; it must be at least 1")
        if not self.shares or not self.protocols:
            raise ConfigError("shares and protocols must name at least one each, such as [20%] and [B]")
        if "B" in self.protocols and self.train.steps is None:
            raise ConfigError("protocol B fixes the optimizer steps; give train.steps, or compare under protocol A")
        for name in self.methods:
            if name in OWN_ARMS:
                raise ConfigError(f"a method cannot be called {name!r}: the comparison adds an arm of that name itself")


def read_comparison(file: Path, **changes: Any) -> Comparison:
    """Read a comparison from YAML; paths in it start from the working directory.

    Args:
        file: The YAML file.
        changes: Fields that win over the file's.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    values = read_yaml(file, "give a YAML file with at least pool, target, benchmark and out")
    values |= {name: value for name, value in changes.items() if value is not None}
    if isinstance(arms := values.get("methods"), Mapping):
        values["methods"] = {name: _arm(name, arm, str(file)) for name, arm in arms.items()}
    return job_from_plain(Comparison, values, where=str(file))


def _arm(name: str, arm: Any, where: str) -> Any:
    """An arm of a file, whose method is by default the one with its name."""
    if not isinstance(arm, Mapping | None):
        return arm
    arm = dict(arm or {})
    refuse_renamed(arm, where=f"{where}: methods.{name}")
    if "method" not in arm and name in _PRESETS:
        raise ConfigError(f"{where}: methods.{name} names no method; write {name}: {_PRESETS[name]}")
    return {"method": name, **arm}
