"""The process around the kernels: the GIL, forks, signals, threads, and what an import leaves alone.

Every test runs a script in an interpreter of its own, so that a hang or a crash is one failed test. No test
asserts a performance: where a time is asserted, it tells a hang from a slow machine.
"""

import importlib.util
import os
import platform
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and forks")

one_or_two_threads = pytest.mark.parametrize("threads", [1, 2], ids=["one_thread", "two_threads"])

# ---- Scripts ----

PRELUDE = '''
import faulthandler, hashlib, os, resource, signal, sys, threading, time, traceback
import numpy as np
import fastrnn

SLOW, FAST = fastrnn.available_isas()[0], fastrnn.available_isas()[-1]


def digest(*values):
    """One text for all bits of arrays, and of lists and tuples of them."""
    bits = hashlib.sha256()

    def add(value):
        if isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        else:
            bits.update(repr((value.shape, value.dtype.str)).encode() + value.tobytes())

    add(values)
    return bits.hexdigest()


def repeated(B, T, I, dtype="float32", value=0.1):
    """x [B, T, I] of any length in the memory of one row."""
    return np.broadcast_to(np.full((1, 1, I), value, dtype), (B, T, I))


def make(layer_class, units, **options):
    """A layer with the same weights each time, and quickly made."""
    return layer_class(units, seed=1, recurrent_initializer="glorot_uniform", **options)


def make_layer():
    """A layer so large that packing uses several threads, as do 32 rows, divided, and one row, by units."""
    return make(fastrnn.LSTM, 256, return_sequences=True)


def use(layer, batches=(32, 1, 7)):
    """Inference, forward, backward and a step for each batch; the digest of all results."""
    results = []
    for B in batches:
        rng = np.random.default_rng(B)
        x = rng.standard_normal((B, 12, 64)).astype("float32")
        y, tape = layer.forward(x)
        results += [layer(x), y, layer.backward(rng.standard_normal(y.shape).astype("float32"), tape)]
        states = layer.step(x[:, 0])[1]
        results += layer.step(x[:, 1], states)
    return digest(*results)


def os_threads():
    return len(os.listdir("/proc/self/task"))


def memory(field):
    """Bytes in use by this process: its address space (0), or what lies in memory of it (1)."""
    with open("/proc/self/statm") as line:
        return int(line.read().split()[field]) * resource.getpagesize()


def status_of_child(run, seconds=15):
    """How a forked child that calls `run` ends: 0 is well, -14 a hang, of which it prints the traceback."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        faulthandler.register(signal.SIGALRM, chain=True)
        signal.alarm(seconds)  # kills a child that hangs, whatever it hangs in
        try:
            run()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def check(actual, expected):
    assert actual == expected, (actual, expected)


def send_soon(signal_number, after):
    """Send this process a signal a little later; the list will hold the time at which it was sent."""
    sent = []

    def send():
        time.sleep(after)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal_number)

    threading.Thread(target=send, daemon=True).start()
    return sent


def stop(call, raised=KeyboardInterrupt, signal_number=signal.SIGINT, after=0.3):
    """Seconds from a signal to the exception that it raises in a call."""
    sent = send_soon(signal_number, after)
    try:
        call()
    except raised:
        return time.monotonic() - sent[0]
    raise AssertionError("the call ended before it could be interrupted; make it longer")
'''


def run_script(code, *arguments, prelude=PRELUDE, warnings=("error",), timeout=60):
    """Run code, after the prelude, in an interpreter of its own; fail unless it exits with 0 in time.

    Args:
        code: Python source, indented or not. It is run from a file: multiprocessing's spawn needs one.
        arguments: what the code finds in sys.argv[1:].
        warnings: filters as for `python -W`.
        timeout: seconds after which the script and all processes that it started are killed.

    Returns:
        What it printed.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OMP_", "GOMP_", "FASTRNN_", "PYTEST_")) and name != "PYTHONWARNINGS"
    }
    filters = [argument for each in warnings for argument in ("-W", each)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "script.py")
        path.write_text(prelude + textwrap.dedent(code), encoding="utf-8")
        command = [sys.executable, "-X", "faulthandler", *filters, str(path), *map(str, arguments)]
        script = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that its children can be killed with it
        )
        ended = "hung"
        try:
            out, err = script.communicate(timeout=timeout)
            ended = f"exited with {script.returncode}"
        except subprocess.TimeoutExpired:
            script.send_signal(signal.SIGABRT)  # prints the tracebacks of all threads
            try:
                out, err = script.communicate(timeout=2)
            except subprocess.TimeoutExpired:
                os.killpg(script.pid, signal.SIGKILL)
                out, err = script.communicate()
        finally:
            try:
                os.killpg(script.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            script.wait()
    print(out, end="")
    if ended != "exited with 0":
        pytest.fail(f"the script {ended}\n---- stdout\n{out}\n---- stderr\n{err}", pytrace=False)
    return out


# Python 3.12 and later warn when a process with several threads forks. Here that is what is tested.
FORK_WARNINGS = ("error", "ignore:This process:DeprecationWarning")


def need(*packages):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


# ---- The GIL ----

COUNTER = """
count = 0

def count_up():
    global count
    while True:
        count += 1
        time.sleep(0.001)

threading.Thread(target=count_up, daemon=True).start()


def counted(make_call, size, least_seconds):
    # How far another thread counts during a call; the call is made larger until it takes some time.
    while True:
        call = make_call(size)
        before, began = count, time.monotonic()
        call()
        during, took = count - before, time.monotonic() - began
        if took >= least_seconds:
            return during
        size *= 2
