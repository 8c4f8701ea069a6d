"""Signal, rule, warm-up, anchors and optimizer, one changed at a time: ablation.py [--out runs/ablation] [--seeds 3].

The digits data of seed 21 with 60 % noise, which no other table uses. Targets are measured on clean held-out rows that
are no anchors, never on the benchmark: this is where the default rule was chosen.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch

from onesteptrain.jobs.comparison import RANDOM, SET, TOP, Comparison, MethodArm, compare
from onesteptrain.jobs.demo import TARGET, digits_comparison
from onesteptrain.reporting.comparison import comparison_table, write_comparison
from onesteptrain.selection import SelectOptions
from onesteptrain.synthetic import SyntheticData, SyntheticOptions, make_synthetic

HERE = Path(__file__).parent
SEED, HELDOUT, QUESTIONS = 21, 1400, 800


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pool-rows", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--publish", type=Path, default=HERE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    world = dev_world(options.out, options.pool_rows)
    for name, job in jobs(world, options):
        print(f"== {name}", flush=True)
        done = compare(job, workers=options.workers, tell=lambda text: print(text, flush=True))
        folder = options.publish / "tables" / f"ablation-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        write_comparison(done.records, done.differences, folder)
        print(comparison_table(done.records, done.differences), flush=True)


def dev_world(out: Path, rows: int) -> SyntheticData:
    """A world whose held-out rows are split: the first are for anchors, the last are its questions."""
    folder = out / f"world-{rows}"
    if not folder.exists():
        made = make_synthetic(
            "digits", SyntheticOptions(pool_rows=rows, heldout_rows=HELDOUT, noise_share=0.6, seed=SEED), folder
        )
        lines = made.heldout.read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / "heldout.jsonl").write_text("".join(lines[:-QUESTIONS]), encoding="utf-8")
        (folder / "benchmark.jsonl").write_text("".join(lines[-QUESTIONS:]), encoding="utf-8")
    return SyntheticData.at(folder)


def jobs(world: SyntheticData, options: argparse.Namespace) -> Iterator[tuple[str, Comparison]]:
    """The rules and signals in one comparison; each number of anchors in one of its own."""
    settings = {
        "train": dataclasses.replace(TARGET, steps=150),
        "seeds": options.seeds,
        "shares": ("20%",),
        "references": ("untuned", "oracle", "set"),
    }
    yield "rules", digits_comparison(world, options.out.resolve() / "compare", methods=rules(), **settings)
    for count in (25, 50, 200):
        methods = {f"set, {count} anchors": MethodArm("one_step")}
        changed = settings | {"references": ("untuned", "oracle"), "anchor_count": count}
        yield f"anchors{count}", digits_comparison(world, options.out.resolve() / "compare", methods=methods, **changed)


def rules() -> dict[str, MethodArm]:
    """The default, and what differs from it in one thing."""
    adam, groups = {"optimizer": "adam"}, {"group_by": "skill"}
    return {
        "set": MethodArm("one_step"),
        "set, second pass": SET,
        "set, all that passes": MethodArm("one_step", keep=("100%",)),
        "top by utility": TOP,
        "top by harm": MethodArm("one_step", select=SelectOptions(by="harm")),
        "top by Adam's harm": MethodArm("one_step", adam, SelectOptions(by="harm")),
        "top by relative utility": MethodArm("one_step", select=SelectOptions(by="relative")),
        "best half by harm, draw": MethodArm("one_step", select=SelectOptions(gate="50%", prefer="draw")),
        "trust, top by utility": MethodArm("one_step", select=SelectOptions(gate="trust", prefer="top")),
        "trust, cover": MethodArm("one_step", {"representation": True}, SelectOptions(prefer="cover")),
        "trust, setwise": MethodArm("one_step", {"sketch": 512}, SelectOptions(prefer="setwise")),
        "trust, maxmin over skills": MethodArm("one_step", groups, SelectOptions(prefer="maxmin")),
        "set, quota by skill": MethodArm("one_step", select=SelectOptions(quota="skill")),
        "set, Adam": MethodArm("one_step", adam),
        "set, cold proxy": MethodArm("one_step", warmup_share=0.0),
        "set, warm-up on 20 %": MethodArm("one_step", warmup_share=0.2),
        "loss": MethodArm("loss"),
        "random": RANDOM,
    }


if __name__ == "__main__":
    main()
