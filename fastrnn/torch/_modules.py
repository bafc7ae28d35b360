"""Drop-ins for torch.nn's recurrent modules: their arguments, checks and results; the work is `_ops.layer`'s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn.torch import _ops
from fastrnn.torch._recorded import is_plain

DTYPES = (torch.float32, torch.float64)
MODES = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}


def _weights_of(module: torch.nn.Module, names: Sequence[str]) -> list[Tensor]:
    """The weights that a module has now; functional_call may have put others there."""
    if not torch.compiler.is_compiling():
        parameters: Any = module._parameters
        try:
            return [parameters[name] for name in names]
        except KeyError:  # computed, by weight_norm or a parametrization
            pass
    return [getattr(module, name) for name in names]


def _states(where: str, mode: str, hx: Any) -> Sequence[Tensor]:
    """h or h and c, of an hx that was given."""
    if mode != "LSTM":
        if isinstance(hx, Tensor):
            return (hx,)
        raise TypeError(f"{where}: hx must be one tensor h_0, got {_described(hx)}; pass h_0 itself")
    if isinstance(hx, (tuple, list)) and len(hx) == 2 and all(isinstance(s, Tensor) for s in hx):
        return tuple(hx)
    raise TypeError(
        f"{where}: hx must be a tuple of two tensors (h_0, c_0), got {_described(hx)}; pass both, or leave hx out to begin "
        "with zeros"
    )


def _described(hx: Any) -> str:
    if isinstance(hx, (tuple, list)):
        return f"a {type(hx).__name__} of {len(hx)} ({', '.join(type(s).__name__ for s in hx)})"
    return f"a {type(hx).__name__}"


def _names_of(states: Sequence[Tensor]) -> Sequence[str]:
    """What messages call them."""
    return ("hx",) if len(states) == 1 else ("hx[0]", "hx[1]")[: len(states)]


def _require_tensors(
    where: str, names: Sequence[str], weights: Sequence[Tensor], input: Tensor, states: Sequence[Tensor]
) -> None:
    """Refuse what the kernels can't read."""
    dtype = weights[0].dtype
    named = [
        *zip(names, weights, strict=False),
        ("input", input),
        *zip(_names_of(states), states, strict=True),
    ]
    for name, t in named:
        if t.device.type not in ("cpu", "meta"):
            raise RuntimeError(
                f"{where}: {name} must be on the CPU, got a tensor on {t.device}; move model and data with .cpu(), or "
                f"use torch.nn.{where.rpartition('.')[2]}, which runs there"
            )
        if t.device.type != weights[0].device.type:
            raise RuntimeError(
                f"{where}: {name} must be on the device of the weights, {weights[0].device}, got a tensor on {t.device}; "
                "give model and data memory on the CPU"
            )
        if t.layout is not torch.strided:
            raise RuntimeError(
                f"{where}: {name} must be a dense tensor, got one of layout {t.layout}; make it dense with .to_dense()"
            )
        if dtype not in DTYPES:
            raise TypeError(
                f"{where}: weights must be float32 or float64, got {dtype}; convert the model with model.float()"
            )
        if t.dtype is not dtype:
            advice = (
                f"torch.autocast is on: call the layer within torch.autocast('cpu', enabled=False), with {name}.to({dtype})"
                if torch.is_autocast_enabled("cpu")
                else f"convert it with {name}.to({dtype}), or the model with model.to({t.dtype})"
            )
            raise ValueError(f"{where}: {name} must be {dtype} like the weights, got {t.dtype}; {advice}")


