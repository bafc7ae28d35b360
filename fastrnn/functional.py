"""The recurrent layers as functions of their weights: the one road into the kernels.

Legend: B batch, T time steps, I inputs (features), H units. Gates lie side by side in the columns of a kernel, in Keras'
order: LSTM i f c o, GRU z r h.

For every cell there are three functions. `lstm` runs inference. `lstm_forward` also returns a tape, which `lstm_backward`
turns into gradients; a tape serves once. It refers to x, the weights and the initial states of its forward pass without
copying them: don't change those before backward.

All arrays of a call have one dtype, float32 or float64 in native byte order; nothing is converted. Arrays may be read-only
and have any strides; x, dy and states whose last axis is not contiguous are copied for the call.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from fastrnn import _core
from fastrnn._core import Tape as Tape
from fastrnn._core import Weights as Weights

Array = NDArray[Any]
States = Sequence[Array | None] | Array | None
Outputs = Array | tuple[Array, ...]


class Gradients(NamedTuple):
    """The gradients of one forward pass, each with the shape and dtype of what it is the gradient of."""

    x: Array
    """[B, T, I]"""
    weights: list[Array]
    """kernel, recurrent kernel, and bias if there is one"""
    initial_state: list[Array]
    """[B, H] for every state, also where none was given"""


# ---- On weights that are prepared once and used often: for layers and bridges


def run(
    weights: Weights,
    x: Array,
    initial_state: States = None,
    *,
    return_sequences: bool = False,
    return_state: bool = False,
    go_backwards: bool = False,
) -> Outputs:
    """Run inference with prepared weights; see `lstm` for the arguments."""
    y, states, _ = _core.forward(
        weights,
        x,
        initial_state,
        return_sequences=return_sequences,
        return_state=return_state,
        go_backwards=go_backwards,
        training=False,
    )
    return (y, *states) if return_state else y


def run_forward(
    weights: Weights,
    x: Array,
    initial_state: States = None,
    *,
    return_sequences: bool = False,
    return_state: bool = False,
    go_backwards: bool = False,
) -> tuple[Outputs, Tape]:
    """Run a forward pass with prepared weights and keep a tape; see `lstm_forward` for the arguments."""
    y, states, tape = _core.forward(
        weights,
        x,
        initial_state,
        return_sequences=return_sequences,
        return_state=return_state,
        go_backwards=go_backwards,
        training=True,
    )
    assert tape is not None
    return ((y, *states) if return_state else y), tape


def run_backward(dy: Array | Sequence[Array | None] | None, tape: Tape) -> Gradients:
    """Turn the gradient of a forward pass's outputs into those of its inputs; see `lstm_backward`."""
    return Gradients(*_core.backward(dy, tape))


def run_step(
    weights: Weights, x_t: Array, states: States = None, out: Sequence[Array] | None = None
) -> tuple[Array, list[Array]]:
    """Run one time step: x_t [B, I], states as for `initial_state`; returns h [B, H] and the new states.

    `out`: a list of one contiguous array [B, H] per state, which the new states are written to; they may be
    those in `states`. h is then out[0] itself.
    """
    return _core.step(weights, x_t, states, out)


# ---- By name


def _weights(cell: str, function: str, kernel: Array, recurrent_kernel: Array, bias: Array | None) -> Weights:
    return Weights(cell, kernel, recurrent_kernel, bias, name=f"functional.{function}")


def _tape_of(function: str, tape: Tape) -> Tape:
    if not isinstance(tape, Tape):
        raise TypeError(
            f"functional.{function}_backward: tape must be what {function}_forward returned, got a "
            f"{type(tape).__module__}.{type(tape).__qualname__}"
        )
    if not tape.weights.cell.startswith(function):
        raise ValueError(
            f"functional.{function}_backward: the tape must come from {function}_forward, got one of a "
            f"{tape.weights.cell} cell"
        )
    return tape


def simple_rnn(
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    initial_state: States = None,
    return_sequences: bool = False,
    return_state: bool = False,
    go_backwards: bool = False,
) -> Outputs:
    """Run a simple recurrent layer over a batch of sequences.

    The equations, for every step t:

        h_t = tanh(x_t W + h_(t-1) U + b)

    (Elman, 1990; Keras' `SimpleRNN`.)

    Args:
        x: [B, T, I].
        kernel: W, [I, H].
        recurrent_kernel: U, [H, H].
        bias: b, [H]; None: no bias.
        initial_state: One [B, H] array, or a list of it; None: zeros.
        return_sequences: Return h of every step instead of the last.
        return_state: Also return the final state.
        go_backwards: Read x from its last step to its first; outputs stay in the order in which they are computed.

    Returns:
        y [B, H], or [B, T, H] with `return_sequences`; with `return_state` the tuple `(y, h)`, states [B, H].
        Without time steps (T = 0) the last h is the initial one.

    Raises:
        TypeError: An array is not of the kernel's dtype, float32 or float64.
        ValueError: A shape does not fit.

    >>> import numpy as np
    >>> x, kernel, recurrent_kernel = (np.zeros(s, "float32") for s in [(8, 5, 3), (3, 16), (16, 16)])
    >>> simple_rnn(x, kernel, recurrent_kernel, return_sequences=True).shape
    (8, 5, 16)
    """
    return run(
        _weights("simple_rnn", "simple_rnn", kernel, recurrent_kernel, bias),
        x,
        initial_state,
        return_sequences=return_sequences,
        return_state=return_state,
        go_backwards=go_backwards,
    )


