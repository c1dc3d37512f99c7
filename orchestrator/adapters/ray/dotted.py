"""Functions named by a dotted path.

The adapter starts processes without knowing what they run: wiring names `package.module:function`, and the process that was
started resolves the name. So this package imports neither the engine nor gRPC.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def resolve(path: str) -> Callable[..., Any]:
    """The function at `package.module:function`. Raises ValueError, ImportError or AttributeError."""
    module_name, separator, name = path.partition(":")
    if not separator or not module_name or not name:
        raise ValueError(f"a dotted path is package.module:function, not {path!r}")
    function = getattr(importlib.import_module(module_name), name)
    if not callable(function):
        raise ValueError(f"{path} is no function")
    return function  # type: ignore[no-any-return]
