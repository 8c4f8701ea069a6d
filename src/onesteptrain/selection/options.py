"""How a selection is asked for: what is dropped, what is preferred, and how much is kept."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from onesteptrain.errors import ConfigError

Preference = Literal["auto", "top", "draw", "cover", "setwise", "maxmin"]
QuotaShares = Literal["pool", "equal", "eligible", "clean"]

_FLOOR = ">="
_TOKENS = re.compile(r"(\d+(?:\.\d+)?)\s*([kMG]?)\s*tokens")
_STEPS = re.compile(r"(\d+)\s*steps\s+of\s+(\d+)")
_THOUSANDS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_KINDS = (
    "a share such as 20%, a number such as 5000, tokens such as '2M tokens', steps such as '300 steps of 32', "
    "or a lowest value such as >=0.5"
)


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
    of anchors that is worst off. auto is draw behind the trust gate unless by is named, and top elsewhere, if anchors
    call the score a guide; the output says where what a selection rests on is none."""

    kind: tuple[str, ...] = ()
    """Columns of pool and anchors, such as source, that say of which kind a row is: the trust gate judges each kind by
    its own anchors. By default it goes by the length of answers, where the anchors' have gaps; of a kind without
    anchors it drops nothing, says so, and keeps its share of the pool."""

    quota: str | None = None
    """Column of the pool, such as skill or source, each of whose values gets its share of the budget."""

    quota_shares: QuotaShares = "pool"
    """What a group's share is: as in the pool, the same for all, as among the rows that pass the gate, or as among
    those that are clean, as the trust gate expects."""

    distinct: float | None = None
    """Pass over rows whose representation has at least this cosine similarity to a kept row's; for score tables with a
    column `representation`."""

    fill: bool = False
    """Where fewer rows pass the gate than are asked for, keep others too, the most like the anchors first, whatever
    their group."""

    draw_seed: int = 0
    """Another seed, another draw."""

    exclude: Path | None = None
    """File of rows that are not kept: the table of `ost guard` (leaks, and all but one of each cluster), or uids (txt,
    csv, jsonl, parquet)."""

    def __post_init__(self) -> None:
        if self.distinct is not None and not 0 < self.distinct < 1:
            raise ConfigError(f"distinct is {self.distinct}; it is a cosine similarity between 0 and 1, such as 0.9")
        if self.gate not in ("auto", "trust", "none"):
            gate_share(self.gate)

    @property
    def trusting(self) -> bool:
        """Whether the trust gate is used on scores that allow it."""
        return self.gate == "trust" or (self.gate == "auto" and self.by is None and self.prefer != "top")

    @property
    def choosing(self) -> bool:
        """Whether it is left open what drops and what is preferred."""
        return self.trusting and self.gate == "auto" and self.prefer == "auto"

    @property
    def draws(self) -> bool:
        """Whether another seed can give other rows."""
        return self.prefer in ("draw", "cover") or (self.prefer == "auto" and self.by is None and self.trusting)


def gate_share(gate: str) -> float:
    """The share of rows that a gate such as "50%" lets pass.

    Raises:
        ConfigError: it is no share.
    """
    share = _percent(gate)
    if share is None or not 0 < share <= 100:
        raise ConfigError(f"gate is {gate!r}; give auto, trust, none or a share such as 50%")
    return share / 100


class Budget(NamedTuple):
    """What may be kept at most."""

    rows: int
    tokens: int | None = None
    """Image tokens included; the rows are then all of the pool."""


def read_budget(keep: str, rows: int) -> Budget:
    """What a budget means for a pool.

    Args:
        keep: A share, a number of rows, of tokens or of training steps; the rows of steps are those that so many
            batches hold, each seen once.
        rows: Rows of the pool, scored or not.

    Raises:
        ConfigError: it is none of these, or out of range.
    """
    if match := _TOKENS.fullmatch(keep.strip()):
        tokens = int(float(match[1]) * _THOUSANDS[match[2]])
        if not tokens:
            raise ConfigError(f"keep is {keep!r}; give at least one token")
        return Budget(rows, tokens)
    if match := _STEPS.fullmatch(keep.strip()):
        seen = int(match[1]) * int(match[2])
        if not seen:
            raise ConfigError(f"keep is {keep!r}; give at least one step of one row")
        return Budget(min(seen, rows))
    return Budget(parse_budget(keep, rows))


def parse_budget(keep: str, rows: int) -> int:
    """Number of rows that a share such as "20%" or a number such as "5000" means for a pool.

    Args:
        keep: The share or number.
        rows: Rows of the pool, scored or not: a share is a share of all of them.

    Raises:
        ConfigError: it is neither, or out of range.
    """
    share = _percent(keep)
    if share is not None:
        if not 0 < share <= 100:
            raise ConfigError(f"keep is {keep!r}; a share lies above 0% and at most 100%")
        return max(1, round(share / 100 * rows))
    try:
        count = int(keep.strip())
    except ValueError as error:
        raise ConfigError(f"keep is {keep!r}; give {_KINDS}") from error
    if not 1 <= count <= rows:
        raise ConfigError(f"keep is {keep!r}; the pool has {rows} rows")
    return count


def parse_floor(keep: str) -> float | None:
    """The lowest value that a rejection budget such as ">=0.5" keeps; None if the budget is of another kind.

    Raises:
        ConfigError: no finite number stands after >=.
    """
    text = keep.strip()
    if not text.startswith(_FLOOR):
        return None
    floor = _number(text.removeprefix(_FLOOR))
    if floor is None or not math.isfinite(floor):
        raise ConfigError(f"keep is {keep!r}; after >= give the lowest value of the column to keep, such as >=0.5")
    return floor


def _percent(text: str) -> float | None:
    """The number before a per cent sign; None where there is no such thing."""
    text = text.strip()
    return _number(text[:-1]) if text.endswith("%") else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
