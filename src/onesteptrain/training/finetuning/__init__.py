"""Fine-tune a model on the answers of some samples: what warm-up and target training have in common."""

from onesteptrain.training.finetuning.loop import FinetuneResult, finetune, sample_order
from onesteptrain.training.finetuning.options import FinetuneOptions, Progress

__all__ = ["FinetuneOptions", "FinetuneResult", "Progress", "finetune", "sample_order"]
