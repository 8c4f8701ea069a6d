"""The package as a whole: what its modules load, what they promise to hold, and how its errors travel."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
import subprocess
import sys

import pytest

import onesteptrain
from onesteptrain import errors

BUILT_INS = {
    "ConfigError": ValueError,
    "PoolError": ValueError,
    "SampleError": ValueError,
    "AnchorError": ValueError,
    "ModelError": ValueError,
    "ScoreError": ArithmeticError,
    "RunError": FileExistsError,
    "MissingExtraError": ImportError,
}
MODULES = sorted(found.name for found in pkgutil.walk_packages(onesteptrain.__path__, "onesteptrain."))
LIGHT = [
    "",
    ".errors",
    ".data",
    ".data.deduplication",
    ".storage.score_table",
    ".storage.run_directory",
    ".selection",
    ".reporting",
    ".cli",
]

LOADED = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after some code; the last line of output names them."""
    command = [sys.executable, "-c", f"{code}\n{LOADED}"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split())


@pytest.mark.parametrize("module", LIGHT)
def test_choosing_reading_and_reporting_load_no_torch(module):
    loaded = loaded_after(f"import onesteptrain{module}")
    assert "onesteptrain" in loaded
    assert not loaded & {"torch", "transformers", "peft", "accelerate"}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["frobnicate"], ["select", "--help"], ["methods", "--bad"]]
)
def test_help_version_and_typos_load_no_torch(arguments):
    loaded = loaded_after(f"from onesteptrain.cli import main\nmain({arguments!r})")
    assert not loaded & {"torch", "transformers"}


def test_every_public_name_exists_and_stands_once():
    holders = [module for name in MODULES if hasattr(module := importlib.import_module(name), "__all__")]
    assert len(holders) > 5
    for module in holders:
        assert len(set(module.__all__)) == len(module.__all__), module.__name__
        assert [name for name in module.__all__ if not hasattr(module, name)] == [], module.__name__


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is(name):
    assert (importlib.import_module(name).__doc__ or "").strip().split("\n\n")[0].endswith((".", "!", "?", ":"))


def test_the_errors_are_those_that_are_documented():
    found = {name for name, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.OneStepError)}
    assert found == {"OneStepError", *BUILT_INS}


@pytest.mark.parametrize(("name", "built_in"), BUILT_INS.items())
def test_an_error_is_the_built_in_that_a_programmer_expects_and_survives_pickling(name, built_in):
    error = getattr(errors, name)("pool.jsonl:3: no answer; write one")
    assert isinstance(error, errors.OneStepError)
    assert isinstance(error, built_in)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error) == "pool.jsonl:3: no answer; write one"
