"""dattri-llm's TracIn with exact gradients of linear layers, streamed without a store.

Its `attribute` takes no collate function; the two hooks of its class that make the streams do, so they are overridden.
It gives one column an anchor, of which the mean is taken group by group afterwards.
"""

from __future__ import annotations

import tempfile
from typing import Any

from cases import Loaded, mean_losses
from clock import Clock, Rows
from dattri_llm import AttributionArguments, AttributionTask, HookManagerConfig, TracInAttributor
from dattri_llm.gradient.streaming import GradientStreamer
from torch import Tensor


def score(case: Loaded, clock: Clock) -> Tensor:
    """Rows against all anchors; the anchors' gradients are taken before the first row is fetched."""
    with tempfile.TemporaryDirectory() as scratch:
        options = AttributionArguments(
            output_dir=scratch,
            use_cpu=True,
            per_device_train_batch_size=case.batch_size,
            per_device_eval_batch_size=len(case.anchors),
            max_grad_norm=None,
        )
        task = AttributionTask(lambda model, batch: mean_losses(model, batch).sum(), case.proxy.model)
        hooks = HookManagerConfig(hook_types=dict.fromkeys(case.layers, "linear_io"))
        found = _Collating(case, options, task).attribute(Rows(case.rows, clock), Rows(case.anchors), hook_config=hooks)
    # the rows themselves: its matrix by content adds up rows that are alike
    return case.group_means(found.scores)


class _Collating(TracInAttributor):
    """TracIn whose streams pad a batch as all other contenders do."""

    def __init__(self, case: Loaded, options: AttributionArguments, task: AttributionTask) -> None:
        super().__init__(options, task=task)
        self.collate = case.collate

    def generate_train_rep(self, train_dataset: Rows, **more: Any) -> GradientStreamer:
        return self._stream(train_dataset, self.args.per_device_train_batch_size, **more)

    def generate_test_rep(self, test_dataset: Rows, **more: Any) -> GradientStreamer:
        return self._stream(test_dataset, self.args.per_device_eval_batch_size, **more)

    def _stream(self, samples: Rows, batch_size: int, *, hook_config: Any = None, **more: Any) -> GradientStreamer:
        return GradientStreamer(
            self.task.model,
            samples,
            self.args,
            batch_size=batch_size,
            loss_fn=self.task.loss_func,
            collate_fn=self.collate,
            config=hook_config,
            **more,
        )
