"""How much to keep: rows, a share of them, tokens, training steps, or every row from some value up (rejection)."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from onesteptrain.errors import ConfigError

_FLOOR = ">="
_TOKENS = re.compile(r"(\d+(?:\.\d+)?)\s*([kMG]?)\s*tokens")
_STEPS = re.compile(r"(\d+)\s*steps\s+of\s+(\d+)")
_THOUSANDS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_KINDS = (
    "a share such as 20%, a number such as 5000, tokens such as '2M tokens', steps such as '300 steps of 32', "
    "or a lowest value such as >=0.5"
)


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
    text = keep.strip()
    if found := _TOKENS.fullmatch(text):
        tokens = int(float(found[1]) * _THOUSANDS[found[2]])
        if not tokens:
            raise ConfigError(f"keep is {keep!r}; give at least one token")
        return Budget(rows, tokens)
    if found := _STEPS.fullmatch(text):
        seen = int(found[1]) * int(found[2])
        if not seen:
            raise ConfigError(f"keep is {keep!r}; give at least one step of one row")
        return Budget(min(seen, rows))
    return Budget(parse_budget(keep, rows))


def parse_budget(keep: str, rows: int) -> int:
    """Number of rows that a share or a number means for a pool.

    Args:
        keep: A share such as "20%", or a number of rows such as "5000".
        rows: Rows of the pool, scored or not: a share is a share of all of them.

    Raises:
        ConfigError: it is neither, or out of range.
    """
    text = keep.strip()
    try:
        value = float(text[:-1]) if text.endswith("%") else float(int(text))
    except ValueError as error:
        raise ConfigError(f"keep is {keep!r}; give {_KINDS}") from error
    if text.endswith("%"):
        if not 0 < value <= 100:
            raise ConfigError(f"keep is {keep!r}; a share lies above 0% and at most 100%")
        return max(1, round(value / 100 * rows))
    if not 1 <= value <= rows:
        raise ConfigError(f"keep is {keep!r}; the pool has {rows} rows")
    return int(value)


def parse_floor(keep: str) -> float | None:
    """The lowest value that a rejection budget such as ">=0.5" keeps; None if the budget is of another kind.

    Raises:
        ConfigError: no finite number stands after >=.
    """
    text = keep.strip()
    if not text.startswith(_FLOOR):
        return None
    try:
        floor = float(text.removeprefix(_FLOOR))
    except ValueError:
        floor = math.nan
    if not math.isfinite(floor):
        raise ConfigError(f"keep is {keep!r}; after >= give the lowest value of the column to keep, such as >=0.5")
    return floor