"""


@one_or_two_threads
def test_other_python_threads_run_during_inference_training_and_step(threads):
    run_script(
        """
        fastrnn.set_num_threads(int(sys.argv[1]))
        fastrnn.set_isa(SLOW)  # so that a long backward pass needs little memory
        layer = make(fastrnn.LSTM, 128)
        layer.build((None, None, 64))
        wide = make(fastrnn.LSTM, 8)
        wide.build((None, None, 4096))

        def inference(T):
            return lambda: layer(repeated(16, T, 64))

        def forward(T):
            return lambda: layer.forward(repeated(16, T, 64))

        def backward(T):
            y, tape = layer.forward(repeated(16, T, 64))
            return lambda: layer.backward(y, tape)

        def step(B):
            return lambda: wide.step(repeated(B, 1, 4096)[:, 0])

        for call in inference, forward, backward, step:
            n = counted(call, 500, 0.3)
            print(f"{call.__name__}: {n}")
            assert n >= 10, f"{call.__name__}: another thread ran {n} times"  # with the GIL held: 0 to 2
        """,
        threads,
        prelude=PRELUDE + COUNTER,
    )


def test_other_python_threads_run_while_weights_are_packed():
    run_script(
        """
        def first_call(I):
            kernel = np.ones((64, I), "float32").T  # not contiguous: slow to pack
            weights = fastrnn.functional.Weights("lstm", kernel, np.ones((16, 64), "float32"))
            return lambda: fastrnn.functional.run_step(weights, np.ones((1, I), "float32"))

        n = counted(first_call, 1 << 17, 0.1)
        print(n)
        assert n >= 10, f"another thread ran {n} times"  # with the GIL held: 0 to 2
        """,
        prelude=PRELUDE + COUNTER,
    )


def test_every_error_leaves_the_gil_with_the_caller_and_the_layer_usable():
    run_script(
        """
        import ctypes

        layer = make_layer()
        expected = use(layer)
        x = repeated(32, 12, 64)
        other_thread_ran = threading.Event()

        def fails(error, call):
            try:
                call()
            except error:
                pass
            else:
                raise AssertionError("no error")
            assert ctypes.pythonapi.PyGILState_Check() == 1
            other_thread_ran.clear()
            thread = threading.Thread(target=other_thread_ran.set)
            thread.start()
            thread.join()
            assert other_thread_ran.is_set()

        y, tape = layer.forward(x)
        used = layer.forward(x)[1]
        layer.backward(y, used)
        for _ in range(20):
            fails(TypeError, lambda: layer(None))
            fails(TypeError, lambda: layer(x.astype("int64")))
            fails(TypeError, lambda: fastrnn.functional.run(layer._packed, x.astype("float64")))
            fails(ValueError, lambda: layer(x[:, :, 1:]))
            fails(ValueError, lambda: layer(x, initial_state=[y[:, 0], y[:1, 0]]))
            fails(ValueError, lambda: layer.step(x))
            fails(ValueError, lambda: layer.backward(y[1:], tape))
            fails(RuntimeError, lambda: layer.backward(y, used))
            fails(ValueError, lambda: fastrnn.set_isa("none such"))
            fails(ValueError, lambda: fastrnn.set_num_threads(0))

        # The outputs still fit in memory, the workspace no longer does: that is noticed without the GIL.
        last = make(fastrnn.LSTM, 256)
        last.build((None, None, 64))
        B = 1 << 20
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (memory(0) + B * 256 * 4 * 3 // 2, limits[1]))
        fails(MemoryError, lambda: last(repeated(B, 2, 64)))
        resource.setrlimit(resource.RLIMIT_AS, limits)
        check(use(layer), expected)
        """
    )


# ---- Fork and spawn ----


def test_forked_child_computes_the_same_bits():
    run_script(
        """
        fastrnn.set_num_threads(2)
        layer, alone = make_layer(), os_threads()
        expected = use(layer)
        assert os_threads() > alone, "the parent must have used OpenMP's threads, or this tests nothing"

        def child():
            check(use(layer), expected)  # packed by the parent
            check(use(make_layer()), expected)  # packed here
            fastrnn.set_num_threads(2)
            check(use(layer), expected)
            results = []
            threads = [threading.Thread(target=lambda: results.append(use(layer))) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            check(results, [expected] * 4)

        check([status_of_child(child) for _ in range(3)], [0, 0, 0])
        # The parent goes on as before, with all its threads.
        check(fastrnn.get_num_threads(), 2)
        check(use(layer), expected)
        check(use(make_layer()), expected)
        """,
        warnings=FORK_WARNINGS,
    )


def test_child_of_a_forked_child_computes_the_same_bits():
    run_script(
        """
        fastrnn.set_num_threads(2)
        layer = make_layer()
        expected = use(layer)

        def grandchild():
            check(use(layer), expected)
            check(use(make_layer()), expected)

        def child():
            check(status_of_child(grandchild), 0)  # before the child's first own call
            check(use(layer), expected)
            check(status_of_child(grandchild), 0)

        check(status_of_child(child, seconds=40), 0)
        """,
        warnings=FORK_WARNINGS,
    )


def test_child_forked_from_a_thread_computes_the_same_bits():
    run_script(
        """
        fastrnn.set_num_threads(2)
        layer = make_layer()
        expected = use(layer)
        status = []

        def fork_here():
            def child():
                check(use(layer), expected)
                check(use(make_layer()), expected)

            status.append(status_of_child(child))  # this thread hasn't called fastrnn yet
            check(use(layer), expected)
            status.append(status_of_child(child))

        thread = threading.Thread(target=fork_here)
        thread.start()
        thread.join()
        check(status, [0, 0])
        """,
        warnings=FORK_WARNINGS,
    )


@one_or_two_threads
def test_child_forked_while_another_thread_is_in_a_kernel_computes_the_same_bits(threads):
    run_script(
        """
        fastrnn.set_num_threads(int(sys.argv[1]))
        layer = make_layer()
        last = make(fastrnn.LSTM, 64)
        expected = use(layer), use(last)

        def child():
            check((use(layer), use(last)), expected)

        for B in 32, 1:
            endless = repeated(B, 1 << 40, 64)
            threading.Thread(target=last, args=(endless,), daemon=True).start()
            time.sleep(0.2)
            check([status_of_child(child) for _ in range(2)], [0, 0])
        sys.stdout.flush()
        os._exit(0)  # leaves the endless calls behind
        """,
        threads,
        warnings=FORK_WARNINGS,
    )


def test_child_forked_while_another_thread_packs_the_weights_can_call_the_layer():
    run_script(
        """
        fastrnn.set_num_threads(1)
        I = 1 << 20
        kernel = np.ones((64, I), "float32").T  # not contiguous: slow to pack
        weights = fastrnn.functional.Weights("lstm", kernel, np.ones((16, 64), "float32"))
        x = np.ones((1, I), "float32")
        first_call = threading.Thread(target=fastrnn.functional.run_step, args=(weights, x))
        first_call.start()
        time.sleep(0.01)
        statuses = []
        while first_call.is_alive():
            statuses.append(status_of_child(lambda: fastrnn.functional.run_step(weights, x)))
        assert statuses, "packing was over before the fork; make it longer"
        check(statuses, [0] * len(statuses))
        """,
        warnings=FORK_WARNINGS,
    )


def test_child_forked_while_another_thread_releases_memory_can_use_the_kept_memory():
    run_script(
        """
        # On one processor, and with this thread always first: it goes on to fork while the other thread stands
        # wherever its end of sleep met it. Without the handlers of fork, some 3 % of the children hang.
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])

        def release():
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
            while releasing:
                fastrnn.release_memory()

        fastrnn.set_num_threads(1)
        layer = make(fastrnn.LSTM, 64, return_sequences=True)
        x = repeated(32, 64, 1)  # y has 512 kB: large enough to be kept
        expected = digest(layer(x))

        def child():
            fastrnn.release_memory()
            check(digest(layer(x)), expected)

        releasing = True
        thread = threading.Thread(target=release)
        thread.start()
        try:
            for _ in range(500):
                time.sleep(0.0005)
                check(status_of_child(child, seconds=5), 0)
            assert thread.is_alive(), "no other thread released memory, so this tests nothing"
        finally:
            releasing = False
            thread.join()
        """,
        warnings=FORK_WARNINGS,
    )


def test_child_forked_while_another_thread_builds_the_layer_can_call_it():
    run_script(
        """
        building, forked = threading.Event(), threading.Event()

        def initializer(shape, dtype=None):
            if not forked.is_set():  # the child's own build goes on
                building.set()
                forked.wait()
            return np.ones(shape, dtype)

        layer = fastrnn.LSTM(8, kernel_initializer=initializer)
        x = np.ones((2, 3, 4), "float32")
        first_call = threading.Thread(target=layer, args=(x,))
        first_call.start()
        building.wait()

        def child():
            forked.set()
            check(layer(x).shape, (2, 8))

        status = status_of_child(child)
        forked.set()
        first_call.join()
        check(status, 0)
        """,
        warnings=FORK_WARNINGS,
    )


def test_forked_child_that_ends_like_any_program_does_not_hang():
    run_script(
        """
        fastrnn.set_num_threads(2)
        layer = make_layer()
        expected = use(layer)
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            signal.alarm(15)
            check(use(layer), expected)
            sys.exit(0)
        check(os.waitpid(pid, 0)[1], 0)
        """,
        warnings=FORK_WARNINGS,
    )


def test_long_call_in_a_forked_child_can_be_interrupted():
    run_script(
        """
        fastrnn.set_num_threads(2)
        layer = make(fastrnn.LSTM, 64)
        expected = use(layer)

        def child():
            stop(lambda: layer(repeated(32, 1 << 40, 64)))
            check(use(layer), expected)

        check(status_of_child(child, seconds=30), 0)
        """,
        warnings=FORK_WARNINGS,
    )


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing_workers_compute_the_same_bits(method):
    run_script(
        """
        import multiprocessing

        if __name__ == "__main__":
            fastrnn.set_num_threads(2)
            layer = make_layer()
            expected = use(layer)
            with multiprocessing.get_context(sys.argv[1]).Pool(3) as pool:
                pending = pool.map_async(use, [layer] * 6, chunksize=1)  # the layer goes there pickled
                check(pending.get(40), [expected] * 6)
                pool.close()
                pool.join()
            check(use(layer), expected)
        """,
        method,
        warnings=FORK_WARNINGS,
    )


@pytest.mark.parametrize("first", ["torch", "fastrnn"])
def test_forked_child_computes_the_same_bits_where_pytorch_has_used_its_threads(first):
    need("torch")
    run_script(
        """
        import torch

        def use_torch():
            torch.set_num_threads(2)
            torch.nn.LSTM(64, 64)(torch.ones(10, 32, 64)).__getitem__(0).sum().backward()
            torch.randn(1 << 20).tanh().sum()

        def child():
            check(use(layer), expected)
            check(use(make_layer()), expected)

        fastrnn.set_num_threads(2)
        layer = make_layer()
        (use_torch if sys.argv[1] == "torch" else lambda: None)()
        expected = use(layer)
        use_torch()
        check([status_of_child(child) for _ in range(2)], [0, 0])
        """,
        first,
        prelude=f"import {first}\n{PRELUDE}",
        warnings=("default",),  # PyTorch's own are not ours
    )


# ---- Ctrl-C and other signals ----

# The calls, by name. All but backward would take hours, in little memory; x is one row repeated.
LONG_CALLS = """
def inference():
    layer = make(fastrnn.LSTM, 64)
    return layer, lambda: layer(repeated(32, 1 << 40, 64))

