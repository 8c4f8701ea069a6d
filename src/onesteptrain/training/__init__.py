"""Fine-tune models on the answers of samples: the warm-up of the proxy, and the target.

`finetune` is the loop; `warm_up` draws a share of the pool and keeps the optimizer's states; `train` writes a target.
"""

from onesteptrain.training.encodings import Encodings, PoolEncodings, encode_all, most_common
from onesteptrain.training.finetuning import finetune, sample_order
from onesteptrain.training.options import FinetuneOptions
from onesteptrain.training.target import TrainOptions, train
from onesteptrain.training.warmup import WarmupOptions, draw, warm_up

__all__ = [
    "Encodings",
    "FinetuneOptions",
    "PoolEncodings",
    "TrainOptions",
    "WarmupOptions",
    "draw",
    "encode_all",
    "finetune",
    "most_common",
    "sample_order",
    "train",
    "warm_up",
]
