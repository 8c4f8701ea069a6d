"""Which glimpse tells the utility best per pass spent, and what landmarks reach with it, on pools of both worlds.

run.py [--worlds digits charts] [--seeds 0 1] [--rows 2000] makes a world a seed with 60 % noise and 100 anchors, warms
up the packaged proxy as the demo does, scores the pool by fd, and takes glimpses of every row. Of each kind of glimpse
it tells the agreement with the top 20 % of fd where everything together costs 1.9 passes a row: landmarks are a tenth
of the rows, at random, and the rest is spent on the rows whose place is most in doubt. Then it scores by `--estimator
landmarks` itself. results.json has every figure; seconds are of the processor, all that a command does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from onesteptrain.cascading.doubt import learn_doubt
from onesteptrain.cascading.ridge import fit_ridge
from onesteptrain.data.pool import open_pool
from onesteptrain.jobs.demo import WARMUP
from onesteptrain.jobs.steps import locate_proxy, provide_proxy, score_into
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import Encoded, LoadOptions, Proxy, ScopeOptions, in_batches, load_proxy
from onesteptrain.proxy.scope import decoder_of
from onesteptrain.selection.trust import measure_trust
from onesteptrain.storage.run_directory import Run
from onesteptrain.storage.score_table import ScoreTable
from onesteptrain.synthetic import checkpoint
from onesteptrain.synthetic.charts import ChartOptions, make_charts
from onesteptrain.synthetic.digits import WorldOptions, make_world
from onesteptrain.training import WarmupOptions
from onesteptrain.utility.glimpsing import Glimpser

PASSES, DRAWN = 1.9, 0.1
RESULTS = Path(__file__).with_name("results.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", nargs="+", choices=("digits", "charts"), default=["digits", "charts"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--rows", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for world in options.worlds:
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as scratch:
                for name, figures in study(world, seed, options.rows, Path(scratch)):
                    record({"world": world, "seed": seed, "rows": options.rows, "what": name, **figures})


def study(world: str, seed: int, rows: int, out: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Figures of one pool, with their names."""
    size = {"pool_rows": rows, "heldout_rows": 100, "noise_share": 0.6, "seed": seed}
    made = (
        make_world(WorldOptions(**size), out / "world")
        if world == "digits"
        else make_charts(ChartOptions(**size), out / "world")
    )
    pool, loading = open_pool(made.pool), (ScopeOptions(), LoadOptions(device="cpu"))
    start = str(checkpoint({"digits": "proxy", "charts": "charts_proxy"}[world]))
    warmup = WarmupOptions(share=400 / rows, finetune=dataclasses.replace(WARMUP, seed=seed))
    folder, _ = provide_proxy(out / "warm", start, pool, warmup, loading, print)

    def scored(name: str, method: OneStep) -> tuple[ScoreTable, float]:
        began = time.process_time()
        return score_into(out / name, pool, method, anchors=made.heldout, proxy=folder).table, (
            time.process_time() - began
        )

    fd, fd_seconds = scored("fd", OneStep("fd"))
    utility = fd.numbers("score")
    proxy = load_proxy(locate_proxy(folder)[0], *loading)
    encoded = [proxy.encoder.encode(sample) for sample in pool.rows()]  # these worlds have no bad files
    yield "fd along all", {"agreement": 1.0, "seconds": round(fd_seconds, 1)}
    anchors = [proxy.encoder.encode(sample) for sample in open_pool(made.heldout).rows()]
    for name, (cost, vectors) in glimpses(proxy, encoded, anchors).items():
        budget = (PASSES - cost) / 2
        for by_length in (True, False) if name.startswith("gradient") else (False,):
            found = [simulate(vectors, utility, budget, draw, by_length=by_length) for draw in range(4)]
            seen, told = np.mean(found, axis=0).round(3).tolist()
            figures = {
                "agreement": seen,
                "expected": told,
                "glimpse_passes": round(cost, 2),
                "scored": round(budget, 3),
            }
            yield f"{name}{', rows weighted by length' if by_length else ''}", figures
    depth = len(decoder_of(proxy.model).layers)
    for layers, budget in ((0, 0.1), (0, 0.3), (1, 0.2), (1, 0.3), (2, 0.2)):
        name = f"landmarks, {layers} layers, budget {budget}"
        table, seconds = scored(name, OneStep("landmarks", glimpse_layers=layers, landmark_budget=budget))
        did = Run(out / name).provenance["landmarks"]
        both = [measure_trust(one).passing() for one in (fd, table)]
        gate = float((both[0] & both[1]).sum() / max(1, both[1].sum()))
        yield (
            f"ost score, {name}",
            {
                "agreement": agreement(table.numbers("score"), utility),
                "expected": round(did["expected_agreement"], 3),
                "passes": round(1 + layers / depth + 2 * (did["drawn"] + did["doubtful"]) / rows, 2),
                "seconds": round(seconds, 1),
                "trusted": [int(one.sum()) for one in both],
                "trusted_by_fd_too": round(gate, 3),
            },
        )


