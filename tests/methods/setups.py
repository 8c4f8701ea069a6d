"""What each method needs to run in a test: its options and its setting.

A method that runs with its defaults on a proxy and some anchors needs nothing here. Another has a module
`tests/methods/setup_NAME.py` with a function `setup(seed)`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util

from onesteptrain.methods import Method, Setting, method_class
from onesteptrain.proxy import LoadOptions, Proxy, load_proxy
from tests.building import checkpoint, sample


@functools.cache
def proxy() -> Proxy:
    return load_proxy(checkpoint("qwen3_vl"), options=LoadOptions(max_tokens=4096))


def default_setting(seed: int = 0) -> Setting:
    return Setting(proxy(), [sample(row) for row in range(30, 34)], None, seed)


@functools.cache
def setup(name: str, seed: int = 0) -> tuple[Method, Setting]:
    module = f"tests.methods.setup_{name}"
    if importlib.util.find_spec(module) is None:
        return method_class(name)(), default_setting(seed)
    return importlib.import_module(module).setup(seed)
