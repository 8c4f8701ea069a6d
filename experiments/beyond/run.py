"""Better than the paper: the default selection beside every other method, in two worlds, at six shares.

run.py [--out runs/beyond] [--only digits charts ...] makes the models, the worlds and the scores, trains and measures
every arm, and writes the records and tables beside this file, or into --publish. What is in --out is not made again, so
a run that was cut off goes on. Both worlds run with the same defaults; nothing is chosen on their benchmarks.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from onesteptrain.jobs.comparison import RANDOM, SET, TOP, Comparison, MethodArm
from onesteptrain.jobs.demo import TARGET, charts_comparison, digits_comparison
from onesteptrain.selection import SelectOptions
from onesteptrain.storage.atomic import write_json
from onesteptrain.synthetic import SyntheticData, SyntheticOptions, make_synthetic

HERE = Path(__file__).parent
EXPERIMENTS = HERE.parent
sys.path[:0] = [str(EXPERIMENTS / name) for name in ("deita_scorers", "paper", "worlds_common")]
from make import make_scorers  # noqa: E402
from publishing import run  # noqa: E402
from serving import served  # noqa: E402

MAIN = ("20%", "50%")
"""Shares with all seeds."""

OTHERS = ("5%", "10%", "35%", "70%")
"""Shares with fewer."""

REJECTION = (">=0.5", "81%")
"""What the judge keeps: what it accepts; and as much as the paper's judge keeps."""

NOISES = (0.0, 0.1, 0.3, 0.5, 0.7)


JUDGED_LONG = ("--most-steps", "2500", "--rows", "12000")
"""How long a world's judge is trained at most, and on how much."""


class Place(NamedTuple):
    """A built-in world, and what is special about it."""

    kind: Literal["digits", "charts"]
    comparison: Callable[..., Comparison]
    judge: tuple[str, ...]
    """Command that makes its judge, but for the folder."""

    judge_tokens: int
    """Most tokens of the judge's own answer."""


DIGITS = Place(
    "digits",
    digits_comparison,
    ("digits_world/pretrain.py", "judge", *JUDGED_LONG),
    48,
)
CHARTS = Place(
    "charts",
    charts_comparison,
    ("charts_world/pretrain.py", "charts_judge", *JUDGED_LONG),
    96,
)
PLACES = {"digits": DIGITS, "charts": CHARTS}


