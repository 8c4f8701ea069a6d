"""What a run directory of scores has on record: the pool, the anchors and the proxy that they are of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onesteptrain.data.formats.many import is_pattern
from onesteptrain.data.pool import Pool, open_pool
from onesteptrain.errors import ConfigError, PoolError, RunError
from onesteptrain.storage.run_directory import Run

IN_MEMORY = "in memory"
"""Stands in a record for what has no place on disk."""


@dataclass(frozen=True)
class ScoreRecord:
    """The request that a run directory answers, nested by who owns the options."""

    run: Path
    asked: Mapping[str, Any]

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.asked["method"]["name"])

    def flat(self) -> dict[str, Any]:
        """All options by their owner and name, such as scoring.shard_rows."""
        return _flat(self.asked)

    def open_pool(self) -> Pool:
        """The pool that was scored.

        Raises:
            PoolError: it is not there any more, or never was a file.
        """
        return self._open("pool", **self.asked["pool_reading"])

    def open_anchors(self) -> Pool:
        """The anchors that it was scored by.

        Raises:
            ConfigError: the method has none.
            PoolError: they are not there any more.
        """
        if "anchors" not in self.asked:
            raise ConfigError(f"{self.run} holds no scores of a method with anchors; give the --out of `ost score`")
        root = self.asked["anchor_reading"].get("anchor_image_root")
        columns = self.asked["pool_reading"].get("image_column", ())
        return self._open("anchors", image_root=root, image_column=columns, allow_outside=True)

    def _open(self, what: str, **reading: Any) -> Pool:
        path = self.asked[what]
        if path == IN_MEMORY:
            raise PoolError(f"the {what} of {self.run} came from memory and are on no disk; give them again")
        if not Path(path).exists() and not is_pattern(Path(path)):
            raise PoolError(f"the {what} {path} of {self.run} does not exist; put it back")
        return open_pool(path, **reading)


def read_score_record(run: Path) -> ScoreRecord:
    """Read what a run directory of `ost score` was asked for.

    Raises:
        RunError: it is no run directory, or an earlier version made it.
        ConfigError: it holds no scores.
    """
    asked = Run(run).config.get("score")
    if asked is None:
        raise ConfigError(f"{run} holds no scores; give the --out of `ost score`")
    refuse_flat(run, asked)
    return ScoreRecord(run, asked)


def refuse_flat(run: Path, asked: Mapping[str, Any]) -> None:
    """Refuse the record of an earlier version, which put all options side by side, so that some hid others.

    Raises:
        RunError: it is one.
    """
    if not isinstance(asked.get("method"), Mapping):
        raise RunError(f"{run} was scored by an earlier version of ost, whose record is incomplete; score again")


def _flat(options: Mapping[str, Any], owner: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= _flat(value, f"{owner}{name}.") if isinstance(value, Mapping) else {owner + name: value}
    return flat
