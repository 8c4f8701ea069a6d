"""The paper's tables on the digits data: all methods, both protocols, two target sizes, several proxies and noises.

run.py [--out runs/paper] [--only main cost ...] [--seeds 5] [--pool-rows 8000] makes the models, the worlds and the
scores, trains and measures every arm, and writes the records and tables beside this file, or into --publish. What is in
--out is not made again, so a run that was cut off goes on, and more seeds add to fewer.
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
from typing import Any, NamedTuple

import torch

from onesteptrain.jobs.comparison import RANDOM, TOP, Comparison, MethodArm
from onesteptrain.jobs.demo import TARGET, digits_comparison
from onesteptrain.selection import SelectOptions
from onesteptrain.storage.atomic import write_json
from onesteptrain.synthetic import SyntheticData, SyntheticOptions, checkpoint, make_synthetic

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), *(str(HERE.parent / name) for name in ("deita_scorers", "worlds_common"))]
from make import make_scorers  # noqa: E402
from publishing import run  # noqa: E402
from serving import served  # noqa: E402

MAIN = ("main", "cost")
"""Experiments whose records stand together in results.json; those of the others stand in tables/."""


REJECTION = (">=0.5", "81%")
"""What the judge keeps: what it accepts; and as much as the paper's judge keeps, by rejecting less than it would."""

RANKED = SelectOptions(prefer="top", gate="none")
"""The paper's rule: keep the highest scores."""


class Bench(NamedTuple):
    """What all experiments share."""

    out: Path
    options: argparse.Namespace
    stack: ExitStack

    def pretrained(self, name: str) -> str:
        """A model that the package does not ship, made when it is first needed."""
        folder = self.out / "models" / name
        if not folder.exists():
            script = HERE.parent / "digits_world" / "pretrain.py"
            most = ["--most-steps", "2500", "--rows", "12000"] if name == "judge" else []
            subprocess.run([sys.executable, str(script), name, *most, "--out", str(folder)], check=True)
        return str(folder)

    def scorers(self) -> dict[str, str]:
        """DEITA's scorers in miniature."""
        folder = self.out / "models" / "deita"
        if not folder.exists():
            make_scorers(folder)
        return {"complexity_scorer": str(folder / "complexity"), "quality_scorer": str(folder / "quality")}

    def judge(self, judging: Path) -> MethodArm:
        """The judge answers each question itself; a row is accepted where the two answers agree."""
        model = self.pretrained("judge")
        address = "http://127.0.0.1:1/v1"  # nobody's: what is scored is not asked again
        if not list(judging.glob("scores/judge-*/scores.parquet")):
            address = self.stack.enter_context(served(Path(model), judging.with_suffix(".server.log")))
        endpoint = {"endpoint": address, "model": model, "replies": str(judging.with_suffix(".sqlite"))}
        asked = endpoint | {"mode": "agreement", "answer_request": "", "max_new_tokens": 48}
        return MethodArm("judge", asked, keep=(*REJECTION, "20%", "50%"))

    def world(self, name: str, **changes: Any) -> SyntheticData:
        """Digits data, the same for the same name."""
        folder = self.out / "worlds" / f"{name}-{self.options.pool_rows}-{self.options.benchmark_rows}"
        if folder.exists():
            return SyntheticData.at(folder)
        rows, questions = self.options.pool_rows, self.options.benchmark_rows
        return make_synthetic("digits", SyntheticOptions(pool_rows=rows, benchmark_rows=questions, **changes), folder)

    def main_world(self) -> SyntheticData:
        """60 % noise, where a target that trains on everything gets no better than it was (see the README)."""
        return self.world("main", noise_share=0.6)

    def comparison(
        self, world: SyntheticData, out: str, methods: Mapping[str, MethodArm], **changes: Any
    ) -> Comparison:
        """A comparison with the settings that all experiments share."""
        settings = {
            "methods": methods,
            "seeds": self.options.seeds,
            "warmup_checkpoints": 4,
            "train": dataclasses.replace(TARGET, steps=self.options.steps),
            "references": (
                "full",
                "untuned",
                "oracle",
                *(name for name in ("judge", "random", "ost") if name in methods),
            ),
        }
        return digits_comparison(world, self.out / out, **settings | changes)


