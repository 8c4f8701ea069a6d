"""How a pool is worked through: sizes, limits, and by whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onesteptrain.errors import ConfigError

INCIDENTAL = (
    "chunk_rows",
    "readers",
    "max_failed_share",
    "engine",
    "workers",
    "address",
    "gpus_per_worker",
)
"""Options that no score depends on: a run may be continued with others."""


@dataclass(frozen=True)
class ScoringOptions:
    """How a pool is worked through."""

    shard_rows: int = 256
    """Rows that are written together: what a kill can lose, and what workers share out among themselves."""

    chunk_rows: int = 128
    """Rows that are held encoded in memory at a time; batches are put together from them by length, so that more rows
    mean less padding."""

    readers: int | None = None
    """Processes that read images and texts ahead of the model, for each worker; by default none where it runs on the
    CPU, and up to 8 beside a GPU."""

    max_failed_share: float = 0.5
    """Stop when, of at least 256 rows, more than this share cannot be scored."""

    engine: Literal["local", "ray", "ranks"] = "local"
    """Who scores: processes of this machine; workers of a Ray cluster; or the ranks that torchrun, Slurm or MPI has
    started, each of which runs this command."""

    workers: int | None = None
    """Processes that score, each with a proxy of its own; by default one for local, and for Ray as many as it has CPUs
    or GPUs."""

    address: str | None = None
    """The Ray cluster, such as auto or ray://head:10001; by default one is started on this machine."""

    gpus_per_worker: float | None = None
    """GPUs that Ray gives to each worker, such as 1 or 0.5; by default one where the cluster has any."""

    def __post_init__(self) -> None:
        if self.shard_rows < 1 or self.chunk_rows < 1:
            raise ConfigError("shard_rows and chunk_rows must be at least 1")
        if self.readers is not None and self.readers < 0:
            raise ConfigError(f"readers is {self.readers}; it must be at least 0")
        if not 0 <= self.max_failed_share <= 1:
            raise ConfigError(f"max_failed_share is {self.max_failed_share}; it is a share between 0 and 1")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers is {self.workers}; it must be at least 1")
        if self.gpus_per_worker is not None and self.gpus_per_worker < 0:
            raise ConfigError(f"gpus_per_worker is {self.gpus_per_worker}; it must be at least 0")
        if self.engine != "ray" and (self.address is not None or self.gpus_per_worker is not None):
            raise ConfigError(f"address and gpus_per_worker are for engine ray, and the engine is {self.engine}")
        if self.engine == "ranks" and self.workers is not None:
            raise ConfigError("with engine ranks, there are as many workers as ranks were started; give no workers")

    def refuse_ranks(self, what: str) -> None:
        """Refuse ranks where more is done than scoring.

        Raises:
            ConfigError: the engine is ranks.
        """
        if self.engine == "ranks":
            raise ConfigError(f"{what} does more than scoring, which ranks cannot share; use `ost score` for them")
