"""The command line: what it prints, what it refuses, and how it ends."""

import fcntl
import os
import signal
import struct
import subprocess
import sys
import sysconfig
import termios
from pathlib import Path

import pytest

import fastrnn
from fastrnn import cli, demo

MODULE = [sys.executable, "-m", "fastrnn"]
SCRIPT = [str(Path(sysconfig.get_path("scripts"), "fastrnn"))]
TINY = ["--units", "4", "--steps", "2", "--no-plot"]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # all is small here


def run(command, **options):
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=ONE_THREAD, **options)


def without(packages):
    """The command line as Python code, where these packages can't be imported."""
    start = "from fastrnn import cli; sys.exit(cli.main(sys.argv[1:]))"
    return f"import sys; sys.modules.update(dict.fromkeys({packages})); {start}"


def run_without(packages, arguments, **options):
    """Runs the command line in a process where these packages can't be imported."""
    return run([sys.executable, "-c", without(packages), *arguments], **options)


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "fox.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    return str(path)


# ---- Help, version, info


@pytest.mark.parametrize(
    "arguments", [["--version"], ["info"], [], ["--help"], ["demo", "--help"], ["nothing"]]
)
def test_script_and_module_agree(arguments):
    script, module = run(SCRIPT + arguments), run(MODULE + arguments)
    assert script.returncode == module.returncode
    assert (script.stdout, script.stderr) == (module.stdout, module.stderr)


def test_module_works_in_the_root_of_a_checkout():
    done = run([*MODULE, "--version"], cwd=Path(__file__).parents[1])
    assert (done.returncode, done.stdout) == (0, f"fastrnn {fastrnn.__version__}\n")


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"fastrnn {fastrnn.__version__}\n"


def test_no_command_prints_help(capsys):
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: fastrnn")
    assert "info" in out and "demo" in out


def test_info_prints_versions_instruction_sets_threads_and_compiler(capsys):
    assert cli.main(["info"]) == 0
    lines = dict(
        line.split(None, 1)
        if line.startswith(("fastrnn", "threads", "compiler"))
        else (line[:26].strip(), line[27:])
        for line in capsys.readouterr().out.splitlines()
    )
    assert lines["fastrnn"] == fastrnn.__version__
    assert lines["instruction sets compiled"].split() == fastrnn.compiled_isas()
    assert lines["instruction sets available"].split() == fastrnn.available_isas()
    assert lines["instruction set in use"] == fastrnn.get_isa()
    assert lines["threads"] == str(fastrnn.get_num_threads())
    assert lines["compiler"]


def test_command_line_imports_no_package_but_numpy():
    packages = {"rich", "tqdm", "matplotlib", "torch"}
    code = f"import sys; from fastrnn import cli; cli.main(['info']); print({packages} & set(sys.modules))"
    assert run([sys.executable, "-c", code]).stdout.endswith("\nset()\n")


# ---- What demo refuses


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--steps", "0"], "argument --steps: must be a positive integer, got 0"),
        (["--steps", "ten"], "argument --steps: must be a positive integer, got ten"),
        (["--units", "-1"], "argument --units: must be a positive integer, got -1"),
        (["--units", "1.5"], "argument --units: must be a positive integer, got 1.5"),
        (["--units", str(10**9)], "argument --units: 1,000,000,000 need more memory than there is"),
        (["--seed", "-1"], "argument --seed: must be a non-negative integer, got -1"),
        (["--sample-length", "-1"], "argument --sample-length: must be a non-negative integer, got -1"),
        (["--temperature", "0"], "argument --temperature: must be a number greater than 0, got 0"),
        (["--temperature", "nan"], "argument --temperature: must be a number greater than 0, got nan"),
        (["--temperature", "inf"], "argument --temperature: must be a number greater than 0, got inf"),
        (["--temperature", "hot"], "argument --temperature: must be a number greater than 0, got hot"),
        (["--cell", "qrnn"], "argument --cell: invalid choice: 'qrnn'"),
        (
            ["--plot", "no/such/folder.png"],
            "argument --plot: must be a file in an existing folder, got no/such/folder.png",
        ),
        (["--plot", "."], "argument --plot: must be a file in an existing folder, got ."),
    ],
)
def test_wrong_argument_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["demo", *arguments])
    assert end.value.code == 2
    assert f"fastrnn demo: error: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "No such file or directory: '{path}'"),
        (b"", "{path} must have at least 1,000 characters, got 0"),
        (b"too short", "{path} must have at least 1,000 characters, got 9"),
        (b"x" * 2000 + b"\xff", "{path} must be UTF-8 text, but byte 2000 isn't"),
        (bytes(2000), "{path} must be text, but it has zero bytes; is it a binary file?"),
    ],
)
def test_unusable_text_is_refused(content, message, tmp_path, capsys):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as end:
        cli.main(["demo", "--text", str(path)])
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert "fastrnn demo: error: argument --text: " in err
    assert message.format(path=path) in err