class _Recurrent(torch.nn.RNNBase):
    """What RNN, LSTM and GRU share: everything."""

    def _where(self) -> str:
        return f"fastrnn.torch.{type(self).__name__}"

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Runs the layers; arguments and results are torch.nn's."""
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        if input.dim() not in (2, 3):
            raise ValueError(f"{self._where()}: input must have 2 or 3 dimensions, got {input.dim()}")
        batched = input.dim() == 3
        states = () if hx is None else _states(self._where(), self.mode, hx)
        for i, s in enumerate(states):
            if s.dim() != input.dim():
                axes = "layers * directions, batch, units" if batched else "layers * directions, units"
                raise RuntimeError(
                    f"{self._where()}: {_names_of(states)[i]} must have as many dimensions as input, {input.dim()}, got "
                    f"{s.dim()}; give it the axes {axes}"
                )
        if not batched:
            input, states = input.unsqueeze(0), [s.unsqueeze(1) for s in states]
        batch_first = self.batch_first or not batched
        y, finals = self._run(input, None, None, states, batch_first)
        if not batched:
            y, finals = y.squeeze(0), [s.squeeze(1) for s in finals]
        return y, (tuple(finals) if self.mode == "LSTM" else finals[0])

    def _forward_packed(self, input: PackedSequence, hx: Any) -> Any:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        states = () if hx is None else _states(self._where(), self.mode, hx)
        if data.dim() != 2:
            raise RuntimeError(
                f"{self._where()}: the data of a PackedSequence must have 2 dimensions, got {data.dim()}"
            )
        if states and sorted_indices is not None:
            states = [s.index_select(1, sorted_indices) for s in states]
        padding = _Padding(batch_sizes)
        y, finals = self._run(padding.added(data), padding.mask, padding, states, False)
        if unsorted_indices is not None:
            finals = [s.index_select(1, unsorted_indices) for s in finals]
        packed = PackedSequence(padding.removed(y), batch_sizes, sorted_indices, unsorted_indices)
        return packed, (tuple(finals) if self.mode == "LSTM" else finals[0])

    def _run(
        self,
        x: Tensor,
        mask: Tensor | None,
        padding: _Padding | None,
        states: Sequence[Tensor],
        batch_first: bool,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """y and the final states [layers * D, B, H] of x [B, T, I] or [T, B, I]."""
        weights = _weights_of(self, self._flat_weights_names)
        plain = is_plain((*weights, x, *states))
        if not plain:
            _require_tensors(self._where(), self._flat_weights_names, weights, x, states)
        if x.shape[2] != self.input_size:
            raise RuntimeError(
                f"{self._where()}: input.size(-1) must be equal to input_size. Expected {self.input_size}, got "
                f"{x.shape[2]}"
            )
        batch, time = (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])
        if time == 0:
            raise RuntimeError(f"{self._where()}: Expected sequence length to be larger than 0")
        directions = 2 if self.bidirectional else 1
        layers = self.num_layers
        for i, s in enumerate(states):
            units = self.proj_size if self.proj_size and i == 0 else self.hidden_size
            if s.shape != (layers * directions, batch, units):
                self._refuse_state(_names_of(states)[i], s, (layers * directions, batch, units))
        mode = "LSTM_PROJECTED" if self.proj_size else self.mode
        if layers == 1:
            y, *finals = _ops.layer(mode, x, mask, states, weights, directions, batch_first, plain)
            return y, finals
        drops = self.dropout > 0 and self.training
        n = len(weights) // layers
        by_layer = []
        for layer in range(layers):
            # Dropout draws its numbers time first, as in torch.nn, so the layers before the last are time first.
            last = layer == layers - 1
            if batch_first and layer == 0:
                x = x.transpose(0, 1)
            if batch_first and last:
                x = x.transpose(0, 1)
            y, *finals = _ops.layer(
                mode,
                x,
                mask,
                [s[layer * directions : (layer + 1) * directions] for s in states],
                weights[layer * n : (layer + 1) * n],
                directions,
                batch_first and last,
                plain,
            )
            by_layer.append(finals)
            if drops and not last:
                if padding is None:
                    y = torch.dropout(y, self.dropout, True)
                else:  # torch.nn draws numbers for the steps that there are
                    y = padding.added(torch.dropout(padding.removed(y), self.dropout, True))
            x = y
        return x, [torch.cat(s) for s in zip(*by_layer, strict=True)]

    def _refuse_state(self, name: str, state: Tensor, expected: tuple[int, int, int]) -> NoReturn:
        given = tuple(state.shape)
        advice = "leave hx out to begin with zeros"
        if self.batch_first and given == (expected[1], expected[0], expected[2]):
            advice = f"batch_first is about the input alone: pass {name}.transpose(0, 1)"
        raise RuntimeError(
            f"{self._where()}: {name} must have shape {expected} (layers * directions, batch, units), got {given}; {advice}"
        )


class _Padding:
    """Between the rows of a PackedSequence, [steps that there are, I], and [T, B, I] with padding."""

    def __init__(self, batch_sizes: Tensor) -> None:
        self.time, self.batch = len(batch_sizes), int(batch_sizes[0])
        self.mask: Tensor | None = None  # [B, T]
        if int(batch_sizes[-1]) != self.batch:
            mask = torch.arange(self.batch, device="cpu") < batch_sizes[:, None]
            self.mask = mask.t()
            self.rows = mask.view(-1).nonzero().squeeze(1)

    def added(self, data: Tensor) -> Tensor:
        if self.mask is not None:
            padded = data.new_zeros(self.time * self.batch, data.shape[1])
            data = padded.index_copy(0, self.rows, data)
        return data.view(self.time, self.batch, data.shape[1])

    def removed(self, y: Tensor) -> Tensor:
        flat = y.view(self.time * self.batch, y.shape[2])
        return flat if self.mask is None else flat.index_select(0, self.rows)


class RNN(_Recurrent, torch.nn.RNN):
    """torch.nn.RNN, with tanh or relu, on fastrnn's kernels: the same arguments, parameters and results.

    >>> import torch, fastrnn.torch
    >>> y, h = fastrnn.torch.RNN(3, 16, batch_first=True)(torch.zeros(8, 5, 3))
    >>> y.shape, h.shape
    (torch.Size([8, 5, 16]), torch.Size([1, 8, 16]))
    """


