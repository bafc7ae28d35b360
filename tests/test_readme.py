"""The README's Python examples run as they stand; its C++ example is a CTest, its commands are run by .ci/run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_python_example_runs_from_the_root_of_the_checkout(number):
    for framework in ("torch", "jax", "keras"):
        if f"import fastrnn.{framework}" in EXAMPLES[number]:
            pytest.importorskip(framework, reason=f"an example for {framework}, which is not installed")
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLES[number]], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_there_are_two_python_examples_without_frameworks():
    assert ["import fastrnn." in example for example in EXAMPLES[:2]] == [False, False]
    assert all("import fastrnn." in example for example in EXAMPLES[2:])


def test_the_training_example_learns():
    done = subprocess.run([sys.executable, "-c", EXAMPLES[1]], capture_output=True, text=True, timeout=120)
    assert float(done.stdout.split()[-1]) < 0.1, done.stdout