def inference_divided_by_units():
    layer = make_layer()
    layer.return_sequences = False
    return layer, lambda: layer(repeated(1, 1 << 40, 64))

def inference_of_a_tiny_cell():
    layer = make(fastrnn.SimpleRNN, 1)
    return layer, lambda: layer(repeated(1, 1 << 40, 1))

def inference_of_a_batch_of_a_tiny_cell():
    layer = make(fastrnn.SimpleRNN, 1)
    return layer, lambda: layer(repeated(64, 1 << 40, 1))

def training_forward():
    layer = make(fastrnn.LSTM, 16)
    return layer, lambda: layer.forward(repeated(16, 100_000, 16384))  # a tape of 614 MB, hardly touched

def step_of_an_even_batch():
    layer = make(fastrnn.LSTM, 16)
    return layer, lambda: layer.step(repeated(10_000_000, 1, 16384)[:, 0])

def step_of_an_odd_batch():
    layer = make(fastrnn.LSTM, 16)
    return layer, lambda: layer.step(repeated(10_000_001, 1, 16384)[:, 0])

def results(layer, I):
    x = np.random.default_rng(0).standard_normal((13, 5, I)).astype("float32")
    y, tape = layer.forward(x)
    return digest(layer(x), y, layer.backward(y, tape), layer.step(x[:, 0]))
