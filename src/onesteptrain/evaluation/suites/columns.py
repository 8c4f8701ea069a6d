"""Reading single columns of a benchmark row; what is not as its card says is refused in one line."""

from __future__ import annotations

import string

from onesteptrain.data.formats.turns import image_ref
from onesteptrain.data.pool import ImageRef, Turn
from onesteptrain.errors import PoolError, SampleError
from onesteptrain.evaluation.suites.suite import Row

REASON = 'Reason step by step, and end with "The answer is X.", where X is'


def text_of(row: Row, name: str) -> str:
    """A column that must hold a text or a number.

    Raises:
        PoolError: it is missing or empty.
    """
    value = row.columns.get(name)
    if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
        return str(value).strip()
    raise PoolError(f"{row.where}: {name} is {value!r}; it must be a text, so give the benchmark in its own schema")


def texts_of(row: Row, name: str) -> list[str]:
    """A column that holds a list of texts, or nothing.

    Raises:
        PoolError: it holds something else, such as a list that was written as one text.
    """
    value = row.columns.get(name)
    if value is None:
        return []
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return list(value)
    raise PoolError(
        f"{row.where}: {name} is {type(value).__name__} {str(value)[:60]!r}; it must be a list of texts, "
        "so give the benchmark in its own schema"
    )


def fields_of(row: Row, *names: str) -> dict[str, object]:
    """The columns that a row has of these, for grouping."""
    return {name: row.columns[name] for name in names if row.columns.get(name) is not None}


def image_of(row: Row, *names: str) -> ImageRef:
    """The image in the first of these columns that is filled.

    Raises:
        PoolError: none is, or it is no image.
    """
    value = next((row.columns[name] for name in names if row.columns.get(name)), None)
    if value is None:
        raise PoolError(f"{row.where}: there is no image in {' or '.join(names)}; every question needs one")
    try:
        return image_ref(value, row.image_root)
    except SampleError as error:
        raise PoolError(f"{row.where}: {error}") from error


def asked(image: ImageRef, question: str, options: list[str], ending: str) -> tuple[Turn, ...]:
    """The prompt: the image, the question, a line an option, and how to end the reply."""
    listed = [f"({letter}) {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False)]
    return (Turn("user", (image, "\n".join([question, *listed, ending]))),)


def option_at(row: Row, options: list[str], letter: str) -> str:
    """The text of the option with a letter.

    Raises:
        PoolError: there is no such option.
    """
    place = string.ascii_uppercase.find(letter) if len(letter) == 1 else -1
    if not 0 <= place < len(options):
        raise PoolError(f"{row.where}: the answer {letter!r} is no letter of its {len(options)} options; mend the row")
    return options[place]
