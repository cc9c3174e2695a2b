"""Errors of a training on several processes (torch). Import this module inside functions only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from rtdecode.errors import RtdecodeError, TrainingError


@contextmanager
def agreed(accelerator: Accelerator) -> Iterator[None]:
    """Let all processes go on or none, and the first one alone tell why.

    Every process enters it, and what is done within needs no other process: nobody waits for one that has ended.

    Raises
    ------
    RtdecodeError
        In the first process: its own error, or else what another process tells of its own.
    SystemExit
        In the other processes, with code 1.
    """
    own: RtdecodeError | None = None
    try:
        yield
    except RtdecodeError as error:
        own = error
    told = [text for text in _gathered(accelerator, str(own) if own else "") if text]
    if not told:
        return
    if accelerator.is_main_process:
        raise own or TrainingError(told[0])
    raise SystemExit(1)


def _gathered(accelerator: Accelerator, text: str) -> list[str]:
    """Texts of all processes, sent as numbers: Accelerate would pickle objects."""
    own = torch.frombuffer(bytearray(text.encode() + b"\0"), dtype=torch.uint8).to(accelerator.device)
    every = accelerator.gather(accelerator.pad_across_processes(own)).reshape(accelerator.num_processes, -1)
    return [bytes(row.tolist()).rstrip(b"\0").decode() for row in every]
