"""Threads and instruction sets: what sets them, what they leave alone, and what is refused."""

import importlib.util
import os
import re

import numpy as np
import pytest

import fastrnn
from fastrnn import runtime

# A program that computes something large enough for several threads.
PROGRAM = """
    import os, sys
    import numpy as np
    import fastrnn
    from fastrnn import functional

    x, kernel, recurrent_kernel = (np.full(s, 0.1, "float32") for s in [(70, 20, 5), (5, 200), (50, 200)])

    def compute():
        y, tape = functional.lstm_forward(x, kernel, recurrent_kernel)
        functional.lstm_backward(y, tape)
"""
UNSET = {name: None for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "FASTRNN_ISA")}
available = ", ".join(fastrnn.available_isas())

needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="takes a processor away, and this process has one only",
)


# ---- Threads


@pytest.mark.parametrize("n", [1, 2, 7, 1024, np.int64(3), np.uint8(3)], ids=repr)
def test_the_number_of_threads_is_what_was_set(n):
    fastrnn.set_num_threads(n)
    assert fastrnn.get_num_threads() == n
    assert type(fastrnn.get_num_threads()) is int


@pytest.mark.parametrize("n", [True, False, 2.0, "2", None, [2], np.float32(2), np.True_], ids=repr)
def test_a_number_of_threads_that_is_no_integer_is_refused(n):
    before = fastrnn.get_num_threads()
    with pytest.raises(TypeError, match=f"^set_num_threads: n must be an integer, got {type(n).__name__}$"):
        fastrnn.set_num_threads(n)
    assert fastrnn.get_num_threads() == before


@pytest.mark.parametrize("n", [0, -1, 1025, 2**31, 2**40, -(2**80), np.int64(0)])
def test_a_number_of_threads_out_of_range_is_refused(n):
    before = fastrnn.get_num_threads()
    with pytest.raises(ValueError, match=f"^set_num_threads: n must be from 1 to 1024, got {n}$"):
        fastrnn.set_num_threads(n)
    assert fastrnn.get_num_threads() == before


@pytest.mark.parametrize(
    "variables, threads",
    [
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "3", "OMP_THREAD_LIMIT": "2"}, 2),
    ],
    ids=str,
)
def test_openmp_variables_give_the_number_of_threads(run_python, variables, threads):
    code = (
        PROGRAM
        + """
    compute()
    print(fastrnn.get_num_threads())
    """
    )
    assert run_python(code, **(UNSET | variables)) == f"{threads}\n"


def test_a_number_that_was_set_counts_more_than_openmp_variables(run_python):
    code = (
        PROGRAM
        + """
    fastrnn.set_num_threads(3)
    compute()
    print(fastrnn.get_num_threads())
    """
    )
    assert run_python(code, **(UNSET | {"OMP_NUM_THREADS": "1"})) == "3\n"


@needs_affinity
def test_processors_taken_away_before_the_import_are_not_used(run_python):
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])" + PROGRAM.replace(
        "\n    ", "\n"
    )
    assert run_python(code + "compute()\nprint(fastrnn.get_num_threads())", **UNSET) == "1\n"


@needs_affinity
def test_processors_taken_away_after_the_import_are_not_used(run_python):
    code = (
        PROGRAM
        + """
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    compute()
    print(fastrnn.get_num_threads())
    """
    )
    assert run_python(code, **UNSET) == "1\n"


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts the threads of a process in /proc")
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_call_starts_no_more_threads_than_were_set(run_python, n):
    code = (
        PROGRAM
        + f"""
    before = len(os.listdir("/proc/self/task"))
    fastrnn.set_num_threads({n})
    compute()
    print(len(os.listdir("/proc/self/task")) - before)
    """
    )
    assert run_python(code, **UNSET) == f"{n - 1}\n"


def test_threadpoolctl_limits_the_threads_of_a_process_that_set_none(run_python):
    pytest.importorskip("threadpoolctl", reason="limits threads with threadpoolctl, which is not installed")
    code = (
        PROGRAM
        + """
    from threadpoolctl import threadpool_limits

    before = fastrnn.get_num_threads()
    with threadpool_limits(1, user_api="openmp"):
        print(fastrnn.get_num_threads())
    assert fastrnn.get_num_threads() == before
    """
    )
    assert run_python(code, **(UNSET | {"OMP_NUM_THREADS": "4"})) == "1\n"


