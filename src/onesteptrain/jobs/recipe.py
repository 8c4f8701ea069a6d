"""The main job from pool to scores: anchors, warm-up, scores, second pass.

    held-out rows -> anchors ----------+
    pool -> warm-up -> proxy ----------+-> scores -> rows that pass -> second warm-up -> second pass

`ost run` and `ost compare` hold a `Recipe` and do it at a `Bench`; they differ in where its files go. Whatever is there
already is not made again.

The second proxy starts where the first one started and takes as many steps, over up to four times as many rows: all of
them pass the trust gate, drawn without preference. It costs one more warm-up and one pass over the pool. Measured in
experiments/beyond.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from onesteptrain.data.pool import Pool, open_pool
from onesteptrain.errors import ConfigError
from onesteptrain.jobs.scoring import ProxyOptions, ScoreRequest, Warmed, provide_proxy, score_into
from onesteptrain.jobs.steps import AnchorDraw, AnchorOptions, PoolOptions, Tell, provide_anchors
from onesteptrain.methods import Method, Scorer, Setting, essential_options
from onesteptrain.proxy import LoadOptions, ScopeOptions
from onesteptrain.scoring.options import ScoringOptions
from onesteptrain.scoring.second_pass import second_pass_scorer
from onesteptrain.selection import SelectOptions, select_rows
from onesteptrain.selection.trust import can_trust
from onesteptrain.storage.fingerprints import content_id
from onesteptrain.storage.run_directory import Run
from onesteptrain.storage.score_table import ScoreTable
from onesteptrain.training import FinetuneOptions, WarmupOptions
from onesteptrain.training.warmup import FACTS

_MORE_ROWS = 4
"""Times the rows of the first warm-up; more rows tell more than more passes over a few."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Pool, anchors and proxy, and how scores are made of them."""

    pool: Path
    """The pool file or folder."""

    proxy: str | None = None
    """Checkpoint folder or hub name of a small vision-language model; only methods that use none go without."""

    anchors: Path | None = None
    """Trusted samples that are not in the pool; or give heldout."""

    heldout: Path | None = None
    """Trusted samples that anchors are drawn from."""

    anchor_count: int = 100
    """How many anchors to draw from heldout."""

    anchor_by: tuple[str, ...] = ()
    """Columns to stratify the draw by, such as topic and level."""

    warmup_share: float = 0.05
    """Share of the pool that the proxy is warmed up on; 0 scores with the proxy as it is."""

    warmup: FinetuneOptions = field(default_factory=FinetuneOptions)
    """How the proxy is warmed up; its seed is that of the job."""

    pool_reading: PoolOptions = field(default_factory=PoolOptions)
    """How the pool is read."""

    anchor_reading: AnchorOptions = field(default_factory=AnchorOptions)
    """How the anchors are read and checked."""

    scope: ScopeOptions = field(default_factory=ScopeOptions)
    """Which parameters of the proxy take the step."""

    loading: LoadOptions = field(default_factory=LoadOptions)
    """How models are loaded."""

    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    """How the pool is worked through."""

    seed: int = 0
    """Fixes the anchors, the warm-up and the scores."""

    def __post_init__(self) -> None:
        if self.anchors is not None and self.heldout is not None:
            raise ConfigError("give either anchors (a file to use) or heldout (a file to draw them from), not both")
        self.scoring.refuse_ranks("a job")

    def start(self) -> ProxyOptions:
        """The proxy before its warm-up."""
        if self.proxy is None:
            raise ConfigError("proxy is missing; give a checkpoint folder or hub name")
        return ProxyOptions(self.proxy, self.scope, self.loading)

    def warming(self, checkpoints: int = 0) -> WarmupOptions | None:
        """How the proxy is warmed up; None if it is not."""
        tuning = dataclasses.replace(self.warmup, seed=self.seed)
        return WarmupOptions(self.warmup_share, tuning, checkpoints) if self.warmup_share else None

    def draw(self) -> AnchorDraw:
        """How anchors are drawn from heldout."""
        return AnchorDraw(self.anchor_count, self.anchor_by, self.seed)


@dataclass(frozen=True)
class Places:
    """Where the files of a job are."""

    out: Path

    by_content: bool = False
    """Named by all that they depend on, so that many requests can share a folder; else one request has it."""

    def anchors(self, recipe: Recipe, heldout: Path) -> Path:
        """The drawn anchors."""
        name = f"-{content_id([heldout, recipe.draw()])}" if self.by_content else ""
        return self.out / f"anchors{name}{heldout.suffix}"

    def warmup(self, recipe: Recipe, options: WarmupOptions) -> Path:
        """The warmed-up proxy."""
        start = recipe.start()
        content = [start.place, options, recipe.scope, recipe.loading]
        return self.out / ("proxies/" + content_id(content) if self.by_content else "warmup")

    def scores(self, request: ScoreRequest) -> Path:
        """The run directory of scores."""
        content: list[Any] = [request.name, essential_options(request.method), request.seed]
        if (proxy := request.proxy) is not None and isinstance(proxy, ProxyOptions):
            content += [proxy.place, request.anchors, request.anchor_reading, proxy.scope, proxy.loading]
        return self.out / (f"scores/{request.name}-{content_id(content)}" if self.by_content else "score")

    def second_pass(self, first: Path, seed: int) -> Path:
        """The folder of a second pass: its rows, its proxy and its scores."""
        return self.out / ("second_passes/" + content_id([first.name, seed]) if self.by_content else "second")


