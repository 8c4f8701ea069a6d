"""kronfluence with the identity for a Hessian; for one group it adds up the query gradients, as it can."""

from __future__ import annotations

import tempfile

from cases import Loaded, mean_losses
from clock import Clock, Rows
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs
from torch import Tensor


def score(case: Loaded, clock: Clock) -> Tensor:
    """Pairwise scores; their set-up ends when the first row is fetched, after the query gradients."""
    one = case.groups == 1
    task = _Answers(case)
    with tempfile.TemporaryDirectory() as scratch:
        analyzer = Analyzer("peers", prepare_model(case.proxy.model, task), task, True, output_dir=scratch)
        analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=case.collate))
        analyzer.fit_all_factors(
            "identity",
            Rows(case.rows),
            factor_args=FactorArguments(strategy="identity"),
            per_device_batch_size=case.batch_size,
        )
        analyzer.compute_pairwise_scores(
            "scores",
            factors_name="identity",
            query_dataset=Rows(case.anchors),
            train_dataset=Rows(case.rows, clock),
            score_args=ScoreArguments(aggregate_query_gradients=one),
            per_device_query_batch_size=len(case.anchors),
            per_device_train_batch_size=case.batch_size,
        )
        found = analyzer.load_pairwise_scores("scores")["all_modules"].T
    return found / len(case.anchors) if one else case.group_means(found)


class _Answers(Task):
    """The loss over answer tokens, summed over a batch as kronfluence wants it."""

    def __init__(self, case: Loaded) -> None:
        self.layers = list(case.layers)

    def compute_train_loss(self, batch: dict[str, Tensor], model: object, sample: bool = False) -> Tensor:
        return mean_losses(model, batch).sum()

    def compute_measurement(self, batch: dict[str, Tensor], model: object) -> Tensor:
        return mean_losses(model, batch).sum()

    def get_influence_tracked_modules(self) -> list[str]:
        return self.layers
