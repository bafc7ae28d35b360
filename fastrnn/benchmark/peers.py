"""The peers: fastrnn and other libraries, each behind the same small interface.

A peer is built for one workload and mode, and gives a `Call`: a function that computes, with inputs ready in the
peer's own arrays and results left in them, and one that runs it once and hands out its answer. Each is used as
its makers advise for speed; how is said in its class. A library is imported when its peer is loaded.
"""

from __future__ import annotations

import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

import fastrnn
from fastrnn import functional
from fastrnn.benchmark.workloads import GATES, STATES, Array, Cell, Problem, Workload, make_problem


class Unsupported(Exception):
    """The peer can't do this workload; the message says why."""


class Call(NamedTuple):
    """A peer's computation of one workload."""

    run: Callable[[], Any]
    """Computes once; returns when all is done."""
    answer: Callable[[], list[Array]]
    """Computes once and returns what `workloads.right_answer` does, for all rows of the batch."""


class Peer(ABC):
    """One library that computes the workloads."""

    name: str
    label: str
    packages: tuple[str, ...]  # the distributions whose versions are reported, the imported one first
    module: str
    modes: tuple[str, ...] = ("infer", "train")
    dtypes: tuple[str, ...] = ("float32", "float64")
    environment: dict[str, str] = {}  # noqa: RUF012 - set in the process before the library is imported

    def missing(self) -> str | None:
        """Return why the peer can't be used here, or None."""
        if importlib.util.find_spec(self.module) is None:
            return f"{self.module} is not installed"
        return None

    def load(self, threads: int) -> None:
        """Import the library and let it use so many threads."""
        for name, value in self.environment.items():
            if os.environ.setdefault(name, value) != value:
                raise Unsupported(f"needs {name}={value}, but this process has {os.environ[name]}")
        self._load(threads)

    def versions(self) -> dict[str, str]:
        """Return the versions of `packages`."""
        return {package: version(package) for package in self.packages}

    def build(self, workload: Workload, mode: str) -> Call:
        """Prepare a workload.

        Raises:
            Unsupported: The peer can't do it.
        """
        if mode not in self.modes:
            raise Unsupported("infers only")
        if workload.dtype not in self.dtypes:
            raise Unsupported(f"has no {workload.dtype}")
        problem = make_problem(workload, mode)
        return (
            self._stepwise(workload, problem)
            if workload.stepwise and mode == "infer"
            else self._whole(workload, mode, problem)
        )

    @abstractmethod
    def _load(self, threads: int) -> None: ...

    @abstractmethod
    def _whole(self, workload: Workload, mode: str, problem: Problem) -> Call:
        """All time steps in one call."""

    @abstractmethod
    def _stepwise(self, workload: Workload, problem: Problem) -> Call:
        """One call per time step, the states handed in and out."""


def zero_states(workload: Workload) -> list[Array]:
    """Return states [B, H] of zeros."""
    return [np.zeros((workload.B, workload.H), workload.dtype) for _ in range(STATES[workload.cell])]


def steps_of(x: Array) -> list[Array]:
    """Return the time steps [B, I] of x [B, T, I], each contiguous."""
    return [np.ascontiguousarray(x[:, t]) for t in range(x.shape[1])]


def stack_steps(ys: list[Any]) -> list[Array]:
    """Return the answer [y] of a stepwise call that gave these outputs [B, H]."""
    return [np.stack([np.asarray(y) for y in ys], axis=1)]


def time_major(array: Array) -> Array:
    """Return [B, T, ...] as a contiguous [T, B, ...], or back."""
    return np.ascontiguousarray(array.swapaxes(0, 1))


# ---- fastrnn


