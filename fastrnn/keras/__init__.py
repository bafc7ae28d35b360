"""Keras' recurrent layers on fastrnn's kernels: change `keras.layers.LSTM` to `fastrnn.keras.LSTM`, or call `accelerate`.

`SimpleRNN`, `LSTM` and `GRU` are subclasses of keras.layers' with the same arguments, weights, configs and results, on
Keras' PyTorch, JAX and TensorFlow backends. They add nothing to a layer but how its time steps are computed: initial values,
regularizers, constraints, dropout's random numbers, states and saving are Keras'.

    model = keras.Sequential([keras.layers.Embedding(10000, 16), fastrnn.keras.LSTM(32), keras.layers.Dense(1)])

A layer that the kernels cannot compute (a Python function as its activation, float16, a graphics card, use_cudnn=True) is
computed by Keras itself; a `FallbackWarning` says so once. `fastrnn.kernel_calls()` shows whether the kernels ran.

On TensorFlow the layers are operations of TensorFlow, so that `model.export` and SavedModels hold them. Where such a model
is loaded, import fastrnn.keras, with Keras on TensorFlow. Nothing but TensorFlow in Python can load it, and XLA
(`jit_compile=True`) can't compile the layers.

Where Keras' backends differ (the output before the first unmasked step of a row, which Keras on JAX takes from the initial
state), these layers do what Keras does on PyTorch and TensorFlow.
"""

try:
    import keras as _keras
except ImportError as error:
    raise ImportError(
        "fastrnn.keras: Keras 3 must be installed with PyTorch, JAX or TensorFlow; "
        "run `pip install fastrnn[keras]` and install one of the three"
    ) from error
if not hasattr(_keras, "ops"):
    raise ImportError(
        f"fastrnn.keras: Keras must be version 3, got {_keras.__version__}; run `pip install fastrnn[keras]`"
    )

from fastrnn.keras._accelerate import accelerate
from fastrnn.keras.layers import GRU, LSTM, FallbackWarning, SimpleRNN

__all__ = ["GRU", "LSTM", "FallbackWarning", "SimpleRNN", "accelerate"]
