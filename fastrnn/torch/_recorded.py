"""A call of the kernels that autograd records, for plain tensors: what the modules here and Keras' layers on PyTorch share.

`record(call, tensors)` runs a `Call` and returns its outputs, which have gradients. The kernels' tapes are kept as they are,
beside the tensors, which PyTorch keeps and watches for changes. Where hooks pack what is saved (checkpointing, offloading),
the tapes are saved as tensors too. `record_any` does the same for tensors that a transform of torch.func or a compiler has
wrapped; there a tape is always its array.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastrnn import _core

Parameter = torch.nn.Parameter
# Whether the compiled module reads tensors itself. If PyTorch is too old for that, it gets arrays from `Tensor.numpy`.
TENSORS_ARE_READ = _core.open_tensors(Tensor, Parameter)
array_of: Any = _core.array_of_tensor if TENSORS_ARE_READ else Tensor.numpy
# Where tapes find the tensors' values. `Tensor.numpy` sees to it that this does not change.
_places: Any = _core.places_of_tensors if TENSORS_ARE_READ else lambda tensors: b""


class Call(Protocol):
    """A call without its tensors, which come and go in one order; masks among them may be None."""

    def forward(self, tensors: Any) -> tuple[list[Tensor], list[Any]]:
        """The outputs and the tapes; gradients are not recorded."""

    def backward(self, gradients: Sequence[Tensor | None], tapes: list[Any]) -> Sequence[Tensor | None]:
        """The gradient of each tensor, or None, of those of the outputs; uses the tapes up. Nothing is recorded."""

    def restored(self, tensors: Any, saved: Sequence[Tensor]) -> list[Any]:
        """The tapes again, of what `forward` was given and of their arrays."""

    def differentiable(
        self, gradients: Sequence[Tensor | None], tensors: Any, saved: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        """What `backward` returns, of any kind of tensors; it can be differentiated, or says why not."""


class AnyCall(Call, Protocol):
    """A call of any kind of tensors."""

    outputs: int
    """How many there are."""

    def with_arrays(self, tensors: Any) -> Sequence[Tensor]:
        """The outputs and the arrays of the tapes."""


def is_plain(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether the kernels can read these tensors where they are, and nothing watches the operators called on them.

    None among them is no tensor.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return False
    if forward_ad._current_level >= 0 and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors
    ):
        no_jvp()
    if TENSORS_ARE_READ:
        return _core.plain_tensors(tensors)
    given = [t for t in tensors if t is not None]
    return all(
        type(t) in (Tensor, Parameter)
        and t.dtype in (torch.float32, torch.float64)
        and t.dtype is given[0].dtype
        and t.is_cpu
        and t.layout is torch.strided
        and not t.is_neg()
        for t in given
    )


def no_jvp(ctx: Any = None, *tangents: Any) -> Any:
    """Refuse forward mode; the `jvp` of an autograd.Function."""
    raise NotImplementedError(
        "fastrnn.torch: gradients must be taken in reverse mode, got a call of forward mode (torch.func.jvp, jacfwd, "
        "torch.autograd.forward_ad), which fastrnn's kernels don't have; use vjp, jacrev, or torch.nn's module"
    )


def arrays_of(tapes: Sequence[Any]) -> list[Tensor]:
    """The arrays of tapes that were not used, as tensors on the same memory."""
    return [torch.from_numpy(tape.saved) for tape in tapes]


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        outputs, tapes = call.forward(tensors)
        ctx.call = call
        ctx.set_materialize_grads(False)
        if torch._C._autograd._top_saved_tensors_default_hooks(False) is None:
            ctx.tapes, ctx.places = tapes, _places(tensors)
            ctx.save_for_backward(*tensors)
        else:
            ctx.count = len(tensors)
            ctx.save_for_backward(*tensors, *arrays_of(tapes))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        call, tensors, attributes = ctx.call, ctx.saved_tensors, ctx.__dict__
        saved, plain = None, gradients
        if "count" in attributes:
            tensors, saved = tensors[: ctx.count], tensors[ctx.count :]
            plain = (*gradients, *(t for t in tensors if t is not None and t.is_floating_point()), *saved)
        if torch.is_grad_enabled() or not is_plain(plain):
            saved = arrays_of(ctx.tapes) if saved is None else saved
            return (None, *call.differentiable(gradients, tensors, saved))
        if saved is not None:
            return (None, *call.backward(gradients, call.restored(tensors, saved)))
        tapes = ctx.tapes
        if torch._C._autograd._get_current_graph_task_keep_graph():  # a tape serves once
            tapes = call.restored(tensors, arrays_of(tapes))
        else:
            del ctx.tapes  # a loss that is kept keeps this context
            if ctx.places != _places(tensors):  # a storage has other memory than in forward
                tapes = call.restored(tensors, arrays_of(tapes))
        return (None, *call.backward(gradients, tapes))

    jvp = staticmethod(no_jvp)


# Without the part of `apply` that is for functorch, which plain tensors have nothing to do with.
_apply: Any = super(torch.autograd.Function, _Recorded).apply


def record(call: Call, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """The outputs of a call, recorded for its gradients. `is_plain` holds for the tensors that are no masks."""
    outputs: tuple[Tensor, ...] = _apply(call, *tensors)
    return outputs


class _RecordedAny(torch.autograd.Function):
    """The outputs and the arrays of the tapes."""

    @staticmethod
    def forward(call: AnyCall, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(call.with_arrays(tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.call, *tensors = inputs
        saved = output[ctx.call.outputs :]
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *saved)
        ctx.count = len(tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        unpacked, n = ctx.saved_tensors, ctx.count  # read once: hooks unpack anew at each reading
        return (None, *ctx.call.differentiable(gradients[: ctx.call.outputs], unpacked[:n], unpacked[n:]))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return one_by_one(_RecordedAny, info, in_dims, args)

    jvp = staticmethod(no_jvp)


def one_by_one(function: Any, info: Any, in_dims: Sequence[Any], args: Sequence[Any]) -> Any:
    """The `vmap` of an autograd.Function, as a loop."""
    results = [
        function.apply(
            *(a if dim is None else a.select(dim, i) for a, dim in zip(args, in_dims, strict=True))
        )
        for i in range(info.batch_size)
    ]
    return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])


def record_any(call: AnyCall, tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """The outputs of a call of any kind of tensors, recorded for its gradients."""
    return list(_RecordedAny.apply(call, *tensors)[: call.outputs])