class Fastrnn(Peer):
    """Layers with return_sequences; to train, the functional layer, with weights packed anew. Stepwise: `step`.

    Bidirectional is two layers, one of them with go_backwards, a stack is one layer after the other.
    """

    name = label = module = "fastrnn"
    packages = ("fastrnn", "numpy")

    def _load(self, threads: int) -> None:
        fastrnn.set_num_threads(threads)

    def _layer(self, workload: Workload, cell: Cell, go_backwards: bool) -> Any:
        layer_class: Any = {"simple_rnn": fastrnn.SimpleRNN, "lstm": fastrnn.LSTM, "gru": fastrnn.GRU}[
            workload.cell
        ]
        layer = layer_class(
            workload.H, return_sequences=True, go_backwards=go_backwards, dtype=workload.dtype
        )
        layer.build((None, None, len(cell[0])))
        layer.set_weights(cell)
        return layer

    def _whole(self, workload: Workload, mode: str, problem: Problem) -> Call:
        stack = [
            [self._layer(workload, cell, direction == 1) for direction, cell in enumerate(layer)]
            for layer in problem.weights
        ]
        x, dy, weights = problem.x, problem.dy, problem.weights
        options: dict[str, Any] = {}
        if workload.ragged:
            options["mask"] = problem.valid[..., 0] != 0
        join, name = workload.bidirectional, workload.cell

        def infer() -> Any:
            y = x
            for layer in stack:
                outputs = [one(y, **options) for one in layer]
                y = np.concatenate([outputs[0], outputs[1][:, ::-1]], -1) if join else outputs[0]
            return y

        # As of the peers: the gradients of x and the weights.
        back = partial(functional.run_backward, with_initial_state=False)

        def train() -> Any:
            y, tapes = x, []
            for cells in weights:
                outputs: list[Any] = []
                for direction, cell in enumerate(cells):
                    packed = functional.Weights(name, *cell)
                    output, tape = functional.run_forward(
                        packed, y, return_sequences=True, go_backwards=direction == 1, **options
                    )
                    outputs.append(output)
                    tapes.append(tape)
                y = np.concatenate([outputs[0], outputs[1][:, ::-1]], -1) if join else outputs[0]
            d = dy
            gradients: list[Array] = []
            for _ in stack:
                if join:
                    backward, forward = tapes.pop(), tapes.pop()
                    half = d.shape[-1] // 2
                    one = back(d[..., :half], forward)
                    two = back(d[:, ::-1, half:], backward)
                    d, gradients = one.x + two.x, [*one.weights, *two.weights, *gradients]
                else:
                    one = back(d, tapes.pop())
                    d, gradients = one.x, [*one.weights, *gradients]
            return y, d, gradients

        # One layer alone is called directly: short calls take as long as what is around them.
        plain = len(stack) == 1 and not join and not options
        one_layer, one_cell = stack[0][0], weights[0][0]

        def train_one() -> Any:
            y, tape = functional.run_forward(functional.Weights(name, *one_cell), x, return_sequences=True)
            gradients = back(dy, tape)
            return y, gradients.x, gradients.weights

        if mode == "infer":
            run: Callable[[], Any] = (lambda: one_layer(x)) if plain else infer
            return Call(run, lambda: [run() * problem.valid])
        run = train_one if plain else train

        def answer() -> list[Array]:
            y, dx, gradients = run()
            return [y * problem.valid, dx, *gradients]

        return Call(run, answer)

    def _stepwise(self, workload: Workload, problem: Problem) -> Call:
        step = self._layer(workload, problem.weights[0][0], False).step
        xs, zeros, buffers = steps_of(problem.x), zero_states(workload), zero_states(workload)

        def run() -> Any:
            states = zeros
            for x_t in xs:
                _, states = step(x_t, states, out=buffers)

        def answer() -> list[Array]:
            states, ys = zeros, []
            for x_t in xs:
                y, states = step(x_t, states, out=buffers)
                ys.append(y.copy())
            return stack_steps(ys)

        return Call(run, answer)


# ---- PyTorch


def swap_gru_gates(cell: str, array: Array) -> Array:
    """Return columns z r n as r z n and back, for GRU; those of the other cells are alike in Keras and PyTorch."""
    if cell != "gru":
        return array
    z, r, n = np.split(array, 3, axis=-1)
    return np.concatenate([r, z, n], axis=-1)


