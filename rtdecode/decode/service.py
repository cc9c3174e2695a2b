"""Decoding as the daemon asks for it, and the process that it is done in.

`LocalService` decodes in the caller's process, `WorkerService` of the module `worker` in one that runs `serve`. Both
are a `DecodeService`.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from rtdecode.decode import frames
from rtdecode.decode.decoder import Decoder
from rtdecode.decode.loading import load_decoder
from rtdecode.decoded import DecodedPart, Prediction
from rtdecode.errors import RtdecodeError
from rtdecode.packs import open_pack, open_participant
from rtdecode.records import BetaUpdate, RegisteredVolume
from rtdecode.settings import DecodeSettings

_PULSE_S = 1.0


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
    def stimuli(self) -> tuple[str, ...]:
        """Names that a trial's stimulus or condition is known by."""
        ...

    @property
    def silent_s(self) -> float:
        """How long what decodes has owed an answer without a sign of life, seconds."""
        ...

    @property
    def absent(self) -> tuple[str, ...]:
        """Parts that `decode` never yields, as the pack has no stage for them."""
        ...

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What of the pack runs otherwise than it was to, and so more slowly, and why, in words."""
        ...

    @property
    def window(self) -> int:
        """Number of volumes that `predict` looks at; 0 where the pack predicts nothing of volumes."""
        ...

    def load(self, folder: Path) -> str:
        """Load the ParticipantBundle in `folder` and return its identity.

        Raises
        ------
        BundleError, EngineError
            It cannot be used; the one loaded before stays.
        """
        ...

    def decode(self, beta: BetaUpdate) -> Iterator[tuple[DecodedPart, float]]:
        """Yield embedding, reconstruction and caption with the milliseconds each took, as they become ready.

        Those that are absent are left out.

        Raises
        ------
        EngineError
            No participant is loaded, the beta is not of the calibrated mask or hardly known, or the engines failed.
        """
        ...

    def predict(self, volumes: Sequence[RegisteredVolume]) -> tuple[Prediction, float]:
        """Return what is predicted of the last of some volumes of a run, and the milliseconds it took.

        Parameters
        ----------
        volumes : sequence of RegisteredVolume
            At most `window`, oldest first. The same volumes give the same bytes.

        Raises
        ------
        EngineError
            As of `decode`.
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
    silent_s = 0.0

    @property
    def stimuli(self) -> tuple[str, ...]:
        """Names that stimuli are known by."""
        return self._decoder.candidates.names

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

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What runs otherwise than it was to; see `DecodeService.fallbacks`."""
        return self._decoder.fallbacks

    @property
    def window(self) -> int:
        """Number of volumes that a prediction looks at; see `DecodeService.window`."""
        return self._decoder.window

    def load(self, folder: Path) -> str:
        """Load a participant; see `DecodeService.load`."""
        bundle = open_participant(folder)
        self._decoder.load(bundle)
        return bundle.identity

    def decode(self, beta: BetaUpdate) -> Iterator[tuple[DecodedPart, float]]:
        """Decode one beta; see `DecodeService.decode`."""
        return self.decode_asked(frames.decode_request(beta))

    def decode_asked(self, asked: frames.Decode) -> Iterator[tuple[DecodedPart, float]]:
        """Decode as a request asks."""
        began = time.perf_counter()
        for part in self._decoder.decode(
            asked.beta, asked.truth, asked.trial, asked.candidates, average=asked.average, shown=asked.shown
        ):
            yield part, 1e3 * (time.perf_counter() - began)
            began = time.perf_counter()

    def predict(self, volumes: Sequence[RegisteredVolume]) -> tuple[Prediction, float]:
        """Predict of a volume; see `DecodeService.predict`."""
        began = time.perf_counter()
        found = self._decoder.predict(volumes)
        return found, 1e3 * (time.perf_counter() - began)

    def close(self) -> None:
        """Nothing to release."""


def serve(connection: Connection, settings: DecodeSettings, seed: int) -> None:
    """Answer requests until told to end, or until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides when to end
    outlet = Outlet(connection)
    try:
        service = LocalService(load_decoder(open_pack(settings.pack), settings, seed=seed))
    except RtdecodeError as error:
        outlet.send(0, frames.failed(error))
        return
    try:
        ready = frames.Ready(
            categories=service.categories,
            stimuli=service.stimuli,
            absent=service.absent,
            window=service.window,
            fallbacks=service.fallbacks,
        )
        outlet.send(0, ready)
        while True:
            number, frame = frames.numbered(connection.recv_bytes())
            if frame == frames.END:
                return
            with outlet.alive():
                _answer(outlet, service, number, frame)
    except (EOFError, OSError):
        return  # the parent is gone


class Outlet:
    """The worker's end of the pipe: replies, and signs of life while one is worked on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, number: int, reply: frames.Reply | None) -> None:
        """Send what answers the request of that number; None is a sign of life."""
        with self._lock:
            self._connection.send_bytes(frames.number(number, frames.END if reply is None else frames.pack(reply)))

    @contextmanager
    def alive(self, every_s: float = _PULSE_S) -> Iterator[None]:
        """Give signs of life until the block ends."""
        done = threading.Event()

        def pulse() -> None:
            with suppress(OSError):  # the parent is gone; the worker's next reply tells it
                while not done.wait(every_s):
                    self.send(0, None)

        thread = threading.Thread(target=pulse, name="pulse")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _answer(outlet: Outlet, service: LocalService, number: int, frame: bytes) -> None:
    try:
        match frames.read_request(frame):
            case frames.Load(folder=folder):
                outlet.send(number, frames.Loaded(identity=service.load(Path(folder))))
            case frames.Decode() as asked:
                for part, milliseconds in service.decode_asked(asked):
                    outlet.send(number, frames.answer(part, milliseconds, service.gpu_bytes))
                outlet.send(number, frames.Decoded())
            case frames.Predict(volumes=volumes):
                outlet.send(number, frames.answer(*service.predict(volumes), service.gpu_bytes))
                outlet.send(number, frames.Decoded())
    except RtdecodeError as error:
        outlet.send(number, frames.failed(error))
