"""How a selection is asked for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from onesteptrain.errors import ConfigError
from onesteptrain.selection.distinct import check_threshold

Preference = Literal["auto", "top", "draw", "cover", "setwise", "maxmin"]
QuotaShares = Literal["pool", "equal", "eligible"]


@dataclass(frozen=True, kw_only=True)
class SelectOptions:
    """What is dropped, and which of the others are preferred."""

    by: str | None = None
    """Column of the score table to rank by, highest first, such as harm or utility.GROUP; naming one means to rank by
    it and to drop nothing, unless gate and prefer say otherwise."""

    gate: str = "auto"
    """What is dropped first: trust drops what looks unlike the anchors, at a cut that it finds itself; a share such as
    50% drops the rows that are not among the best half by harm; none drops nothing. auto is trust where the scores
    allow it and neither by, prefer top nor a lowest value asks for a ranking, and none elsewhere."""

    prefer: Preference = "auto"
    """Which of the other rows are kept: top keeps the highest scores; draw keeps some at random; cover draws from all
    parts of the proxy's representation; setwise counts what each row adds to those kept before; maxmin serves the group
    of anchors that is worst off. auto is draw behind the trust gate unless by is named, and top elsewhere."""

    quota: str | None = None
    """Column of the pool, such as skill or source, each of whose values gets its share of the budget."""

    quota_shares: QuotaShares = "pool"
    """What a group's share is: as in the pool, the same for all, or as among the rows that pass the gate."""

    distinct: float | None = None
    """Pass over rows whose representation has at least this cosine similarity to a kept row's; for score tables with a
    column `representation`."""

    fill: bool = False
    """Where fewer rows pass the gate than are asked for, keep the least suspicious of the others too, whatever their
    group."""

    draw_seed: int = 0
    """Another seed, another draw."""

    def __post_init__(self) -> None:
        if self.distinct is not None:
            check_threshold(self.distinct)
        if self.gate not in ("auto", "trust", "none"):
            gate_share(self.gate)

    def rule(self, **changes: Any) -> SelectOptions:
        """These options alone, of a request that holds more; with changes."""
        given = {one.name: getattr(self, one.name) for one in fields(SelectOptions)}
        return SelectOptions(**given | changes)

    @property
    def trusting(self) -> bool:
        """Whether the trust gate is used on scores that allow it."""
        return self.gate == "trust" or (self.gate == "auto" and self.by is None and self.prefer != "top")

    @property
    def draws(self) -> bool:
        """Whether another seed can give other rows."""
        return self.prefer in ("draw", "cover") or (self.prefer == "auto" and self.by is None and self.trusting)


def gate_share(gate: str) -> float:
    """The share of rows that a gate such as "50%" lets pass.

    Raises:
        ConfigError: it is no share.
    """
    text = gate.strip()
    try:
        value = float(text[:-1]) if text.endswith("%") else float("nan")
    except ValueError:
        value = float("nan")
    if not 0 < value <= 100:
        raise ConfigError(f"gate is {gate!r}; give auto, trust, none or a share such as 50%")
    return value / 100
