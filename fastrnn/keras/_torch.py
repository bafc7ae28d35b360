"""The call on PyTorch's tensors: the arrays are views of them, in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastrnn import functional
from fastrnn.functional import Array, Weights, make_weights
from fastrnn.keras._arrays import ONCE, Operands, Settings
from fastrnn.torch._recorded import arrays_of, no_jvp, one_by_one, record, record_any

_MASKS = ("mask", "dropout_mask", "recurrent_dropout_mask")
_FLAGS = ("zero_output_for_mask", "return_sequences", "return_state", "go_backwards")


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
    if settings.return_state:  # Keras writes a stateful layer's in place, before backward
        states = tuple(state.clone() for state in states)
    tensors = [x, *weights, *states]
    this = _Call(settings, len(weights), len(states))
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return record_any(this, (*tensors, *masks))
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise NotImplementedError(
            f"{settings.name}: gradients must be taken in reverse mode, got a call of forward mode; use the layer of "
            "keras.layers"
        )
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return list(record(this, (*tensors, *masks)))
    return this.run((*tensors, *masks), False)[0]


def _array(tensor: Any) -> Any:
    return None if tensor is None else tensor.detach().resolve_neg().numpy()


class _Call:
    """See `fastrnn.torch._recorded.Call`. The tensors: x, weights, states, and three masks, or None for each."""

    def __init__(self, settings: Settings, n_weights: int, n_states: int) -> None:
        self.settings, self.n_weights = settings, n_weights
        self.outputs = 1 + n_states if settings.return_state else 1

    def _operands(self, tensors: Sequence[Any]) -> tuple[Weights, Array, dict[str, Any]]:
        """The prepared weights, x, and the options of `functional.run` that forward and backward have in common."""
        arrays = [_array(t) for t in tensors]
        n, settings = 1 + self.n_weights, self.settings
        kernel, recurrent_kernel, *bias = arrays[1:n]
        weights = make_weights(
            settings.cell,
            kernel,
            recurrent_kernel,
            bias[0] if bias else None,
            settings.activations,
            settings.name,
        )
        options = dict(zip(_MASKS, arrays[-3:], strict=True)) | {
            "initial_state": arrays[n:-3],
            **{name: getattr(settings, name) for name in _FLAGS},
        }
        return cast(Weights, weights), arrays[0], options  # the activations are known to the kernels

    def run(self, tensors: Sequence[Any], training: bool) -> tuple[list[Tensor], list[Any]]:
        """The outputs, and the tape if `training`."""
        weights, x, options = self._operands(tensors)
        run: Any = functional.run_forward if training else functional.run
        found = run(weights, x, **options)
        outputs, tapes = (found[0], [found[1]]) if training else (found, [])
        return [torch.from_numpy(y) for y in (outputs if self.settings.return_state else [outputs])], tapes

    def forward(self, tensors: Sequence[Any]) -> tuple[list[Tensor], list[Any]]:
        return self.run(tensors, True)

    def with_arrays(self, tensors: Sequence[Any]) -> list[Tensor]:
        outputs, tapes = self.run(tensors, True)
        return outputs + arrays_of(tapes)

    def restored(self, tensors: Sequence[Any], saved: Sequence[Tensor]) -> list[Any]:
        weights, x, options = self._operands(tensors)
        return [functional.restore_tape(weights, _array(saved[0]), x, **options)]

    def backward(self, gradients: Sequence[Tensor | None], tapes: list[Any]) -> list[Tensor | None]:
        given = [_array(g) for g in gradients]
        found = functional.run_backward(given if self.settings.return_state else given[0], tapes[0])
        return [torch.from_numpy(a) for a in (found.x, *found.weights, *found.initial_state)] + [None] * 3

    def differentiable(
        self, gradients: Sequence[Tensor | None], tensors: Sequence[Any], saved: Sequence[Tensor]
    ) -> list[Tensor | None]:
        return [*_Gradients.apply(self, len(tensors), *gradients, *tensors, *saved), None, None, None]


class _Gradients(torch.autograd.Function):
    """Those of x, weights and states, which cannot be differentiated; of any kind of tensors."""

    @staticmethod
    def forward(this: _Call, count: int, *given: Any) -> tuple[Tensor, ...]:
        gradients, tensors, saved = given[: this.outputs], given[this.outputs :][:count], given[-1:]
        found: Any = this.backward(gradients, this.restored(tensors, saved))
        return tuple(found[:-3])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.name = inputs[0].settings.name

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(ONCE.format(ctx.name))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return one_by_one(_Gradients, info, in_dims, args)

    jvp = staticmethod(no_jvp)