def test_folder_as_text_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["demo", "--text", str(tmp_path)])
    assert end.value.code == 2
    assert "Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["rich", "threadpoolctl", "tqdm"])
def test_missing_package_of_the_demo_is_named(package, text_file):
    done = run_without([package], ["demo", "--text", text_file, *TINY])
    assert done.returncode == 1
    assert done.stderr.startswith(f"fastrnn demo: needs {package}")
    assert 'pip install "fastrnn[demo]"' in done.stderr
    assert "Traceback" not in done.stderr


# ---- How demo runs


def test_arguments_reach_the_demo(monkeypatch, text_file, tmp_path):
    seen = {}

    def fake_run(name, text, **options):
        seen.update(options, name=name, text=text)
        return demo.History()

    monkeypatch.setattr(demo, "run", fake_run)
    options = ["--cell", "gru", "--steps", "7", "--units", "8", "--seed", "9", "--temperature", "0.5"]
    plot = ["--sample-length", "11", "--plot", str(tmp_path / "curve.png")]
    assert cli.main(["demo", "--text", text_file, *options, *plot]) == 0
    assert seen.pop("text").startswith("The quick brown fox")
    assert seen == {
        "name": "fox.txt",
        "cell": "gru",
        "steps": 7,
        "units": 8,
        "seed": 9,
        "temperature": 0.5,
        "sample_length": 11,
        "plot_path": tmp_path / "curve.png",
    }


def test_missing_matplotlib_costs_the_plot_alone(text_file, tmp_path):
    done = run_without(["matplotlib", "torch"], ["demo", "--text", text_file, *TINY[:4]], cwd=tmp_path)
    assert done.returncode == 0
    assert 'No learning curve: matplotlib is not installed; run: pip install "fastrnn[demo]"' in done.stdout
    assert "PyTorch is not installed, not compared." in done.stdout
    assert "ms per step" in done.stdout
    assert done.stderr == ""
    assert not (tmp_path / "learning_curve.png").exists()


def interruptible(text_file, tmp_path, *options):
    """Starts a demo that would take long, and reads on until it has trained for a while."""
    arguments = ["demo", "--text", text_file, "--units", "4", "--steps", "5000", *options]
    process = subprocess.Popen(
        MODULE + arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=ONE_THREAD,
    )
    read_until(process, "  step ")
    return process


def read_until(process, start):
    for line in process.stdout:
        if line.startswith(start):
            return
    raise AssertionError(process.stderr.read())


def test_interrupt_ends_with_what_there_is(text_file, tmp_path):
    with interruptible(text_file, tmp_path) as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == cli.INTERRUPTED
    assert err == ""
    for part in (
        "  stopped after ",
        "\nValidation: ",
        "A sample ",
        "The learning curve is in learning_curve.png",
    ):
        assert part in out
    assert "ms per step" not in out
    assert (tmp_path / "learning_curve.png").exists()


def test_second_interrupt_aborts(text_file, tmp_path):
    with interruptible(text_file, tmp_path, "--sample-length", "10000000") as process:
        process.send_signal(signal.SIGINT)
        read_until(process, "  stopped after ")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == cli.INTERRUPTED
    assert err == "\naborted\n"
    assert "A sample" not in out


def test_closed_output_ends_quietly(text_file, tmp_path):
    with interruptible(text_file, tmp_path) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_progress_bar_is_drawn_on_a_terminal_alone(text_file):
    terminal, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    arguments = ["demo", "--text", text_file, *TINY, "--sample-length", "0"]
    command = [sys.executable, "-c", without(["torch"]), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=end, text=True, env=ONE_THREAD) as process:
        os.close(end)
        out = process.stdout.read()
        drawn = os.read(terminal, 10000).decode()
    os.close(terminal)
    assert process.returncode == 0
    assert "steps" in drawn and "bits per character" in drawn
    assert "\r" not in out and "\x1b" not in out
    assert len(out.splitlines()) < 30


def test_a_wrong_instruction_set_in_the_environment_is_named(run_python):
    code = """
    import subprocess, sys
    done = subprocess.run([sys.executable, "-m", "fastrnn", "info"], capture_output=True, text=True)
    print(done.returncode, "Traceback" in done.stderr, "got 'mmx'" in done.stderr)
    """
    assert run_python(code, FASTRNN_ISA="mmx") == "2 False True\n"