"""


@one_or_two_threads
@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("inference", 64),
        ("inference_divided_by_units", 64),
        ("inference_of_a_tiny_cell", 1),
        ("inference_of_a_batch_of_a_tiny_cell", 1),
        ("training_forward", 16384),
        ("step_of_an_even_batch", 16384),
        ("step_of_an_odd_batch", 16384),
    ],
)
def test_ctrl_c_ends_a_long_call_and_leaves_the_layer_usable(name, inputs, threads):
    run_script(
        """
        name, I, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        fastrnn.set_num_threads(threads)
        layer, call = globals()[name]()
        expected = results(layer, I)
        took = stop(call)
        print(f"{name}, {threads} threads: {took:.3f} s from signal to exception")
        check(results(layer, I), expected)
        assert took < 10
        """,
        name,
        inputs,
        threads,
        timeout=30,
        prelude=PRELUDE + LONG_CALLS,
    )


@one_or_two_threads
def test_ctrl_c_ends_a_long_backward_and_leaves_layer_and_tape_usable(threads):
    run_script(
        """
        threads = int(sys.argv[1])
        fastrnn.set_num_threads(threads)
        layer = make(fastrnn.SimpleRNN, 1024, dtype="float64")
        x = np.random.default_rng(0).standard_normal((32, 200, 2))
        dy = np.ones((32, 1024))
        y, tape = layer.forward(x)
        expected = digest(y, layer.backward(dy, tape))

        _, tape = layer.forward(x)
        fastrnn.set_isa(SLOW)  # the interrupted call only
        took = stop(lambda: layer.backward(dy, tape), after=0.15)
        fastrnn.set_isa(FAST)
        print(f"backward, {threads} threads: {took:.3f} s from signal to exception")
        check(digest(y, layer.backward(dy, tape)), expected)  # the tape of the interrupted call
        check(digest(layer(x)), digest(y))
        assert took < 10
        """,
        threads,
    )


@one_or_two_threads
def test_ctrl_c_ends_a_long_call_again_and_again(threads):
    run_script(
        """
        fastrnn.set_num_threads(int(sys.argv[1]))
        layer = make(fastrnn.LSTM, 64)
        expected = use(layer)
        for B in 32, 1, 32:
            stop(lambda: layer(repeated(B, 1 << 40, 64)), after=0.1)
            check(use(layer), expected)
        """,
        threads,
    )


@one_or_two_threads
def test_exception_of_a_signal_handler_comes_out_of_the_call(threads):
    run_script(
        """
        class Mine(Exception):
            pass

        def handler(signal_number, frame):
            raise Mine("what the handler said")

        fastrnn.set_num_threads(int(sys.argv[1]))
        signal.signal(signal.SIGUSR1, handler)
        layer = make(fastrnn.LSTM, 64)
        expected = use(layer)

        def call():
            try:
                layer(repeated(32, 1 << 40, 64))
            except Mine as error:
                check(str(error), "what the handler said")
                raise

        stop(call, raised=Mine, signal_number=signal.SIGUSR1)
        check(use(layer), expected)
        """,
        threads,
    )


FINITE_CALL = """
def long_call(layer):
    # Inference that takes at least half a second, and its result.
    T = 500
    while True:
        x, began = repeated(32, T, 64), time.monotonic()
        y = layer(x)
        if time.monotonic() - began >= 0.5:
            return lambda: digest(layer(x)), digest(y)
        T *= 2

handled = 0
handling = False
at_signal = lambda: None

def handler(signal_number, frame):
    global handled, handling
    if not handling:  # another signal may come meanwhile
        handling = True
        at_signal()
        handling = False
        handled += 1

def handled_during(call):
    # How often the handler runs during a call, and the call's result. Several times can't be after its end.
    before = handled
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        result = call()
        n = handled - before
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    print(f"handled {n} signals")
    return n, result

