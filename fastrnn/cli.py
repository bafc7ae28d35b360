"""The command line: `fastrnn`, or `python -m fastrnn`.

What a command needs beyond NumPy is imported when the command runs.
"""

import argparse
import io
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import fastrnn

INTERRUPTED = 130  # the exit status of a program ended by Ctrl-C: 128 + SIGINT

DEMO = """\
Train a character-level language model on English text, in about a minute on two cores: a recurrent layer of
fastrnn, with a softmax head and Adam in NumPy. Prints the loss in bits per character, a generated text, and
the time of a training step beside that of the NumPy reference and, if it is installed, of PyTorch; draws the
learning curve. Its source, fastrnn/demo.py, shows how to train with fastrnn."""

DEMO_END = """\
The same seed gives the same model and text on one machine, with any number of threads (OMP_NUM_THREADS sets
it). Ctrl-C ends the training: the model so far is validated, sampled and plotted, and the exit status is 130.
A second Ctrl-C ends the program at once."""


BENCH = """\
Compare fastrnn with the other libraries that are installed: PyTorch, ONNX Runtime, OpenVINO, JAX, Keras on
JAX and on TensorFlow. Each runs in a process of its own, only one of them at any time, in interleaved rounds;
the shortest time of each counts. Every answer is checked against the NumPy reference. Measures the machine's
limits, and prints a table: time, GFLOP/s, share of the limit, and ratio to the best peer. A ratio above 1 means
that fastrnn is faster."""

