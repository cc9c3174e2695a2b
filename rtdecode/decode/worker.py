"""The decode worker: a process of its own, so that what breaks it does not take the scan with it."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

from rtdecode.decode import frames
from rtdecode.decode.service import serve
from rtdecode.decoded import DecodedPart, Prediction
from rtdecode.errors import EngineError, RtdecodeError
from rtdecode.records import BetaUpdate, RegisteredVolume
from rtdecode.settings import DecodeSettings

Last = TypeVar("Last", frames.Loaded, frames.Decoded)
_log = logging.getLogger(__name__)
_ATTEMPTS = 2
_STOP_S = 5.0


class WorkerService:
    """Decodes in a process of its own; restarts it when it dies and asks again.

    Parameters
    ----------
    settings : DecodeSettings
        All but its bundle.
    seed : int
        As of `load_decoder`.
    reply_timeout_s : float
        A worker that works on one part for this long counts as hung and is replaced. The published path takes minutes a
        picture on a CPU, and is no fault.
    silence_s : float
        So is one that gives no sign of life for this long: it sends one every second while it works.
    start_timeout_s : float
        The same while it loads the engines, which may be many gigabytes.

    Raises
    ------
    EngineError, BundleError
        The worker cannot start.
    """

    def __init__(
        self,
        settings: DecodeSettings,
        *,
        seed: int = 0,
        reply_timeout_s: float = 600.0,
        silence_s: float = 15.0,
        start_timeout_s: float = 600.0,
    ) -> None:
        self._arguments = (settings, seed)
        self._reply_timeout_s = reply_timeout_s
        self._silence_s = silence_s
        self._owed_since: float | None = None
        self._start_timeout_s = start_timeout_s
        self._folder: Path | None = None
        self._restarts = 0
        self._requests = 0
        self._gpu_bytes: int | None = None
        self._categories: tuple[str, ...] = ()
        self._stimuli: tuple[str, ...] = ()
        self._absent: tuple[str, ...] = ()
        self._window = 0
        self._fallbacks: tuple[str, ...] = ()
        self._process, self._connection = self._start()

    @property
    def restarts(self) -> int:
        """How often the worker had to be replaced."""
        return self._restarts

    @property
    def gpu_bytes(self) -> int | None:
        """GPU memory that the worker holds; None without a GPU."""
        return self._gpu_bytes

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of what a score decides between."""
        return self._categories

    @property
    def stimuli(self) -> tuple[str, ...]:
        """Names that stimuli are known by."""
        return self._stimuli

    @property
    def silent_s(self) -> float:
        """Seconds since the last sign of life, while an answer is owed."""
        since = self._owed_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def absent(self) -> tuple[str, ...]:
        """Parts that cannot be made; see `DecodeService.absent`."""
        return self._absent

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What runs otherwise than it was to; see `DecodeService.fallbacks`."""
        return self._fallbacks

    @property
    def window(self) -> int:
        """Number of volumes that a prediction looks at; see `DecodeService.window`."""
        return self._window

    @property
    def pid(self) -> int | None:
        """Process identifier of the worker."""
        return self._process.pid

    def load(self, folder: Path) -> str:
        """Load a participant; see `DecodeService.load`."""
        replies = self._ask(frames.Load(folder=str(folder)), last=frames.Loaded)
        loaded = next(reply for reply in replies if isinstance(reply, frames.Loaded))
        self._folder = folder
        return loaded.identity

    def decode(self, beta: BetaUpdate) -> Iterator[tuple[DecodedPart, float]]:
        """Decode one beta; see `DecodeService.decode`."""
        for reply in self._ask(frames.decode_request(beta), last=frames.Decoded):
            if isinstance(reply, frames.Answer):
                self._gpu_bytes = reply.gpu_bytes
                yield reply.part, reply.ms

    def predict(self, volumes: Sequence[RegisteredVolume]) -> tuple[Prediction, float]:
        """Predict of a volume; see `DecodeService.predict`."""
        first, *_ = self._ask(frames.Predict(volumes=tuple(volumes)), last=frames.Decoded)
        if not (isinstance(first, frames.Answer) and isinstance(first.part, Prediction)):
            raise EngineError("worker frame: expected a prediction, got something else")
        self._gpu_bytes = first.gpu_bytes
        return first.part, first.ms

    def close(self) -> None:
        """End the worker."""
        try:
            self._connection.send_bytes(frames.number(0, frames.END))
        except OSError:
            _log.debug("the decode worker had already ended")
        self._connection.close()
        _end(self._process)

    def _ask(self, request: frames.Request, last: type[Last]) -> Iterator[frames.Answer | Last]:
        """Yield the replies to a request; a new worker is asked again for those that a dead one owed."""
        received = 0
        for attempt in range(_ATTEMPTS):
            try:
                self._send(request)
                for place in itertools.count():
                    reply = self._reply(last)
                    if place >= received:
                        received += 1
                        yield reply
                    if isinstance(reply, last):
                        return
            except (EOFError, OSError) as error:
                _log.error("the decode worker died (%r), attempt %d", error, attempt + 1)
                self._restart()
        raise EngineError(f"the decode worker died {_ATTEMPTS} times on one request; see the log for its last words")

    def _send(self, request: frames.Request) -> None:
        self._requests += 1
        self._owed_since = time.monotonic()
        self._connection.send_bytes(frames.number(self._requests, frames.pack(request)))

    def _reply(self, last: type[Last]) -> frames.Answer | Last:
        """Next reply to the latest request; replies that nobody waited for are passed over."""
        deadline = time.monotonic() + self._reply_timeout_s
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise EOFError(f"no reply within {self._reply_timeout_s} s")
            if not self._connection.poll(min(left, self._silence_s)):
                raise EOFError("no sign of life")
            number, frame = frames.numbered(self._connection.recv_bytes())
            self._owed_since = time.monotonic()
            if number == self._requests:
                self._owed_since = None  # also where the frame cannot be read: what is left of it is passed over
                reply = frames.read_reply(frame)
                if isinstance(reply, frames.Failed):
                    reply.raise_it()
                if isinstance(reply, frames.Answer):
                    self._owed_since = time.monotonic()
                    return reply
                if isinstance(reply, last):
                    return reply
                raise EngineError(f"worker frame: expected {last.__name__}, got {type(reply).__name__}")

    def _restart(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join()
        self._restarts += 1
        self._process, self._connection = self._start()
        if self._folder is not None:
            self._send(frames.Load(folder=str(self._folder)))
            self._reply(frames.Loaded)

    def _start(self) -> tuple[BaseProcess, Connection]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, *self._arguments), name="decode-worker", daemon=True)
        process.start()
        theirs.close()  # the worker's own end is now the only one: its death is our end of file
        try:
            if not ours.poll(self._start_timeout_s):
                raise EOFError
            ready = frames.read_reply(frames.numbered(ours.recv_bytes())[1])
            if isinstance(ready, frames.Failed):
                ready.raise_it()
            if not isinstance(ready, frames.Ready):
                raise EOFError
            self._categories, self._stimuli, self._absent = ready.categories, ready.stimuli, ready.absent
            self._window, self._fallbacks = ready.window, ready.fallbacks
        except (EOFError, OSError):
            _end(process)
            raise EngineError("the decode worker did not start; see the log for its last words") from None
        except RtdecodeError:
            _end(process)
            raise
        return process, ours


def _end(process: BaseProcess) -> None:
    process.join(_STOP_S)
    if process.is_alive():
        process.kill()
        process.join()