signal.signal(signal.SIGALRM, handler)
signal.signal(signal.SIGINT, handler)
"""


@one_or_two_threads
def test_signal_whose_handler_does_not_raise_is_handled_while_the_call_goes_on(threads):
    run_script(
        """
        fastrnn.set_num_threads(int(sys.argv[1]))
        call, expected = long_call(make(fastrnn.LSTM, 128))
        send_soon(signal.SIGINT, after=0.1)
        n, result = handled_during(call)
        check(result, expected)
        assert n >= 3, f"the handler ran {n} times"
        """,
        threads,
        prelude=PRELUDE + FINITE_CALL,
    )


@one_or_two_threads
def test_signal_handler_may_call_the_layer_whose_call_it_interrupts(threads):
    run_script(
        """
        fastrnn.set_num_threads(int(sys.argv[1]))
        layer = make(fastrnn.LSTM, 128)
        call, expected = long_call(layer)
        inner = []
        expected_inside = use(layer)
        at_signal = lambda: inner.append(use(layer))
        n, result = handled_during(call)
        check(result, expected)
        assert n >= 3, f"the handler ran {n} times"
        check(inner, [expected_inside] * len(inner))
        """,
        threads,
        prelude=PRELUDE + FINITE_CALL,
    )


@one_or_two_threads
def test_signals_during_a_call_in_another_thread_go_to_the_main_thread(threads):
    run_script(
        """
        fastrnn.set_num_threads(int(sys.argv[1]))
        call, expected = long_call(make(fastrnn.LSTM, 128))
        results = []

        def begin():
            # The call in another thread. The event is for CPython 3.11, where join() can't be interrupted.
            done = threading.Event()
            threading.Thread(target=lambda: (results.append(call()), done.set())).start()
            return done

        n, _ = handled_during(lambda: begin().wait())
        check(results, [expected])
        assert n >= 3, f"the handler ran {n} times"

        # Ctrl-C: the main thread is interrupted, the other one's call ends as if nothing had been.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        done = begin()
        stop(done.wait, after=0.1)
        done.wait()
        check(results, [expected] * 2)
        """,
        threads,
        prelude=PRELUDE + FINITE_CALL,
    )


# ---- Many Python threads ----

# What thread `i` of sixteen does with the layer: all kinds of calls, on batches that are divided in all ways.
MIXED_CALLS = """
def input_of(i):
    B = [1, 7, 16, 33][i % 4]
    return np.random.default_rng(i).standard_normal((B, 9, 64)).astype("float32")


def mixed_calls(layer, i):
    x = input_of(i)
    for kind in range(3):
        kind = (kind + i) % 3
        if kind == 0:
            yield "call", digest(layer(x))
        elif kind == 1:
            y, tape = layer.forward(x)
            yield "forward", digest(y)
            yield "backward", digest(layer.backward(y, tape))
        else:
            yield "step", digest(*layer.step(x[:, 0]))


def in_sixteen_threads(layer):
    # What each of sixteen threads computed, all of which begin at once.
    start, results, errors = threading.Barrier(16), [None] * 16, []

    def run(i):
        try:
            start.wait()
            results[i] = list(mixed_calls(layer, i))
        except BaseException as error:
            errors.append(repr(error))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(errors, [])
    return results

