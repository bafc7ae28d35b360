"""The comparison of `fastrnn bench`: its arithmetic, its table, JSON and charts, and peers that are missing or die."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastrnn import _core, cli
from fastrnn.benchmark import limits, workloads
from fastrnn.benchmark.limits import Level, Limits
from fastrnn.benchmark.workloads import WORKLOADS, Workload

compare = pytest.importorskip("fastrnn.benchmark.compare")
worker = pytest.importorskip("fastrnn.benchmark.worker")
report = pytest.importorskip("fastrnn.benchmark.report")
peers = pytest.importorskip("fastrnn.benchmark.peers")

LSTM = Workload("a", "table", "lstm", B=2, T=3, I=5, H=7, source="here")
GRU = Workload("b", "table", "gru", B=1, T=4, I=3, H=2, source="here")
CACHES = [Level("L1", 1000, 4e9), Level("memory", float("inf"), 1e9)]
LIMITS = Limits("avx2", "float32", 2, flops=1e9, levels=CACHES, barrier=1e-7, activation=1e-9)


def settings(rows, names, **options):
    return compare.Settings(rows, names, rounds=1, seconds=0.001, **options)


def empty_results():
    return compare.Results("2030-01-01 10:00", "fastrnn bench", compare.describe_machine(), {"threads": 1})


def compared(rows, names, **options):
    results = empty_results()
    compare.compare(settings(rows, names, **options), results)
    return results


@pytest.fixture
def results():
    """What a comparison could have found."""
    made = empty_results()
    made.versions = {"fastrnn": {"fastrnn": "1"}, "torch": {"torch": "2"}, "jax": {"jax": "3"}}
    made.missing = {"openvino": "openvino is not installed"}
    made.limits = {"float32": LIMITS}
    made.rows = [
        compare.Row(LSTM, "infer", 1e-3, {"fastrnn": 2e-3, "torch": 8e-3, "jax": 4e-3}, {"fastrnn": 1e-7}),
        compare.Row(LSTM, "train", 1e-3, {"fastrnn": 2e-3, "torch": 1e-3}, {}, {"jax": "broke"}),
        compare.Row(GRU, "infer", 1e-6, {"fastrnn": 4e-6, "torch": 2e-6}, {}, {"jax": "broke"}),
    ]
    made.complete = True
    return made


# ---- Operations and limits


def test_operations_are_those_of_the_products():
    assert LSTM.flops("infer") == 2 * 2 * 3 * (4 * 7) * (5 + 7)
    assert LSTM.flops("train") == 3 * LSTM.flops("infer")
    assert replace(LSTM, cell="gru").flops("infer") == 2 * 2 * 3 * (3 * 7) * (5 + 7)
    assert replace(LSTM, cell="simple_rnn").flops("infer") == 2 * 2 * 3 * 7 * (5 + 7)
    assert replace(LSTM, bidirectional=True).flops("infer") == 2 * LSTM.flops("infer")
    assert replace(LSTM, layers=2).flops("infer") == 2 * 2 * 3 * (4 * 7) * (5 + 7 + 7 + 7)


def test_padding_is_no_operation():
    ragged = replace(LSTM, ragged=True, B=5, T=40)
    assert ragged.lengths.max() == 40
    assert ragged.flops("infer") == 2 * ragged.lengths.sum() * (4 * 7) * (5 + 7)


def test_activations_are_those_of_the_cell():
    assert LSTM.activations() == 2 * 3 * 7 * 5
    assert GRU.activations() == 1 * 4 * 2 * 3


def test_limit_of_a_workload_that_computes():
    large = replace(LSTM, B=100)
    activations = large.activations() * LIMITS.activation
    assert limits.least_time(LIMITS, large, "infer") == large.flops("infer") / 1e9 + activations
    assert limits.least_time(LIMITS, large, "train") == large.flops("train") / 1e9 + activations


def test_limit_of_a_workload_that_streams_weights():
    quick = replace(LIMITS, flops=1e15, activation=0.0)
    U, W = 4 * 7 * 28, 4 * 5 * 28  # bytes
    assert U < 1000 < U + W
    assert limits.least_time(quick, LSTM, "infer") == (3 * U + W) / 4e9  # U is in the first level
    assert limits.least_time(quick, LSTM, "train") == 2 * (3 * U + W) / 4e9
    step = replace(LSTM, stepwise=True)
    assert limits.least_time(quick, step, "infer") == 3 * (U + W) / 1e9  # U and W are not
    double = replace(LSTM, dtype="float64")
    assert limits.least_time(quick, double, "infer") == 2 * (3 * U + W) / 1e9


def test_cache_sizes_come_from_the_system(tmp_path):
    for index, words in enumerate([("Data", "1", "48K", "0"), ("Instruction", "1", "32K", "0"),
                                   ("Unified", "2", "2M", "0-1"), ("Unified", "3", "1G", "0-3,8-11")]):  # fmt: skip
        (tmp_path / f"index{index}").mkdir()
        for name, word in zip(("type", "level", "size", "shared_cpu_list"), words, strict=True):
            (tmp_path / f"index{index}" / name).write_text(word + "\n")
    assert limits.cache_sizes(tmp_path) == [("L1", 48 << 10, 1), ("L2", 2 << 20, 2), ("L3", 1 << 30, 8)]


def test_without_cache_sizes_usual_ones_are_assumed(tmp_path):
    assert limits.cache_sizes(tmp_path) == limits.ASSUMED


@pytest.mark.parametrize("threads", [1, 2])
def test_limits_are_measured(isa, dtype, threads, monkeypatch):
    monkeypatch.setattr(limits, "cache_sizes", lambda: [("L1", 4096, 1)])
    made = limits.measure(dtype, threads)
    assert (made.isa, made.dtype, made.threads) == (isa, dtype, threads)
    assert [level.name for level in made.levels] == ["L1", "memory"]
    assert min(made.flops, made.barrier, made.activation, *(level.bandwidth for level in made.levels)) > 0
    assert Limits.from_dict(json.loads(json.dumps(made.as_dict()))) == made


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("speed", "float32", 1), "limit must be flops, bandwidth, barrier or activation, got speed"),
        (("flops", "int8", 1), "dtype must be float32 or float64, got int8"),
        (("flops", "float32", 0), "threads must be from 1 to 1024, and bytes at least 1"),
        (("flops", "float32", 2000), "threads must be from 1 to 1024, and bytes at least 1"),
        (("bandwidth", "float32", 8, 2**61), "the sizes of this call exceed the address space"),
        (("bandwidth", "float32", 1, 0), "threads must be from 1 to 1024, and bytes at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        _core.measure_limit(*arguments)


# ---- Workloads


def test_names_of_workloads_differ():
    names = [w.name for w in WORKLOADS]
    assert len(set(names)) == len(names)
    assert {w.name for w in workloads.select(["table"])} > set(workloads.QUICK)


def test_workloads_are_selected_by_group_or_part_of_a_name():
    assert [w.name for w in workloads.select(["stream-gru", "audio"])] == ["audio-step", "stream-gru"]
    assert {w.group for w in workloads.select(["double"])} == {"double"}
    assert "deepbench-huge" not in {w.group for w in workloads.select(["all"])}
    with pytest.raises(ValueError, match=r"must be groups .* or parts of names, got 'nonsense'"):
        workloads.select(["table", "nonsense"])


def test_rows_that_are_not_checked_have_no_gradient(monkeypatch):
    monkeypatch.setattr(workloads, "MOST_OPERATIONS_CHECKED", 1)
    row = replace(LSTM, B=8)
    rows = workloads.checked_rows(row, "train")
    assert rows.tolist() == [0, 4, 7]
    dy = workloads.make_problem(row, "train").dy
    assert np.flatnonzero(np.abs(dy).sum(axis=(1, 2))).tolist() == rows.tolist()
    call = peers.PEERS["fastrnn"].build(row, "train")
    assert workloads.error_of(row, "train", call.answer(), workloads.right_answer(row, "train")) < 1e-5


def test_error_is_relative_to_the_largest_value_of_each_array():
    right = [np.array([[[4.0, 2.0]]]), np.array([[[1.0, 0.0]]])]
    row = replace(GRU, B=1)
    answer = [right[0] + [[[0, 0.4]]], right[1]]
    assert workloads.error_of(row, "infer", answer, right) == pytest.approx(0.1)
    assert np.isnan(workloads.error_of(row, "infer", [right[0] * np.nan, right[1]], right))
    assert not workloads.is_right(row, float("nan"))
    with pytest.raises(ValueError, match="must have shape"):
        workloads.error_of(row, "infer", [right[0][..., :1], right[1]], right)
    with pytest.raises(ValueError, match="must have 2 arrays, got 1"):
        workloads.error_of(row, "infer", right[:1], right)


# ---- Peers

KINDS = {
    "plain": {},
    "both ways": {"bidirectional": True},
    "stack": {"layers": 2},
    "stack both ways": {"layers": 2, "bidirectional": True},
    "stepwise": {"stepwise": True},
    "ragged": {"ragged": True},
    "double": {"dtype": "float64"},
}


@pytest.mark.parametrize("name", peers.PEERS)
def test_answers_of_peers_are_right(name):
    """In a process of its own, so that this one stays without the peers and their threads."""
    if peers.PEERS[name].missing():
        pytest.skip(peers.PEERS[name].missing())
    cells = ["gru"] if name.startswith("keras") else workloads.GATES  # Keras takes a second for each row
    rows = [
        replace(LSTM, name=f"{cell}, {kind}", cell=cell, T=9, B=4, **options)
        for cell in cells
        for kind, options in KINDS.items()
    ]
    results = compared(rows, [name], threads=1)
    assert results.missing == {}
    for row in results.rows:
        allowed = ("infers only", "has no float64")
        assert name in row.times or row.notes[name] in allowed, (row.workload.name, row.mode, row.notes)


# ---- The comparison


def test_comparison_measures_what_is_asked_for():
    results = compared([LSTM, replace(GRU, modes=("infer",))], ["fastrnn"])
    assert [(row.workload.name, row.mode) for row in results.rows] == [
        ("a", "infer"),
        ("a", "train"),
        ("b", "infer"),
    ]
    assert all(row.times["fastrnn"] > 0 and row.errors["fastrnn"] < 1e-5 for row in results.rows)
    assert all(row.limit > 0 for row in results.rows)
    assert results.complete and results.missing == {}


def test_isa_and_threads_reach_the_worker(isa):
    results = compared([LSTM], ["fastrnn"], isa=isa, threads=1, mode="infer")
    assert (results.limits["float32"].isa, results.limits["float32"].threads) == (isa, 1)


def test_missing_peer_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(peers.Torch, "missing", lambda self: "torch is not installed")
    results = compared([LSTM], ["fastrnn", "torch"], mode="infer")
    assert results.missing == {"torch": "torch is not installed"}
    assert list(results.rows[0].times) == ["fastrnn"]
    report.print_table(results)
    assert "PyTorch: torch is not installed" in capsys.readouterr().out


def fake_torch(monkeypatch, tmp_path, code):
    """In the workers, `import torch` runs this code."""
    (tmp_path / "torch.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(peers.Torch, "missing", lambda self: None)


def test_worker_that_dies_is_reported_and_the_others_go_on(monkeypatch, tmp_path, capsys):
    fake_torch(monkeypatch, tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    results = compared([LSTM], ["fastrnn", "torch"], mode="infer")
    assert results.missing == {"torch": "the process ended: SIGSEGV"}
    assert results.complete and results.rows[0].times["fastrnn"] > 0
    report.print_table(results)
    assert "PyTorch: the process ended: SIGSEGV" in capsys.readouterr().out


def test_worker_that_dies_in_a_row_gets_a_new_process_for_the_next(monkeypatch):
    ask = worker.Worker.ask

    def die(self, do, timeout, **arguments):
        if do == "time" and self.peer == "fastrnn" and not killed:
            killed.append(self.pid)
            os.kill(self.pid, signal.SIGKILL)
        return ask(self, do, timeout, **arguments)

    killed = []
    monkeypatch.setattr(worker.Worker, "ask", die)
    results = compared([LSTM, GRU], ["fastrnn"], mode="infer")
    assert results.rows[0].notes == {"fastrnn": "the process ended: SIGKILL"}
    assert results.rows[0].times == {}
    assert results.rows[1].times["fastrnn"] > 0


def test_worker_that_fails_says_why(monkeypatch, tmp_path):
    fake_torch(monkeypatch, tmp_path, "raise RuntimeError('libtorch is broken')")
    assert compared([LSTM], ["fastrnn", "torch"], mode="infer").missing == {
        "torch": "RuntimeError: libtorch is broken"
    }


def test_worker_that_hangs_is_reported(monkeypatch, tmp_path):
    fake_torch(monkeypatch, tmp_path, "import time; time.sleep(1000)")
    monkeypatch.setattr(compare, "TIMEOUT", 1)
    workers = {}
    reason = compare._load(workers, "torch", settings([LSTM], ["torch"]), empty_results())
    assert reason == "no answer within 1 s"
    assert workers == {}


def test_wrong_answer_is_no_result(monkeypatch):
    monkeypatch.setattr(compare, "right_answer", lambda workload, mode: [np.ones((2, 3, 7))])
    row = compared([LSTM], ["fastrnn"], mode="infer").rows[0]
    assert row.times == {}
    assert row.notes["fastrnn"].startswith("wrong answer: error ")


def test_workload_without_enough_memory_is_left_out(monkeypatch):
    monkeypatch.setattr(compare, "available_memory", lambda: 1e3)
    row = compared([LSTM], ["fastrnn"], mode="infer").rows[0]
    assert row.notes["fastrnn"].startswith("may need ")


def test_calls_are_counted_and_timed():
    ran = []
    best, calls = worker.shortest(lambda: ran.append(1), 0.0)
    assert 0 < best < 1
    assert 0 < calls < len(ran)  # those to warm up don't count


def test_workers_end_with_their_parent():
    code = """
    import os
    from fastrnn.benchmark.worker import Worker
    one = Worker("fastrnn", 1)
    one.ask("load", 60)
    print(one.pid, flush=True)
    os._exit(0)
    """
    script = "\n".join(line.strip() for line in code.splitlines())
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert gone(int(done.stdout)), done.stderr


def gone(pid, seconds=20):
    """Whether the process ends within so many seconds."""
    for _ in range(int(seconds / 0.05)):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_ctrl_c_leaves_no_process(tmp_path):
    file = tmp_path / "results.json"
    command = [sys.executable, "-m", "fastrnn", "bench", "--workloads", "imdb-rnn", "--peers", "fastrnn",
               "--seconds", "1000", "--threads", "1", "--json", str(file)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    children = []
    while not children and process.poll() is None:
        time.sleep(0.1)
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        children = [int(pid) for pid in listed.split()]
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED, err
    assert "it was stopped" in out
    assert children and all(gone(pid) for pid in children)
    assert json.loads(file.read_text())["complete"] is False


# ---- What comes of it


def test_ratio_share_and_means(results):
    row = results.rows[0]
    assert (row.best_peer, row.ratio("jax"), row.ratio("torch"), row.share) == ("jax", 2, 4, 0.5)
    assert row.flop_rate == LSTM.flops("infer") / 2e-3
    assert results.mean_ratio("infer") == (pytest.approx(1.0), 2)  # 2 and 1/2
    assert results.mean_ratio("infer", "torch") == (pytest.approx(2**0.5), 2)
    assert results.mean_ratio("train", "jax") is None


def test_table(results, capsys):
    report.print_table(results)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= report.WIDTH
    lines = [line.split() for line in out.splitlines()]
    assert "a 2 3 5 7 infer 2.00 0.0 50% JAX 4.00 2.00".split() in [line for line in lines]
    assert "a 2 3 5 7 train 2.00 0.0 50% PyTorch 1.00 0.50".split() in lines
    assert "OpenVINO: openvino is not installed" in out
    assert "JAX: broke (a train, b infer)" in out


def test_the_table_says_why_rows_may_be_beyond_the_limit(results, capsys):
    assert "100 %" not in report.markdown(results)
    results.rows[0].limit = results.rows[0].times["fastrnn"] * 1.01
    line = f"More than 100 % of the limit ({results.rows[0].workload.name} infer): a part of weights that are too many"
    assert f"- {line}" in report.markdown(results)
    report.print_table(results)
    assert line in " ".join(capsys.readouterr().out.split())


def test_markdown_has_the_times_of_every_peer(results):
    text = report.markdown(results)
    assert "| a | 2 3 5 7 | infer | 2.00 | 0.0 | 50% | 2.00 | 8.00 | **4.00** |" in text
    assert "- Versions: fastrnn 1, torch 2, jax 3" in text
    assert "- Command: `fastrnn bench`" in text


def test_json_keeps_everything(results, tmp_path):
    file = tmp_path / "results.json"
    results.save(file)
    assert compare.Results.read(file) == results
    data = json.loads(file.read_text())["rows"][0]
    assert (data["flops"], data["share"], data["ratio"]) == (LSTM.flops("infer"), 0.5, 2)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"rows": [], "limits": {}}'])
def test_other_files_are_no_results(text, tmp_path):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match="must be what `fastrnn bench --json` wrote"):
        compare.Results.read(tmp_path / "other.json")


def test_charts_are_drawn(results, tmp_path):
    plots = pytest.importorskip("fastrnn.benchmark.plots")
    assert [path.name for path in plots.draw(results, tmp_path)] == ["ratios.png", "limits.png"]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("ratios.png", "limits.png"))


def test_without_results_no_chart_is_drawn(tmp_path):
    plots = pytest.importorskip("fastrnn.benchmark.plots")
    assert plots.draw(empty_results(), tmp_path) == []


# ---- The command line


def test_list_is_what_the_cpp_benchmark_reads(capsys):
    assert cli.main(["bench", "--list", "--workloads", "imdb-lstm,double"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("lstm 32 100 16 32 float32 imdb-lstm table ")
    assert [line.split()[5] for line in lines[1:]] == ["float64"] * 3


def test_report_of_an_earlier_run(results, tmp_path, capsys):
    file = tmp_path / "results.json"
    results.save(file)
    arguments = ["--json", str(tmp_path / "copy.json"), "--markdown", str(tmp_path / "table.md")]
    assert cli.main(["bench", "--read", str(file), "--charts", str(tmp_path), *arguments]) == 0
    assert (tmp_path / "copy.json").read_text() == file.read_text()
    assert (tmp_path / "table.md").read_text() == report.markdown(results)
    assert f"drawn: {tmp_path / 'ratios.png'}" in capsys.readouterr().out


def test_rows_of_an_earlier_run_are_selected(results, tmp_path):
    file, copy = tmp_path / "results.json", tmp_path / "copy.json"
    results.rows = [
        replace(row, workload=replace(row.workload, name="imdb-lstm")) for row in results.rows[:2]
    ]
    results.save(file)
    arguments = ["bench", "--read", str(file), "--json", str(copy)]
    for options, modes in [
        (["--mode", "train"], ["train"]),
        (["--workloads", "table"], ["infer", "train"]),
        (["--workloads", "double"], []),
    ]:
        assert cli.main([*arguments, *options]) == 0
        assert [row["mode"] for row in json.loads(copy.read_text())["rows"]] == modes


@pytest.mark.parametrize("option", ["--threads", "--isa", "--rounds", "--seconds", "--peers"])
@pytest.mark.parametrize("other", [["--list"], ["--read", "results.json"]])
def test_arguments_without_a_meaning_are_refused(option, other, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", *other, option, "1"])
    assert end.value.code == 2
    assert f"argument {option}: not allowed with {other[0]}, which doesn't measure" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--workloads", "nonsense"], "argument --workloads: must be groups"),
        (["--workloads", ","], "argument --workloads: must name a workload, got none"),
        (["--peers", "numpy"], "argument --peers: must be some of fastrnn, torch, "),
        (["--threads", "0"], "argument --threads: must be a positive integer, got 0"),
        (["--threads", "100000"], "argument --threads: must be from 1 to "),
        (["--isa", "mmx"], "argument --isa: must be one of "),
        (["--seconds", "-1"], "argument --seconds: must be a number greater than 0, got -1"),
        (["--rounds", "0"], "argument --rounds: must be a positive integer, got 0"),
        (["--json", "no/such/folder.json"], "argument --json: must be a file in an existing folder, got no"),
        (["--markdown", "."], "argument --markdown: must be a file in an existing folder, got ."),
        (["--charts", "no/such/folder"], "argument --charts: must be an existing folder, got no/such/folder"),
        (["--read", "no/such/file"], "argument --read: "),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("package", ["rich", "tqdm", "matplotlib"])
def test_missing_package_is_named_with_its_extra(package, tmp_path):
    code = f"import sys; sys.modules[{package!r}] = None; from fastrnn import cli; sys.exit(cli.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "bench", "--charts", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr == f'fastrnn bench: needs {package}; run: pip install "fastrnn[bench]"\n'
