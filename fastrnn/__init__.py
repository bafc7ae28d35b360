"""fastrnn: the CPU engine for recurrent networks.

Fused SimpleRNN, LSTM and GRU kernels, forward and backward, behind layers that look like Keras'. The parts, each built on
the next: `fastrnn.SimpleRNN`, `fastrnn.LSTM`, `fastrnn.GRU` and others (layers with weights), `fastrnn.functional` (the same
without state), the compiled kernels. `fastrnn.reference` computes the same in plain NumPy, for reading and checking.
"""

from fastrnn import _installed  # noqa: F401, I001  (first: it finds the compiled module when this is a source folder)
from fastrnn._core import __version__
from fastrnn import (
    activations,
    checkpoint,
    constraints,
    functional,
    gradients,
    initializers,
    inspection,
    plot,
    reference,
    regularizers,
)
from fastrnn.cells import RNN, GRUCell, IndRNNCell, LSTMCell, SimpleRNNCell, StackedRNNCells
from fastrnn.functional import Gradients
from fastrnn.layers import GRU, LSTM, IndRNN, SimpleRNN
from fastrnn.runtime import (
    available_isas,
    compiled_isas,
    get_isa,
    get_num_threads,
    kernel_calls,
    release_memory,
    set_isa,
    set_num_threads,
    show_config,
)
from fastrnn.wrappers import Bidirectional

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Bidirectional",
    "GRUCell",
    "Gradients",
    "IndRNN",
    "IndRNNCell",
    "LSTMCell",
    "SimpleRNN",
    "SimpleRNNCell",
    "StackedRNNCells",
    "__version__",
    "activations",
    "available_isas",
    "checkpoint",
    "compiled_isas",
    "constraints",
    "functional",
    "get_isa",
    "get_num_threads",
    "gradients",
    "initializers",
    "inspection",
    "kernel_calls",
    "plot",
    "reference",
    "regularizers",
    "release_memory",
    "set_isa",
    "set_num_threads",
    "show_config",
]