class Scored(NamedTuple):
    """A scored pool and its cost."""

    run: Path
    """Run directory of the scores that decide."""

    seconds: float
    """To score the pool, warm-ups included."""

    @property
    def table(self) -> ScoreTable:
        """The scores."""
        return ScoreTable(self.run / "scores.parquet")


@dataclass(frozen=True)
class Bench:
    """A recipe at work."""

    recipe: Recipe
    pool: Pool
    places: Places
    tell: Tell

    def anchors(self) -> tuple[Path | None, AnchorOptions]:
        """The anchor file, drawn where there is none yet, and how it is read."""
        recipe = self.recipe
        if recipe.heldout is None:
            return recipe.anchors, recipe.anchor_reading
        out = self.places.anchors(recipe, recipe.heldout)
        reading = provide_anchors(out, self.pool, recipe.heldout, recipe.draw(), recipe.anchor_reading, self.tell)
        return out, reading

    def warmed(self, checkpoints: int = 0) -> Warmed:
        """The proxy that scores, after its warm-up if it has one."""
        options = self.recipe.warming(checkpoints)
        if options is None:
            return Warmed(self.recipe.start(), 0.0)
        out = self.places.warmup(self.recipe, options)
        return self._warmed(out, self.pool, options)

    def _warmed(self, out: Path, pool: Pool, options: WarmupOptions) -> Warmed:
        anchors, reading = self.anchors()
        start = self.recipe.start()
        return provide_proxy(out, start, pool, options, self.tell, anchors=anchors, anchor_reading=reading)

    def score(
        self, name: str, method: Method, *, seed: int | None = None, second_pass: bool = False, checkpoints: int = 0
    ) -> Scored:
        """Score the pool by a method, after all that it needs.

        Args:
            name: What the method is called.
            method: The method with its options.
            seed: Of the scores, in place of the recipe's.
            second_pass: Measure the losses again with a proxy that has learned from rows that pass the trust gate,
                where the scores have one.
            checkpoints: States of the warm-up to keep, for a method that looks back at it.
        """
        drawn = self.recipe.seed if seed is None else seed
        request = ScoreRequest(self.pool, method, name, scoring=self.recipe.scoring, seed=drawn)
        warming = 0.0
        if uses_proxy(method):
            anchors, reading = self.anchors()
            proxy, warming = self.warmed(checkpoints if uses_checkpoints(method) else 0)
            request = dataclasses.replace(request, anchors=anchors, anchor_reading=reading, proxy=proxy)
        first = self._scored(self.places.scores(request), request, warming)
        warming_up = self.recipe.warming() if second_pass else None
        if warming_up is None:
            return first
        if not can_trust(first.table):
            self.tell("no second pass: the scores have no trust gate (it needs estimator fd or jvp, and 20 anchors)")
            return first
        return self._second_pass(first, request, warming_up)

    def _scored(self, out: Path, request: ScoreRequest, warming: float) -> Scored:
        if not (out / "scores.parquet").is_file():
            scored = score_into(out, request)
            self.tell(f"{request.name}: scored {scored.rows - scored.failed} of {scored.rows} rows: {out}")
        return Scored(out, warming + Run(out).provenance["seconds"])

    def _second_pass(self, first: Scored, request: ScoreRequest, options: WarmupOptions) -> Scored:
        """Warm up the proxy anew on rows that pass, and measure the losses of all rows and anchors with it."""
        out = self.places.second_pass(first.run, self.recipe.seed)
        out.mkdir(parents=True, exist_ok=True)
        trusted = out / f"trusted{self.pool.suffix}"
        if not trusted.exists():
            drawn = SelectOptions(draw_seed=self.recipe.seed)
            keep = f"{min(100.0, 100 * _MORE_ROWS * options.share):g}%"
            selection = select_rows(first.table, keep=keep, options=drawn, pool=self.pool)
            selection.write(trusted)
            self.tell(f"drew {len(selection)} rows that pass the trust gate: {trusted}")
        warmed = self.places.warmup(self.recipe, options) / FACTS
        steps = json.loads(warmed.read_text(encoding="utf-8"))["steps"]
        again = WarmupOptions(1.0, dataclasses.replace(options.finetune, steps=steps))
        subset = open_pool(trusted, **self.pool.reading._asdict())
        proxy, warming = self._warmed(out / "warmup", subset, again)
        method = SecondPass(str(first.table.path))
        second = dataclasses.replace(request, method=method, name="second_pass", proxy=proxy)
        return self._scored(out / "score", second, first.seconds + warming)


@dataclass(frozen=True)
class SecondPass:
    """A second pass in the place of a method."""

    first: str
    """The scores.parquet of the first scoring."""

    def prepare(self, setting: Setting, /) -> Scorer:
        """Open the first scores."""
        proxy, anchors = setting.need_proxy("second_pass"), setting.need_anchors("second_pass")
        return second_pass_scorer(ScoreTable(Path(self.first)), proxy, anchors)


def uses_proxy(method: object) -> bool:
    """Whether a method, or its class, works with a proxy and anchors."""
    return bool(getattr(method, "uses_proxy", True))


def uses_checkpoints(method: object) -> bool:
    """Whether a method, or its class, looks back at the states of the warm-up."""
    return bool(getattr(method, "uses_checkpoints", False))
