"""How near the estimators are to the limit: what they cost in plain loss passes over the same rows.

limit.py [--hidden 256] [--layers 8] [--rows 192] [--only scopes tokens reading compiling padding] builds a model of the
InternVL architecture with random weights (speed does not depend on them) and takes rows of the digits data. A plain
pass is one batched forward pass that gives the mean answer loss of every row. Everything is encoded before; batch sizes
and scope are the same; each figure is the median over the turns of the ratio within a turn.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from recording import by_turns, ratio, record

from onesteptrain.data.pool import Sample, open_pool
from onesteptrain.methods import Setting
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import Encoded, LoadOptions, Proxy, ScopeOptions, in_batches, load_proxy, prepare
from onesteptrain.scoring.options import ScoringOptions
from onesteptrain.synthetic import SyntheticOptions, checkpoint, make_synthetic
from onesteptrain.synthetic.architectures import ModelSize, build_checkpoint
from onesteptrain.utility import AnchorGroup, exact_utility, measure_anchors, token_derivatives

BATCH, ANCHORS = 16, 100
EPSILON = 1e-3
PARTS = ("scopes", "tokens", "reading", "compiling", "padding")
TOKENS = (256, 512, 1024, 2048, 4096)

_SHORT = 3
"""Times as many turns where a turn is short."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--exact-rows", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        made = make_synthetic(
            "digits", SyntheticOptions(pool_rows=max(options.rows, 256), heldout_rows=ANCHORS), Path(scratch) / "world"
        )
        pool, anchors = readable(made.pool), readable(made.heldout)
        size = ModelSize(hidden=options.hidden, layers=options.layers, mlp=3 * options.hidden, vocabulary=512)
        texts = [turn.text for one in pool for turn in one.turns]
        model = build_checkpoint("internvl", Path(scratch) / "model", size=size, texts=texts)
        scopes = {
            "all": ScopeOptions("all"),
            "language": ScopeOptions("language"),
            "last quarter of the layers": ScopeOptions("last", last_layers=options.layers // 4),
        }
        if "scopes" in options.only:
            for name, scope in scopes.items():
                measure(name, load_proxy(model, scope), pool[: options.rows], anchors, options)
        if "tokens" in options.only:
            by_tokens(load_proxy(model), pool[: 2 * options.rows], options.repeats)
        if "reading" in options.only:
            whole(load_proxy(model), pool[: options.rows], anchors, options.repeats)
        if "compiling" in options.only:
            compiled(model, pool[: options.rows], anchors, options.repeats)
        if "padding" in options.only:
            charts = readable(make_synthetic("charts", SyntheticOptions(pool_rows=256), Path(scratch) / "charts").pool)
            padding("digits", load_proxy(checkpoint("proxy")), pool[:256])
            padding("charts", load_proxy(checkpoint("charts_proxy")), charts)


def measure(name: str, proxy: Proxy, rows: list[Sample], anchors: list[Sample], options: argparse.Namespace) -> None:
    """Estimators over plain passes, and exact steps over estimators, for one scope."""
    encoded = [proxy.encoder.encode(one) for one in rows]
    trusted = [proxy.encoder.encode(one) for one in anchors]
    kept = measured(proxy, trusted)
    forgetful = kept._replace(batches=[batch._replace(plan=batch.plan._replace(kept=None)) for batch in kept.batches])
    few = encoded[:: len(encoded) // options.exact_rows][: options.exact_rows]

    def first_order(estimator: str) -> None:
        token_derivatives(proxy, encoded, [kept.direction], estimator=estimator, epsilons=[EPSILON], batch_size=BATCH)

    def exact(group: AnchorGroup) -> None:
        for one in few:
            exact_utility(proxy, one, [group], step_size=1e-3, preconditioner={})

    steps = {f"exact with {ANCHORS} anchors": kept, f"exact that keeps nothing of its {ANCHORS} anchors": forgetful}
    passes = {one: lambda one=one: first_order(one) for one in ("fd", "jvp")}
    seconds = by_turns({"plain": lambda: plain(proxy, encoded), **passes}, _SHORT * options.repeats)
    for one in passes:
        figure = round(ratio(seconds, one, "plain"), 3)
        record("limit", f"{one} over a plain pass, scope {name}", ratio=figure, unit="x")
    work = {one: lambda group=group: exact(group) for one, group in steps.items()}
    seconds = by_turns({"fd": passes["fd"], **work}, options.repeats)
    for one in steps:
        figure = round(ratio(seconds, one, "fd") * len(encoded) / len(few), 1)
        record("limit", f"{one} over fd, scope {name}", ratio=figure, unit="x")


def by_tokens(proxy: Proxy, rows: list[Sample], repeats: int) -> None:
    """Passes that hold more tokens or fewer than one does by default on one thread of a CPU."""
    encoded = [proxy.encoder.encode(one) for one in rows]
    work = {str(tokens): lambda tokens=tokens: plain(proxy, encoded, tokens) for tokens in TOKENS}
    seconds = by_turns(work, repeats)
    for tokens in TOKENS:
        figure = round(ratio(seconds, str(tokens), str(proxy.memory.most_tokens)), 2)
        record("limit", f"plain passes of {tokens} tokens over those by default", ratio=figure, unit="x")


def whole(proxy: Proxy, rows: list[Sample], anchors: list[Sample], repeats: int) -> None:
    """The same with reading images and texts, as a user sees it."""
    scorer = OneStep(estimator="fd", reference_folds=0).prepare(Setting(proxy, anchors))

    def plain_whole() -> None:
        plain(proxy, [proxy.encoder.encode(one) for one in rows])

    seconds = by_turns({"plain": plain_whole, "fd": lambda: scorer(rows)}, repeats)
    figure = round(ratio(seconds, "fd", "plain"), 3)
    record("limit", "fd over a plain pass, scope all, encoding in both", ratio=figure, unit="x")


def compiled(model: Path, rows: list[Sample], anchors: list[Sample], repeats: int) -> None:
    """The same with blocks compiled, for which the first batches wait."""
    scorers, begun = {}, {}
    for name in ("eager", "compiled"):
        proxy = load_proxy(model, options=LoadOptions(compile=name == "compiled"))
        started = time.perf_counter()
        scorers[name] = OneStep(estimator="fd", reference_folds=0).prepare(Setting(proxy, anchors))
        scorers[name](rows)
        begun[name] = time.perf_counter() - started
    record("limit", "compile: what the first batches wait", value=round(begun["compiled"] - begun["eager"]), unit="s")
    seconds = by_turns({name: lambda one=one: one(rows) for name, one in scorers.items()}, repeats)
    figure = round(ratio(seconds, "compiled", "eager"), 2)
    record("limit", "fd compiled over fd as it is, scope all", ratio=figure, unit="x")


def padding(name: str, proxy: Proxy, rows: list[Sample]) -> None:
    """Share of the tokens of a scoring's batches that is padding."""
    lengths = [proxy.encoder.encode(one) for one in rows]
    chunk = ScoringOptions().chunk_rows
    real = padded = 0
    for start in range(0, len(lengths), chunk):
        part = lengths[start : start + chunk]
        for indices in in_batches(part, BATCH, proxy.memory.tokens):
            tokens = [part[index].tokens for index in indices]
            real, padded = real + sum(tokens), padded + len(tokens) * max(tokens)
    record("limit", f"padding of scoring batches, {name} data", value=round(100 * (padded / real - 1), 2), unit="%")


@torch.no_grad()
def plain(proxy: Proxy, encoded: Sequence[Encoded], tokens: int | None = None) -> None:
    """The mean answer loss of every row, by batched forward passes."""
    for indices in in_batches(encoded, tokens or BATCH, tokens or proxy.memory.tokens):
        proxy.token_losses(prepare(proxy, [encoded[index] for index in indices])).means()


def measured(proxy: Proxy, anchors: list[Encoded]) -> AnchorGroup:
    (group,) = measure_anchors(proxy, {"": anchors}, preconditioner={}, batch_size=BATCH, keep=True)
    return group


def readable(path: Path) -> list[Sample]:
    return [row for row in open_pool(path) if isinstance(row, Sample)]


if __name__ == "__main__":
    main()
