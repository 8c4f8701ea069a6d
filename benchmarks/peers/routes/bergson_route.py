"""bergson in memory, without projection: by per-sample gradients from hooks, and by its own forward-mode path."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bergson import CollectorComputer, GradientProcessor, IndexConfig, InMemoryCollector, Scorer
from bergson.collector.gradient_collectors import GradientCollector
from bergson.config.config import PreprocessConfig
from bergson.data import allocate_batches, pad_and_tensor
from bergson.score.output_influence import output_token_influence, query_directions
from bergson.score.score_writer import InMemorySequenceScoreWriter
from cases import Loaded
from clock import Clock
from datasets import Dataset
from torch import Tensor

from onesteptrain.proxy import Encoded


def gradients(case: Loaded, clock: Clock) -> Tensor:
    """Gradients of a batch's rows, multiplied with the groups' mean gradients as they are caught."""
    with tempfile.TemporaryDirectory() as scratch:
        config = _config(case, scratch)
        queries = _queries(case, config)
        rows = _dataset(case.rows)
        clock.touch()
        scorer = _scorer(case, queries)
        collector = _collector(case, config, rows, scorer=scorer)
        return torch.as_tensor(_run(case, config, rows, collector).scores)


def forward_mode(case: Loaded, clock: Clock) -> Tensor:
    """The loop of bergson's `token_influence="output"`, without the files that its command writes around it."""
    with tempfile.TemporaryDirectory() as scratch:
        config = _config(case, scratch)
        queries = _queries(case, config)
        rows = _dataset(case.rows)
        model = case.proxy.model
        targets = GradientCollector.discover_targets(model.base_model, _targets(case), config.include_bias, None)
        clock.touch()
        directions = query_directions(model, _scorer(case, queries).query_grads_t, targets)
        scores = torch.zeros(len(rows), case.groups)
        for indices in allocate_batches(rows["length"][:], config.token_batch_size):
            batch = rows[indices]
            inputs, labels, _, _ = pad_and_tensor(batch["input_ids"], labels=batch["labels"], sync_max_len=False)
            rates, _ = output_token_influence(model, inputs, labels, directions, config)
            scores[indices] = rates.sum(1)
        return scores


def _config(case: Loaded, scratch: str) -> IndexConfig:
    run = Path(scratch) / "run"
    run.with_name("run.part").mkdir()
    return IndexConfig(
        run_path=str(run), token_batch_size=case.batch_size * case.rows[-1].tokens, loss_reduction="mean"
    )


def _dataset(samples: Sequence[Encoded]) -> Dataset:
    """Token ids and labels: bergson hands the ids to the model, and nothing else; images do not reach it."""
    ids = [sample.inputs["input_ids"][0] for sample in samples]
    labels = [row.masked_fill(~sample.answer, -100).tolist() for row, sample in zip(ids, samples, strict=True)]
    tokens = [row.tolist() for row in ids]
    return Dataset.from_dict({"input_ids": tokens, "labels": labels, "length": [len(row) for row in tokens]})


def _queries(case: Loaded, config: IndexConfig) -> dict[str, Tensor]:
    """Mean gradient of each group, by module."""
    means = []
    for group in case.grouped:
        data = _dataset(group)
        collector = _collector(case, config, data, preprocess_cfg=PreprocessConfig(aggregation="mean"))
        means.append(_run(case, config, data, collector).gradients)
    return {name: torch.cat([torch.as_tensor(mean[name]) for mean in means]) for name in means[0]}


def _scorer(case: Loaded, queries: dict[str, Tensor]) -> Scorer:
    writer = InMemorySequenceScoreWriter(len(case.rows), case.groups, dtype=torch.float32)
    return Scorer(
        query_grads=queries,
        modules=list(queries),
        writer=writer,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def _collector(case: Loaded, config: IndexConfig, data: Dataset, **more: Any) -> InMemoryCollector:
    return InMemoryCollector(
        model=case.proxy.model.base_model,
        processor=GradientProcessor(projection_dim=None),
        data=data,
        cfg=config,
        target_modules=_targets(case),
        **more,
    )


def _run(case: Loaded, config: IndexConfig, data: Dataset, collector: InMemoryCollector) -> InMemoryCollector:
    batches = allocate_batches(data["length"][:], config.token_batch_size)
    computer = CollectorComputer(model=case.proxy.model, data=data, collector=collector, batches=batches, cfg=config)
    computer.run_with_collector_hooks(desc="peers")
    return collector


def _targets(case: Loaded) -> set[str]:
    prefix = f"{case.proxy.model.base_model_prefix}."
    return {layer.removeprefix(prefix) for layer in case.layers}
