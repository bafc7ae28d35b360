"""`accelerate`: the recurrent modules of a model that exists, made into fastrnn's."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastrnn.torch._modules import DTYPES, GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

REPLACEMENTS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch.nn.RNN: RNN,
    torch.nn.LSTM: LSTM,
    torch.nn.GRU: GRU,
    torch.nn.RNNCell: RNNCell,
    torch.nn.LSTMCell: LSTMCell,
    torch.nn.GRUCell: GRUCell,
}


class Accelerated(NamedTuple):
    """What `accelerate` did."""

    model: torch.nn.Module
    """The model that it was given."""
    replaced: list[str]
    """The names of the modules that are fastrnn's now, as in `named_modules`; of the model itself ""."""
    kept: dict[str, str]
    """Recurrent modules that are what they were: name -> reason."""

    def __str__(self) -> str:
        lines = [f"fastrnn runs {_shown(name)}" for name in self.replaced]
        lines += [f"PyTorch runs {_shown(name)}: {reason}" for name, reason in self.kept.items()]
        return "\n".join(lines or ["There is no recurrent module"])


def _shown(name: str) -> str:
    return name or "the model"


def accelerate(model: torch.nn.Module) -> Accelerated:
    """Make every RNN, LSTM, GRU and cell of torch.nn in a model fastrnn's, in place.

    The modules stay the same objects with the same Parameters, hooks and training mode, so that an optimizer, a
    reference to a module or a shared weight goes on working. Only their class changes.

    Args:
        model: Any module; it may be a recurrent one itself.

    Returns:
        What was replaced, and what was not and why. Print it.

    Raises:
        TypeError: `model` is no torch.nn.Module.

    >>> import torch, fastrnn.torch
    >>> model = torch.nn.ModuleDict({"encoder": torch.nn.LSTM(3, 16), "head": torch.nn.Linear(16, 1)})
    >>> print(fastrnn.torch.accelerate(model))
    fastrnn runs encoder
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"fastrnn.torch.accelerate: model must be a torch.nn.Module, got a {type(model).__name__}; pass the model"
        )
    replaced, kept = [], {}
    module: torch.nn.Module
    for name, module in model.named_modules():
        if not isinstance(module, (torch.nn.RNNBase, torch.nn.RNNCellBase)) or isinstance(
            module, tuple(REPLACEMENTS.values())
        ):
            continue
        reason = _reason_to_keep(module)
        if reason is None:
            module.__class__ = REPLACEMENTS[type(module)]  # type: ignore[assignment]
            replaced.append(name)
        else:
            kept[name] = reason
    return Accelerated(model, replaced, kept)


def _reason_to_keep(module: torch.nn.Module) -> str | None:
    if type(module) not in REPLACEMENTS:
        return f"{type(module).__name__} is a class of its own; accelerate before you derive, or derive from fastrnn.torch's"
    if "forward" in module.__dict__:
        return "its forward was replaced"
    for parameter in module.parameters():
        if parameter.device.type != "cpu":
            return f"its parameters are on {parameter.device}; fastrnn's must be on the CPU"
        if parameter.dtype not in DTYPES:
            return f"its parameters are {parameter.dtype}; fastrnn's must be float32 or float64"
    return None