def simple_rnn_forward(
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    initial_state: States = None,
    return_sequences: bool = False,
    return_state: bool = False,
    go_backwards: bool = False,
) -> tuple[Outputs, Tape]:
    """Run `simple_rnn` and keep what its gradient needs: the arguments of `simple_rnn`, and a tape as second result.

    >>> import numpy as np
    >>> x, kernel, recurrent_kernel = (np.zeros(s, "float32") for s in [(8, 5, 3), (3, 16), (16, 16)])
    >>> y, tape = simple_rnn_forward(x, kernel, recurrent_kernel)
    >>> simple_rnn_backward(np.ones_like(y), tape).x.shape
    (8, 5, 3)
    """
    return run_forward(
        _weights("simple_rnn", "simple_rnn", kernel, recurrent_kernel, bias),
        x,
        initial_state,
        return_sequences=return_sequences,
        return_state=return_state,
        go_backwards=go_backwards,
    )


def simple_rnn_backward(dy: Array | Sequence[Array | None] | None, tape: Tape) -> Gradients:
    """Return the gradients of the inputs and weights of one `simple_rnn_forward`.

    Args:
        dy: The gradient of y, of its shape; with `return_state` a list [dy, dh]. None, alone or as an item: zeros.
        tape: What `simple_rnn_forward` returned. It is used up.

    Returns:
        `Gradients` of x, the weights and the initial states.

    Raises:
        RuntimeError: The tape was used before.
        TypeError: A gradient is not of the dtype of the forward pass.
        ValueError: A gradient's shape is not that of its output, or the tape is of another cell.
    """
    return run_backward(dy, _tape_of("simple_rnn", tape))


def lstm(
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    initial_state: States = None,
    return_sequences: bool = False,
    return_state: bool = False,
    go_backwards: bool = False,
) -> Outputs:
    """Run a LSTM over a batch of sequences.

    The equations, for every step t:

        i = sigmoid(x_t W_i + h_(t-1) U_i + b_i)        f, o likewise
        g = tanh(x_t W_c + h_(t-1) U_c + b_c)
        c_t = f c_(t-1) + i g
        h_t = o tanh(c_t)

    (Hochreiter and Schmidhuber, 1997, with the forget gate of Gers et al., 2000; Keras' `LSTM`.)

    Args:
        x: [B, T, I].
        kernel: W, [I, 4H].
        recurrent_kernel: U, [H, 4H].
        bias: b, [4H]; None: no bias.
        initial_state: A list of h and c, [B, H] each; None: zeros.
        return_sequences: Return h of every step instead of the last.
        return_state: Also return the final states.
        go_backwards: Read x from its last step to its first; outputs stay in the order in which they are computed.

    Returns:
        y [B, H], or [B, T, H] with `return_sequences`; with `return_state` the tuple `(y, h, c)`, states [B, H].
        Without time steps (T = 0) the last h is the initial one.

    Raises:
        TypeError: An array is not of the kernel's dtype, float32 or float64.
        ValueError: A shape does not fit.

    >>> import numpy as np
    >>> x, kernel, recurrent_kernel = (np.zeros(s, "float32") for s in [(8, 5, 3), (3, 64), (16, 64)])
    >>> lstm(x, kernel, recurrent_kernel, return_sequences=True).shape
    (8, 5, 16)
    """
    return run(
        _weights("lstm", "lstm", kernel, recurrent_kernel, bias),
        x,
        initial_state,
        return_sequences=return_sequences,
        return_state=return_state,
        go_backwards=go_backwards,
    )


def lstm_forward(
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    initial_state: States = None,
    return_sequences: bool = False,
    return_state: bool = False,
    go_backwards: bool = False,
) -> tuple[Outputs, Tape]:
    """Run `lstm` and keep what its gradient needs: the arguments of `lstm`, and a tape as second result.

    >>> import numpy as np
    >>> x, kernel, recurrent_kernel = (np.zeros(s, "float32") for s in [(8, 5, 3), (3, 64), (16, 64)])
    >>> y, tape = lstm_forward(x, kernel, recurrent_kernel)
    >>> lstm_backward(np.ones_like(y), tape).x.shape
    (8, 5, 3)
    """
    return run_forward(
        _weights("lstm", "lstm", kernel, recurrent_kernel, bias),
        x,
        initial_state,
        return_sequences=return_sequences,
        return_state=return_state,
        go_backwards=go_backwards,
    )


