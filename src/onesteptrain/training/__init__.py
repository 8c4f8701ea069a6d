"""Fine-tune models on the answers of samples: the warm-up of the proxy, and the target.

`finetune` is the loop; `warm_up` draws a share of the pool and keeps the optimizer's states; `train` writes a target.
"""

from onesteptrain.training.encodings import Encodings, PoolEncodings, encode_all, most_common
from onesteptrain.training.finetuning import FinetuneResult, finetune, sample_order
from onesteptrain.training.options import FinetuneOptions, Progress
from onesteptrain.training.target import TrainOptions, TrainResult, train
from onesteptrain.training.warmup import WarmupOptions, WarmupResult, draw, warm_up

__all__ = [
    "Encodings",
    "FinetuneOptions",
    "FinetuneResult",
    "PoolEncodings",
    "Progress",
    "TrainOptions",
    "TrainResult",
    "WarmupOptions",
    "WarmupResult",
    "draw",
    "encode_all",
    "finetune",
    "most_common",
    "sample_order",
    "train",
    "warm_up",
]