def main_methods(bench: Bench, folder: str) -> dict[str, MethodArm]:
    """Every method of the comparison, with its defaults where they make sense here."""
    return {
        "ost": TOP,
        "ost-harm": MethodArm("one_step", select=SelectOptions(by="harm")),
        "judge": bench.judge(bench.out / folder),
        "deita": MethodArm("deita", bench.scorers(), SelectOptions(distinct=bench.options.distinct)),
        "less": MethodArm("less", {"group_by": "skill"}),
        "ifd": MethodArm("ifd"),
        "loss": MethodArm("loss"),
        "random": RANDOM,
    }


def main_tables(bench: Bench) -> Iterator[Comparison]:
    """(a) Protocol B at 20 % and 50 %, all methods."""
    yield bench.comparison(bench.main_world(), "compare", main_methods(bench, "compare"))


def cost(bench: Bench) -> Iterator[Comparison]:
    """(b) Protocol A: one pass over what each method keeps."""
    methods = main_methods(bench, "compare")
    chosen = {name: methods[name] for name in ("ost", "judge", "random")}
    yield bench.comparison(bench.main_world(), "compare", rejecting(chosen), protocols=("A",), truth=None)


def target_size(bench: Bench) -> Iterator[Comparison]:
    """(c) A target of three and a half times the size."""
    methods = main_methods(bench, "compare")
    chosen = {name: methods[name] for name in ("ost", "judge", "deita")}
    large = {"target": str(checkpoint("target_large")), "truth": None}
    yield bench.comparison(bench.main_world(), "compare", rejecting(chosen), **large)


def maturity(bench: Bench) -> Iterator[Comparison]:
    """(d) The proxy as it is, and warmed up on 5, 25 and 100 % of the pool, ten passes each."""
    shares = {"0": 0.0, "5": 0.05, "25": 0.25, "100": 1.0}
    methods = {
        f"ost-warm-{name}": MethodArm("one_step", warmup_share=share, select=RANKED) for name, share in shares.items()
    }
    yield bench.comparison(bench.main_world(), "compare", methods, truth=None)


def architecture(bench: Bench) -> Iterator[Comparison]:
    """(e) A proxy of the target's own architecture against one of another."""
    same = MethodArm("one_step", proxy=bench.pretrained("proxy_same"), select=RANKED)
    methods = {"ost-other": MethodArm("one_step", select=RANKED), "ost-same": same}
    yield bench.comparison(bench.main_world(), "compare", methods, truth=None)


def noise(bench: Bench) -> Iterator[Comparison]:
    """(f) The same with 30 % noise in place of 60 %."""
    methods = main_methods(bench, "compare-less-noise")
    chosen = {name: methods[name] for name in ("ost", "judge", "random")}
    yield bench.comparison(bench.world("less-noise", noise_share=0.3), "compare-less-noise", rejecting(chosen))


def rejecting(methods: dict[str, MethodArm]) -> dict[str, MethodArm]:
    """The same methods; the judge rejects, and keeps no other share."""
    return {
        name: dataclasses.replace(arm, keep=REJECTION if name == "judge" else arm.keep) for name, arm in methods.items()
    }


EXPERIMENTS: dict[str, Callable[[Bench], Iterator[Comparison]]] = {
    "main": main_tables,
    "cost": cost,
    "target-size": target_size,
    "maturity": maturity,
    "architecture": architecture,
    "noise": noise,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pool-rows", type=int, default=8000)
    parser.add_argument("--benchmark-rows", type=int, default=800)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--distinct", type=float, default=0.999, help="DEITA's threshold; see the README")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--publish", type=Path, default=HERE, help="where results.json and tables/ go")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as the judge's server and every training have one
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        with ExitStack() as stack:
            for job in EXPERIMENTS[name](Bench(options.out.resolve(), options, stack)):
                run(name, job, world="digits", workers=options.workers, publish=options.publish)
    collect(options.publish)


def collect(publish: Path) -> None:
    """The records of the main tables, together; those of each other experiment stay in its folder."""
    kept = {name: publish / "tables" / name / "records.json" for name in EXPERIMENTS}
    there = {name: file.read_text(encoding="utf-8") for name, file in kept.items() if file.is_file()}
    write_json(publish / "results.json", [record for name in MAIN for record in json.loads(there.get(name, "[]"))])


if __name__ == "__main__":
    main()
