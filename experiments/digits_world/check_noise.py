"""Is the digits data useful? Fine-tune the target on clean rows, on the full noisy pool and on half of it.

check_noise.py [--rates 3e-4 1e-3] [--steps 120] [--seeds 2] prints accuracy on the held-out part, which the learning
rate of the demo is chosen on; the benchmark is not touched. It reads the planted labels: the clean arm is the ceiling.
"""

from __future__ import annotations

import sys
from pathlib import Path

from onesteptrain.synthetic import SyntheticData, SyntheticOptions, make_synthetic

sys.path.insert(0, str(Path(__file__).parents[1] / "worlds_common"))
from noise_check import SEED, run


def make(rows: int, noise_share: float, folder: Path) -> SyntheticData:
    return make_synthetic("digits", SyntheticOptions(pool_rows=rows, noise_share=noise_share, seed=SEED), folder)


if __name__ == "__main__":
    run(__doc__, "target", 48, make)