BENCH_END = """\
The table's workloads take about ten minutes, --quick less than one. Close other programs meanwhile. Ctrl-C
ends it: what is measured so far is printed and written, and the exit status is 130."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; None: those of this process.

    Returns:
        The exit status: 0; 130 after Ctrl-C; 1 when a package is missing or nobody reads the output.

    Raises:
        SystemExit: As argparse does: 2 after a wrong argument, 0 after --help and --version.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A text may hold characters that the terminal's encoding lacks; a log is read while it grows.
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        fastrnn.get_isa()
    except ValueError as error:  # a wrong FASTRNN_ISA
        parser.error(str(error))
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("\naborted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # as in `fastrnn demo | head`; what follows keeps Python from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastrnn", description="The CPU engine for recurrent neural networks."
    )
    parser.add_argument("--version", action="version", version=f"fastrnn {fastrnn.__version__}")
    parser.set_defaults(run=_help, parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    about = "version, instruction sets, threads and compiler of this installation"
    info = commands.add_parser("info", help=about, description=f"Print {about}.")
    info.set_defaults(run=_info)

    about = "train a character-level language model in about a minute"
    demo = commands.add_parser("demo", help=about, description=DEMO, epilog=DEMO_END)
    demo.set_defaults(run=_demo, parser=demo)
    add = demo.add_argument
    add("--cell", choices=["rnn", "lstm", "gru"], default="lstm", help="the layer (default: %(default)s)")
    add("--steps", type=_positive, default=1400, metavar="N", help="training steps (default: %(default)s)")
    add("--units", type=_positive, default=256, metavar="N", help="units of the layer (default: %(default)s)")
    add(
        "--text",
        type=Path,
        metavar="FILE",
        help="UTF-8 text to learn (default: the topics of Python's help())",
    )
    add(
        "--seed", type=_natural, default=0, metavar="N", help="of weights and sampling (default: %(default)s)"
    )
    add(
        "--temperature",
        type=_above_zero,
        default=0.7,
        metavar="X",
        help="of the generated text: near 0 the likeliest characters, 1 as learned (default: %(default)s)",
    )
    add("--sample-length", type=_natural, default=400, metavar="N", help="characters (default: %(default)s)")
    add(
        "--plot",
        type=Path,
        default=Path("learning_curve.png"),
        metavar="PATH",
        help="where the learning curve goes, as PNG (default: %(default)s)",
    )
    add("--no-plot", dest="plot", action="store_const", const=None, help="draw no learning curve")

    about = "compare fastrnn with other libraries on this machine"
    bench = commands.add_parser("bench", help=about, description=BENCH, epilog=BENCH_END)
    bench.set_defaults(run=_bench, parser=bench)
    add = bench.add_argument
    add("--quick", action="store_true", help="less than a minute: few workloads, peers that start quickly")
    add(
        "--workloads",
        metavar="NAMES",
        help='groups or parts of names, with commas; "all": every group but deepbench-huge (default: table)',
    )
    add("--peers", metavar="NAMES", help="with commas; fastrnn takes part always (default: all)")
    add("--mode", choices=["infer", "train", "all"], help="(default: all)")
    add("--threads", type=_positive, metavar="N", help="of each library (default: all processors)")
    add("--isa", metavar="NAME", help="instruction set of fastrnn (default: the best one)")
    add("--dtype", choices=["float32", "float64"], help="of all workloads (default: that of each)")
    add("--rounds", type=_positive, metavar="N", help="rounds of each workload (default: 5, quick: 2)")
    add("--seconds", type=_above_zero, metavar="X", help="per peer and round (default: 0.2, quick: 0.1)")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add("--markdown", type=Path, metavar="FILE", help="write a table with the times of every peer")
    add("--charts", type=Path, metavar="FOLDER", help="draw ratios.png and limits.png there")
    add("--read", type=Path, metavar="FILE", help="report what an earlier --json wrote")
    add("--list", action="store_true", help="print the workloads: cell B T I H dtype name group source")
    return parser


def _help(arguments: argparse.Namespace) -> int:
    arguments.parser.print_help()
    return 0


def _info(arguments: argparse.Namespace) -> int:
    fastrnn.show_config()
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    error = arguments.parser.error
    try:
        from fastrnn import demo
    except ModuleNotFoundError as missing:
        return _needs("demo", missing, ("rich", "threadpoolctl", "tqdm"))
    if arguments.plot is not None and (arguments.plot.is_dir() or not arguments.plot.parent.is_dir()):
        error(f"argument --plot: must be a file in an existing folder, got {arguments.plot}")
    try:
        name, text = demo.read_text(arguments.text)
    except (OSError, ValueError) as reason:
        error(f"argument --text: {reason}")
    try:
        history = demo.run(
            name,
            text,
            cell=arguments.cell,
            steps=arguments.steps,
            units=arguments.units,
            seed=arguments.seed,
            temperature=arguments.temperature,
            sample_length=arguments.sample_length,
            plot_path=arguments.plot,
        )
    except MemoryError:
        error(f"argument --units: {arguments.units:,} need more memory than there is")
    return INTERRUPTED if history.stopped else 0


def _bench(arguments: argparse.Namespace) -> int:
    try:
        from fastrnn.benchmark import command
    except ModuleNotFoundError as missing:
        return _needs("bench", missing, ("rich", "tqdm"))
    try:
        return INTERRUPTED if command.run(arguments) else 0
    except command.WrongArgument as error:
        parser: argparse.ArgumentParser = arguments.parser
        parser.error(str(error))
    except ModuleNotFoundError as missing:
        return _needs("bench", missing, ("matplotlib",))


def _needs(command: str, missing: ModuleNotFoundError, packages: Sequence[str]) -> int:
    """Say that an optional package is missing; raise the error again if it isn't one of these."""
    package = (missing.name or "").split(".")[0]
    if package not in packages:
        raise missing
    print(f'fastrnn {command}: needs {package}; run: pip install "fastrnn[{command}]"', file=sys.stderr)
    return 1


def _positive(value: str) -> int:
    return _integer(value, 1, "a positive integer")


def _natural(value: str) -> int:
    return _integer(value, 0, "a non-negative integer")


def _integer(value: str, least: int, what: str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"must be {what}, got {value}")
    return number


def _above_zero(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number greater than 0, got {value}")
    return number
