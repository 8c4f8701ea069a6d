"""Fine-tune a target model on a subset, under the paper's Protocol A (epochs fixed) or B (steps fixed)."""

from __future__ import annotations

import dataclasses
import glob
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from onesteptrain.data.pool import Sample, Unreadable
from onesteptrain.errors import PoolError
from onesteptrain.proxy import LoadOptions, ScopeOptions, load_proxy
from onesteptrain.storage.atomic import whole_folder, write_json
from onesteptrain.storage.fingerprints import fingerprint, short_hash
from onesteptrain.storage.ownership import note_made
from onesteptrain.storage.phases import begin_phase
from onesteptrain.training.encodings import Encodings, encode_all, most_common
from onesteptrain.training.finetuning import finetune
from onesteptrain.training.options import FinetuneOptions, Progress

FACTS = "train.json"


@dataclass(frozen=True)
class TrainOptions:
    """How a target is trained."""

    finetune: FinetuneOptions = field(default_factory=FinetuneOptions)
    """The training: give steps for Protocol B, epochs for Protocol A."""

    scope: ScopeOptions = field(default_factory=ScopeOptions)
    """The part that is trained."""

    load: LoadOptions = field(default_factory=LoadOptions)
    """How the checkpoint is loaded."""


class TrainResult(NamedTuple):
    """What a training did; steps, seconds, losses and tokens as `FinetuneResult` says, those before a cut included."""

    checkpoint: Path
    """A folder that `load_proxy` and Hugging Face load; adapters alone, for scope lora."""

    rows: int
    """Rows that could be encoded, and so were trained on."""

    refused: dict[str, str]
    """Why each other row could not be used, by uid."""

    steps: int
    seconds: float
    losses: list[float]
    tokens: int


def train(
    checkpoint: str | Path,
    samples: Iterable[Sample | Unreadable],
    options: TrainOptions,
    out: Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a checkpoint on samples and write it as a new checkpoint folder, with `train.json` in it.

    A tenth of the steps is the most that a kill can lose: the same request for the same place goes on from the last
    tenth, which stands beside it in OUT.REQUEST.steps until the training is done.

    Raises:
        ModelError: the checkpoint cannot be loaded.
        PoolError: no row can be used.
        RunError: the output is taken.
        ScoreError: the training diverged.
    """
    with whole_folder(out, kind="a trained target", overwrite=overwrite) as part:
        begin_phase("loading the target")
        target = load_proxy(checkpoint, options.scope, options.load)
        encodings, refused = encode_all(target.encoder, samples)
        if not len(encodings):
            reason = next(iter(refused.values()), "there are none")
            raise PoolError(f"none of the {len(refused)} rows can be trained on ({reason}); give another subset")
        steps = out.with_name(f"{out.name}.{_request(checkpoint, encodings, options)}.steps")
        note_made(steps, tree=True)
        result = finetune(target, encodings, options.finetune, workdir=steps, progress=progress)
        target.save(part)
        done = TrainResult(out, len(encodings), refused, *result)
        facts = done._asdict() | {"reasons": most_common(refused), "from": str(checkpoint)}
        del facts["checkpoint"]
        facts["refused"] = len(refused)
        write_json(part / FACTS, {"options": dataclasses.asdict(options), **facts})
    for left in out.parent.glob(f"{glob.escape(out.name)}.{'[0-9a-f]' * 8}.steps"):  # those of given-up requests too
        shutil.rmtree(left)
    return done


def _request(checkpoint: str | Path, encodings: Encodings, options: TrainOptions) -> str:
    """What sets one training apart from another, as a short hash: start, rows in their order, options."""
    asked = [fingerprint(checkpoint), encodings.identity, dataclasses.asdict(options)]
    return short_hash(json.dumps(asked), 4)
