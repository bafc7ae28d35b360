"""Make a source folder importable where the package is installed.

A program started in the root of a checkout finds the folder `fastrnn` there before the installed package, but the compiled
module lies in the latter. Then this adds the installed package's folder to where `fastrnn` looks for its modules.
"""

import importlib.util
import os.path
import sys
from importlib.machinery import EXTENSION_SUFFIXES

import fastrnn


def _compiled_in(folder: str) -> bool:
    return any(os.path.exists(os.path.join(folder, "_core" + suffix)) for suffix in EXTENSION_SUFFIXES)


if importlib.util.find_spec("fastrnn._core") is None:
    _folders = [os.path.join(entry, "fastrnn") for entry in sys.path]
    _found = next((folder for folder in _folders if _compiled_in(folder)), None)
    if _found is None:
        raise ImportError(
            f"fastrnn: the compiled module must be installed, but {os.path.dirname(__file__)} is a source folder and no "
            "installed fastrnn is on the path; run `pip install .` in the root of the checkout"
        )
    fastrnn.__path__.append(_found)
