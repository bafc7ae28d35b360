"""The recurrent layers as JAX functions: fastrnn.functional's functions on JAX arrays, inside of JAX's transformations.

    y = fastrnn.jax.lstm(x, kernel, recurrent_kernel, bias, return_sequences=True)

They run the compiled kernels on the CPU, through XLA's interface for foreign functions: under `jax.jit` nothing is copied
and no Python runs. Legend, weights, gate order and options are those of `fastrnn.functional`.

- `jax.grad`, `jax.vjp`: the kernels' backward pass. Second derivatives (`jax.hessian`, a gradient of a gradient) come from
  the same equations in jax.numpy, which is slower. `jax.jvp` alone, forward mode, is refused by JAX.
- `jax.vmap`: the mapped axis becomes a part of the batch where the weights are not mapped; else, and in the backward pass
  of per-example gradients, the calls follow each other.
- `jax.lax.scan`, `jax.checkpoint`, donated buffers, `jax.eval_shape`, export of the traced program: as any JAX function.
- Layer normalization and the LSTM variant "fgr" are computed in jax.numpy, which is slower than the kernels.
- Several devices: within `jax.shard_map` each device runs its part, and gradients of weights that all devices share are
  summed. Under `jax.jit` with sharded arrays XLA gathers them first, so that every device computes everything.
- Other platforms than the CPU: lowering raises NotImplementedError.

Arrays are float32, or float64 where JAX has it enabled; nothing is converted. Activations are names or `Activation`s.
Kernels use the threads of `fastrnn.set_num_threads`. A call that runs can't be interrupted, as any of JAX.

In a Flax module the weights are parameters as any other, for example of `flax.linen`:

    class LSTM(flax.linen.Module):
        units: int

        @flax.linen.compact
        def __call__(self, x):
            weights = self.param("lstm", fastrnn.jax.initializer("lstm", self.units), x.shape[-1])
            return fastrnn.jax.lstm(x, **weights, return_sequences=True)
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import numpy as np

try:
    import jax
    import jax.numpy as jnp
    from jax.custom_derivatives import SymbolicZero
    from jax.extend.core import Primitive
    from jax.interpreters import ad, batching, mlir, xla
except ImportError as error:
    raise ImportError(
        "fastrnn.jax needs JAX, which is not installed or too old; `pip install fastrnn[jax]`",
        name=error.name,
    ) from error

from fastrnn import _core, _jax_equations, activations, functional
from fastrnn.activations import ActivationLike
from fastrnn.arguments import CHECKS
from fastrnn.zero_outputs import last_step

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from typing_extensions import Unpack

__all__ = ["Options", "Settings", "call", "gru", "indrnn", "initializer", "lstm", "settings", "simple_rnn"]

Array = jax.Array
States = Sequence[Any] | Any | None
Outputs = Array | tuple[Array, ...]


class Options(TypedDict, total=False):
    """What every function takes beside x and the weights, as keywords; see `fastrnn.functional.Options`."""

    initial_state: States
    """A list of one [B, H] array or None (zeros) per state; None: zeros. One array alone for a cell with one state."""
    mask: ArrayLike | None
    """[B, T] bool: True where there is a step."""
    lengths: ArrayLike | None
    """[B] integers: short for the mask that is True in the first so many steps of each row. More than T is as T."""
    zero_output_for_mask: bool
    """The outputs of masked steps are zeros instead of the output before; static."""
    dropout_mask: ArrayLike | None
    """[B, I], or [B, G, I] with one for each gate: factors of x. Those for each gate have no gradient."""
    recurrent_dropout_mask: ArrayLike | None
    """[B, G, H]: factors of what each gate's recurrent kernel multiplies. They have no gradient."""
    zoneout_mask: Sequence[ArrayLike | None] | None
    """A list of one [B, T, H] array or None per state: 1 where the state stays as it was. They have no gradient."""
    return_sequences: bool
    """Return h of every step instead of the last; static."""
    return_state: bool
    """Also return the final states; static."""
    go_backwards: bool
    """Read x and the mask from the last step to the first; static."""


class Settings(NamedTuple):
    """What of a call is known before its arrays: hashable, so that it can be static. Made by `settings`."""

    cell: str
    """The kernels' name of the cell: "simple_rnn", "lstm", "gru", "gru_reset_before", "lstm_peephole" ..."""
    activations: tuple[tuple[int, float, float, float], ...]
    """(code, alpha, beta, clip) of the gates, the candidate, and of an LSTM's c on its way to h."""
    zero_output_for_mask: bool = False
    return_sequences: bool = False
    return_state: bool = False
    go_backwards: bool = False
    name: str = "fastrnn.jax"
    """What error messages begin with."""


