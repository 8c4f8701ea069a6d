"""What the trust gate says of a pool, of its kinds of rows, and of itself, in numbers and in words."""

from __future__ import annotations

from typing import Any, NamedTuple

from onesteptrain.selection.power import Interval, Power

_NAMED = 8
"""Kinds of rows that are named in a sentence."""


class KindVerdict(NamedTuple):
    """What the gate says of a kind of rows."""

    name: str
    rows: int
    """With a score."""

    anchors: int

    passing: int

    clean_share: float | None
    """None where it cannot be told."""

    @property
    def judged(self) -> bool:
        """Whether it has anchors that it can be judged by."""
        return self.anchors > 0


class Verdict(NamedTuple):
    """What the trust gate says of a pool, and of itself."""

    anchors: int

    weights: dict[str, float]
    """How much each signal counts, in shares of one."""

    clean: Interval | None
    """Share of the scored rows that is clean; None where it cannot be told. Without corrupted anchors it takes it that
    all harm is noticed, and has no interval."""

    passing_clean: Interval | None
    """The same of the rows that pass."""

    power: Power | None
    """What the gate would notice; None without corrupted anchors."""

    unlike: list[str]
    """What sets the pool apart from the anchors, in words: see `likeness`."""

    kinds_by: str = ""
    """What kinds of rows are told by; empty where all are of one kind."""

    kinds: tuple[KindVerdict, ...] = ()
    """Those that the pool has; empty where all rows are of one kind."""

    @property
    def blind(self) -> bool:
        """Whether corrupted anchors look like anchors, so that the gate says nothing."""
        return self.power is not None and self.power.blind

    @property
    def clean_share(self) -> float | None:
        """The share of the scored rows that is clean; None where it cannot be told."""
        return None if self.clean is None else self.clean.value

    def facts(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        shares = {name: getattr(self, name) and getattr(self, name).facts() for name in ("clean", "passing_clean")}
        kinds = [{**kind._asdict(), "judged": kind.judged} for kind in self.kinds]
        power = self.power and self.power.facts()
        return {**self._asdict(), **shares, "kinds": kinds, "power": power, "blind": self.blind}

    def sentences(self) -> list[str]:
        """The same in words, a sentence an entry."""
        return [*self._on_the_pool(), *self._on_kinds(), *self.unlike]

    def _on_the_pool(self) -> list[str]:
        if self.blind:
            return [
                "the gate is blind: corrupted anchors look like anchors to this proxy, so nothing can be said of the "
                "pool; warm the proxy up on more rows, take a larger one, or give more anchors",
                *([self.power.describe()] if self.power else []),
            ]
        told = [("of the pool", self.clean), ("of the rows that pass", self.passing_clean)]
        clean = [f"{share.value:.0%} {of}{share.reach()}" for of, share in told if share is not None]
        sentences = (
            [f"clean, if errors are like those tried on {self.anchors} anchors: about {', '.join(clean)}"]
            if clean
            else []
        )
        if self.power is None:
            return [*sentences, "how much harm the gate misses is not known: no corrupted anchors were scored"]
        weights = ", ".join(f"{name} {weight:.0%}" for name, weight in self.weights.items())
        return [*sentences, self.power.describe(), f"signals by weight: {weights}"]

    def _on_kinds(self) -> list[str]:
        told = [kind for kind in self.kinds if kind.judged and kind.clean_share is not None]
        named = ", ".join(f"{kind.name or 'none'} {kind.clean_share:.0%}" for kind in told[:_NAMED])
        more = f" and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
        sentences = [f"clean by {self.kinds_by}: {named}{more}"] if told else []
        unknown = [kind for kind in self.kinds if not kind.judged]
        if unknown:
            rows, names = (
                sum(kind.rows for kind in unknown),
                ", ".join(kind.name or "none" for kind in unknown[:_NAMED]),
            )
            sentences.append(
                f"not judged: {rows:,} rows of a kind without anchors, of which none is dropped ({self.kinds_by}: "
                f"{names}); give anchors of it"
            )
        return sentences
