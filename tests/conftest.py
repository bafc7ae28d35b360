"""The instruction sets that kernel tests cover, proof that each ran, and a runtime left as it was found."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import hypothesis
import pytest
from support import CELLS

import fastrnn
from fastrnn import _core, runtime

# ---- Property tests: no deadline, as no test asserts a time; with FASTRNN_CI the same examples every time

hypothesis.settings.register_profile(
    "fastrnn",
    deadline=None,
    max_examples=25,
    derandomize=bool(os.environ.get("FASTRNN_CI")),
    # The fixtures here set an instruction set, which stays the same for all examples of a test.
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("fastrnn")

# ---- The instruction sets that are covered: all available ones, or those that FASTRNN_TEST_ISAS names

NAMED_ISAS = os.environ.get("FASTRNN_TEST_ISAS", "").replace(",", " ").split()
COVERED_ISAS = NAMED_ISAS or fastrnn.available_isas()


def pytest_configure(config):
    if not set(NAMED_ISAS) <= set(fastrnn.available_isas()):
        raise pytest.UsageError(
            "FASTRNN_TEST_ISAS: the instruction sets must be compiled in and run on this processor "
            f"({', '.join(fastrnn.available_isas())}), got {', '.join(NAMED_ISAS)}; leave the others out"
        )
    config.pluginmanager.register(CoveredIsasRan(config))


def pytest_report_header():
    return [
        f"fastrnn {fastrnn.__version__} on {runtime.processor_name()}, {fastrnn.get_num_threads()} threads",
        f"instruction sets: compiled {' '.join(fastrnn.compiled_isas())}, "
        f"available {' '.join(fastrnn.available_isas())}, covered {' '.join(COVERED_ISAS)}",
    ]


class CoveredIsasRan:
    """Makes a full run fail in which a covered instruction set executed no test.

    The fixture `isa` writes the instruction set into its test's report, which pytest-xdist hands on.
    """

    def __init__(self, config):
        self.config = config
        self.executed = set()
        self.never_ran = []
        self.deselected = False

    def pytest_deselected(self):
        self.deselected = True

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and not report.skipped:
            self.executed.update(value for name, value in report.user_properties if name == "isa")

    def is_full_run(self, session):
        """All of this folder's tests were asked for, and nothing ended the run early."""
        option = self.config.getoption
        paths = [self.config.invocation_params.dir / path for path in self.config.args]
        tests = Path(__file__).parent
        return (
            any(path.resolve() in (tests, *tests.parents) for path in paths)
            and not self.deselected
            and not any(option(o, None) for o in ("collectonly", "lf", "ignore", "ignore_glob"))
            and not session.shouldfail
            and not session.shouldstop
            and not hasattr(self.config, "workerinput")
        )

    def pytest_sessionfinish(self, session, exitstatus):
        if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and self.is_full_run(session):
            self.never_ran = [isa for isa in COVERED_ISAS if isa not in self.executed]
            if self.never_ran:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if self.never_ran:
            terminalreporter.section("instruction sets", red=True)
            terminalreporter.write_line(
                f"FAILED: no kernel test ran on {', '.join(self.never_ran)}, which this run covers", red=True
            )


# ---- Fixtures


@pytest.fixture(autouse=True)
def _runtime_as_before():
    """Instruction set and number of threads are after each test what they were before."""
    isa, threads = fastrnn.get_isa(), fastrnn.get_num_threads()
    yield
    _core.set_num_threads(0)  # back to OpenMP's number
    if fastrnn.get_num_threads() != threads:
        fastrnn.set_num_threads(threads)
    fastrnn.set_isa(isa)


@pytest.fixture(params=COVERED_ISAS)
def isa(request):
    """Every covered instruction set in turn; it is the one in use."""
    fastrnn.set_isa(request.param)
    request.node.user_properties.append(("isa", fastrnn.get_isa()))
    return request.param


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=CELLS)
def cell(request):
    return request.param


@pytest.fixture
def run_python():
    """Runs code in an interpreter of its own and returns what it printed; None unsets a variable."""

    def run(code, **environment):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={name: value for name, value in (os.environ | environment).items() if value is not None},
            capture_output=True,
            text=True,
            timeout=120,  # a hang is a failure
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
