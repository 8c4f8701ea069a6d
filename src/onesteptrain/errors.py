"""What a user can do wrong: one class a remedy.

Each class also inherits the built-in that a programmer would expect. A message has four parts: where, what was given,
what is needed, what to do. It is one string, so that errors survive pickling between processes.
"""


class OneStepError(Exception):
    """Root of all mistakes that a user can mend; the command line prints its text as one line."""


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
