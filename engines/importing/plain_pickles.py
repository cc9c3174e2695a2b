"""Reads pickles of dictionaries of numpy arrays without unpickling: nothing of the file is imported or called.

The file's opcodes are read as data; the few that numpy writes for arrays are understood here, and any other name that
the file asks for is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pickletools import genops
from typing import Any

import numpy as np

from rtdecode.errors import CheckpointError

_DTYPES = {
    f"{kind}{size}" for kind, sizes in (("f", (2, 4, 8)), ("i", (1, 2, 4, 8)), ("u", (1, 2, 4, 8))) for size in sizes
}


class _Mark:
    """Where a group of values on the stack begins."""


class PickleName:
    """Something that the file asks for by name; it is never looked up."""

    def __init__(self, module: str, name: str) -> None:
        self.text = f"{module.replace('numpy._core', 'numpy.core')}.{name}"


class _Dtype:
    def __init__(self, code: str) -> None:
        if code.lstrip("<>=|") not in _DTYPES:
            raise CheckpointError(f"expected arrays of numbers, got numpy type {code!r}")
        self.code = code.lstrip("<>=|")
        self.order = "<"

    def set_state(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class _Array:
    def __init__(self) -> None:
        self.value: np.ndarray[Any, Any] | None = None

    def set_state(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
            raise CheckpointError("expected an array of numbers, got one of objects")
        self.value = _filled(raw, dtype, shape, "F" if fortran else "C")


def read_plain_pickle(path: Path) -> dict[str, Any]:
    """Read a pickled dictionary of arrays, numbers and texts.

    Parameters
    ----------
    path : Path

    Raises
    ------
    CheckpointError
        It cannot be read, or holds anything else.
    """
    try:
        with path.open("rb") as stream:
            found = _finished(PickleMachine().run(genops(stream)))
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: {error}; reading it would run code of the file: save its arrays as {path.stem}.safetensors"
        ) from None
    except (OSError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a readable pickle, download it again ({error})") from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise CheckpointError(f"{path}: expected a dictionary by name, got {type(found).__name__}")
    return found


class PickleMachine:
    """The stack and the memo that opcodes work on: arrays of numpy, and containers of them.

    Whoever understands more adds a method for each further operation.
    """

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, operations: Any) -> Any:
        """Follow operations as `pickletools.genops` yields them; return what is left.

        Raises
        ------
        CheckpointError
            One is not understood, or asks for more than data.
        """
        for opcode, argument, _ in operations:
            name = opcode.name
            if name == "STOP":
                return self._stack.pop()
            if name in ("PROTO", "FRAME"):
                continue
            if name in _PLAIN:
                self._stack.append(_PLAIN[name](argument))
                continue
            step = getattr(self, f"_{name.lower()}", None)
            if step is None:
                raise CheckpointError(f"expected arrays only, got the operation {name}")
            step(argument)
        raise CheckpointError("expected an end, got none")

    def _group(self) -> list[Any]:
        at = len(self._stack) - 1
        while not isinstance(self._stack[at], _Mark):
            at -= 1
        group = self._stack[at + 1 :]
        del self._stack[at:]
        return group

    def _memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _binput(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    _long_binput = _binput

    def _binget(self, place: int) -> None:
        self._stack.append(self._memo[place])

    _long_binget = _binget

    def _tuple(self, _: None) -> None:
        self._stack.append(tuple(self._group()))

    def _pack(self, n: int) -> None:
        values = tuple(self._stack[-n:])
        del self._stack[-n:]
        self._stack.append(values)

    def _tuple1(self, _: None) -> None:
        self._pack(1)

    def _tuple2(self, _: None) -> None:
        self._pack(2)

    def _tuple3(self, _: None) -> None:
        self._pack(3)

    def _setitem(self, _: None) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._stack[-1][key] = value

    def _setitems(self, _: None) -> None:
        group = self._group()
        self._stack[-1].update(zip(group[::2], group[1::2], strict=True))

    def _global(self, argument: str) -> None:
        self._stack.append(PickleName(*argument.split(" ", 1)))

    def _stack_global(self, _: None) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(PickleName(module, name))

    def _reduce(self, _: None) -> None:
        arguments, called = self._stack.pop(), self._stack.pop()
        if not isinstance(called, PickleName) or called.text not in _CALLS:
            raise CheckpointError(f"expected arrays only, got a call of {getattr(called, 'text', called)}")
        self._stack.append(_CALLS[called.text](*arguments))

    def _build(self, _: None) -> None:
        state = self._stack.pop()
        if not isinstance(self._stack[-1], _Array | _Dtype):
            raise CheckpointError("expected arrays only, got an object with a state of its own")
        self._stack[-1].set_state(state)


def _filled(raw: bytes, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> np.ndarray[Any, Any]:
    return np.frombuffer(raw, dtype.numpy()).reshape(shape, order=order)


def _array(kind: PickleName, *_: Any) -> _Array:
    if kind.text != "numpy.ndarray":
        raise CheckpointError(f"expected arrays only, got {kind.text}")
    return _Array()


def _from_buffer(raw: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    made = _Array()
    made.value = _filled(bytes(raw), dtype, shape, order)
    return made


def _scalar(dtype: _Dtype, raw: bytes) -> Any:
    return np.frombuffer(raw, dtype.numpy())[0].item()


_CALLS: dict[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": _array,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.dtype": lambda code, *_: _Dtype(code),
    "_codecs.encode": lambda text, _: text.encode("latin1"),
}
_PLAIN: dict[str, Callable[[Any], Any]] = {
    "EMPTY_DICT": lambda _: {},
    "EMPTY_TUPLE": lambda _: (),
    "MARK": lambda _: _Mark(),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), lambda value: value),
    **dict.fromkeys(("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), lambda value: value),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"), bytes),
}


def _finished(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {key: _finished(one) for key, one in value.items()}
    if isinstance(value, PickleName | _Dtype | _Mark):
        raise CheckpointError("expected arrays only, got something else")
    return value
