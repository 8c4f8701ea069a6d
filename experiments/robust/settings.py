"""The settings that the trust gate is judged on: data, proxy, noise, anchors, seed.

Not all of their product: each value of each is seen with each kind of data, at seeds that differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

World = Literal["digits", "charts", "mixed"]

Proxy = Literal["own", "foreign", "brief"]
"""own was pretrained on clean rows of the kind; foreign was not, and learns from half of the noisy pool; brief is the
foreign one after the 5 % that are the default."""

WRONG_SHARE = 0.1
"""Of the anchors, where some are wrong."""

SEEDS = 3


class Setting(NamedTuple):
    """What is scored by what."""

    world: World
    proxy: Proxy
    noise_percent: int
    anchors: int
    seed: int
    wrong: bool = False
    """Whether a tenth of the anchors are bad rows."""

    @property
    def name(self) -> str:
        """Of its folder."""
        end = "-wrong" if self.wrong else ""
        return f"{self.world}-{self.proxy}-n{self.noise_percent}-a{self.anchors}-s{self.seed}{end}"

    @property
    def data(self) -> str:
        """Of the folder of its data, which settings share."""
        return f"{self.world}-n{self.noise_percent}-s{self.seed}"

    @property
    def warmup(self) -> str:
        """Of the folder of its proxy: the anchors do not matter to it."""
        return f"{self.world}-{self.proxy}-n{self.noise_percent}-s{self.seed}"


def named(name: str) -> Setting:
    """The setting of a folder."""
    world, proxy, noise, anchors, seed, *wrong = name.split("-")
    numbers = (int(part[1:]) for part in (noise, anchors, seed))
    return Setting(cast(World, world), cast(Proxy, proxy), *numbers, wrong=bool(wrong))


def settings() -> list[Setting]:
    """All settings, those first that say most."""
    varied = [
        ("own", 40, 100, 0),
        ("own", 0, 100, 1),
        ("own", 70, 100, 1),
        ("foreign", 40, 100, 0),
        ("own", 40, 100, 0, True),
        ("own", 40, 30, 0),
        ("own", 40, 300, 0),
        ("foreign", 40, 100, 0, True),
        ("foreign", 40, 30, 0),
        ("foreign", 0, 100, 1),
        ("foreign", 70, 100, 2),
        ("brief", 40, 100, 0),
        ("own", 40, 30, 1, True),
        ("own", 40, 300, 2, True),
        ("own", 0, 30, 0),
        ("own", 70, 300, 0),
        ("own", 40, 100, 1),
        ("own", 40, 100, 2),
        ("foreign", 40, 300, 0),
        ("own", 0, 300, 0),
        ("own", 70, 30, 0),
        ("own", 70, 100, 1, True),
    ]
    return [Setting(world, *rest) for rest in varied for world in get_args(World)]


def clean_rows(data: Path) -> NDArray[np.bool_]:
    """Which rows of the pool in a folder are clean."""
    clean: NDArray[np.bool_] = pq.read_table(data / "truth.parquet")["clean"].to_numpy(zero_copy_only=False)
    return clean
