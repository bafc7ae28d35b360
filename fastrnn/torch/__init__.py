"""PyTorch's recurrent layers and cells on fastrnn's kernels: change `torch.nn.LSTM` to `fastrnn.torch.LSTM`, and no more.

`RNN`, `LSTM`, `GRU`, `RNNCell`, `LSTMCell` and `GRUCell` are subclasses of torch.nn's of the same names: constructor,
parameters, state_dict, repr, pickling and results are theirs; what runs inside are fastrnn's kernels, forward and
backward. `accelerate(model)` makes those of a model that exists into fastrnn's, in place.

Tensors must be on the CPU, strided, float32 or float64. They go in and out without being copied, but for the final states
of several layers or directions, GRU weights (whose gates have another order here) and the padding of a PackedSequence.

The gradient of a gradient (`create_graph=True`) is computed by plain PyTorch operations, step by step: it is right, and
much slower than the gradient itself. `torch.func`'s grad works, vmap runs one item after the other, jvp isn't supported.

Threads: PyTorch and fastrnn share one OpenMP runtime in a process, and so its threads; they wait for each other's work no
longer than for their own. `torch.set_num_threads(n)` also sets fastrnn's number in the Python thread that calls it, as long
as `fastrnn.set_num_threads` was never called; that one sets fastrnn's alone, in all Python threads. Call both to be sure.

Weights are read anew, and packed for the kernels, in every call: a change by whatever means is seen. Where a call is short,
as a cell's with hundreds of units and a small batch, this is most of its time.

`torch.compile`, `torch.export` and tracing see the layers as the operator `torch.ops.fastrnn.layer`. PyTorch's compiler
leaves recurrent modules out of its graphs, subclasses too, and runs them between two graphs; with `fullgraph=True` or
`strict=True` it asks you for `torch._dynamo.config.allow_rnn = True`.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "fastrnn.torch: PyTorch must be installed, but `import torch` failed; run `pip install fastrnn[torch]`",
        name="torch",
    ) from error

from fastrnn.torch._accelerate import Accelerated, accelerate
from fastrnn.torch._modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

__all__ = ["GRU", "LSTM", "RNN", "Accelerated", "GRUCell", "LSTMCell", "RNNCell", "accelerate"]