def settings(
    cell: str,
    chosen: tuple[ActivationLike, ActivationLike, ActivationLike],
    *,
    zero_output_for_mask: bool = False,
    return_sequences: bool = False,
    return_state: bool = False,
    go_backwards: bool = False,
    name: str = "fastrnn.jax",
) -> Settings:
    """Make the settings of a `call`.

    Args:
        cell: The kernels' name of the cell; `functional.lstm_cell` for an LSTM.
        chosen: The activations of the gates, of the candidate, of an LSTM's c on its way to h: names or
            `activations.Activation`s.
        zero_output_for_mask, return_sequences, return_state, go_backwards: See `Options`.
        name: What error messages begin with.

    Raises:
        TypeError: An activation is a pair of Python functions, which the kernels can't call.
        ValueError: There is no such activation.
    """
    codes = []
    for given in chosen:
        try:
            found = activations.get(given)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
        if not isinstance(found, activations.Activation):
            raise TypeError(
                f"{name}: an activation must be a name or an Activation, got {found!r}, Python functions that the "
                "compiled kernels can't call; use one of fastrnn.activations.NAMES"
            )
        codes.append(found.numbers)
    return Settings(
        cell,
        tuple(codes),
        bool(zero_output_for_mask),
        bool(return_sequences),
        bool(return_state),
        bool(go_backwards),
        name,
    )


# ---- The kernels as primitives: arrays by name in, arrays by name out, see cpp/python/xla.cpp for the names

# A cell with one of these is computed in jax.numpy.
_NOT_IN_KERNELS = ("gate_kernel", "cell_norm", "layer_norm")
_WEIGHTS = ("kernel", "recurrent_kernel", "bias", "peephole", "projection", *_NOT_IN_KERNELS)
_WITH_GRADIENT = ("x", *_WEIGHTS, "initial_h", "initial_c")
_HANDLERS = _core.xla_handlers()
for _name, _capsule in _HANDLERS.items():
    jax.ffi.register_ffi_target(f"fastrnn_{_name}", _capsule, platform="cpu")


class _Static(NamedTuple):
    """The parameters of a primitive."""

    settings: Settings
    operands: tuple[str, ...]
    results: tuple[str, ...]


def _options(settings: Settings) -> tuple[str, ...]:
    return tuple(name for name in ("zero_output_for_mask", "go_backwards") if getattr(settings, name))


@lru_cache
def _tape_slots(
    cell: str, codes: tuple[tuple[int, float, float, float], ...], gates: int, peepholes: int
) -> int:
    """Without zoneout."""
    shape = (1,) if cell == "indrnn" else (1, gates)
    return _core.Weights(
        cell,
        np.zeros((1, gates)),
        np.zeros(shape),
        peephole=np.zeros((peepholes, 1)) if peepholes else None,
        projection=np.zeros((1, 1)) if "projected" in cell else None,
        activations=codes,
    ).tape_slots


_PartitionSpec: Any = jax.sharding.PartitionSpec


