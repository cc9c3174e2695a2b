"""The decode worker: a process of its own, so that what breaks it does not take the scan with it.

`WorkerService` is the parent's handle; `LocalService` does the same work in the caller's process. Both are a
`DecodeService`.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rtdecode.bundle import open_pack, open_participant
from rtdecode.decode import frames
from rtdecode.decode.decoder import Decoder
from rtdecode.decode.loading import load_decoder
from rtdecode.errors import EngineError, RtdecodeError
from rtdecode.records import BetaUpdate, Part

_log = logging.getLogger(__name__)
_ATTEMPTS = 2
_STOP_S = 5.0


class DecodeService(Protocol):
    """What the daemon asks of decoding."""

    @property
    def restarts(self) -> int:
        """How often what decodes had to be replaced."""
        ...

    @property
    def gpu_bytes(self) -> int | None:
        """GPU memory that is held; None without a GPU."""
        ...

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of what a score decides between."""
        ...

    @property
    def absent(self) -> tuple[str, ...]:
        """Parts that `decode` never yields, as the pack has no stage for them."""
        ...

    def load(self, folder: Path) -> str:
        """Load the ParticipantBundle in `folder` and return its identity.

        Raises
        ------
        BundleError, EngineError
            It cannot be used; the one loaded before stays.
        """
        ...

    def decode(self, beta: BetaUpdate) -> Iterator[tuple[Part, float]]:
        """Yield embedding, caption and reconstruction with the milliseconds each took, as they become ready.

        Those that are absent are left out.

        Raises
        ------
        EngineError
            No participant is loaded, the beta is not of the calibrated mask or hardly known, or the engines failed.
        """
        ...

    def close(self) -> None:
        """Release the engines."""
        ...


class LocalService:
    """Decodes in the caller's process.

    Parameters
    ----------
    decoder : Decoder
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    restarts = 0

    @property
    def gpu_bytes(self) -> int | None:
        """GPU memory that torch holds in this process; None without."""
        torch = sys.modules.get("torch")
        return int(torch.cuda.memory_reserved()) if torch is not None and torch.cuda.is_initialized() else None

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of what a score decides between."""
        return self._decoder.candidates.categories

    @property
    def absent(self) -> tuple[str, ...]:
        """Parts that cannot be made; see `DecodeService.absent`."""
        return self._decoder.absent

    def load(self, folder: Path) -> str:
        """Load a participant; see `DecodeService.load`."""
        bundle = open_participant(folder)
        self._decoder.load(bundle)
        return bundle.identity

    def decode(self, beta: BetaUpdate) -> Iterator[tuple[Part, float]]:
        """Decode one beta; see `DecodeService.decode`."""
        return self.decode_array(beta.beta, (beta.event.stimulus, beta.event.condition), beta.event.trial)

    def decode_array(
        self, beta: NDArray[np.float32], truth: Sequence[str | None], trial: str
    ) -> Iterator[tuple[Part, float]]:
        """Decode the values (v,) of a beta of a trial; `truth` names what was shown, where known."""
        began = time.perf_counter()
        for part in self._decoder.decode(beta, truth, trial):
            yield part, 1e3 * (time.perf_counter() - began)
            began = time.perf_counter()

    def close(self) -> None:
        """Nothing to release."""


