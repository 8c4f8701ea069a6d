"""What a comparison is asked for, and how it is read from YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from onesteptrain.errors import ConfigError
from onesteptrain.evaluation import EvaluateOptions
from onesteptrain.jobs.steps import AnchorOptions, PoolOptions
from onesteptrain.methods import Method, method_class
from onesteptrain.proxy import LoadOptions, ScopeOptions
from onesteptrain.scoring.score import ScoringOptions
from onesteptrain.selection import SelectOptions
from onesteptrain.training import FinetuneOptions

Protocol = Literal["A", "B"]

OWN_ARMS = ("untuned", "full", "oracle")
"""Arms that are no method: no training, the whole pool, clean rows by the planted labels."""

_SHORT = {"ost": "one_step", "ost-set": "one_step"}
"""Names of arms for installed methods."""

T = TypeVar("T")


@dataclass(frozen=True)
class MethodArm(SelectOptions):
    """One method of a comparison: how it scores, and which rows it keeps; draw_seed is the training's."""

    method: str | None = None
    """Installed method; by default the one with the arm's name, where ost means one_step by the paper's rule (keep the
    highest scores), and ost-set one_step as `ost run` does it: a second look, and the default rule of `ost select`."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the method."""

    keep: tuple[str, ...] = ()
    """Budgets, such as 20%, 5000 or ">=0.5"; by default the shares of the comparison."""

    proxy: str | None = None
    """Checkpoint in place of the comparison's proxy; it is warmed up in the same way."""

    warmup_share: float | None = None
    """Share of the pool that its proxy is warmed up on, in place of the comparison's."""

    second_look: bool | None = None
    """Whether the losses are measured again by a proxy that has learned from rows that pass the trust gate, as
    `ost run` does; by default only for ost-set."""

    def looks_again(self, name: str) -> bool:
        """Whether an arm of this name takes a second look.

        Raises:
            ConfigError: its method has no trust gate to begin with.
        """
        if self.second_look and self.installed(name) != "one_step":
            raise ConfigError(f"methods.{name}: a second look needs method one_step, not {self.installed(name)}")
        return name == "ost-set" if self.second_look is None else self.second_look

    def installed(self, name: str) -> str:
        """The method that an arm of this name means."""
        return self.method or _SHORT.get(name, name)

    def choosing(self, name: str, seed: int) -> SelectOptions:
        """How an arm of this name chooses; another seed draws anew."""
        paper = {"prefer": "top"} if name == "ost" and self.prefer == "auto" else {}
        return self.rule(draw_seed=seed, **paper)

    def make(self, name: str) -> Method:
        """The method with its options.

        Raises:
            ConfigError: there is no such method, or it has no such options.
        """
        method = self.installed(name)
        made: Method = from_plain(method_class(method), dict(self.options), where=f"methods.{name}.options")
        return made


@dataclass(frozen=True)
class Comparison:
    """A comparison of methods on one pool, one target and one benchmark."""

    pool: Path
    """The pool file or folder."""

    target: str
    """Checkpoint that every arm fine-tunes."""

    benchmark: Path
    """Questions with an answer column."""

    out: Path
    """Directory for all that is made; scores and trained arms in it are used again."""

    methods: Mapping[str, MethodArm] = field(default_factory=lambda: {"ost": MethodArm(), "random": MethodArm()})
    """The methods by the names they have in the results."""

    shares: tuple[str, ...] = ("20%", "50%")
    """Budgets of every method that names none of its own."""

    protocols: tuple[Protocol, ...] = ("B",)
    """A trains every arm for train.epochs, B for train.steps."""

    seeds: int = 5
    """Trainings of each arm; arm by arm the same seeds, and so the same rules of order."""

    proxy: str | None = None
    """Checkpoint of the proxy; only methods that use none go without."""

    anchors: Path | None = None
    """Trusted samples that are not in the pool; or give heldout."""

    heldout: Path | None = None
    """Trusted samples that anchors are drawn from."""

    anchor_count: int = 100
    """How many anchors to draw from heldout."""

    anchor_by: tuple[str, ...] = ()
    """Columns to stratify the draw by."""

    warmup_share: float = 0.05
    """Share of the pool that the proxy is warmed up on; 0 scores with the proxy as it is."""

    warmup: FinetuneOptions = field(default_factory=FinetuneOptions)
    """How the proxy is warmed up."""

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

    reading: PoolOptions = field(default_factory=PoolOptions)
    """How the pool is read."""

    checking: AnchorOptions = field(default_factory=AnchorOptions)
    """How the anchors are checked."""

    scope: ScopeOptions = field(default_factory=ScopeOptions)
    """Which parameters of the proxy take the step."""

    loading: LoadOptions = field(default_factory=LoadOptions)
    """How models are loaded."""

    working: ScoringOptions = field(default_factory=ScoringOptions)
    """How the pool is worked through."""

    seed: int = 0
    """Fixes the anchors, the warm-up and the scores."""

    def __post_init__(self) -> None:
        if self.anchors is not None and self.heldout is not None:
            raise ConfigError("give either anchors (a file to use) or heldout (a file to draw them from), not both")
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
    if not file.is_file():
        raise ConfigError(f"{file} does not exist; give a YAML file with at least pool, target, benchmark and out")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no YAML ({' '.join(str(error).split())}); mend the file") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds no options; give at least pool, target, benchmark and out")
    given = {name: value for name, value in changes.items() if value is not None}
    return from_plain(Comparison, {**content, **given}, where=str(file))


def from_plain(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Make a dataclass of plain values, checked against its types; a name that it does not know is refused.

    Raises:
        ConfigError: a value is missing, unknown or of another type.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    # plain dataclasses inside take over the strictness of the one around them; 300 is a budget as good as "300"
    strict = ConfigDict(extra="forbid", coerce_numbers_to_str=True)
    body = {"__annotations__": {"value": cls}, "__pydantic_config__": strict}
    holder: Any = dataclass(type("Holder", (), body))
    try:
        made: T = TypeAdapter(holder).validate_python({"value": dict(values)}).value
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(cause := first.get("ctx", {}).get("error"), ConfigError):
            raise ConfigError(f"{where}: {cause}") from error
        place = ".".join(str(part) for part in first["loc"][1:])
        names = ", ".join(one.name for one in dataclasses.fields(cls))  # type: ignore[arg-type]
        known = f"; its options are {names}" if len(first["loc"]) == 2 else ""
        raise ConfigError(f"{where}: {place}: {first['msg']}{known}") from error
    return made
