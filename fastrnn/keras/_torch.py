"""The call on PyTorch's tensors: the arrays are views of them, in both directions."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

from fastrnn.keras import _arrays
from fastrnn.keras._arrays import Operands, Settings


def reason_against(x: Any) -> str | None:
    """Why the kernels cannot read x, or None."""
    if x.device.type != "cpu":
        return f"its input is on the device {x.device}, not in the processor's memory"
    if x.layout != torch.strided:
        return f"its input has the layout {x.layout}"
    return None


def is_symbolic(x: Any) -> bool:
    """Whether x has a shape alone, and no values."""
    return bool(x.device.type == "meta")


@torch.compiler.disable
def call(settings: Settings, operands: Operands) -> list[Any]:
    """[y], or with return_state [y, *states]; differentiable once."""
    x, weights, states, *masks = operands
    states = tuple(
        state.clone() for state in states
    )  # Keras writes a stateful layer's in place, before backward
    tensors = [x, *weights, *states]
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise NotImplementedError(
            f"{settings.name}: gradients must be taken in reverse mode, got a call of forward mode; use the layer of "
            "keras.layers"
        )
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        outputs = _Call.apply(settings, len(weights), *masks, *tensors)
        return list(outputs)
    return [torch.from_numpy(y) for y in _arrays.run(settings, _as_arrays(operands))]


def _as_arrays(operands: Operands) -> Operands:
    def array(tensor: Any) -> Any:
        return None if tensor is None else tensor.detach().resolve_neg().numpy()

    x, weights, states, *masks = operands
    return Operands(array(x), tuple(map(array, weights)), tuple(map(array, states)), *map(array, masks))


def _operands(count: int, tensors: Any) -> Operands:
    """Of three masks, x, `count` weights and the states."""
    masks, (x, *rest) = tensors[:3], tensors[3:]
    return _as_arrays(Operands(x, tuple(rest[:count]), tuple(rest[count:]), *masks))


class _Call(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: Settings, count: int, *tensors: Any) -> tuple[Any, ...]:
        operands = _operands(count, tensors)
        ctx.weights = _arrays.make_weights(settings, operands.weights)
        outputs, saved = _arrays.run_forward(settings, operands, ctx.weights)
        ctx.save_for_backward(*tensors, torch.from_numpy(saved))  # PyTorch frees them, and notices changes
        ctx.set_materialize_grads(False)
        ctx.settings, ctx.count = settings, count
        return tuple(map(torch.from_numpy, outputs))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        *tensors, saved = ctx.saved_tensors
        settings, weights = ctx.settings, ctx.weights
        ctx.weights = None  # a loss that is kept keeps this context
        dy = [None if g is None else g.detach().resolve_neg().numpy() for g in gradients]
        operands = _operands(ctx.count, tensors)
        found = map(torch.from_numpy, _arrays.run_backward(settings, operands, saved.numpy(), dy, weights))
        if torch.is_grad_enabled():  # with create_graph=True: they are no constants, even where dy is one
            anchor = torch.zeros((), requires_grad=True)
            found = _Once.apply(settings.name, anchor, *found)
        return (None, None, None, None, None, *found)


class _Once(torch.autograd.Function):
    """Gradients that cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, name: str, anchor: Any, *gradients: Any) -> tuple[Any, ...]:
        ctx.name = name
        return tuple(g.view_as(g) for g in gradients)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        raise RuntimeError(_arrays.ONCE.format(ctx.name))