@pytest.mark.parametrize("other", [None, "torch"])
@pytest.mark.parametrize("first", [True, False], ids=["fastrnn_first", "fastrnn_last"])
def test_setting_threads_changes_them_for_nobody_else(run_python, other, first):
    pytest.importorskip("threadpoolctl", reason="asks threadpoolctl, which is not installed")
    if other and not importlib.util.find_spec(other):
        pytest.skip(f"looks at the threads of {other}, which is not installed")
    program = PROGRAM.replace("\n    ", "\n")
    imports = f"import {other}\n" if other else ""
    code = f"""{program + imports if first else imports + program}
from threadpoolctl import threadpool_info

def threads():
    pools = sorted((p["filepath"], p["num_threads"]) for p in threadpool_info())
    return pools, {f"{other}.get_num_threads()" if other else None}

compute()
before = threads()
for n in (1, 3):
    fastrnn.set_num_threads(n)
    compute()
    assert threads() == before, (threads(), before)
assert any("gomp" in path or "omp" in path for path, _ in before[0]), before
"""
    run_python(code, **UNSET)


# ---- Instruction sets


def test_available_instruction_sets_are_compiled_ones_in_their_order():
    compiled, available = fastrnn.compiled_isas(), fastrnn.available_isas()
    assert available and [isa for isa in compiled if isa in available] == available


def test_the_instruction_set_is_what_was_set(isa):
    assert fastrnn.get_isa() == isa == runtime.config()["instruction set in use"]


@pytest.mark.parametrize("name", ["", "sse9", "AVX2", "baseline ", "scalar", "avx2,avx512", "é"])
def test_an_unknown_instruction_set_is_refused(name):
    before = fastrnn.get_isa()
    message = (
        "set_isa: the instruction set must be one that is compiled in and runs on this processor "
        f"({available}), got '{name}'"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fastrnn.set_isa(name)
    assert fastrnn.get_isa() == before


@pytest.mark.parametrize("name", [None, 2, b"avx2", ["avx2"]], ids=repr)
def test_an_instruction_set_that_is_no_string_is_refused(name):
    with pytest.raises(TypeError, match=f"^set_isa: name must be a string, got {type(name).__name__}$"):
        fastrnn.set_isa(name)


@pytest.mark.parametrize("value", [None, "", *fastrnn.available_isas()])
def test_the_best_instruction_set_is_used_unless_the_environment_names_one(run_python, value):
    code = (
        PROGRAM
        + """
    compute()
    print(fastrnn.get_isa())
    """
    )
    assert run_python(code, **(UNSET | {"FASTRNN_ISA": value})).strip() == (
        value or fastrnn.available_isas()[-1]
    )


def test_an_unknown_instruction_set_in_the_environment_is_an_error_at_first_use(run_python):
    code = (
        PROGRAM
        + """
    print(*fastrnn.available_isas())
    for use in (compute, fastrnn.get_isa, fastrnn.show_config, compute):
        try:
            use()
        except ValueError as error:
            print(error)
    fastrnn.set_isa(fastrnn.available_isas()[0])
    compute()
    """
    )
    message = (
        "FASTRNN_ISA: the instruction set must be one that is compiled in and runs on this processor "
        f"({available}), got 'sse9'"
    )
    lines = run_python(code, **(UNSET | {"FASTRNN_ISA": "sse9"})).splitlines()
    assert lines[0] == available.replace(",", "")
    assert [line for line in lines[1:] if "FASTRNN_ISA" in line] == [message] * 4


# ---- What this build is


def test_show_config_prints_what_config_returns(capsys):
    fastrnn.show_config()
    printed = capsys.readouterr().out.splitlines()
    for line, (name, value) in zip(printed, runtime.config().items(), strict=True):
        assert line == f"{name:26} {' '.join(value) if isinstance(value, list) else value}"


def test_config_names_versions_threads_and_instruction_sets():
    config = runtime.config()
    assert config["fastrnn"] == fastrnn.__version__
    assert config["numpy"] == np.__version__
    assert config["threads"] == fastrnn.get_num_threads()
    assert config["instruction sets compiled"] == fastrnn.compiled_isas()
    assert config["instruction sets available"] == fastrnn.available_isas()
    assert config["processor"] == runtime.processor_name() != ""
    assert re.match(r"(gcc|clang) \d", config["compiler"])


def test_without_proc_the_processor_has_a_name_all_the_same(monkeypatch):
    monkeypatch.setattr("builtins.open", lambda *_, **__: (_ for _ in ()).throw(OSError))
    name = runtime.processor_name()
    monkeypatch.undo()
    assert name
