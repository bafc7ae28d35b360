"""test_keras.py on Keras' other backends, each in an interpreter of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).with_name("test_keras.py")


@pytest.mark.parametrize("backend", ["jax", "tensorflow"])
def test_all_of_test_keras_holds_on(backend):
    pytest.importorskip("keras", reason="Keras is not installed")
    pytest.importorskip(backend, reason=f"Keras' backend {backend} is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(TESTS)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"KERAS_BACKEND": backend, "JAX_ENABLE_X64": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=900,  # a hang is a failure
    )
    assert done.returncode == 0, done.stdout + done.stderr