class Torch(Peer):
    """torch.nn.RNN, LSTM or GRU, time first, as one module for all layers and directions.

    Inference runs under inference_mode; ragged batches are PackedSequences, packed beforehand.
    """

    name, label, module, packages = "torch", "PyTorch", "torch", ("torch",)

    def _load(self, threads: int) -> None:
        self.torch: Any = import_module("torch")
        self.torch.set_num_threads(threads)

    def _module(self, workload: Workload, problem: Problem) -> Any:
        torch, nn = self.torch, self.torch.nn
        module = {"simple_rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[workload.cell](
            workload.I,
            workload.H,
            num_layers=workload.layers,
            bidirectional=workload.bidirectional,
            dtype=getattr(torch, workload.dtype),
        )
        values = []
        for layer in problem.weights:
            for cell in layer:
                kernel, recurrent_kernel, bias = (swap_gru_gates(workload.cell, w) for w in cell)
                biases = list(bias) if workload.cell == "gru" else [bias, np.zeros_like(bias)]
                values += [kernel.T, recurrent_kernel.T, *biases]
        with torch.no_grad():
            for parameter, value in zip(module.parameters(), values, strict=True):
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
        return module

    def _gradients(self, workload: Workload, module: Any) -> list[Array]:
        gradients = [p.grad.numpy() for p in module.parameters()]
        answer = []
        for first in range(0, len(gradients), 4):
            kernel, recurrent_kernel, *biases = gradients[first : first + 4]
            bias = np.stack(biases) if workload.cell == "gru" else biases[0]
            answer += [swap_gru_gates(workload.cell, w) for w in (kernel.T, recurrent_kernel.T, bias)]
        return answer

    def _whole(self, workload: Workload, mode: str, problem: Problem) -> Call:
        torch, rnn = self.torch, self.torch.nn.utils.rnn
        module = self._module(workload, problem)
        x, dy = (torch.from_numpy(time_major(a)) for a in (problem.x, problem.dy))
        given, leaf = x, x
        if workload.ragged:
            lengths = torch.from_numpy(workload.lengths)
            given = rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
            dy = rnn.pack_padded_sequence(dy, lengths, enforce_sorted=False).data
            leaf = given.data

        def padded(data: Any) -> Array:
            """[B, T, ...] of what is packed or time-major."""
            if workload.ragged:
                packed = rnn.PackedSequence(
                    data, given.batch_sizes, given.sorted_indices, given.unsorted_indices
                )
                data, _ = rnn.pad_packed_sequence(packed, total_length=workload.T)
            array: Array = data.detach().numpy().swapaxes(0, 1)
            return array

        def infer() -> Any:
            with torch.inference_mode():
                return module(given)[0]

        def output(y: Any) -> Any:
            return y.data if workload.ragged else y

        if mode == "infer":
            return Call(infer, lambda: [padded(output(infer()))])
        leaf.requires_grad_()
        parameters = list(module.parameters())

        def train() -> Any:
            for parameter in parameters:
                parameter.grad = None
            leaf.grad = None
            y = output(module(given)[0])
            y.backward(dy)
            return y

        def answer() -> list[Array]:
            y = train()
            return [padded(y), padded(leaf.grad), *self._gradients(workload, module)]

        return Call(train, answer)

    def _stepwise(self, workload: Workload, problem: Problem) -> Call:
        torch = self.torch
        module = self._module(workload, problem)
        xs = [torch.from_numpy(x)[None] for x in steps_of(problem.x)]
        zeros = [torch.from_numpy(s)[None] for s in zero_states(workload)]
        first = tuple(zeros) if workload.cell == "lstm" else zeros[0]

        def run() -> Any:
            states, ys = first, []
            with torch.inference_mode():
                for x in xs:
                    y, states = module(x, states)
                    ys.append(y)
            return ys

        return Call(run, lambda: stack_steps([y[0] for y in run()]))


# ---- ONNX: one model for ONNX Runtime and OpenVINO


class Graph(NamedTuple):
    """An ONNX model and what to feed it."""

    model: bytes
    feeds: dict[str, Array]
    states: int  # how many of the last outputs (and inputs, for stepwise) are states