def lstm_backward(dy: Array | Sequence[Array | None] | None, tape: Tape) -> Gradients:
    """Return the gradients of the inputs and weights of one `lstm_forward`.

    Args:
        dy: The gradient of y, of its shape; with `return_state` a list [dy, dh, dc]. None, alone or as an item: zeros.
        tape: What `lstm_forward` returned. It is used up.

    Returns:
        `Gradients` of x, the weights and the initial states.

    Raises:
        RuntimeError: The tape was used before.
        TypeError: A gradient is not of the dtype of the forward pass.
        ValueError: A gradient's shape is not that of its output, or the tape is of another cell.
    """
    return run_backward(dy, _tape_of("lstm", tape))


def gru(
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    initial_state: States = None,
    reset_after: bool = True,
    return_sequences: bool = False,
    return_state: bool = False,
    go_backwards: bool = False,
) -> Outputs:
    """Run a GRU over a batch of sequences.

    The equations, for every step t:

        z = sigmoid(x_t W_z + h_(t-1) U_z + b_z)        r likewise
        n = tanh(x_t W_h + b_h + r (h_(t-1) U_h + b'_h))            reset_after=True
        n = tanh(x_t W_h + b_h + (r h_(t-1)) U_h)                   reset_after=False
        h_t = z h_(t-1) + (1 - z) n

    (Cho et al., 2014; Keras' `GRU`.)

    Args:
        x: [B, T, I].
        kernel: W, [I, 3H].
        recurrent_kernel: U, [H, 3H].
        bias: b, [2, 3H] (a row for the input, one for the state); [3H] with reset_after=False; None: no bias.
        initial_state: One [B, H] array, or a list of it; None: zeros.
        reset_after: Apply the reset gate after the recurrent product (as cuDNN and Keras do) or before it.
        return_sequences: Return h of every step instead of the last.
        return_state: Also return the final state.
        go_backwards: Read x from its last step to its first; outputs stay in the order in which they are computed.

    Returns:
        y [B, H], or [B, T, H] with `return_sequences`; with `return_state` the tuple `(y, h)`, states [B, H].
        Without time steps (T = 0) the last h is the initial one.

    Raises:
        TypeError: An array is not of the kernel's dtype, float32 or float64.
        ValueError: A shape does not fit.

    >>> import numpy as np
    >>> x, kernel, recurrent_kernel = (np.zeros(s, "float32") for s in [(8, 5, 3), (3, 48), (16, 48)])
    >>> gru(x, kernel, recurrent_kernel, return_sequences=True).shape
    (8, 5, 16)
    """
    return run(
        _weights("gru" if reset_after else "gru_reset_before", "gru", kernel, recurrent_kernel, bias),
        x,
        initial_state,
        return_sequences=return_sequences,
        return_state=return_state,
        go_backwards=go_backwards,
    )


def gru_forward(
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    initial_state: States = None,
    reset_after: bool = True,
    return_sequences: bool = False,
    return_state: bool = False,
    go_backwards: bool = False,
) -> tuple[Outputs, Tape]:
    """Run `gru` and keep what its gradient needs: the arguments of `gru`, and a tape as second result.

    >>> import numpy as np
    >>> x, kernel, recurrent_kernel = (np.zeros(s, "float32") for s in [(8, 5, 3), (3, 48), (16, 48)])
    >>> y, tape = gru_forward(x, kernel, recurrent_kernel)
    >>> gru_backward(np.ones_like(y), tape).x.shape
    (8, 5, 3)
    """
    return run_forward(
        _weights("gru" if reset_after else "gru_reset_before", "gru", kernel, recurrent_kernel, bias),
        x,
        initial_state,
        return_sequences=return_sequences,
        return_state=return_state,
        go_backwards=go_backwards,
    )


def gru_backward(dy: Array | Sequence[Array | None] | None, tape: Tape) -> Gradients:
    """Return the gradients of the inputs and weights of one `gru_forward`.

    Args:
        dy: The gradient of y, of its shape; with `return_state` a list [dy, dh]. None, alone or as an item: zeros.
        tape: What `gru_forward` returned. It is used up.

    Returns:
        `Gradients` of x, the weights and the initial states.

    Raises:
        RuntimeError: The tape was used before.
        TypeError: A gradient is not of the dtype of the forward pass.
        ValueError: A gradient's shape is not that of its output, or the tape is of another cell.
    """
    return run_backward(dy, _tape_of("gru", tape))
