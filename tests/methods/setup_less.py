"""LESS needs the checkpoints of a warm-up."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path

from onesteptrain.jobs.scoring import locate_checkpoints
from onesteptrain.methods import Method, Setting
from onesteptrain.methods.less import Less
from onesteptrain.proxy import LoadOptions, load_proxy
from onesteptrain.training import FinetuneOptions, WarmupOptions, warm_up
from tests.building import checkpoint, sample
from tests.methods.setups import default_setting


@functools.cache
def warm_folder() -> Path:
    """A warm-up of four steps with two checkpoints, of a proxy of its own."""
    options = WarmupOptions(
        share=1.0, finetune=FinetuneOptions(steps=4, batch_size=2, learning_rate=1e-3), checkpoints=2
    )
    proxy = load_proxy(checkpoint("qwen3_vl"), options=LoadOptions(max_tokens=4096))
    pool = [sample(row, images=row % 2) for row in range(40, 46)]
    return warm_up(proxy, pool, options, Path(tempfile.mkdtemp(prefix="ost-less-")) / "warm").folder


def setup(seed: int) -> tuple[Method, Setting]:
    return Less(), dataclasses.replace(default_setting(seed), checkpoints=locate_checkpoints(str(warm_folder())))