make_layers = [
    lambda: make(fastrnn.LSTM, 200, return_sequences=True),
    lambda: make(fastrnn.GRU, 200, return_sequences=True),
    lambda: make(fastrnn.GRU, 200, return_sequences=True, reset_after=False),
    lambda: make(fastrnn.SimpleRNN, 200, return_sequences=True),
]
"""


def test_sixteen_threads_may_call_one_layer_at_once():
    run_script(
        """
        for make_one in make_layers:
            fastrnn.set_num_threads(1)
            alone = make_one()
            expected = [list(mixed_calls(alone, i)) for i in range(16)]
            fastrnn.set_num_threads(2)
            layer = make_one()
            check(in_sixteen_threads(layer), expected)  # the first calls, which build and pack
            check(in_sixteen_threads(layer), expected)
        """,
        prelude=PRELUDE + MIXED_CALLS,
    )


def test_sixteen_threads_may_call_one_layer_while_another_changes_the_number_of_threads():
    run_script(
        """
        changing = True

        def change():
            while changing:
                for n in 1, 2, 3, 5:
                    fastrnn.set_num_threads(n)
                    time.sleep(0.0005)

        for make_one in make_layers:
            fastrnn.set_num_threads(1)
            alone = make_one()
            expected = [list(mixed_calls(alone, i)) for i in range(16)]
            layer, changing = make_one(), True
            thread = threading.Thread(target=change)
            thread.start()
            try:
                results = in_sixteen_threads(layer)
            finally:
                changing = False
                thread.join()
            check(results, expected)
        """,
        prelude=PRELUDE + MIXED_CALLS,
    )


def test_sixteen_threads_may_call_one_layer_while_another_changes_the_instruction_set():
    run_script(
        """
        isas = fastrnn.available_isas()
        changing = True

        def change():
            while changing:
                for isa in isas:
                    fastrnn.set_isa(isa)
                    time.sleep(0.0005)

        def backward_with(isa, layer, tape, y):
            fastrnn.set_isa(isa)
            return digest(layer.backward(y, tape))

        for make_one in make_layers[:2]:
            # A call has the bits of one instruction set, backward perhaps those of another than forward.
            allowed = [{} for _ in range(16)]
            fastrnn.set_num_threads(1)
            for i in range(16):
                for forward_isa in isas:
                    fastrnn.set_isa(forward_isa)
                    alone = make_one()
                    for kind, bits in mixed_calls(alone, i):
                        allowed[i].setdefault(kind, set()).add(bits)
                    x = input_of(i)
                    for backward_isa in isas:
                        fastrnn.set_isa(forward_isa)
                        y, tape = alone.forward(x)
                        allowed[i]["backward"].add(backward_with(backward_isa, alone, tape, y))
            fastrnn.set_num_threads(2)
            layer, changing = make_one(), True
            thread = threading.Thread(target=change)
            thread.start()
            try:
                results = in_sixteen_threads(layer)
            finally:
                changing = False
                thread.join()
            for i in range(16):
                for kind, bits in results[i]:
                    assert bits in allowed[i][kind], f"thread {i}: {kind} has the bits of no instruction set"
        """,
        prelude=PRELUDE + MIXED_CALLS,
    )


def test_python_threads_that_ended_leave_no_threads_behind():
    run_script(
        """
        fastrnn.set_num_threads(2)
        layer = make_layer()
        expected, results = use(layer), []
        before = os_threads()
        for _ in range(20):
            thread = threading.Thread(target=lambda: results.append(use(layer, batches=(32, 1, 7))))
            thread.start()
            thread.join()
        deadline = time.monotonic() + 10
        while os_threads() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        check(os_threads(), before)
        check(results, [expected] * 20)
        """
    )


# ---- The end of the process ----


def test_interpreter_can_exit_right_after_a_parallel_call():
    run_script(
        """
        import atexit

        fastrnn.set_num_threads(2)
        layer = make_layer()
        atexit.register(use, layer)
        thread = threading.Thread(target=use, args=(layer,))  # not a daemon: the exit waits for it
        thread.start()
        use(layer)
        """
    )


@one_or_two_threads
@pytest.mark.parametrize("steps", [1 << 40, 20_000], ids=["never_ends", "ends_during_finalization"])
def test_interpreter_can_exit_while_a_daemon_thread_is_in_a_kernel(steps, threads):
    run_script(
        """
        class KeepsFinalizationGoing:
            def __del__(self, sleep=time.sleep, seconds=float(sys.argv[3])):
                sleep(seconds)

        fastrnn.set_num_threads(int(sys.argv[1]))
        fastrnn.set_isa(SLOW)
        layer = make(fastrnn.LSTM, 64)
        use(layer)
        object_that_dies_last = KeepsFinalizationGoing()
        thread = threading.Thread(target=layer, args=(repeated(32, int(sys.argv[2]), 64),), daemon=True)
        thread.start()
        time.sleep(0.2)
        assert thread.is_alive(), "the call must last until the interpreter is gone; make it longer"
        """,
        threads,
        steps,
        1.5 if steps < 1 << 40 else 0.5,
        timeout=30,
    )


@pytest.mark.parametrize(
    "call",
    [
        "fastrnn.release_memory()",
        '_core.measure_limit("flops", "float32", 2)',
        '_core.measure_limit("bandwidth", "float64", 1, 1 << 20)',
        '_core.measure_limit("barrier", "float32", 2)',
    ],
)
def test_interpreter_can_exit_while_daemon_threads_are_in_a_function_without_the_gil(call):
    run_script(
        """
        from fastrnn import _core

        class KeepsFinalizationGoing:
            def __del__(self, sleep=time.sleep):
                sleep(0.5)  # without the GIL: those who wait for it get it now

        layer = make_layer()
        use(layer)
        object_that_dies_last = KeepsFinalizationGoing()
        called = []

        def again_and_again(call=compile(sys.argv[1], "call", "eval"), names=globals()):
            while True:
                eval(call, names)
                called.append(1)

        for _ in range(2):
            threading.Thread(target=again_and_again, daemon=True).start()
        until = time.monotonic() + 20
        while not called and time.monotonic() < until:
            time.sleep(0.01)
        assert called
        """,
        call,
        timeout=60,
    )


@one_or_two_threads
def test_interpreter_can_exit_while_daemon_threads_in_kernels_wait_for_the_gil(threads):
    run_script(
        """
        class KeepsFinalizationGoing:
            def __del__(self, sleep=time.sleep):
                sleep(0.5)  # without the GIL: those who wait for it get it now

        fastrnn.set_num_threads(int(sys.argv[1]))
        layer = make(fastrnn.LSTM, 64)
        use(layer)
        object_that_dies_last = KeepsFinalizationGoing()
        for _ in range(4):
            threading.Thread(target=layer, args=(repeated(32, 1 << 40, 64),), daemon=True).start()
        sys.setswitchinterval(1000)  # from here on this thread keeps the GIL
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            pass
        """,
        threads,
        timeout=30,
    )


# ---- What an import and a call leave alone ----

SNAPSHOT = '''
import ctypes, os, platform, signal, sys, warnings
import numpy as np

libc, libm = ctypes.CDLL(None), ctypes.CDLL("libm.so.6")


def floating_point_controls():
    """MXCSR and x87 control word, or FPCR: rounding, denormals, what traps; without the sticky flags."""
    words = (ctypes.c_uint32 * 16)()
    libm.fegetenv(words)
    if platform.machine() == "x86_64":
        return hex(words[7] & 0xFFC0), hex(words[0] & 0xFFFF)
    return hex(words[0])


def installed_handlers():
    """Handler, mask and flags of every signal, as the system has them."""
    handlers = {}
    for number in range(1, 65):
        action = (ctypes.c_uint64 * 19)()  # glibc's struct sigaction: handler, mask of 1024 bits, flags
        libc.sigaction(number, None, action)
        handlers[number] = action[0], action[1], action[17] & 0xFFFFFFFF
    return handlers


def status(*names):
    with open("/proc/self/status") as lines:
        fields = dict(line.split(":", 1) for line in lines)
    return {name: fields[name].strip() for name in names}


def library_threads():
    """The threads of every library that threadpoolctl knows, by file; and PyTorch's."""
    found = {}
    if "threadpoolctl" in sys.modules:
        for library in sys.modules["threadpoolctl"].threadpool_info():
            found[library["filepath"]] = library["num_threads"]
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        found["torch"] = torch.get_num_threads(), torch.get_num_interop_threads()
    return found


