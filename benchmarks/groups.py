"""Many anchor groups: two passes a group against one gradient a row, and the number of groups where the two cross.

groups.py [--hidden 256] [--layers 8] [--rows 64] builds models with random weights (speed does not depend on them) and
takes rows of the digits data. Everything is encoded before. `passes` goes over the rows for each group, by `fd` or by
`jvp`; `gradient` does so once, for the signals along all anchors together, and then takes one forward and one backward
pass for all groups, as `one_step` does. Each figure is the median over the turns of the ratio within a turn. The last
figures are gradients alone, batched and one by one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from limit import BATCH, EPSILON, plain
from recording import by_turns, ratio, record

from onesteptrain.data.pool import Sample, open_pool
from onesteptrain.proxy import Encoded, Proxy, ScopeOptions, load_proxy
from onesteptrain.proxy.model import Direction
from onesteptrain.synthetic import SyntheticOptions, make_synthetic
from onesteptrain.synthetic.architectures import ModelSize, build_checkpoint
from onesteptrain.utility import token_derivatives
from onesteptrain.utility.first_order import FirstOrder
from onesteptrain.utility.per_sample import inner_products, per_sample, squares

PASSES_UP_TO = 4
"""Groups for which passes are timed; for more, each further group is taken to cost what the last ones did."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 2, 4, 16, 64])
    parser.add_argument("--architectures", nargs="+", default=["internvl", "qwen3_vl"])
    parser.add_argument("--scopes", nargs="+", default=["all", "last"])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        made = make_synthetic(
            "digits", SyntheticOptions(pool_rows=options.rows, heldout_rows=16), Path(scratch) / "world"
        )
        pool = [row for row in open_pool(made.pool) if isinstance(row, Sample)]
        texts = [turn.text for one in pool for turn in one.turns]
        size = ModelSize(hidden=options.hidden, layers=options.layers, mlp=3 * options.hidden, vocabulary=512)
        for architecture in options.architectures:
            model = build_checkpoint(architecture, Path(scratch) / architecture, size=size, texts=texts)
            for scope in options.scopes:
                proxy = load_proxy(model, ScopeOptions(scope, last_layers=max(1, options.layers // 4)))
                encoded = [proxy.encoder.encode(one) for one in pool]
                sweep(f"{architecture}, scope {scope}", proxy, encoded, options)


def sweep(name: str, proxy: Proxy, encoded: Sequence[Encoded], options: argparse.Namespace) -> None:
    """All numbers of groups, by turns."""
    few = [count for count in options.groups if count <= PASSES_UP_TO]
    work: dict[str, Callable[[], Any]] = {"plain": lambda: plain(proxy, encoded)}
    along = unstacked(drawn(proxy, PASSES_UP_TO))
    work |= {f"fd {count}": lambda count=count: passes(proxy, encoded, along[:count], "fd") for count in {1, *few}}
    work |= {f"jvp {count}": lambda count=count: passes(proxy, encoded, along[:count], "jvp") for count in (1, 2)}
    for count in options.groups:
        directions = drawn(proxy, count)
        work[f"gradient {count}"] = lambda directions=directions: gradients(proxy, encoded, directions)
    work["lengths, batched"] = lambda: per_sample(proxy, encoded, squares(), batch_size=BATCH)
    work["lengths, one by one"] = lambda: per_sample(proxy, encoded, squares(), batch_size=1)
    seconds = by_turns(work, options.repeats)
    last = max(few)
    seconds["fd a group"] = [
        (many - one) / (last - 1) for many, one in zip(seconds[f"fd {last}"], seconds["fd 1"], strict=True)
    ]
    seconds["jvp a group"] = [two - one for two, one in zip(seconds["jvp 2"], seconds["jvp 1"], strict=True)]
    for kind in ("fd", "jvp"):
        publish(name, kind, seconds, options.groups)
    figure = round(ratio(seconds, "lengths, one by one", "lengths, batched"), 2)
    record("groups", f"{name}: gradient lengths one by one over batched", ratio=figure, unit="x")


def publish(name: str, kind: str, seconds: Mapping[str, Sequence[float]], groups: Sequence[int]) -> None:
    """Both routes in plain passes, and where they cross."""
    timed = dict(seconds)
    better = []
    for count in groups:
        timed["passes"] = [
            one + (count - 1) * more for one, more in zip(seconds[f"{kind} 1"], seconds[f"{kind} a group"], strict=True)
        ]
        timed["gradient"] = [
            one + two for one, two in zip(seconds[f"{kind} 1"], seconds[f"gradient {count}"], strict=True)
        ]
        figures = {one: round(ratio(timed, one, "plain"), 2) for one in ("passes", "gradient")}
        record("groups", f"{name}: {count} groups by {kind}", **figures, unit="plain passes")
        better.append(ratio(timed, "passes", "gradient"))
    first = [
        1 + gradient / more
        for gradient, more in zip(seconds[f"gradient {groups[0]}"], seconds[f"{kind} a group"], strict=True)
    ]
    record(
        "groups",
        f"{name}: groups where the gradient overtakes {kind}",
        value=round(statistics.median(first), 2),
        unit="groups",
    )
    record(
        "groups", f"{name}: {groups[-1]} groups by {kind}, passes over gradient", ratio=round(better[-1], 1), unit="x"
    )


def passes(proxy: Proxy, encoded: Sequence[Encoded], along: Sequence[Direction], estimator: FirstOrder) -> None:
    epsilons = [EPSILON] * len(along)
    token_derivatives(proxy, encoded, along, estimator=estimator, epsilons=epsilons, batch_size=BATCH)


def gradients(proxy: Proxy, encoded: Sequence[Encoded], directions: Mapping[str, torch.Tensor]) -> None:
    per_sample(proxy, encoded, inner_products(directions), batch_size=BATCH)


def drawn(proxy: Proxy, count: int) -> dict[str, torch.Tensor]:
    """Directions at random: speed does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: 1e-3 * torch.randn(count, *value.shape, generator=generator) for name, value in proxy.parameters.items()
    }


def unstacked(directions: Mapping[str, torch.Tensor]) -> list[Direction]:
    count = len(next(iter(directions.values())))
    return [{name: value[one] for name, value in directions.items()} for one in range(count)]


if __name__ == "__main__":
    main()