class Bench(NamedTuple):
    """What all experiments share."""

    out: Path
    options: argparse.Namespace
    stack: ExitStack

    def world(self, name: str, **changes: Any) -> SyntheticData:
        """A world, the same for the same name."""
        place, rows, questions = PLACES[name.partition("-")[0]], self.options.pool_rows, self.options.benchmark_rows
        folder = self.out / "worlds" / f"{name}-{rows}-{questions}"
        if folder.exists():
            return SyntheticData.at(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        options = SyntheticOptions(pool_rows=rows, benchmark_rows=questions, **changes)
        return make_synthetic(place.kind, options, folder)

    def comparison(
        self, name: str, world: SyntheticData, methods: Mapping[str, MethodArm], **changes: Any
    ) -> Comparison:
        """A comparison with the settings that all experiments share."""
        known = [one for one in ("judge", "random", "ost", "ost-set") if one in methods]
        settings = {
            "methods": methods,
            "seeds": self.options.seeds,
            "warmup_checkpoints": 4,
            "train": dataclasses.replace(TARGET, steps=self.options.steps),
            "references": ("full", "untuned", "oracle", *known),
        }
        return PLACES[name.partition("-")[0]].comparison(world, self.out / name, **settings | changes)

    def judge(self, name: str, keep: tuple[str, ...]) -> MethodArm:
        """A large model of the world answers each question itself; a row is accepted where the two answers agree."""
        place, model = PLACES[name], self.out / "models" / f"{name}-judge"
        if not model.exists():
            script, *arguments = place.judge
            command = [sys.executable, str(EXPERIMENTS / script), *arguments, "--out", str(model)]
            subprocess.run(command, check=True)
        judging = self.out / name
        address = "http://127.0.0.1:1/v1"  # nobody's: what is scored is not asked again
        if not list(judging.glob("scores/judge-*/scores.parquet")):
            address = self.stack.enter_context(served(model, judging.with_suffix(".server.log")))
        endpoint = {"endpoint": address, "model": str(model), "replies": str(judging.with_suffix(".sqlite"))}
        asked = endpoint | {"mode": "agreement", "answer_request": "", "max_new_tokens": place.judge_tokens}
        return MethodArm("judge", asked, keep=keep)

    def scorers(self) -> dict[str, str]:
        """DEITA's scorers in miniature."""
        folder = self.out / "models" / "deita"
        if not folder.exists():
            make_scorers(folder)
        return {"complexity_scorer": str(folder / "complexity"), "quality_scorer": str(folder / "quality")}


def every_method(bench: Bench, name: str, shares: tuple[str, ...]) -> dict[str, MethodArm]:
    """The default rule and all that it is measured against; nothing is tuned to the world."""
    rejection = REJECTION if shares == MAIN else ()
    arms: dict[str, Callable[[], MethodArm]] = {
        "ost-set": lambda: SET,
        "ost-first-pass": lambda: MethodArm("one_step"),
        "ost": lambda: TOP,
        "ost-harm": lambda: MethodArm("one_step", select=SelectOptions(by="harm")),
        "judge": lambda: bench.judge(name, (*rejection, *shares)),
        "deita": lambda: MethodArm("deita", bench.scorers(), SelectOptions(distinct=0.999)),
        "less": lambda: MethodArm("less", {"group_by": "skill"}),
        "ifd": lambda: MethodArm("ifd"),
        "loss": lambda: MethodArm("loss"),
        "random": lambda: RANDOM,
    }
    return {one: make() for one, make in arms.items() if one in (bench.options.methods or arms)}


def main_table(bench: Bench, name: str) -> Iterator[tuple[str, Comparison]]:
    """All methods at 20 % and 50 % with all seeds, and at the other shares with fewer; 60 % noise, Protocol B."""
    world = bench.world(name, noise_share=0.6)
    yield name, bench.comparison(name, world, every_method(bench, name, MAIN), shares=MAIN)
    if not bench.options.few_seeds:
        return
    fewer = {"shares": OTHERS, "seeds": bench.options.few_seeds}
    yield f"{name}-shares", bench.comparison(name, world, every_method(bench, name, OTHERS), **fewer)


def noise_rates(bench: Bench, name: str) -> Iterator[tuple[str, Comparison]]:
    """The default rule, which is not told how much noise there is, on pools with 0 to 70 % of it."""
    if not bench.options.few_seeds:
        return
    for noise in NOISES:
        part = f"{name}-noise{100 * noise:.0f}"
        methods = {
            "ost-set": SET,
            "ost-first-pass": MethodArm("one_step"),
            "random": MethodArm("random", keep=("20%",)),
        }
        few = {"shares": ("20%", "100%"), "seeds": bench.options.few_seeds}
        yield part, bench.comparison(part, bench.world(part, noise_share=noise, seed=1), methods, **few)


JOBS: dict[str, Callable[[Bench], Iterator[tuple[str, Comparison]]]] = {
    "digits": lambda bench: main_table(bench, "digits"),
    "charts": lambda bench: main_table(bench, "charts"),
    "digits-noise": lambda bench: noise_rates(bench, "digits"),
    "charts-noise": lambda bench: noise_rates(bench, "charts"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/beyond"))
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--few-seeds", type=int, default=3, help="of the other shares and noises; 0 leaves them out")
    parser.add_argument("--methods", nargs="+", help="of the main tables; all by default")
    parser.add_argument("--pool-rows", type=int, default=8000)
    parser.add_argument("--benchmark-rows", type=int, default=800)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--publish", type=Path, default=HERE, help="where results.json and tables/ go")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as the judge's server and every training have one
    options.out.mkdir(parents=True, exist_ok=True)
    for job in options.only:
        with ExitStack() as stack:
            for name, comparison in JOBS[job](Bench(options.out.resolve(), options, stack)):
                world = name.partition("-")[0]
                run(name, comparison, world=world, workers=options.workers, publish=options.publish)
                collect(options.publish)


def collect(publish: Path) -> None:
    """The records of all comparisons, together; arms that two of them share stand once."""
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for file in sorted((publish / "tables").glob("*/records.json")):
        for record in json.loads(file.read_text(encoding="utf-8")):
            noise = record["experiment"].partition("-noise")[2]
            kept.setdefault(
                (noise, *(record[key] for key in ("world", "method", "budget", "protocol", "seed"))), record
            )
    write_json(publish / "results.json", list(kept.values()))


if __name__ == "__main__":
    main()
