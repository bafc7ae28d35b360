"""The operations of TensorFlow: the interface that they are registered through, and what they refuse.

What the layers compute with them is compared in test_keras.py, which test_keras_backends.py runs on TensorFlow.
"""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

TENSORFLOW = importlib.util.find_spec("tensorflow")
if TENSORFLOW is None:
    pytest.skip("TensorFlow is not installed", allow_module_level=True)
ENVIRONMENT = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
HERE = Path(__file__).resolve().parents[2] / "cpp" / "python"


def test_functions_are_those_of_the_installed_tensorflow(tmp_path):
    compiler = shutil.which("c++")
    if not compiler:
        pytest.skip("compares with TensorFlow's headers, which needs a C++ compiler")
    values = {"kFloat": "TF_FLOAT", "kDouble": "TF_DOUBLE", "kBool": "TF_BOOL", "kOk": "TF_OK"}
    codes = {
        "kInvalidArgument": "TF_INVALID_ARGUMENT",
        "kResourceExhausted": "TF_RESOURCE_EXHAUSTED",
        "kFailedPrecondition": "TF_FAILED_PRECONDITION",
        "kInternal": "TF_INTERNAL",
    }
    source = tmp_path / "interface.cpp"
    source.write_text(
        """
        #include <type_traits>
        #include "tensorflow/c/kernels.h"
        #include "tensorflow/c/ops.h"
        #include "graph_calls.hpp"
        #include "tf_c.hpp"

        // Alike: numbers of one size, pointers to alike functions, pointers to anything that both or neither may change.
        template <class A, class B>
        struct Alike {
          static constexpr bool numbers = !std::is_pointer_v<A> && !std::is_pointer_v<B> && sizeof(A) == sizeof(B) &&
                                          std::is_floating_point_v<A> == std::is_floating_point_v<B>;
          using PA = std::remove_pointer_t<A>;
          using PB = std::remove_pointer_t<B>;
          static constexpr bool pointers =
              std::is_pointer_v<A> && std::is_pointer_v<B> && std::is_const_v<PA> == std::is_const_v<PB> &&
              std::is_pointer_v<PA> == std::is_pointer_v<PB> && std::is_function_v<PA> == std::is_function_v<PB> &&
              (!std::is_arithmetic_v<PA> || std::is_same_v<PA, PB>);
          static constexpr bool value = numbers || pointers;
        };
        template <>
        struct Alike<void, void> : std::true_type {};
        template <class A, class... As, class B, class... Bs>
        struct Alike<A (*)(As...), B (*)(Bs...)> {
          static constexpr bool of_parameters() {
            if constexpr (sizeof...(As) == sizeof...(Bs)) return (Alike<As, Bs>::value && ...);
            return false;
          }
          static constexpr bool value = Alike<A, B>::value && of_parameters();
        };
        static_assert(Alike<int (*)(char*), int (*)(const char*)>::value == false);
        static_assert(Alike<void (*)(void (*)(int)), void (*)(void (*)(char))>::value == false);
        #define CHECK(Result, name, parameters) \\
          static_assert(Alike<decltype(tf_c::Api::name), decltype(&::TF_##name)>::value, #name);
        FASTRNN_TF_FUNCTIONS(CHECK)
        """
        + "".join(f"static_assert(int(tf_c::{a}) == int({b}));\n" for a, b in values.items())
        + "".join(f"static_assert(int(fastrnn::graph_calls::{a}) == int({b}));\n" for a, b in codes.items()),
        encoding="utf-8",
    )
    includes = [HERE, HERE.parent / "include", Path(TENSORFLOW.origin).parent / "include"]
    done = subprocess.run(
        [compiler, "-std=c++17", "-fsyntax-only", "-w", *(f"-I{folder}" for folder in includes), str(source)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_tensorflow_that_cannot_take_operations_is_an_import_error(run_python):
    printed = run_python(
        """
        import ctypes.util
        import pathlib
        import sys
        import tempfile

        import keras
        import tensorflow as tf

        def why():
            try:
                import fastrnn.keras
            except ImportError as error:
                print(error)

        folder = tempfile.mkdtemp()
        tf.sysconfig.get_lib = lambda: folder
        why()
        import fastrnn._core
        loaded = next(line.split()[-1] for line in open("/proc/self/maps") if "/libm.so" in line or "/libc.so" in line)
        pathlib.Path(folder, "libtensorflow_framework.so.2").symlink_to(loaded)
        why()
        """,
        **ENVIRONMENT,
    )
    first, second = printed.splitlines()
    assert re.search(r"must let other libraries register operations, but .* has not loaded", first)
    assert re.search(r"lacks TF_NewStatus, TF_DeleteStatus, .*; install another version", second)


def test_an_operation_refuses_what_does_not_fit(run_python):
    printed = run_python(
        """
        import re

        import numpy as np
        import tensorflow as tf

        import fastrnn.keras
        from fastrnn.keras import _tensorflow as bridge

        x, kernel, recurrent_kernel = tf.zeros((3, 5, 4)), tf.zeros((4, 24)), tf.zeros((6, 24))
        codes = np.array([1, 0, 0, np.inf, 0, 0, 0, np.inf, 0, 0, 0, np.inf]).view(np.int64).tolist()

        def run(statics={}, results=("last",), name="FastrnnForward", **operands):
            given = {"x": x, "kernel": kernel, "recurrent_kernel": recurrent_kernel} | operands
            given = {name: tensor for name, tensor in given.items() if tensor is not None}
            chosen = {"cell": "lstm", "activations": codes, "options": "", "layer": "mine"} | statics
            return bridge._run(name, bridge._Statics(**chosen), given, list(results))

        def refused(error=tf.errors.InvalidArgumentError, **wrong):
            for call in (run, tf.function(run, autograph=False)):
                try:
                    call(**wrong)
                except error as e:
                    message = re.search(r"(mine: |fastrnn: |the cell must).*", str(e)).group()
            print(message)

        assert run()[0].shape == (3, 6)
        refused(x=x[:, :, :3])
        refused(x=tf.cast(x, "float64"))
        refused(x=x[0])
        refused(recurrent_kernel=recurrent_kernel[:, :3])
        refused(mask=tf.zeros((3, 5)))
        refused(mask=tf.zeros((3, 5, 1, 1, 1), "bool"))
        refused(initial_h=tf.zeros((2, 6)))
        refused(recurrent_dropout_mask=tf.zeros((3, 6)))
        refused(statics={"cell": "none"})
        refused(statics={"activations": codes[:11]})
        refused(statics={"activations": [-1] * 12})
        refused(results=["last", "nonsense"])
        refused(results=["last", "last"])
        refused(name="FastrnnBackward", results=["dkernel", "drecurrent_kernel"])
        refused(name="FastrnnBackward", results=["dkernel"], tape=tf.zeros((3, 5, 6, 6)))
        """,
        **ENVIRONMENT,
    )
    expected = [
        r"mine: kernel must be float32 \[3, 24\] to go with x and the weights, got float32 \[4, 24\]",
        r"mine: kernel must be float64 \[4, 24\] .* got float32 \[4, 24\]",
        r"mine: x must have 3 axes, got \[5, 4\]",
        r"mine: recurrent_kernel must be float32 \[6, 24\] .* got float32 \[6, 3\]",
        r"mine: mask must be bool \[3, 5\] .* got float32 \[3, 5\]",
        r"mine: mask must be bool \[3, 5\] .* got bool 5 axes",
        r"mine: initial_h must be float32 \[3, 6\] .* got float32 \[2, 6\]",
        r"mine: recurrent_dropout_mask must be float32 \[3, 4, 6\] .* got float32 \[3, 6\]",
        r"the cell must be one of simple_rnn, lstm, .* got 'none'",
        r"mine: activations must be 12 numbers",
        r"mine: activations must have codes of activations",
        r"mine: every result must have a name of its own that the pass knows",
        r"mine: every result must have a name of its own that the pass knows",
        r"mine: tape must be given",
        r"mine: drecurrent_kernel must be among the results",
    ]
    for message, pattern in zip(printed.splitlines(), expected, strict=True):
        assert re.match(pattern, message)
