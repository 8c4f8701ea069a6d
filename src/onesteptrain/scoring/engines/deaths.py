"""Workers that die are started anew, but not for ever."""

from __future__ import annotations

from dataclasses import dataclass

from onesteptrain.errors import RunError
from onesteptrain.scoring.shards import Shards

_IN_A_ROW = 3


@dataclass
class Deaths:
    """Counts the workers that died since a shard was last written."""

    shards: Shards
    _there: int = -1
    _in_a_row: int = 0

    def count(self, how: str) -> None:
        """One more has died.

        Args:
            how: How, in words.

        Raises:
            RunError: three have died, and no shard was written in between.
        """
        there = len(self.shards.there())
        self._in_a_row = self._in_a_row + 1 if there == self._there else 1
        self._there = there
        if self._in_a_row >= _IN_A_ROW:
            raise RunError(
                f"{self._in_a_row} workers died one after the other ({how}) and no row was scored in between; if "
                "memory is short, give fewer workers or a smaller batch_tokens; a script that scores needs "
                "`if __name__ == '__main__':`. What is scored is kept"
            )