def snapshot():
    return {
        "floating point": floating_point_controls(),
        "handlers": installed_handlers(),
        "Python's handlers": {s: signal.getsignal(s) for s in signal.valid_signals()},
        "signals": status("SigCgt", "SigIgn", "SigBlk"),
        "wakeup": signal.getitimer(signal.ITIMER_REAL),
        "environment": dict(os.environ),
        "affinity": os.sched_getaffinity(0),
        "path": list(sys.path),
        "folder": os.getcwd(),
        "warnings": list(warnings.filters),
        "NumPy's errors": np.geterr(),
        "NumPy's random state": repr(np.random.get_state(legacy=False)),
        "hooks": (sys.excepthook, sys.unraisablehook, sys.getswitchinterval(), sys.getrecursionlimit()),
    }


def assert_denormals_work():
    assert np.float32(1e-40) * np.float32(1) != 0
    assert np.float32(1e-30) * np.float32(1e-10) != 0
    assert np.all(np.full(1000, 1e-40, "float32") * np.float32(0.5) != 0)
    assert 5e-324 * 1.0 != 0


def assert_same(before, after):
    for name in before:
        assert before[name] == after[name], f"{name}: {before[name]} became {after[name]}"
'''


@pytest.mark.parametrize("beside", ["", "threadpoolctl", "threadpoolctl,scipy.linalg,torch"])
def test_import_and_calls_leave_the_process_as_it_was(beside):
    names = [name for name in beside.split(",") if name]
    need(*[name.split(".")[0] for name in names])
    run_script(
        """
        import importlib

        for name in sys.argv[1].split(",") if sys.argv[1] else []:
            importlib.import_module(name)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(2)
            sys.modules["torch"].randn(1 << 20).tanh().sum()
        np.ones((300, 300)) @ np.ones((300, 300))

        def os_threads():
            return sorted(os.listdir("/proc/self/task"))

        before, libraries_before, threads_before = snapshot(), library_threads(), os_threads()
        assert_denormals_work()
        import fastrnn
        assert_same(before, snapshot())
        assert_same(libraries_before, library_threads())
        assert os_threads() == threads_before, "the import started threads"
        assert_denormals_work()

        # Calls in one thread and in several, and those that set things for fastrnn alone.
        libraries_before = library_threads()  # now with fastrnn's own libgomp, if there was none before
        for isa in fastrnn.available_isas():
            fastrnn.set_isa(isa)
            for n in 1, 2, 3:
                fastrnn.set_num_threads(n)
                for dtype in "float32", "float64":
                    layer = fastrnn.GRU(200, dtype=dtype, recurrent_initializer="zeros")
                    for B in 1, 32:
                        y, tape = layer.forward(np.full((B, 6, 50), 1e-40, dtype))
                        layer.backward(y, tape)
                        layer.step(y[:, :50].copy() if B == 1 else np.ones((B, 50), dtype))
                assert_same(before, snapshot())
                assert_denormals_work()
        assert_same(libraries_before, library_threads())
        """,
        beside,
        prelude=SNAPSHOT,
        warnings=("default",) if "torch" in beside else ("error",),  # PyTorch's own are not ours
    )


@one_or_two_threads
def test_kernels_keep_denormals(threads):
    run_script(
        """
        fastrnn.set_num_threads(int(sys.argv[1]))
        for isa in fastrnn.available_isas():
            fastrnn.set_isa(isa)
            for dtype, tiny in ("float32", 1e-40), ("float64", 1e-310):
                for B in 32, 1:  # divided by rows, by units
                    # h_1 = tanh(x W): the factors are normal, the product is not; dx = dy W likewise.
                    x = np.full((B, 8, 256), 1e-5, dtype)
                    kernel = np.full((256, 256), tiny / 1e-5, dtype)
                    recurrent_kernel = np.zeros((256, 256), dtype)
                    weights = fastrnn.functional.Weights("simple_rnn", kernel, recurrent_kernel)
                    y, tape = fastrnn.functional.run_forward(weights, x, return_sequences=True)
                    np.testing.assert_allclose(y, 256 * tiny, rtol=1e-2)
                    gradients = fastrnn.functional.run_backward(np.full_like(y, 1e-5), tape)
                    np.testing.assert_allclose(gradients.x, 256 * tiny, rtol=1e-2)
        """,
        threads,
    )


@pytest.mark.skipif(platform.machine() != "x86_64", reason="sets the bits of MXCSR")
@pytest.mark.parametrize("pool_made", ["before", "after"])
def test_result_does_not_depend_on_threads_where_the_host_flushes_denormals(pool_made):
    """As after torch.set_flush_denormal(True). OpenMP's threads keep the mode in which they were made."""
    run_script(
        """
        import ctypes

        libm = ctypes.CDLL("libm.so.6")
        flush = 0x8040  # of MXCSR: results to zero, operands as zero

        def switch(on):
            environment = (ctypes.c_uint32 * 8)()
            libm.fegetenv(environment)
            environment[7] = environment[7] | flush if on else environment[7] & ~flush
            libm.fesetenv(environment)

        rng = np.random.default_rng(0)
        kernel, recurrent_kernel = np.full((64, 64), 1e-20, "float32"), np.full((64, 64), 1e-3, "float32")
        x = (rng.standard_normal((64, 40, 64)) * 1e-20).astype("float32")
        x[:, ::2] *= 1e20  # half of the sums are denormal

        def results():
            # With one thread and with two, flushing and then not.
            found = []
            for on in True, False:
                for n in 1, 2:
                    fastrnn.set_num_threads(n)
                    switch(on)
                    y, tape = fastrnn.functional.simple_rnn_forward(x, kernel, recurrent_kernel)
                    gradients = fastrnn.functional.simple_rnn_backward(y, tape)
                    switch(False)
                    found.append(digest(y, gradients))
            return found

        fastrnn.set_num_threads(2)
        switch(sys.argv[1] == "after")
        fastrnn.functional.simple_rnn(x, kernel, recurrent_kernel)  # makes the pool
        switch(False)
        on_alone, on_together, off_alone, off_together = results()
        assert on_alone != off_alone, "flushing changes nothing here, so this tests nothing"
        check(off_together, off_alone)
        check(on_together, on_alone)
        """,
        pool_made,
    )


# ---- Memory ----


def test_memory_does_not_grow_over_thousands_of_calls_and_errors():
    run_script(
        """
        import gc

        fastrnn.set_num_threads(2)
        layer = make(fastrnn.GRU, 24, return_sequences=True, return_state=True)
        rng = np.random.default_rng(0)
        x = rng.standard_normal((4, 20, 16)).astype("float32")  # a tape of 38 kB; too little for two threads
        many = rng.standard_normal((64, 20, 16)).astype("float32")  # enough for two
        h0 = rng.standard_normal((4, 24)).astype("float32")
        layer.build(x.shape)

        def fails(call, *arguments):
            try:
                call(*arguments)
            except (TypeError, ValueError, RuntimeError):
                return
            raise AssertionError("no error")

        def once(i):
            (y, h), tape = layer.forward(x, initial_state=[h0])
            fails(layer.backward, [y, h[1:]], tape)
            layer.backward([y, h], tape)
            fails(layer.backward, [y, h], tape)
            fails(layer, x[:, :, 1:])
            fails(layer, x.astype("int32"))
            layer.forward(x)  # a tape that is never used
            layer.step(x[:, 0], [h])
            if i % 2 == 0:
                layer.set_weights(layer.get_weights())  # packed anew by the calls that follow: 27 kB
            if i % 20 == 0:
                fastrnn.set_isa((SLOW, FAST)[i // 20 % 2])
                y, tape = layer.forward(many)
                layer.backward(y, tape)

        def in_use():
            gc.collect()
            return memory(1) / 1e6, sys.getallocatedblocks()

        for i in range(2000):  # Python's own caches fill slowly: some 600 blocks
            once(i)
        before = in_use()
        for i in range(2000):
            once(i)
        megabytes, blocks = (now - then for now, then in zip(in_use(), before))
        print(f"{before[0]:.1f} MB {megabytes:+.1f} MB, {before[1]} blocks {blocks:+}")
        assert megabytes < 10  # 5 kB a round
        assert blocks < 500  # Python's objects: one in four rounds
        """
    )


NEW_MEMORY = """
fastrnn.set_num_threads(int(sys.argv[1]))

def fits(call, size):
    # Whether a call, not the first of its kind, does with so many bytes of new address space.
    fastrnn.release_memory()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory(0) + size, limits[1]))
    try:
        call()
    except MemoryError:
        return False
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    return True
"""


@one_or_two_threads
def test_inference_of_the_last_output_needs_no_memory_that_grows_with_time(threads):
    run_script(
        """
        for layer_class in fastrnn.SimpleRNN, fastrnn.LSTM, fastrnn.GRU:
            for B in 32, 1:  # divided by rows, by units
                layer = make(layer_class, 64)
                x = repeated(B, 600_000 // B, 4)
                layer(x[:, :100])
                assert fits(lambda: layer(x), 1 << 19), (layer_class, B)  # not a byte per row and step
                layer.return_sequences = True
                assert not fits(lambda: layer(x), 1 << 19), "a lack of memory isn't noticed"
        """,
        threads,
        prelude=PRELUDE + NEW_MEMORY,
    )


@one_or_two_threads
def test_training_an_lstm_needs_24_bytes_per_row_step_and_unit(threads):
    run_script(
        """
        B, T, H = 32, 1000, 64
        x, dy, size = repeated(B, T, 1), np.ones((B, H), "float32"), 24 * B * T * H
        kernel, recurrent_kernel = np.ones((1, 4 * H), "float32"), np.ones((H, 4 * H), "float32")
        weights = fastrnn.functional.Weights("lstm", kernel, recurrent_kernel)

        def forward():
            return fastrnn.functional.run_forward(weights, x)[1]

        tape = forward()
        check(tape.nbytes, size)
        fastrnn.functional.run_backward(dy, tape)
        assert fits(forward, size + (6 << 20))  # up to 4 for whole huge pages; one more value per unit takes 8
        assert not fits(forward, size // 2), "a lack of memory isn't noticed"
        tape = forward()
        assert fits(lambda: fastrnn.functional.run_backward(dy, tape), 6 << 20)
        """,
        threads,
        prelude=PRELUDE + NEW_MEMORY,
    )


def test_memory_does_not_grow_over_interrupted_calls():
    run_script(
        """
        import gc

        fastrnn.set_num_threads(2)
        layer = make(fastrnn.LSTM, 512)
        x = repeated(32, 1 << 40, 64)
        state = [np.zeros((32, 512), "float32")] * 2
        layer(x[:, :1])

        class Stop(Exception):
            pass

        def handler(signal_number, frame):
            raise Stop

        signal.signal(signal.SIGALRM, handler)

        def once():
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.01)
                layer(x, initial_state=state)
            except Stop:
                return
            raise AssertionError("no signal")

        def in_use():
            gc.collect()
            return memory(1) / 1e6

        for _ in range(5):
            once()
        before = in_use()
        for _ in range(30):
            once()
        grown = in_use() - before
        print(f"{before:.1f} MB {grown:+.1f} MB")
        assert grown < 4  # outputs and workspace of one call: 0.3 MB
        """
    )
