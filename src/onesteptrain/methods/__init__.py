"""Ways to score a sample.

A method is a frozen dataclass whose fields are its options, with one function `prepare(setting)` that gives a scorer;
the scorer takes samples and gives one `Record` for each. Ours and anybody else's are found in the same way, through the
entry points of the group "onesteptrain.methods". The contract, which `tests/methods/test_contract.py` checks for every
installed method: order is kept; a record depends on the sample and the setting only, not on its neighbours; same seed,
same score; the proxy is left bit for bit as found; a sample that cannot be scored has a reason in place of a score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from onesteptrain.data.corruption import Corrupted
from onesteptrain.data.pool import Sample
from onesteptrain.errors import ConfigError
from onesteptrain.storage.score_table import Record, Value

if TYPE_CHECKING:
    from onesteptrain.proxy import Encoded, Proxy

GROUP = "onesteptrain.methods"

_GONE = {"second_look": "second_look is no method any more; `ost run` takes the second pass"}
"""What became of methods that were installed once; an editable install may still list them."""

Scorer = Callable[[Sequence[Sample]], list[Record]]


class Reference(NamedTuple):
    """What clean rows and harmful ones look like to a scorer; same columns as a sample's."""

    anchors: list[tuple[Sample, Record]]
    """The anchors, in the order given, each measured as if it were none."""

    corrupted: list[tuple[Corrupted, Record]]
    """Corrupted copies of anchors, each measured as if the copied one were none."""


@runtime_checkable
class Referenced(Protocol):
    """A scorer that can also say what clean rows look like to it, so that a selection can tell what is not."""

    def reference(self) -> Reference:
        """Measure the anchors, and corrupted copies of them."""


@dataclass(frozen=True)
class Setting:
    """What a run offers to a method."""

    proxy: Proxy | None = None
    """The proxy, at the weights to score at."""

    anchors: Sequence[Sample] = field(default_factory=tuple)
    """The trusted samples."""

    second_moments: Path | None = None
    """Adam's second moments from the proxy's warm-up."""

    seed: int = 0

    checkpoints: Sequence[Path] = field(default_factory=tuple)
    """Folders of the states that the proxy's warm-up went through, in order."""

    def need_proxy(self, method: str) -> Proxy:
        """The proxy; ConfigError where there is none."""
        if self.proxy is None:
            raise ConfigError(f"method {method!r} needs a proxy; give --proxy")
        return self.proxy

    def need_anchors(self, method: str) -> Sequence[Sample]:
        """The anchors; ConfigError where there are none."""
        if not self.anchors:
            raise ConfigError(f"method {method!r} needs anchors and got none; give --anchors with at least one sample")
        return self.anchors

    def need_checkpoints(self, method: str) -> Sequence[Path]:
        """The checkpoints of the warm-up; ConfigError where there are none."""
        if not self.checkpoints:
            raise ConfigError(
                f"method {method!r} needs checkpoints of the warm-up and got none; "
                "warm up with `ost warmup --checkpoints 4` and give its folder as --proxy"
            )
        return self.checkpoints


@runtime_checkable
class Method(Protocol):
    """One way to score samples.

    A class attribute `uses_proxy = False` says that it needs neither proxy nor anchors; a comparison then loads none.
    `uses_checkpoints = True` says that it looks back at the warm-up, which then keeps states on the way.
    """

    def prepare(self, setting: Setting, /) -> Scorer:
        """Do the work that all samples share, such as the anchor gradient."""


def check_batch_size(batch_size: int | None) -> None:
    """Refuse a batch size that is none.

    Raises:
        ConfigError: it is below 1.
    """
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")


def finish_record(sample: Encoded, score: float, columns: Mapping[str, Value]) -> Record:
    """A score with the method's columns, and the lengths of the answer and of the whole sample behind them."""
    lengths = {"answer_tokens": int(sample.answer.sum()), "tokens": sample.tokens}
    return Record(score, columns={**columns, **lengths})


INCIDENTAL: Mapping[str, bool] = {"incidental": True}
"""Metadata of an option that no score depends on, such as how many requests are under way at a time."""


def essential_options(method: Method) -> dict[str, Any]:
    """The options of a method that its scores depend on."""
    fields = dataclasses.fields(method)  # type: ignore[arg-type]
    return {option.name: getattr(method, option.name) for option in fields if not option.metadata.get("incidental")}


def installed() -> dict[str, EntryPoint]:
    """The methods that can be named, by name; none is imported."""
    entries = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    return {entry.name: entry for entry in entries if entry.name not in _GONE}


def method_class(name: str) -> type[Any]:
    """The dataclass of a method.

    Raises:
        ConfigError: no installed method has this name.
    """
    if name in _GONE:
        raise ConfigError(_GONE[name])
    known = installed()
    if name not in known:
        raise ConfigError(f"there is no method {name!r}; installed are {', '.join(known)}")
    return known[name].load()  # type: ignore[no-any-return]
