"""Accounts for every key of a checkpoint: taken, dropped for a stated reason, or an error that names it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rtdecode.decode.networks.build import differences
from rtdecode.errors import CheckpointError

_SHOWN = 8
_WRAPPERS = {"module.": "DistributedDataParallel", "_orig_mod.": "torch.compile"}
_INNER = {"module.": "model.module", "_orig_mod.": "model._orig_mod"}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class Ledger:
    """The keys of one file.

    Parameters
    ----------
    source : str
        Name of the file, for messages.
    content : mapping
        Keys and what they hold. A prefix that a wrapper of the training put before every key is taken off, and noted.

    Raises
    ------
    CheckpointError
        Only some of the keys have such a prefix.
    """

    def __init__(self, source: str, content: Mapping[str, Any]) -> None:
        self.source = source
        self._left = dict(content)
        self._dropped: dict[str, list[str]] = {}
        self._unwrap()

    def _unwrap(self) -> None:
        while self._left:
            prefix = next((p for p in _WRAPPERS if any(key.startswith(p) for key in self._left)), None)
            if prefix is None:
                return
            if bare := [key for key in self._left if not key.startswith(prefix)]:
                raise CheckpointError(
                    f"{self.source}: some keys begin with {prefix!r}, which {_WRAPPERS[prefix]} puts before those of a "
                    f"model, and {len(bare)} do not ({_some(bare)}): save the model itself, "
                    f"torch.save({{'model_state_dict': {_INNER[prefix]}.state_dict()}}, ...)"
                )
            self._left = {key.removeprefix(prefix): value for key, value in self._left.items()}
            self.note([prefix], f"a prefix that {_WRAPPERS[prefix]} puts before every key; taken off")

    def take(self, prefix: str) -> dict[str, Any]:
        """Take every key with a prefix, without it.

        Raises
        ------
        CheckpointError
            A tensor holds a number that is none; it is named.
        """
        keys = [key for key in self._left if key.startswith(prefix)]
        for key in keys:
            check_finite(self.source, key, self._left[key])
        return {key[len(prefix) :]: self._left.pop(key) for key in keys}

    def one(self, key: str) -> Any:
        """Take one key.

        Raises
        ------
        CheckpointError
            It is missing.
        """
        if key not in self._left:
            raise CheckpointError(f"{self.source}: missing {key}; it holds {_some(self._left)}")
        return self._left.pop(key)

    def drop(self, pattern: str, reason: str) -> None:
        """Leave out every key that a regular expression matches in full, and remember why."""
        keys = [key for key in self._left if re.fullmatch(pattern, key)]
        for key in keys:
            del self._left[key]
        self.note(keys, reason)

    def note(self, keys: Iterable[str], reason: str) -> None:
        """Remember why keys that were taken go no further."""
        if listed := list(keys):
            self._dropped.setdefault(reason, []).extend(listed)

    def close(self, ignored: Iterable[str] = ()) -> dict[str, list[str]]:
        """Check that nothing is left.

        Parameters
        ----------
        ignored : iterable of str
            Regular expressions of keys that the user says to leave out.

        Returns
        -------
        dict of str to list of str
            Reasons, and the keys dropped for each.

        Raises
        ------
        CheckpointError
            Keys are left; they are named.
        """
        for pattern in ignored:
            self.drop(pattern, f"the user said to ignore {pattern}")
        if self._left:
            raise CheckpointError(
                f"{self.source}: {len(self._left)} unexpected keys: {_some(self._left)}; is it the file of another "
                "model? To leave keys out all the same, name them with --ignore"
            )
        return {reason: sorted(keys) for reason, keys in self._dropped.items()}


def check_finite(source: str, key: str, value: object) -> None:
    """Check that a tensor, if it is one, holds numbers only.

    Raises
    ------
    CheckpointError
        It holds NaN or inf.
    """
    if isinstance(value, Tensor) and value.is_floating_point():
        wrong = int((~torch.isfinite(value)).sum())
        if wrong:
            raise CheckpointError(
                f"{source}: {key}: expected numbers, got NaN or inf in {wrong} of {value.numel()} places: the training "
                "diverged; take a checkpoint from before"
            )


def fit(source: str, stage: str, network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Check that a state dict is exactly a network's.

    Raises
    ------
    CheckpointError
        A key is missing, unexpected or of another shape; it is named.
    """
    if wrong := differences(network, state):
        rest = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise CheckpointError(f"{source}: {stage}: {'; '.join(wrong[:_SHOWN])}{rest}")


def shape_of(source: str, state: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    """Shape of a tensor that must be there.

    Raises
    ------
    CheckpointError
        It is missing.
    """
    if key not in state:
        raise CheckpointError(f"{source}: missing {key}; it holds {_some(state)}")
    return tuple(state[key].shape)


def count(state: Iterable[str], prefix: str) -> int:
    """How many different numbers follow a prefix, as in ``layers.0``, ``layers.1``."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({found.group(1) for key in state if (found := pattern.match(key))})


def rename_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the attention of autoencoders saved by diffusers before 0.17 its present names.

    ``query``, ``key``, ``value`` and ``proj_attn`` become ``to_q``, ``to_k``, ``to_v`` and ``to_out.0``.
    """
    old = re.compile(r"(.*attentions\.\d+\.)(query|key|value|proj_attn)(\.\w+)")
    renamed = {}
    for key, value in state.items():
        found = old.fullmatch(key)
        renamed[f"{found.group(1)}{_OLD_ATTENTION[found.group(2)]}{found.group(3)}" if found else key] = value
    return renamed


def _some(keys: Iterable[str]) -> str:
    names = sorted(keys)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
