"""The package as a whole: what its import brings along, what it says about itself, and its documentation."""

import ast
import doctest
import importlib
import importlib.metadata
import importlib.resources
import inspect
import pkgutil

import pytest

import fastrnn

# `__main__` runs the command line when it is imported.
MODULES = [
    "fastrnn",
    *(m.name for m in pkgutil.walk_packages(fastrnn.__path__, "fastrnn.") if "__main__" not in m.name),
]
PUBLIC_MODULES = [name for name in MODULES if "._" not in name]


def load(name):
    """The module; skips the test where an optional library is missing that it builds on."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if (error.name or "fastrnn").split(".")[0] == "fastrnn":
            raise
        pytest.skip(f"{name} needs {error.name}, which is not installed")


def test_import_brings_along_numpy_and_the_standard_library_alone(run_python):
    code = """
    import sys
    import numpy
    before = set(sys.modules)
    import fastrnn
    new = {name.split(".")[0] for name in set(sys.modules) - before if sys.modules[name].__spec__}
    print(*sorted(new - set(sys.stdlib_module_names)))
    """
    assert set(run_python(code).split()) <= {"fastrnn", "numpy"}


def test_version_is_that_of_the_installed_package():
    assert fastrnn.__version__ == importlib.metadata.version("fastrnn")
    assert fastrnn.__version__ == fastrnn._core.__version__


def test_type_annotations_are_shipped():
    assert importlib.resources.files("fastrnn").joinpath("py.typed").is_file()


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_every_name_in_all_exists(name):
    module = load(name)
    names = getattr(module, "__all__", [])
    assert len(names) == len(set(names))
    assert not [n for n in names if not hasattr(module, n)]


def public_objects(module):
    """A module's functions and classes (those in __all__ if there is one), the classes' members, by name."""
    names = getattr(module, "__all__", None) or [
        n
        for n, o in vars(module).items()
        if not n.startswith("_") and getattr(o, "__module__", "") == module.__name__
    ]
    for name in names:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
            yield name, value
        if inspect.isclass(value):
            yield from (
                (f"{name}.{n}", getattr(value, n))
                for n, o in vars(value).items()
                if not n.startswith("_")
                and (inspect.isroutine(o) or isinstance(o, property | classmethod | staticmethod))
            )


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_every_public_name_has_a_docstring(name):
    module = load(name)
    assert inspect.getdoc(module)
    assert [n for n, value in public_objects(module) if not inspect.getdoc(value)] == []


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run_and_print_what_they_show(name):
    assert doctest.testmod(load(name)).failed == 0


@pytest.mark.parametrize("function", ["simple_rnn", "lstm", "gru"])
@pytest.mark.parametrize("suffix", ["", "_forward"])
def test_every_kernel_function_has_an_example(function, suffix):
    for module in (fastrnn.functional, fastrnn.reference):
        if hasattr(module, function + suffix):
            assert doctest.DocTestFinder().find(getattr(module, function + suffix))[0].examples


# ---- The stub of the compiled module


def stub():
    file = importlib.resources.files("fastrnn").joinpath("_core.pyi")
    if not file.is_file():
        pytest.skip("there is no fastrnn/_core.pyi")
    return ast.parse(file.read_text(encoding="utf-8"))


def public(names):
    return {n for n in names if not n.startswith("_")}


def defined(body):
    """The names that statements of a stub define, functions and classes by their nodes."""
    names = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.AnnAssign):
            names[node.target.id] = node
    return names


def test_the_stub_names_what_the_compiled_module_has():
    names = defined(stub().body)
    assert public(names) == public(vars(fastrnn._core))
    assert "__version__" in names and hasattr(fastrnn._core, "__version__")
    for name, node in names.items():
        if isinstance(node, ast.ClassDef):
            assert public(defined(node.body)) == public(vars(getattr(fastrnn._core, name))), name


def test_the_stub_names_the_arguments_that_the_compiled_module_takes():
    """pybind11 writes them into a docstring's first line: name(a: type, *, b: type = default) -> type."""
    for name, node in defined(stub().body).items():
        value = getattr(fastrnn._core, name)
        if isinstance(node, ast.FunctionDef) and "Overloaded function" not in value.__doc__:
            arguments = [a.arg for a in [*node.args.args, *node.args.kwonlyargs]]
            signature = value.__doc__.splitlines()[0]
            assert [a for a in arguments if f"{a}: " in signature] == arguments, signature
            assert signature.count(": ") == len(arguments), signature