def onnx_graph(workload: Workload, problem: Problem) -> Graph:
    """Return a model of LSTM, GRU or RNN nodes, time first, with constant weights.

    Its input is X [T, B, I]; ragged also the lengths; stepwise T = 1 and the states [1, B, H], and then its only
    outputs are the states. Else its output is Y [T, directions, B, H] of the last layer.
    """
    onnx: Any = import_module("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    element = helper.np_dtype_to_tensor_dtype(np.dtype(workload.dtype))
    stepwise, B, H, D = workload.stepwise, workload.B, workload.H, workload.directions
    T = 1 if stepwise else workload.T
    operator, order = {
        "simple_rnn": ("RNN", [0]),
        "lstm": ("LSTM", [0, 3, 1, 2]),  # Keras i f g o, ONNX i o f g
        "gru": ("GRU", [0, 1, 2]),
    }[workload.cell]

    def gates(array: Array) -> Array:
        """[..., G*H] as [G*H, ...], in ONNX' order."""
        parts = np.split(array, GATES[workload.cell], axis=-1)
        return np.concatenate([parts[gate] for gate in order], axis=-1).T

    def info(name: str, *shape: int, kind: Any = element) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    constants, nodes = [], []
    inputs, feeds = [info("X", T, B, workload.I)], {"X": time_major(problem.x)[:T]}
    lengths = ""
    if workload.ragged:
        lengths = "lengths"
        inputs.append(info(lengths, B, kind=onnx.TensorProto.INT32))
        feeds[lengths] = workload.lengths.astype("int32")
    states = [f"S{i}" for i in range(STATES[workload.cell])] if stepwise else []
    for state, zeros in zip(states, zero_states(workload), strict=False):
        inputs.append(info(state, 1, B, H))
        feeds[state] = zeros[None]
    given = "X"
    for number, layer in enumerate(problem.weights):
        W = np.stack([gates(cell[0]) for cell in layer])  # [D, G*H, I]
        R = np.stack([gates(cell[1]) for cell in layer])  # [D, G*H, H]
        biases = [cell[2] if workload.cell == "gru" else np.stack([cell[2], 0 * cell[2]]) for cell in layer]
        bias = np.stack([np.concatenate([gates(b) for b in pair]) for pair in biases])  # [D, 2*G*H]
        names = [f"{kind}{number}" for kind in "WRB"]
        for name, array in zip(names, (W, R, bias), strict=True):
            constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        options = {"hidden_size": H, "direction": "bidirectional" if D == 2 else "forward"}
        if operator == "GRU":
            options["linear_before_reset"] = 1
        y = f"Y{number}"
        nodes.append(
            helper.make_node(
                operator,
                [given, *names, lengths, *states],
                ["", *(f"new_{state}" for state in states)] if stepwise else [y],
                **options,
            )
        )
        if number + 1 < workload.layers:
            given = f"X{number + 1}"
            constants.append(numpy_helper.from_array(np.array([T, B, D * H], "int64"), f"shape{number}"))
            nodes.append(helper.make_node("Transpose", [y], [f"turned{number}"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"turned{number}", f"shape{number}"], [given]))
    outputs = (
        [info(f"new_{s}", 1, B, H) for s in states]
        if stepwise
        else [info(f"Y{workload.layers - 1}", T, D, B, H)]
    )
    graph = helper.make_graph(nodes, "recurrent", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Graph(model.SerializeToString(), feeds, len(states))


def onnx_answer(problem: Problem, y: Array) -> list[Array]:
    """Return [y] from Y [T, directions, B, H]."""
    T, D, B, H = y.shape
    return [y.transpose(2, 0, 1, 3).reshape(B, T, D * H) * problem.valid]


class OnnxRuntime(Peer):
    """An InferenceSession with so many intra-op threads, and inputs and outputs bound to memory beforehand.

    Stepwise each step has its own binding, whose input states are the output states of the one before.
    """

    name, label, module = "onnxruntime", "ONNX Runtime", "onnxruntime"
    packages = ("onnxruntime", "onnx")
    modes = ("infer",)
    dtypes = ("float32",)

    def missing(self) -> str | None:
        """Return why the peer can't be used here, or None."""
        return super().missing() or (
            "onnx is not installed, which makes its model"
            if importlib.util.find_spec("onnx") is None
            else None
        )

    def _load(self, threads: int) -> None:
        self.ort: Any = import_module("onnxruntime")
        self.threads = threads

    def _session(self, graph: Graph) -> Any:
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        return self.ort.InferenceSession(graph.model, options, providers=["CPUExecutionProvider"])

    def _whole(self, workload: Workload, mode: str, problem: Problem) -> Call:
        graph = onnx_graph(workload, problem)
        session = self._session(graph)
        binding = session.io_binding()
        values = {name: self.ort.OrtValue.ortvalue_from_numpy(array) for name, array in graph.feeds.items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        y = np.empty((workload.T, workload.directions, workload.B, workload.H), workload.dtype)
        output = self.ort.OrtValue.ortvalue_from_numpy(y)
        binding.bind_ortvalue_output(session.get_outputs()[0].name, output)

        def run() -> Any:
            session.run_with_iobinding(binding)
            return output.numpy()

        return Call(lambda: session.run_with_iobinding(binding), lambda: onnx_answer(problem, run()))

    def _stepwise(self, workload: Workload, problem: Problem) -> Call:
        graph = onnx_graph(workload, problem)
        session = self._session(graph)
        make = self.ort.OrtValue.ortvalue_from_numpy
        states = [make(graph.feeds[f"S{i}"]) for i in range(graph.states)]
        bindings, ys = [], []
        for x in steps_of(problem.x):
            binding = session.io_binding()
            binding.bind_ortvalue_input("X", make(x[None]))
            after = [make(np.zeros((1, workload.B, workload.H), workload.dtype)) for _ in states]
            for i, (old, new) in enumerate(zip(states, after, strict=True)):
                binding.bind_ortvalue_input(f"S{i}", old)
                binding.bind_ortvalue_output(f"new_S{i}", new)
            states = after
            bindings.append(binding)
            ys.append(states[0])

        def run() -> Any:
            for binding in bindings:
                session.run_with_iobinding(binding)

        def answer() -> list[Array]:
            run()
            return stack_steps([y.numpy()[0] for y in ys])

        return Call(run, answer)


class OpenVino(OnnxRuntime):
    """The same ONNX model on the CPU, tuned for latency and kept in float32, on inputs set beforehand.

    Stepwise each step has its own request, whose input states are the output states of the one before.
    """

    name, label, module = "openvino", "OpenVINO", "openvino"
    packages = ("openvino", "onnx")

    def _load(self, threads: int) -> None:
        self.ov: Any = import_module("openvino")
        self.threads = threads

    def _compiled(self, graph: Graph) -> Any:
        core = self.ov.Core()
        model = core.read_model(graph.model)
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads,
        }
        return core.compile_model(model, "CPU", settings)

    def _whole(self, workload: Workload, mode: str, problem: Problem) -> Call:
        graph = onnx_graph(workload, problem)
        request = self._compiled(graph).create_infer_request()
        feeds = graph.feeds  # the request refers to this memory, so run() must keep it
        for name, array in feeds.items():
            request.set_tensor(name, self.ov.Tensor(array, shared_memory=True))

        def run(feeds: Any = feeds) -> Any:
            request.infer()

        def answer() -> list[Array]:
            run()
            return onnx_answer(problem, request.get_output_tensor(0).data)

        return Call(run, answer)

    def _stepwise(self, workload: Workload, problem: Problem) -> Call:
        graph = onnx_graph(workload, problem)
        compiled = self._compiled(graph)
        states = [self.ov.Tensor(graph.feeds[f"S{i}"]) for i in range(graph.states)]
        requests, ys = [], []
        for x in steps_of(problem.x):
            request = compiled.create_infer_request()
            request.set_tensor("X", self.ov.Tensor(np.ascontiguousarray(x[None])))
            after = [self.ov.Tensor(np.zeros((1, workload.B, workload.H), workload.dtype)) for _ in states]
            for i, (old, new) in enumerate(zip(states, after, strict=True)):
                request.set_tensor(f"S{i}", old)
                request.set_tensor(f"new_S{i}", new)
            states = after
            requests.append(request)
            ys.append(states[0])

        def run() -> Any:
            for request in requests:
                request.infer()

        def answer() -> list[Array]:
            run()
            return stack_steps([y.data[0] for y in ys])

        return Call(run, answer)


# ---- JAX


def jax_call(
    jax: Any, mode: str, problem: Problem, forward: Callable[[Any, Any], Any], weights: Any, time_first: bool
) -> Call:
    """A function (x, weights) -> y, jitted, to train with its gradients; x, y are [B, T, ...] or time first."""
    x, dy = (jax.numpy.asarray(time_major(a) if time_first else a) for a in (problem.x, problem.dy))

    def gradients(x: Any, weights: Any, dy: Any) -> Any:
        y, pullback = jax.vjp(forward, x, weights)
        return y, pullback(dy)

    infer, train = jax.jit(forward), jax.jit(gradients)
    run: Callable[[], Any] = {
        "infer": lambda: infer(x, weights).block_until_ready(),
        "train": lambda: jax.block_until_ready(train(x, weights, dy)),
    }[mode]

    def answer() -> list[Array]:
        # y; to train also its gradients: of x, then of the weights
        arrays = [np.asarray(a) for a in jax.tree.leaves(run())]
        y, *dx = [a.swapaxes(0, 1) if time_first else a for a in arrays[:2]]
        return [y * problem.valid, *dx, *arrays[2:]]

    return Call(run, answer)


class Jax(Peer):
    """The equations in jax.numpy, jitted: x.W for all steps in one product, then lax.scan over time."""

    name, label, module, packages = "jax", "JAX", "jax", ("jax", "jaxlib")

    def _load(self, threads: int) -> None:
        self.jax: Any = import_module("jax")

    def _cell(self, workload: Workload) -> Any:
        """A function (states, x_t.W + b, U, recurrent bias) -> (states, h)."""
        jnp, sigmoid, cell = self.jax.numpy, self.jax.nn.sigmoid, workload.cell

        def step(states: Any, a_x: Any, U: Any, d: Any) -> Any:
            h = states[0]
            if cell == "simple_rnn":
                h = jnp.tanh(a_x + h @ U)
                return (h,), h
            if cell == "lstm":
                i, f, g, o = jnp.split(a_x + h @ U, 4, axis=-1)
                c = sigmoid(f) * states[1] + sigmoid(i) * jnp.tanh(g)
                h = sigmoid(o) * jnp.tanh(c)
                return (h, c), h
            x_z, x_r, x_n = jnp.split(a_x, 3, axis=-1)
            h_z, h_r, h_n = jnp.split(h @ U + d, 3, axis=-1)
            z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
            h = z * h + (1 - z) * jnp.tanh(x_n + r * h_n)
            return (h,), h

        return step

    def _enable(self, workload: Workload) -> None:
        self.jax.config.update("jax_enable_x64", workload.dtype == "float64")

    def _whole(self, workload: Workload, mode: str, problem: Problem) -> Call:
        self._enable(workload)
        jax, jnp, step = self.jax, self.jax.numpy, self._cell(workload)
        weights = jax.tree.map(jnp.asarray, problem.weights)
        zeros = tuple(jnp.asarray(s) for s in zero_states(workload))

        def direction(x: Any, cell: Any, reverse: bool) -> Any:
            W, U, b = cell
            b, d = b if workload.cell == "gru" else (b, 0)
            return jax.lax.scan(lambda s, a: step(s, a, U, d), zeros, x @ W + b, reverse=reverse)[1]

        def forward(x: Any, weights: Any) -> Any:
            for layer in weights:
                x = jnp.concatenate([direction(x, c, i == 1) for i, c in enumerate(layer)], -1)
            return x

        return jax_call(jax, mode, problem, forward, weights, time_first=True)

    def _stepwise(self, workload: Workload, problem: Problem) -> Call:
        self._enable(workload)
        jax, jnp, step = self.jax, self.jax.numpy, self._cell(workload)
        W, U, b = (jnp.asarray(w) for w in problem.weights[0][0])
        xs = [jnp.asarray(x) for x in steps_of(problem.x)]
        zeros = tuple(jnp.asarray(s) for s in zero_states(workload))

        b, d = b if workload.cell == "gru" else (b, 0)
        one = jax.jit(lambda states, x: step(states, x @ W + b, U, d))

        def run() -> Any:
            states, ys = zeros, []
            for x in xs:
                states, y = one(states, x)
                ys.append(y)
            return jax.block_until_ready(ys)

        return Call(run, lambda: stack_steps(run()))


# ---- Keras


class _Keras(Peer):
    """What the backends of Keras share: its layers, with return_sequences, and Bidirectional."""

    module = "keras"
    backend: str

    def missing(self) -> str | None:
        """Return why the peer can't be used here, or None."""
        if super().missing():
            return super().missing()
        if importlib.util.find_spec(self.backend) is None:
            return f"{self.backend} is not installed"
        return None

    def _load(self, threads: int) -> None:
        self.keras: Any = import_module("keras")
        if self.keras.backend.backend() != self.backend:
            raise Unsupported(f"this process runs Keras on {self.keras.backend.backend()}")

    def _layers(self, workload: Workload, problem: Problem) -> list[Any]:
        layers = self.keras.layers
        kind = {"simple_rnn": layers.SimpleRNN, "lstm": layers.LSTM, "gru": layers.GRU}[workload.cell]
        made = []
        for cells in problem.weights:
            layer = kind(workload.H, return_sequences=True, dtype=workload.dtype)
            if workload.bidirectional:
                layer = layers.Bidirectional(layer, dtype=workload.dtype)
            layer.build((workload.B, workload.T, len(cells[0][0])))
            layer.set_weights([w for cell in cells for w in cell])
            made.append(layer)
        return made


class KerasJax(_Keras):
    """Keras' layers on JAX: stateless calls, jitted; stepwise, the layer's cell."""

    name, label, packages = "keras-jax", "Keras on JAX", ("keras", "jax")
    backend = "jax"
    environment = {"KERAS_BACKEND": "jax"}  # noqa: RUF012
    dtypes = ("float32",)  # Keras on JAX rounds the operands of a product to float32

    def _load(self, threads: int) -> None:
        super()._load(threads)
        self.jax: Any = import_module("jax")

    def _whole(self, workload: Workload, mode: str, problem: Problem) -> Call:
        layers = self._layers(workload, problem)
        weights = [[v.value for v in layer.trainable_variables] for layer in layers]
        others = [[v.value for v in layer.non_trainable_variables] for layer in layers]

        def forward(x: Any, weights: Any) -> Any:
            for layer, own, other in zip(layers, weights, others, strict=True):
                x, _ = layer.stateless_call(own, other, x)
            return x

        return jax_call(self.jax, mode, problem, forward, weights, time_first=False)

    def _stepwise(self, workload: Workload, problem: Problem) -> Call:
        jax, jnp = self.jax, self.jax.numpy
        cell = self._layers(workload, problem)[0].cell
        weights = [v.value for v in cell.trainable_variables]
        others = [v.value for v in cell.non_trainable_variables]
        xs = [jnp.asarray(x) for x in steps_of(problem.x)]
        zeros = [jnp.asarray(s) for s in zero_states(workload)]
        one = jax.jit(lambda weights, x, states: cell.stateless_call(weights, others, x, states)[0])

        def run() -> Any:
            states, ys = zeros, []
            for x in xs:
                y, states = one(weights, x, states)
                ys.append(y)
            return jax.block_until_ready(ys)

        return Call(run, lambda: stack_steps(run()))


class KerasTensorFlow(_Keras):
    """Keras' layers on TensorFlow, in a tf.function; stepwise, the layer's cell."""

    name, label = "keras-tensorflow", "Keras on TF"
    backend = "tensorflow"
    packages = ("keras", "tensorflow-cpu")
    environment = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2"}  # noqa: RUF012

    def versions(self) -> dict[str, str]:
        """Return the versions of Keras and of TensorFlow, whose distribution has several names."""
        return {"keras": version("keras"), "tensorflow": self.tf.__version__}

    def _load(self, threads: int) -> None:
        self.tf: Any = import_module("tensorflow")
        self.tf.config.threading.set_intra_op_parallelism_threads(threads)
        self.tf.config.threading.set_inter_op_parallelism_threads(threads)
        super()._load(threads)

    def _whole(self, workload: Workload, mode: str, problem: Problem) -> Call:
        tf = self.tf
        layers = self._layers(workload, problem)
        variables = [v.value for layer in layers for v in layer.trainable_variables]
        x, dy = tf.constant(problem.x), tf.constant(problem.dy)

        def forward(x: Any) -> Any:
            for layer in layers:
                x = layer(x)
            return x

        def gradients(x: Any, dy: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = forward(x)
            return y, tape.gradient(y, [x, *variables], output_gradients=dy)

        if mode == "infer":
            infer = tf.function(forward)
            return Call(lambda: infer(x), lambda: [infer(x).numpy() * problem.valid])
        train = tf.function(gradients)

        def answer() -> list[Array]:
            y, gradients = train(x, dy)
            return [y.numpy() * problem.valid, *(g.numpy() for g in gradients)]

        return Call(lambda: train(x, dy), answer)

    def _stepwise(self, workload: Workload, problem: Problem) -> Call:
        tf = self.tf
        cell = self._layers(workload, problem)[0].cell
        xs = [tf.constant(x) for x in steps_of(problem.x)]
        zeros = [tf.constant(s) for s in zero_states(workload)]
        one = tf.function(lambda x, states: cell(x, states))

        def run() -> Any:
            states, ys = zeros, []
            for x in xs:
                y, states = one(x, states)
                ys.append(y)
            return ys

        return Call(run, lambda: stack_steps(run()))


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Fastrnn(),
        Torch(),
        OnnxRuntime(),
        OpenVino(),
        Jax(),
        KerasJax(),
        KerasTensorFlow(),
    )
}
