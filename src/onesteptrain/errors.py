"""What a user can do wrong: one class a remedy.

Each class also inherits the built-in that a programmer would expect. A message has four parts: where, what was given,
what is needed, what to do. It is one string, so that errors survive pickling between processes.
"""

_LONGEST = 1000


def printable(text: str) -> str:
    """A text that every table, log and terminal can take: what cannot be printed is spelled out, but for line ends.

    Such are lone surrogates, which UTF-8 cannot hold, and the escapes of terminals.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """A printable text with spaces for line ends; of more than 1,000 characters the middle is left out."""
    line, half = printable(text).replace("\n", " "), _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[:half]} ... {line[-half:]}"


def several_lines(text: str) -> str:
    """A text of lines, each as `one_line` gives it."""
    return "\n".join(map(one_line, text.split("\n")))


class OneStepError(Exception):
    """Root of all mistakes that a user can mend; its text is one printable line."""

    def __init__(self, text: str = "") -> None:
        super().__init__(one_line(text))


class ConfigError(OneStepError, ValueError):
    """An option has a value that cannot work: change the option."""


class PoolError(OneStepError, ValueError):
    """A pool or anchor file cannot be read or written as asked: mend the file or name its format."""


class SampleError(OneStepError, ValueError):
    """One sample cannot be used: its row gets this text as the reason in place of a score."""


class AnchorError(OneStepError, ValueError):
    """The anchors cannot be trusted: draw others."""


class ModelError(OneStepError, ValueError):
    """A checkpoint cannot serve as proxy or target: choose another, or other loading options."""


class ScoreError(OneStepError, ArithmeticError):
    """Scores cannot be computed or used: change the estimator, its step, or score again."""


class RunError(OneStepError, FileExistsError):
    """A run directory is in use or belongs to something else: choose another, or ask to overwrite."""


class MissingExtraError(OneStepError, ImportError):
    """An optional dependency is not installed: install the extra that the text names."""
