"""Google's protobuf, which decodes in C, without what it has in Python for where that is missing.

Generated code names that part in every process, and with it comes a third of what protobuf imports:
10 ms of a restore. So it is loaded when somebody asks it for something.
"""

import importlib
import sys
from types import ModuleType

_IN_PYTHON = "google.protobuf.internal.python_message"


class _Placeholder(ModuleType):
    """Stands for a module until one of its names is asked for."""

    def __getattr__(self, name: str) -> object:
        if sys.modules[_IN_PYTHON] is self:
            del sys.modules[_IN_PYTHON]
        return getattr(importlib.import_module(_IN_PYTHON), name)


def leave_out_python() -> None:
    """To be called before anything imports a message."""
    sys.modules.setdefault(_IN_PYTHON, _Placeholder(_IN_PYTHON))
