"""Objects that are nothing but their settings: equal when these are, and written as Keras' configs.

A config is the dict `{"class_name": "L2", "config": {"l2": 0.01}}`; `get` finds the object that a name, a config, a
class or an object of Keras means, `serialize` writes one down.
"""

from __future__ import annotations

import inspect
import math
import numbers
import re
import reprlib
from typing import Any, TypeVar

__all__ = ["Configured", "get", "non_negative", "serialize"]

Self = TypeVar("Self", bound="Configured")


class Configured:
    """An object whose settings are the parameters of its constructor, kept under their names."""

    def get_config(self) -> dict[str, Any]:
        """The settings, JSON-able, for `from_config` here or of Keras' class of this name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @classmethod
    def from_config(cls: type[Self], config: dict[str, Any]) -> Self:
        """The object that has these settings."""
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        """Whether class and settings are the same."""
        return type(other) is type(self) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        """Of what `==` compares."""
        return hash((type(self), repr(self)))

    def __repr__(self) -> str:
        """The call that makes it."""
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.get_config().items())})"


def non_negative(where: str, name: str, value: Any) -> float:
    """`value` as a float, after a check that it is a finite number of 0 or more."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) < math.inf:
        raise ValueError(
            f"{where}: {name} must be a finite number of 0 or more, got {reprlib.repr(value)}; pass a float"
        )
    return float(value)


def get(kind: str, identifier: Any, classes: tuple[type[Configured], ...]) -> Any:
    """What `identifier` means: a name, a config, a class, or an object, one of Keras' replaced by ours.

    Args:
        kind: what error messages call it, "a regularizer".
        identifier: name of one of `classes` ("MaxNorm" or "max_norm"), a config, a class or any object.
        classes: the known classes.

    Returns:
        An object: one of `classes`, or `identifier` itself if it is an object of another kind.

    Raises:
        ValueError: the name or a setting is not known.
    """
    if inspect.isclass(identifier):
        identifier = identifier()
    elif isinstance(identifier, str):
        identifier = _class(kind, identifier, classes)()
    elif type(identifier).__module__.startswith("keras.") and hasattr(identifier, "get_config"):
        if type(identifier).__name__ in {known.__name__ for known in classes}:
            identifier = serialize(kind, identifier)
    if not isinstance(identifier, dict):
        return identifier
    name, settings = identifier.get("class_name"), identifier.get("config")
    if not isinstance(name, str) or not isinstance(settings or {}, dict):
        raise ValueError(
            f"{kind}'s config must have a class_name and a dict config, got {reprlib.repr(identifier)}; "
            'pass for example {"class_name": "Name", "config": {}}'
        )
    known = _class(kind, name, classes)
    unknown = sorted((settings or {}).keys() - inspect.signature(known).parameters.keys())
    if unknown:
        raise ValueError(
            f"{known.__name__}: the settings must be among {sorted(inspect.signature(known).parameters)}, "
            f"got {unknown}; leave the others out"
        )
    return known.from_config(settings or {})


def serialize(kind: str, value: Any) -> dict[str, Any] | None:
    """What `get` turns back into `value`: JSON-able, and understood by Keras as well. None stays None.

    Raises:
        TypeError: an object of one's own without get_config() can't be written down.
    """
    if value is None:
        return None
    if not hasattr(value, "get_config"):
        raise TypeError(
            f"{kind} of one's own cannot be written into a config, got {value!r}; give it a method get_config()"
        )
    return {"class_name": type(value).__name__, "config": value.get_config()}


def _class(kind: str, name: str, classes: tuple[type[Configured], ...]) -> type[Configured]:
    snake = {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", known.__name__).lower(): known for known in classes}
    known = snake.get(name) or {known.__name__: known for known in classes}.get(name)
    if known is None:
        names = ", ".join(f'"{name}"' for name in sorted(snake))
        raise ValueError(f'{kind} must have a known name, got "{name}"; the known ones are {names}')
    return known
