"""What transformers says and draws on its own is kept off the terminal, where our own progress stands."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the library's table of keys and its bars: what matters in them is an error, or a phase, of ours."""
    from transformers.utils import logging as library

    logger = logging.getLogger("transformers")
    level, bars = logger.level, library.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    library.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            library.enable_progress_bar()  # type: ignore[no-untyped-call]