def _result_types(*types: Any, static: _Static) -> list[Any]:
    given = dict(zip(static.operands, types, strict=True))
    x, kernel = given["x"], given["kernel"]
    (B, T, _), R = x.shape, given["recurrent_kernel"].shape[0]
    H = given["projection"].shape[0] if "projection" in given else R
    shapes: dict[str, tuple[int, ...]] = {"y": (B, T, R), "last": (B, R), "h": (B, R), "c": (B, H)}
    if "tape" in static.results:
        peepholes = given["peephole"].shape[0] if "peephole" in given else 0
        cell, codes = static.settings.cell, static.settings.activations
        slots = _tape_slots(cell, codes, kernel.shape[1] // H, peepholes)
        if "zoneout_h" in given or "zoneout_c" in given:
            slots += _states_of(cell)
        shapes["tape"] = (B, T, slots, H)
    shapes |= {f"d{name}": type_.shape for name, type_ in given.items()}

    def like_x(shape: tuple[int, ...]) -> Any:
        unsharded = jax.sharding.NamedSharding(x.sharding.mesh, _PartitionSpec(*[None] * len(shape)))
        return x.update(shape=shape, weak_type=False, sharding=unsharded)

    return [like_x(shapes[name]) for name in static.results]


def _primitive(name: str, handler: str) -> Any:
    primitive: Any = Primitive(name)
    primitive.multiple_results = True
    primitive.def_abstract_eval(_result_types)
    primitive.def_impl(partial(xla.apply_primitive, primitive))

    def lower(context: Any, *operands: Any, static: _Static) -> Any:
        return jax.ffi.ffi_lowering(f"fastrnn_{handler}")(
            context,
            *operands,
            cell=static.settings.cell,
            activations=np.array(static.settings.activations, np.float64).ravel(),
            operands=" ".join(static.operands),
            results=" ".join(static.results),
            options=" ".join(_options(static.settings)),
        )

    def refuse(context: Any, *operands: Any, static: _Static) -> Any:
        platforms = ", ".join(context.module_context.platforms)
        raise NotImplementedError(
            f"{static.settings.name}: the kernels run on the CPU, got a computation for {platforms}; put it there with "
            "jax.default_device(jax.devices('cpu')[0]) or jax.device_put"
        )

    mlir.register_lowering(primitive, lower, platform="cpu")
    mlir.register_lowering(primitive, refuse)
    return primitive


_run = _primitive("fastrnn_run", "forward")  # inference, and what JAX transforms
_run_forward = _primitive("fastrnn_forward", "forward")  # the same with a tape
_run_backward = _primitive("fastrnn_backward", "backward")


def _bind(
    primitive: Any, settings: Settings, operands: dict[str, Array], results: tuple[str, ...]
) -> dict[str, Array]:
    static = _Static(settings, tuple(operands), results)
    return dict(zip(results, primitive.bind(*operands.values(), static=static), strict=True))


# ---- Their gradients


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable(static: _Static, operands: tuple[Array, ...]) -> list[Array]:
    outputs: list[Array] = _run.bind(*operands, static=static)
    return outputs


def _vjp_forward(static: _Static, operands: tuple[Any, ...]) -> Any:
    given = dict(zip(static.operands, operands, strict=True))
    values = {name: operand.value for name, operand in given.items()}
    moving = [name for name, operand in given.items() if operand.perturbed]
    for name in moving:
        if name not in _WITH_GRADIENT:
            raise ValueError(
                f"{static.settings.name}: {name} has no gradient, and must not depend on what is differentiated; wrap it "
                "in jax.lax.stop_gradient"
            )
    outputs = _bind(_run_forward, static.settings, values, (*static.results, "tape"))
    tape = outputs.pop("tape")
    # Which gradients are wanted lies in the structure of the residuals: it is known when backward is traced.
    return list(outputs.values()), (values, tape, dict.fromkeys(moving))


def _vjp_backward(static: _Static, residuals: Any, cotangents: list[Any]) -> Any:
    values, tape, moving = residuals
    given = {
        f"d{name}": d
        for name, d in zip(static.results, cotangents, strict=True)
        if not isinstance(d, SymbolicZero)
    }
    gradients: dict[str, Array] = {}
    if given and moving:
        always = {"kernel", "recurrent_kernel", "peephole", "projection"}
        results = tuple(f"d{name}" for name in values if name in moving or name in always)
        gradients = _bind(_run_backward, static.settings, {**values, "tape": tape, **given}, results)
    return (tuple(gradients.get(f"d{name}") if name in moving else None for name in static.operands),)


_differentiable.defvjp(_vjp_forward, _vjp_backward, symbolic_zeros=True)


def _jvp_of_part(
    f: Any, primals: Sequence[Array], tangents: Sequence[Any]
) -> tuple[list[Array], list[Array]]:
    """jax.jvp of f(list) at the primals, where some tangents are zeros, of any dtype."""
    moving = [i for i, tangent in enumerate(tangents) if type(tangent) is not ad.Zero]

    def of_moving(*values: Array) -> Any:
        everything = list(primals)
        for i, value in zip(moving, values, strict=True):
            everything[i] = value
        return f(everything)

    outputs, derivatives = jax.jvp(of_moving, [primals[i] for i in moving], [tangents[i] for i in moving])
    return outputs, derivatives


def _zero(primal: Array) -> Any:
    return ad.Zero(jax.typeof(primal).to_tangent_aval())


def _run_jvp(primals: Any, tangents: Any, *, static: _Static) -> Any:
    return _jvp_of_part(lambda operands: _differentiable(static, tuple(operands)), primals, tangents)


def _kernel_jvp(primitive: Any, equations: Any, primals: Any, tangents: Any, *, static: _Static) -> Any:
    """The derivative of a pass with a tape: that of its equations. It does not go through the tape itself."""
    results = tuple(name for name in static.results if name != "tape")
    cell, codes, options = static.settings.cell, static.settings.activations, _options(static.settings)

    def run(operands: list[Array]) -> Any:
        by_name = dict(zip(static.operands, operands, strict=True))
        return list(equations(cell, codes, options, by_name, results))

    outputs = primitive.bind(*primals, static=static)
    if "tape" in static.operands:
        place = static.operands.index("tape")
        tangents = [
            _zero(t) if i == place else d for i, (t, d) in enumerate(zip(primals, tangents, strict=True))
        ]
    if all(type(tangent) is ad.Zero for tangent in tangents):
        return outputs, [_zero(output) for output in outputs]
    _, derivatives = _jvp_of_part(run, primals, tangents)
    if "tape" in static.results:
        derivatives = [*derivatives, _zero(outputs[-1])]
    return outputs, derivatives


ad.primitive_jvps[_run] = _run_jvp
ad.primitive_jvps[_run_forward] = partial(_kernel_jvp, _run_forward, _jax_equations.forward)
ad.primitive_jvps[_run_backward] = partial(_kernel_jvp, _run_backward, _jax_equations.backward)


# ---- Under vmap


def _batch(
    primitive: Any, operands: Sequence[Array], axes: Sequence[int | None], *, static: _Static
) -> tuple[list[Array], list[int]]:
    by_name = list(zip(static.operands, operands, axes, strict=True))
    size = next(operand.shape[axis] for _, operand, axis in by_name if axis is not None)
    at_front = [a if axis is None else jnp.moveaxis(a, axis, 0) for _, a, axis in by_name]
    mapped = [axis is not None for axis in axes]
    # The rows of a tape with a mask are in the order of their lengths, over the whole batch: it can't be taken apart.
    ordered = "tape" in static.results and "mask" in static.operands
    shared_weights = not any(axis is not None for name, _, axis in by_name if name in _WEIGHTS)
    if primitive is not _run_backward and shared_weights and not ordered:
        folded = []
        for name, a, is_mapped in zip(static.operands, at_front, mapped, strict=True):
            if name not in _WEIGHTS:
                a = a if is_mapped else jnp.broadcast_to(a, (size, *a.shape))
                a = a.reshape(size * a.shape[1], *a.shape[2:])
            folded.append(a)
        results = primitive.bind(*folded, static=static)
        rows = next(a for name, a in zip(static.operands, at_front, strict=True) if name == "x").shape[-3]
        unfolded = [r.reshape(size, rows, *r.shape[1:]) for r in results]
        return unfolded, [0] * len(results)

    def one(part: list[Array]) -> Any:
        parts = iter(part)
        return primitive.bind(
            *(next(parts) if is_mapped else a for a, is_mapped in zip(at_front, mapped, strict=True)),
            static=static,
        )

    results = jax.lax.map(one, [a for a, is_mapped in zip(at_front, mapped, strict=True) if is_mapped])
    return results, [0] * len(results)


for _each in (_run, _run_forward, _run_backward):
    batching.primitive_batchers[_each] = partial(_batch, _each)


# ---- Calls: everything is checked while it is traced


def call(
    settings: Settings,
    x: ArrayLike,
    weights: Sequence[ArrayLike | None],
    initial_state: States = None,
    mask: ArrayLike | None = None,
    dropout_mask: ArrayLike | None = None,
    recurrent_dropout_mask: ArrayLike | None = None,
    zoneout_mask: Sequence[ArrayLike | None] | None = None,
) -> tuple[Array, ...]:
    """Run a cell over a batch of sequences: what the functions below do, for those who know the cell by its name.

    Args:
        settings: What is known before the arrays.
        x: [B, T, I].
        weights: kernel, recurrent kernel, then bias, peephole, projection, gate_kernel, cell_norm and layer_norm; None, or
            left out at the end: there is none. With one of the last three the cell is computed in jax.numpy.
        initial_state, mask, dropout_mask, recurrent_dropout_mask, zoneout_mask: See `Options`.

    Returns:
        (y, *states): y [B, T, H] or the last h [B, H]; the states [B, H] with `return_state` only.

    Raises:
        TypeError: An array is not of the kernel's dtype, float32 or float64; a mask is not bool.
        ValueError: A shape does not fit.

    >>> lstm_settings = settings("lstm", ("sigmoid", "tanh", "tanh"), return_state=True)
    >>> x, kernel, recurrent_kernel = (jnp.zeros(s) for s in [(8, 5, 3), (3, 64), (16, 64)])
    >>> [a.shape for a in call(lstm_settings, x, [kernel, recurrent_kernel])]
    [(8, 16), (8, 16), (8, 16)]
    """
    operands = _operands(
        settings, x, weights, initial_state, mask, dropout_mask, recurrent_dropout_mask, zoneout_mask
    )
    factors = operands.get("dropout_mask")
    if factors is not None and factors.ndim == 2:  # the same for all gates: XLA multiplies
        operands["x"] = operands["x"] * operands.pop("dropout_mask")[:, None, :]
    states = "hcifo"[: _states_of(settings.cell, operands)] if settings.return_state else ""
    results = ("y" if settings.return_sequences else "last", *states)
    outputs: Sequence[Array]
    if _in_kernels(operands):
        outputs = tuple(_bind(_run, settings, _alike(operands), results).values())
    else:
        how = settings.cell, settings.activations, _options(settings)
        outputs = _jax_equations.forward(*how, _alike(operands), results)
    y, *final = outputs
    if "mask" in operands and settings.zero_output_for_mask and not settings.return_sequences:
        rows = operands["mask"][:, last_step(settings.go_backwards)].all(axis=1, keepdims=True)
        y = jnp.where(rows, y, 0)
    return (y, *final)


def _in_kernels(weights: Mapping[str, Array]) -> bool:
    return weights.keys().isdisjoint(_NOT_IN_KERNELS)


def _states_of(cell: str, weights: Container[str] = ()) -> int:
    if "gate_kernel" in weights:
        return 5
    return 2 if cell.startswith("lstm") else 1


def _operands(
    settings: Settings,
    x: ArrayLike,
    weights: Sequence[ArrayLike | None],
    initial_state: States,
    mask: ArrayLike | None,
    dropout_mask: ArrayLike | None,
    recurrent_dropout_mask: ArrayLike | None,
    zoneout_mask: Sequence[ArrayLike | None] | None,
) -> dict[str, Array]:
    """The operands of the handler, checked."""
    where = settings.name
    operands = {
        name: jnp.asarray(weight)
        for name, weight in zip(_WEIGHTS, (*weights, *[None] * len(_WEIGHTS))[: len(_WEIGHTS)], strict=True)
        if weight is not None
    }
    _check_weights(settings, operands)
    dtype, (I, columns) = operands["kernel"].dtype, operands["kernel"].shape
    R = len(operands["recurrent_kernel"])  # how wide h is
    H = len(operands.get("projection", operands["recurrent_kernel"]))
    G, widths = columns // H, (R, H, H, H, H)

    def add(name: str, given: Any, label: str, shape: tuple[int, ...], meaning: str) -> None:
        if given is None:
            return
        array = jnp.asarray(given)
        if array.dtype != dtype:
            raise TypeError(
                f"{where}: {label} must be {dtype} like the kernel, got {array.dtype}; convert it with "
                f'{label}.astype("{dtype}")'
            )
        if array.shape != shape:
            raise ValueError(f"{where}: {label} must have shape {shape} ({meaning}), got {array.shape}")
        operands[name] = array

    x = jnp.asarray(x)
    if x.ndim != 3:
        advice = "; add a time axis with x[:, None, :]" if x.ndim == 2 else ""
        raise ValueError(f"{where}: x must have shape [batch, time, features], got {x.shape}{advice}")
    B, T = x.shape[:2]
    add("x", x, "x", (B, T, I), f"features as the kernel {operands['kernel'].shape} has rows")
    names = "hcifo"[: _states_of(settings.cell, operands)]
    given_states = _given_of_states(where, "initial_state", initial_state, len(names))
    # In jax.numpy zeros, too, are given: within jax.shard_map they must differ from device to device as x does.
    if not _in_kernels(operands) or any(state is not None for state in given_states):
        for i, (name, state) in enumerate(zip(names, given_states, strict=True)):
            label = f"initial_state[{i}]"
            state = jnp.zeros((B, widths[i]), dtype) if state is None else state
            add(f"initial_{name}", state, label, (B, widths[i]), "batch, units")
    if mask is not None:
        mask = jnp.asarray(mask)
        if mask.dtype != bool:
            raise TypeError(
                f"{where}: mask must be an array of bool, True where there is a step, got {mask.dtype}; convert it with "
                "mask.astype(bool)"
            )
        if mask.shape != (B, T):
            raise ValueError(f"{where}: mask must have shape {(B, T)} (batch, time), got {mask.shape}")
        operands["mask"] = mask
    if dropout_mask is not None:
        shared = np.ndim(dropout_mask) == 2
        shape, meaning = ((B, I), "batch, features") if shared else ((B, G, I), "batch, gates, features")
        add("dropout_mask", dropout_mask, "dropout_mask", shape, meaning)
    label = "recurrent_dropout_mask"
    add(label, recurrent_dropout_mask, label, (B, G, R), "batch, gates, units")
    given_masks = _given_of_states(where, "zoneout_mask", zoneout_mask, len(names))
    for i, (name, of_state) in enumerate(zip(names, given_masks, strict=True)):
        label = f"zoneout_mask[{i}]"
        add(f"zoneout_{name}", of_state, label, (B, T, widths[i]), "batch, time, units")
    return operands


def _check_weights(settings: Settings, weights: dict[str, Array]) -> None:
    """Refuse what the kernels would refuse, in their words: they get arrays of the same shapes, all of one element."""
    for name in ("kernel", "recurrent_kernel"):
        if name not in weights:
            raise TypeError(f"{settings.name}: {name} must be an array, got None")
    of_shape = {
        name: np.broadcast_to(np.zeros((), weight.dtype), weight.shape) for name, weight in weights.items()
    }
    functional.make_weights(
        settings.cell,
        of_shape.pop("kernel"),
        of_shape.pop("recurrent_kernel"),
        of_shape.pop("bias", None),
        tuple(functional.activation_of(*code) for code in settings.activations),  # type: ignore[arg-type]
        settings.name,
        **of_shape,
    )


def _given_of_states(where: str, what: str, given: Any, count: int) -> list[Any]:
    if given is None:
        return [None] * count
    if not isinstance(given, (list, tuple)):
        if count > 1:
            raise TypeError(
                f"{where}: {what} must be a list or tuple of {count} arrays, got {type(given).__name__}"
            )
        return [given]
    if len(given) != count:
        raise ValueError(f"{where}: {what} must have {count} items, got {len(given)}")
    return list(given)


def _alike(operands: dict[str, Array]) -> dict[str, Array]:
    """Within jax.shard_map: arrays that differ from device to device if any of them does."""
    varying = {name: _varying(operand) for name, operand in operands.items()}
    everywhere = frozenset[Any]().union(*varying.values())
    if not everywhere:
        return operands
    return {
        name: jax.lax.pcast(operand, tuple(everywhere - varying[name]), to="varying")
        if varying[name] != everywhere
        else operand
        for name, operand in operands.items()
    }


def _varying(operand: Array) -> frozenset[Any]:
    type_ = jax.typeof(operand)
    manual: Any = getattr(type_, "manual_axis_type", None)
    axes: frozenset[Any] = manual.varying if manual is not None else getattr(type_, "vma", frozenset())
    return axes


def _run_by_name(
    function: str,
    cell: str,
    chosen: tuple[ActivationLike, ActivationLike, ActivationLike],
    x: ArrayLike,
    weights: list[ArrayLike | None],
    layer_norm: ArrayLike | None,
    *,
    initial_state: States = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    dropout_mask: ArrayLike | None = None,
    recurrent_dropout_mask: ArrayLike | None = None,
    zoneout_mask: Sequence[ArrayLike | None] | None = None,
    **flags: bool,
) -> Outputs:
    name = f"fastrnn.jax.{function}"
    wrong = flags.keys() - {"zero_output_for_mask", "return_sequences", "return_state", "go_backwards"}
    if wrong:
        raise TypeError(f"{name}: there is no option {min(wrong)!r}; see the docstring of {name}")
    if lengths is not None:
        mask = _mask_of(name, lengths, mask, x)
    outputs = call(
        settings(cell, chosen, name=name, **flags),
        x,
        [*weights, *[None] * (len(_WEIGHTS) - 1 - len(weights)), layer_norm],
        initial_state,
        mask,
        dropout_mask,
        recurrent_dropout_mask,
        zoneout_mask,
    )
    return outputs if flags.get("return_state") else outputs[0]


def _mask_of(where: str, lengths: ArrayLike, mask: ArrayLike | None, x: ArrayLike) -> Array:
    """`functional.mask_of`; of lengths that are traced only dtype and shape are known, and checked."""
    given: Any = lengths
    traced = isinstance(lengths, jax.core.Tracer)
    if isinstance(lengths, jax.core.Tracer):
        given = np.broadcast_to(np.zeros((), lengths.dtype), lengths.shape)
    elif isinstance(lengths, jax.Array):
        given = np.asarray(lengths)
    of_its_shape = np.broadcast_to(np.zeros(()), np.shape(x))
    known = functional.mask_of(where, given, mask, of_its_shape)  # type: ignore[arg-type]
    return jnp.arange(known.shape[1]) < jnp.asarray(lengths)[:, None] if traced else jnp.asarray(known)


# ---- Weights

_GATES = {"simple_rnn": 1, "indrnn": 1, "lstm": 4, "gru": 3}


def initializer(
    function: str, units: int, *, use_bias: bool = True, reset_after: bool = True, dtype: Any = jnp.float32
) -> Callable[[Array, int], dict[str, Array]]:
    """A function that draws the weights of a layer, as Flax's `param` and others take them.

    They are drawn as Keras does by default: the kernel from Glorot's uniform distribution, the recurrent kernel orthogonal
    (of "indrnn" ones), the bias zeros, but for the LSTM's forget gate, whose bias is ones.

    Args:
        function: The function that the weights are for: "simple_rnn", "indrnn", "lstm" or "gru".
        units: H.
        use_bias: Also make the bias.
        reset_after: As of `gru`, which has two rows of biases with it.
        dtype: float32 or float64.

    Returns:
        A function of a key and of I, how many features x has, that returns the weights by the names of the arguments.

    Raises:
        TypeError: units is no integer.
        ValueError: There is no such function, units are less than 1, or dtype is another one.
        NotImplementedError: dtype has 16 bits.

    >>> draw = initializer("lstm", 16)
    >>> weights = draw(jax.random.key(0), 3)
    >>> {name: weight.shape for name, weight in weights.items()}
    {'kernel': (3, 64), 'recurrent_kernel': (16, 64), 'bias': (64,)}
    >>> lstm(jnp.zeros((8, 5, 3)), **weights).shape
    (8, 16)
    """
    where = "fastrnn.jax.initializer"
    if function not in _GATES:
        raise ValueError(f"{where}: function must be one of {', '.join(_GATES)}, got {function!r}")
    units, dtype = CHECKS["units"](where, "units", units), CHECKS["dtype"](where, "dtype", dtype)
    columns = _GATES[function] * units

    def draw(key: Array, features: int) -> dict[str, Array]:
        of_kernel, of_recurrent = jax.random.split(key)
        glorot, orthogonal = jax.nn.initializers.glorot_uniform(), jax.nn.initializers.orthogonal()
        weights = {
            "kernel": glorot(of_kernel, (features, columns), dtype),
            "recurrent_kernel": jnp.ones(units, dtype)
            if function == "indrnn"
            else orthogonal(of_recurrent, (units, columns), dtype),
        }
        if use_bias:
            bias = jnp.zeros((2, columns) if function == "gru" and reset_after else columns, dtype)
            weights["bias"] = bias.at[units : 2 * units].set(1) if function == "lstm" else bias
        return weights

    return draw


# ---- By name


def simple_rnn(
    x: ArrayLike,
    kernel: ArrayLike,
    recurrent_kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    activation: ActivationLike = "tanh",
    layer_norm: ArrayLike | None = None,
    **options: Unpack[Options],
) -> Outputs:
    """Run a simple recurrent layer over a batch of sequences; the equation is in `functional.simple_rnn`.

    Args:
        x: [B, T, I].
        kernel: W, [I, H].
        recurrent_kernel: U, [H, H].
        bias: b, [H]; None: no bias.
        activation: A name or an `activations.Activation`.
        layer_norm: Gains [2, H] of the layer normalization of x W and h U; computed in jax.numpy. None: not.
        options: See `Options`. The states are [h].

    Returns:
        y [B, H], or [B, T, H] with `return_sequences`; with `return_state` the tuple `(y, h)`, states [B, H].

    Raises:
        TypeError: An array is not of the kernel's dtype, float32 or float64.
        ValueError: A shape does not fit.

    >>> x, kernel, recurrent_kernel = (jnp.zeros(s) for s in [(8, 5, 3), (3, 16), (16, 16)])
    >>> simple_rnn(x, kernel, recurrent_kernel, return_sequences=True).shape
    (8, 5, 16)
    """
    chosen = ("sigmoid", activation, activation)
    weights = [kernel, recurrent_kernel, bias]
    return _run_by_name("simple_rnn", "simple_rnn", chosen, x, weights, layer_norm, **options)


def indrnn(
    x: ArrayLike,
    kernel: ArrayLike,
    recurrent_kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    activation: ActivationLike = "relu",
    layer_norm: ArrayLike | None = None,
    **options: Unpack[Options],
) -> Outputs:
    """Run an independently recurrent layer, each unit of which sees its own state only; see `functional.indrnn`.

    Args:
        x: [B, T, I].
        kernel: W, [I, H].
        recurrent_kernel: u, [H].
        bias: b, [H]; None: no bias.
        activation: A name or an `activations.Activation`.
        layer_norm: Gains [2, H] of the layer normalization of x W and h U; computed in jax.numpy. None: not.
        options: See `Options`. The states are [h].

    Returns:
        y [B, H], or [B, T, H] with `return_sequences`; with `return_state` the tuple `(y, h)`, states [B, H].

    Raises:
        TypeError: An array is not of the kernel's dtype, float32 or float64.
        ValueError: A shape does not fit.

    >>> indrnn(jnp.zeros((8, 5, 3)), jnp.zeros((3, 16)), jnp.zeros(16)).shape
    (8, 16)
    """
    chosen = ("sigmoid", activation, activation)
    weights = [kernel, recurrent_kernel, bias]
    return _run_by_name("indrnn", "indrnn", chosen, x, weights, layer_norm, **options)


def lstm(
    x: ArrayLike,
    kernel: ArrayLike,
    recurrent_kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    activation: ActivationLike = "tanh",
    recurrent_activation: ActivationLike = "sigmoid",
    variant: str | None = None,
    peephole: ArrayLike | None = None,
    projection: ArrayLike | None = None,
    gate_kernel: ArrayLike | None = None,
    cell_norm: ArrayLike | None = None,
    layer_norm: ArrayLike | None = None,
    **options: Unpack[Options],
) -> Outputs:
    """Run an LSTM over a batch of sequences; equations and variants are in `functional.lstm`.

    Args:
        x: [B, T, I].
        kernel: W, [I, 4H]; 3H for a variant with three gates.
        recurrent_kernel: U, [H, 4H].
        bias: b, [4H]; None: no bias.
        activation: Of the candidate and of c; a name or an `activations.Activation`.
        recurrent_activation: Of the gates.
        variant: One of `functional.VARIANTS`.
        peephole: p, a row [H] for each gate that there is, in the order i f o: [3, H]; None: no peepholes.
        projection: P, [H, R] with R <= H; None: none. With it recurrent_kernel is [R, 4H], and h is R wide.
        gate_kernel: G, [3H, 3H], for "fgr"; computed in jax.numpy, as it is with the next two.
        cell_norm: Gain and bias [2, H] of the layer normalization of c on its way to h. None: not.
        layer_norm: Gains [2, 4H] of the layer normalization of x W and h U. None: not.
        options: See `Options`. The states are [h, c], with "fgr" [h, c, i, f, o].

    Returns:
        y [B, H], or [B, T, H] with `return_sequences`; with `return_state` the tuple `(y, *states)`, states [B, H].

    Raises:
        TypeError: An array is not of the kernel's dtype, float32 or float64.
        ValueError: A shape does not fit.

    >>> x, kernel, recurrent_kernel = (jnp.zeros(s) for s in [(8, 5, 3), (3, 64), (16, 64)])
    >>> jax.grad(lambda x: lstm(x, kernel, recurrent_kernel).sum())(x).shape
    (8, 5, 3)
    """
    try:
        cell = functional.lstm_cell(
            variant, peephole is not None, projection is not None, cell_norm is not None
        )
        functional.require_gate_kernel(variant, gate_kernel)
    except ValueError as error:
        raise ValueError(f"fastrnn.jax.lstm: {error}") from None
    chosen = functional.lstm_activations(variant, activation, recurrent_activation)
    weights = [kernel, recurrent_kernel, bias, peephole, projection, gate_kernel, cell_norm]
    return _run_by_name("lstm", cell, chosen, x, weights, layer_norm, **options)


def gru(
    x: ArrayLike,
    kernel: ArrayLike,
    recurrent_kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    activation: ActivationLike = "tanh",
    recurrent_activation: ActivationLike = "sigmoid",
    reset_after: bool = True,
    layer_norm: ArrayLike | None = None,
    **options: Unpack[Options],
) -> Outputs:
    """Run a GRU over a batch of sequences; the equations are in `functional.gru`.

    Args:
        x: [B, T, I].
        kernel: W, [I, 3H].
        recurrent_kernel: U, [H, 3H].
        bias: b, [2, 3H] (a row for the input, one for the state); [3H] with reset_after=False; None: no bias.
        activation: Of the candidate; a name or an `activations.Activation`.
        recurrent_activation: Of the gates.
        reset_after: Apply the reset gate after the recurrent product (as cuDNN and Keras do) or before it.
        layer_norm: Gains [2, 3H] of the layer normalization of x W and h U; computed in jax.numpy. None: not.
        options: See `Options`. The states are [h].

    Returns:
        y [B, H], or [B, T, H] with `return_sequences`; with `return_state` the tuple `(y, h)`, states [B, H].

    Raises:
        TypeError: An array is not of the kernel's dtype, float32 or float64.
        ValueError: A shape does not fit.

    >>> x, kernel, recurrent_kernel = (jnp.zeros(s) for s in [(8, 5, 3), (3, 48), (16, 48)])
    >>> jax.jit(gru)(x, kernel, recurrent_kernel).shape
    (8, 16)
    """
    cell = "gru" if reset_after else "gru_reset_before"
    chosen = (recurrent_activation, activation, activation)
    return _run_by_name("gru", cell, chosen, x, [kernel, recurrent_kernel, bias], layer_norm, **options)