class LSTM(_Recurrent, torch.nn.LSTM):
    """torch.nn.LSTM on fastrnn's kernels, with or without proj_size: the same arguments, parameters and results.

    >>> import torch, fastrnn.torch
    >>> y, (h, c) = fastrnn.torch.LSTM(3, 16, bidirectional=True)(torch.zeros(5, 8, 3))
    >>> y.shape, h.shape, c.shape
    (torch.Size([5, 8, 32]), torch.Size([2, 8, 16]), torch.Size([2, 8, 16]))
    """


class GRU(_Recurrent, torch.nn.GRU):
    """torch.nn.GRU on fastrnn's kernels: the same arguments, parameters and results.

    >>> import torch, fastrnn.torch
    >>> y, h = fastrnn.torch.GRU(3, 16, num_layers=2)(torch.zeros(5, 8, 3))
    >>> y.shape, h.shape
    (torch.Size([5, 8, 16]), torch.Size([2, 8, 16]))
    """


# ---- Cells

CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _step(cell: torch.nn.RNNCellBase, mode: str, input: Tensor, hx: Any) -> Sequence[Tensor]:
    """The new states of a cell for input [B, I] or [I]."""
    states = () if hx is None else _states(f"fastrnn.torch.{type(cell).__name__}", mode, hx)
    weights = _weights_of(cell, CELL_WEIGHTS if cell.bias else CELL_WEIGHTS[:2])
    plain = is_plain((*weights, input, *states))
    shape = input.shape
    fits = len(shape) in (1, 2) and shape[-1] == cell.input_size
    if states:
        expected = (*shape[:-1], cell.hidden_size)
        fits = fits and all(s.shape == expected for s in states)
    if not (plain and fits):
        _require_step(cell, weights, input, states)
    if len(shape) == 1:
        input, states = input.unsqueeze(0), [s.unsqueeze(0) for s in states]
    new = _ops.step(mode, input, states, weights, plain)
    return [s[0] for s in new] if len(shape) == 1 else new


def _require_step(
    cell: torch.nn.RNNCellBase, weights: Sequence[Tensor], input: Tensor, states: Sequence[Tensor]
) -> None:
    """Refuse what does not fit a cell."""
    where = f"fastrnn.torch.{type(cell).__name__}"
    if input.dim() not in (1, 2):
        raise ValueError(f"{where}: input must have 1 or 2 dimensions, got {input.dim()}")
    _require_tensors(where, CELL_WEIGHTS, weights, input, states)
    if input.shape[-1] != cell.input_size:
        raise RuntimeError(
            f"{where}: input has inconsistent input_size: got {input.shape[-1]} expected {cell.input_size}"
        )
    expected = (*input.shape[:-1], cell.hidden_size)
    meaning = "batch, hidden_size" if input.dim() == 2 else "hidden_size"
    for name, s in zip(_names_of(states), states, strict=True):
        if s.shape != expected:
            raise RuntimeError(
                f"{where}: {name} must have shape {expected} ({meaning}) to go with input of shape "
                f"{tuple(input.shape)}, got {tuple(s.shape)}; leave hx out to begin with zeros"
            )


class RNNCell(torch.nn.RNNCell):
    """torch.nn.RNNCell on fastrnn's kernels: the same arguments, parameters and results.

    >>> import torch, fastrnn.torch
    >>> fastrnn.torch.RNNCell(3, 16)(torch.zeros(8, 3)).shape
    torch.Size([8, 16])
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Runs one step; arguments and results are torch.nn's."""
        if self.nonlinearity not in MODES:
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return _step(self, MODES[self.nonlinearity], input, hx)[0]


class LSTMCell(torch.nn.LSTMCell):
    """torch.nn.LSTMCell on fastrnn's kernels: the same arguments, parameters and results.

    >>> import torch, fastrnn.torch
    >>> h, c = fastrnn.torch.LSTMCell(3, 16)(torch.zeros(8, 3))
    >>> h.shape, c.shape
    (torch.Size([8, 16]), torch.Size([8, 16]))
    """

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Runs one step; arguments and results are torch.nn's."""
        h, c = _step(self, "LSTM", input, hx)
        return h, c


class GRUCell(torch.nn.GRUCell):
    """torch.nn.GRUCell on fastrnn's kernels: the same arguments, parameters and results.

    >>> import torch, fastrnn.torch
    >>> fastrnn.torch.GRUCell(3, 16)(torch.zeros(8, 3)).shape
    torch.Size([8, 16])
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Runs one step; arguments and results are torch.nn's."""
        return _step(self, "GRU", input, hx)[0]


for _module in (RNN, LSTM, GRU, RNNCell, LSTMCell, GRUCell):
    _module.__module__ = "fastrnn.torch"  # where pickles find it
