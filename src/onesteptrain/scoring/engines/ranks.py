"""Workers that a launcher has started: torchrun, Slurm's srun or MPI.

Each runs the same command; rank 0 is the first among them, makes the run directory and joins the shards.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from onesteptrain.errors import ConfigError

_LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "Slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
    "MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
}

_UNSAID = (0, 1, 0, 1)


class Rank(NamedTuple):
    """Which of the ranks this process is."""

    number: int
    ranks: int
    local: int
    """Which of those on this machine."""

    local_ranks: int
    """How many they are; 1 where the launcher does not say, which then has shared out the cores itself."""


def rank_here() -> Rank:
    """What the launcher says in the environment.

    Raises:
        ConfigError: nobody has started ranks, or what is said is no rank.
    """
    for launcher, names in _LAUNCHERS.items():
        said = [os.environ.get(name) for name in names]
        if said[0] is None or said[1] is None:
            continue
        try:
            number, ranks, local, local_ranks = (
                int(text or unsaid) for text, unsaid in zip(said, _UNSAID, strict=True)
            )
        except ValueError:
            number, ranks, local, local_ranks = -1, 0, 0, 0
        if not 0 <= number < ranks or local < 0 or local_ranks < 1:
            raise ConfigError(f"{launcher} says {', '.join(f'{n}={t}' for n, t in zip(names, said, strict=True))}")
        return Rank(number, ranks, local, local_ranks)
    raise ConfigError(
        "engine ranks is for processes that a launcher starts, such as `torchrun --nproc-per-node 8 "
        "$(which ost) score ... --engine ranks` or `srun ost score ...`; for processes of this machine give --workers"
    )