class WorkerService:
    """Decodes in a process of its own; restarts it when it dies and asks again.

    Parameters
    ----------
    pack : Path
        Folder of the engine pack.
    stimuli, pool, backend, threads, seed, prior_steps, unclip_steps
        As of `load_decoder`.
    reply_timeout_s : float
        A worker silent for this long counts as dead.
    start_timeout_s : float
        The same while it loads the engines, which may be many gigabytes.

    Raises
    ------
    EngineError, BundleError
        The worker cannot start.
    """

    def __init__(
        self,
        pack: Path,
        *,
        stimuli: Path | None = None,
        pool: Path | None = None,
        backend: str = "auto",
        threads: int = 1,
        seed: int = 0,
        prior_steps: int | None = None,
        unclip_steps: int | None = None,
        reply_timeout_s: float = 60.0,
        start_timeout_s: float = 600.0,
    ) -> None:
        options = {
            "stimuli": stimuli,
            "pool": pool,
            "backend": backend,
            "threads": threads,
            "seed": seed,
            "prior_steps": prior_steps,
            "unclip_steps": unclip_steps,
        }
        self._arguments = (str(pack), options)
        self._reply_timeout_s = reply_timeout_s
        self._start_timeout_s = start_timeout_s
        self._folder: Path | None = None
        self._restarts = 0
        self._requests = 0
        self._gpu_bytes: int | None = None
        self._categories: tuple[str, ...] = ()
        self._absent: tuple[str, ...] = ()
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
    def absent(self) -> tuple[str, ...]:
        """Parts that cannot be made; see `DecodeService.absent`."""
        return self._absent

    @property
    def pid(self) -> int | None:
        """Process identifier of the worker."""
        return self._process.pid

    def load(self, folder: Path) -> str:
        """Load a participant; see `DecodeService.load`."""
        (loaded,) = self._ask(frames.pack_load(str(folder)))
        self._folder = folder
        return str(loaded["identity"])

    def decode(self, beta: BetaUpdate) -> Iterator[tuple[Part, float]]:
        """Decode one beta; see `DecodeService.decode`."""
        request = frames.pack_decode(beta.beta, (beta.event.stimulus, beta.event.condition), beta.event.trial)
        for content in self._ask(request):
            if content["kind"] not in frames.LAST:
                self._gpu_bytes = content["gpu_bytes"]
                yield frames.unpack_part(content)

    def close(self) -> None:
        """End the worker."""
        try:
            self._connection.send_bytes(frames.number(0, frames.END))
        except OSError:
            _log.debug("the decode worker had already ended")
        self._connection.close()
        _end(self._process)

    def _ask(self, request: bytes) -> Iterator[dict[str, Any]]:
        """Yield the replies to a request; a new worker is asked again for those that a dead one owed."""
        received = 0
        for attempt in range(_ATTEMPTS):
            try:
                self._send(request)
                for place in itertools.count():
                    content = self._reply()
                    if place >= received:
                        received += 1
                        yield content
                    if content["kind"] in frames.LAST:
                        return
            except (EOFError, OSError) as error:
                _log.error("the decode worker died (%r), attempt %d", error, attempt + 1)
                self._restart()
        raise EngineError(f"the decode worker died {_ATTEMPTS} times on one request; see the log for its last words")

    def _send(self, request: bytes) -> None:
        self._requests += 1
        self._connection.send_bytes(frames.number(self._requests, request))

    def _reply(self) -> dict[str, Any]:
        """Next reply to the latest request; replies that nobody waited for are passed over."""
        while True:
            if not self._connection.poll(self._reply_timeout_s):
                raise EOFError(f"no reply within {self._reply_timeout_s} s")
            number, frame = frames.numbered(self._connection.recv_bytes())
            if number == self._requests:
                content = frames.unpack(frame)
                frames.raise_error(content)
                return content

    def _restart(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join()
        self._restarts += 1
        self._process, self._connection = self._start()
        if self._folder is not None:
            self._send(frames.pack_load(str(self._folder)))
            self._reply()

    def _start(self) -> tuple[BaseProcess, Connection]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, *self._arguments), name="decode-worker", daemon=True)
        process.start()
        theirs.close()  # the worker's own end is now the only one: its death is our end of file
        try:
            if not ours.poll(self._start_timeout_s):
                raise EOFError
            ready = frames.unpack(frames.numbered(ours.recv_bytes())[1])
            frames.raise_error(ready)
            self._categories, self._absent = tuple(ready["categories"]), tuple(ready["absent"])
        except (EOFError, OSError):
            _end(process)
            raise EngineError("the decode worker did not start; see the log for its last words") from None
        return process, ours


def _serve(connection: Connection, pack: str, options: dict[str, Any]) -> None:
    """Answer requests until told to end, or until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides when to end
    try:
        service = LocalService(load_decoder(open_pack(pack), **options))
    except RtdecodeError as error:
        connection.send_bytes(frames.number(0, frames.pack_error(error)))
        return
    try:
        connection.send_bytes(frames.number(0, frames.pack_ready(service.categories, service.absent)))
        while True:
            number, frame = frames.numbered(connection.recv_bytes())
            if frame == frames.END:
                return
            _answer(connection, service, number, frames.unpack(frame))
    except (EOFError, OSError):
        return  # the parent is gone


def _answer(connection: Connection, service: LocalService, number: int, content: dict[str, Any]) -> None:
    try:
        if content["kind"] == "load":
            identity = service.load(Path(content["folder"]))
            connection.send_bytes(frames.number(number, frames.pack_loaded(identity)))
            return
        for part, milliseconds in service.decode_array(*frames.unpack_beta(content)):
            connection.send_bytes(frames.number(number, frames.pack_part(part, milliseconds, service.gpu_bytes)))
        connection.send_bytes(frames.number(number, frames.pack_decoded()))
    except RtdecodeError as error:
        connection.send_bytes(frames.number(number, frames.pack_error(error)))


def _end(process: BaseProcess) -> None:
    process.join(_STOP_S)
    if process.is_alive():
        process.kill()
        process.join()
