"""The call on TensorFlow's tensors: two operations of TensorFlow, eager and in graphs, that run the kernels.

They are registered when this is imported, and so are their gradients; a SavedModel with them is loaded after that.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

# What the wrappers import that TensorFlow generates for operations of other libraries.
from tensorflow.python.eager import context, execute
from tensorflow.python.framework import op_def_library

from fastrnn import _core
from fastrnn.activations import Activation
from fastrnn.keras import _arrays
from fastrnn.keras._arrays import Operands, Settings
from fastrnn.zero_outputs import last_step

_FORWARD, _BACKWARD = "FastrnnForward", "FastrnnBackward"
_WEIGHTS = ("kernel", "recurrent_kernel", "bias")
_STATES = ("h", "c")
_WITH_GRADIENT = ("x", *_WEIGHTS, "initial_h", "initial_c")


def _register() -> None:
    folder = Path(tf.sysconfig.get_lib())
    library = next(folder.glob("libtensorflow_framework.*"), folder / "libtensorflow_framework")
    try:
        _core.register_tensorflow_ops(str(library))
    except ImportError as error:
        raise ImportError(
            f"fastrnn.keras: TensorFlow {tf.__version__} must let other libraries register operations, but {error}; "
            "install another version of TensorFlow, a later fastrnn, or use Keras on PyTorch or JAX"
        ) from None


_register()


def reason_against(x: Any) -> str | None:
    """Why the kernels cannot read x, or None."""
    return None  # TensorFlow copies what lies on a graphics card


def is_symbolic(x: Any) -> bool:
    """Whether x has a shape alone, and no values; in a graph the kernels run when the graph does."""
    return False


class _Statics(NamedTuple):
    """Attributes of both operations, see cpp/python/tensorflow.cpp."""

    cell: str
    activations: list[int]
    options: str
    layer: str


def call(settings: Settings, operands: Operands) -> list[Any]:
    """[y], or with return_state [y, *states]; differentiable once.

    The tape is kept where a gradient is likely to be asked for: with settings.training, or where a tf.GradientTape records
    the call or its tracing. Otherwise a gradient runs the forward pass a second time.
    """
    x, weights, states, mask, dropout_mask, recurrent_dropout_mask = operands
    if dropout_mask is not None and len(dropout_mask.shape) == 2:  # the same for all gates
        x, dropout_mask = x * dropout_mask[:, None, :], None
    given = {
        "x": x,
        **dict(zip(_WEIGHTS, weights, strict=False)),
        **{f"initial_{name}": state for name, state in zip(_STATES, states, strict=False)},
        "mask": mask,
        "dropout_mask": dropout_mask,
        "recurrent_dropout_mask": recurrent_dropout_mask,
    }
    results = ["y" if settings.return_sequences else "last"]
    if settings.return_state:
        results += _STATES[: len(states)]
    keep = settings.training or execute.must_record_gradient()
    outputs = _run(
        _FORWARD,
        _Statics(
            settings.cell,
            _bits(settings.activations),
            " ".join(name for name in ("zero_output_for_mask", "go_backwards") if getattr(settings, name)),
            settings.name,
        ),
        {name: tf.convert_to_tensor(tensor) for name, tensor in given.items() if tensor is not None},
        [*results, "tape"] if keep else results,
    )
    if mask is not None and settings.zero_output_for_mask and not settings.return_sequences:
        rows = tf.reduce_all(mask[:, last_step(settings.go_backwards)], axis=1, keepdims=True)
        outputs[0] = tf.where(rows, outputs[0], 0)
    return outputs[: len(results)]


@lru_cache
def _bits(activations: tuple[Activation, ...]) -> list[int]:
    codes = [a.numbers for a in activations]
    return np.array(codes, np.float64).ravel().view(np.int64).tolist()


def _run(name: str, statics: _Statics, operands: dict[str, Any], results: list[str]) -> list[Any]:
    """Call an operation: the results in their order. What TensorFlow's generated wrappers do."""
    tensors = list(operands.values())
    dtype = operands["kernel"].dtype
    attributes = {
        "count": len(results),
        "dtype": dtype,
        "operand_names": " ".join(operands),
        "result_names": " ".join(results),
        **statics._asdict(),
    }
    if tf.executing_eagerly():
        types = [tensor.dtype.as_datatype_enum for tensor in tensors]
        eager = {"operand_types": types, **attributes, "dtype": dtype.as_datatype_enum}
        flat = tuple(part for attribute in eager.items() for part in attribute)
        outputs = execute.execute(name.encode(), len(results), tensors, flat, context.context())
    else:
        outputs = op_def_library.apply_op(name, operands=tensors, **attributes)
        _set_shapes(outputs, results, operands)
        flat = tuple(part for attribute in attributes.items() for part in attribute)
    if execute.must_record_gradient():
        execute.record_gradient(name, tensors, flat, outputs)
    return outputs


def _set_shapes(outputs: list[Any], results: list[str], operands: dict[str, Any]) -> None:
    batch, time = operands["x"].shape[:2]
    units = operands["recurrent_kernel"].shape[0]
    shapes = {"y": (batch, time, units), "tape": (batch, time, None, units)}
    shapes |= {f"d{name}": tensor.shape for name, tensor in operands.items()}
    for output, name in zip(outputs, results, strict=True):
        output.set_shape(shapes.get(name, (batch, units)))


def _words(operation: Any, attribute: str) -> list[str]:
    return tf.compat.as_str(operation.get_attr(attribute)).split()


@tf.RegisterGradient(_FORWARD)
def _gradient(operation: Any, *gradients: Any) -> list[Any]:
    operands = dict(zip(_words(operation, "operand_names"), operation.inputs, strict=True))
    results = _words(operation, "result_names")
    found = dict(zip(results, operation.outputs, strict=True))
    statics = _Statics(
        tf.compat.as_str(operation.get_attr("cell")),
        list(operation.get_attr("activations")),
        tf.compat.as_str(operation.get_attr("options")),
        tf.compat.as_str(operation.get_attr("layer")),
    )
    tape = found["tape"] if "tape" in found else _run(_FORWARD, statics, operands, ["last", "tape"])[1]
    given = {
        f"d{name}": d for name, d in zip(results, gradients, strict=True) if name != "tape" and d is not None
    }
    unwanted = getattr(operation, "skip_input_indices", None) or ()
    wanted = [
        name
        for place, name in enumerate(operands)
        if name in _WITH_GRADIENT
        and (place not in unwanted or name in _WEIGHTS)  # those of the weights always are
    ]
    outputs = _run(_BACKWARD, statics, {**operands, "tape": tape, **given}, [f"d{name}" for name in wanted])
    by_name = dict(zip(wanted, outputs, strict=True))
    return [by_name.get(name) for name in operands]


@tf.RegisterGradient(_BACKWARD)
def _refuse(operation: Any, *gradients: Any) -> None:
    raise RuntimeError(_arrays.ONCE.format(tf.compat.as_str(operation.get_attr("layer"))))
