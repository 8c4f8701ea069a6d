"""The file of a picture that a row names: found in other spellings, and within the image root."""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from onesteptrain.errors import SampleError


def short_name(name: str) -> str:
    """A name as messages quote it."""
    return repr(name if len(name) <= 200 else name[:200] + "...")


def image_file(path: Path, name: str, root: Path | None) -> Path:
    """The file of an image, which may be spelled in another way than its name in the row.

    Tried are: escapes of a URI (first in a file URI, last in a path), backslashes, spaces around,
    and both ways to write accents in Unicode.

    Args:
        path: Where it should be.
        name: How the row names it.
        root: The folder that it must be in, links followed; None for any.

    Raises:
        SampleError: there is no such file, or it is outside.
    """
    what = ""
    for spelling in _spellings(path, is_uri=name[:5].lower() == "file:"):
        try:
            if spelling.is_file():
                if root is not None and not Path(os.path.realpath(spelling)).is_relative_to(_resolved(root)):
                    what = f"is outside the image root {root}"
                    break
                return spelling
            if not what:
                link = spelling.is_symlink()
                what = (
                    "is a folder" if spelling.is_dir() else "is a link that leads nowhere" if link else "no such file"
                )
        except (OSError, ValueError) as error:  # a name that is too long, a folder that may not be entered
            what = what or f"cannot be a file here ({getattr(error, 'strerror', None) or error})"
    outside = ", or allow pictures outside with --allow-outside (allow_outside)" if "outside" in what else ""
    raise SampleError(
        f"image {short_name(name)}: {what} (looked for {short_name(str(path))}); "
        f"mend the path, or give the folder that holds the images as image root{outside}"
    )


@functools.lru_cache(maxsize=64)
def _resolved(root: Path) -> str:
    return os.path.realpath(root)


def _spellings(path: Path, *, is_uri: bool) -> Iterator[Path]:
    written = str(path)
    texts = (unquote(written), written) if is_uri else (written, unquote(written))
    for text in dict.fromkeys(texts):
        yield Path(text)
        for plain in (text, re.sub(r"\s*/\s*", "/", text.replace("\\", "/")).strip()):
            yield from (Path(unicodedata.normalize(form, plain)) for form in ("NFC", "NFD"))