def glimpses(proxy: Proxy, rows: Sequence[Encoded], anchors: Sequence[Encoded]) -> dict[str, tuple[float, np.ndarray]]:
    """Vectors of all rows by several kinds of glimpse, and what one costs in passes.

    A layer of the language model counts as its share of the layers, as if there were no vision tower: too much.
    """
    layers = len(decoder_of(proxy.model).layers)
    found: dict[str, tuple[float, np.ndarray]] = {}
    for count in range(layers):
        looks = Glimpser(proxy, count, 0, 16).towards(anchors)(rows)
        shown = np.stack([one.shown.numpy() for one in looks]).astype(float)
        place = f"below {count} layers" if count else "at the head"
        found[f"gradient {place}"] = (1 + count / layers, shown)
        found[f"gradient {place}, sketch alone"] = (1 + count / layers, shown[:, 1:])
        found[f"gradient {place}, along the anchors alone"] = (1 + count / layers, shown[:, :1])
        if not count:
            losses = [(one.loss.mean(), one.loss.max(), one.loss.median(), len(one.loss)) for one in looks]
            found["losses"] = (1.0, both_sizes(np.array(losses, dtype=float)))
    for layer, vectors in enumerate(states(proxy, rows)):
        found[f"hidden states, {layer} layers up"] = (layer / layers, standardised(vectors))
    found["nothing"] = (0.0, np.random.default_rng(0).normal(size=(len(rows), 2)))
    return found


@torch.no_grad()
def states(proxy: Proxy, rows: Sequence[Encoded]) -> list[np.ndarray]:
    """Mean hidden state over answer tokens and over all tokens, layer by layer from the lowest up."""
    vectors: list[list[np.ndarray]] = [[] for _ in rows]
    for indices in in_batches(rows, 16):
        batch = proxy.batch([rows[index] for index in indices])
        hidden = proxy.model(**batch.inputs, use_cache=False, output_hidden_states=True).hidden_states
        for place, index in enumerate(indices):
            tokens = rows[index].tokens
            vectors[index] = [
                torch.cat([one[place][batch.answer[place]].mean(0), one[place][:tokens].mean(0)]).numpy()
                for one in hidden
            ]
    return [np.stack(one).astype(float) for one in zip(*vectors, strict=True)]


def simulate(
    vectors: np.ndarray, utility: np.ndarray, budget: float, seed: int, *, by_length: bool
) -> tuple[float, float]:
    """Agreement with the true top 20 %, and that which is expected, where so large a share of the rows is scored."""
    rows = len(utility)
    drawn = np.sort(np.random.default_rng(seed).permutation(rows)[: round(DRAWN * rows)])
    lengths = np.linalg.norm(vectors, axis=1)
    scale = lengths + 0.1 * np.median(lengths[drawn]) if by_length else np.ones(rows)
    line, held_out = fit_ridge(vectors[drawn] / scale[drawn, None], utility[drawn] / scale[drawn])
    base = scale * line(vectors / scale[:, None])
    base[drawn] = scale[drawn] * held_out
    doubt = learn_doubt(np.column_stack([base, lengths]), base, drawn, utility[drawn])
    known, top = np.full(rows, np.nan), rows // 5
    known[drawn] = utility[drawn]
    chances = doubt.crossing(doubt.cut(known, np.arange(rows), top))
    chances[drawn] = 0
    more = np.argsort(-chances)[: max(0, round(budget * rows) - len(drawn))]
    known[more], chances[more] = utility[more], 0
    told = np.where(np.isfinite(known), known, doubt.expected)
    return agreement(told, utility), 1 - float(chances.sum()) / 2 / top


def agreement(told: np.ndarray, utility: np.ndarray) -> float:
    top = len(utility) // 5
    both = set(np.argsort(-told, kind="stable")[:top]) & set(np.argsort(-utility, kind="stable")[:top])
    return round(len(both) / top, 4)


def both_sizes(numbers: np.ndarray) -> np.ndarray:
    return standardised(np.hstack([numbers, np.log(numbers + 1e-3)]))


def standardised(vectors: np.ndarray) -> np.ndarray:
    spread = vectors.std(0)
    return (vectors - vectors.mean(0)) / np.where(spread > 0, spread, 1)


def record(figures: dict[str, object]) -> None:
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    same = [one for one in kept if all(one[key] == figures[key] for key in ("world", "seed", "rows", "what"))]
    kept = [one for one in kept if one not in same] + [figures]
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(figures, flush=True)


if __name__ == "__main__":
    main()
