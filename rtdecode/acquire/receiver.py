"""`rtdecode receive`: a DICOM storage service, for consoles that push their images and share no folder.

Each object becomes a file of the watched folder. It is acknowledged once the file is on the disk, and not before.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import os
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from socketserver import TCPServer
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rtdecode.acquire.stored import MAX_FILE_BYTES
from rtdecode.disk import bring_to_disk
from rtdecode.errors import ProtocolError, SettingsError

if TYPE_CHECKING:
    from pynetdicom.events import Event

STORED, OUT_OF_RESOURCES, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xC000
_MOST_PEERS = 10
_LONGEST_UID, _LONGEST_COMMENT = 64, 64
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_TITLE = re.compile(r"[\x21-\x5b\x5d-\x7e]([\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?")
_SYNTAXES = (
    "1.2.840.10008.1.2.1",  # explicit, little endian
    "1.2.840.10008.1.2",  # implicit
    "1.2.840.10008.1.2.5",  # RLE, and lossless compressions: JPEG, JPEG-LS, JPEG 2000
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.90",
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reception:
    """Who may store, and where it goes.

    Attributes
    ----------
    folder : Path
        Gets a file for each object.
    host, port
        Address to listen at; port 0 takes a free one.
    title : str
        The AE title that peers must call.
    callers : tuple of str
        AE titles that may call; all when empty.
    addresses : tuple of str
        Addresses of peers that may connect. Beyond the loopback address there must be some: DICOM asks for no password.
    largest_bytes : int
        A peer that sends a larger object is cut off.
    """

    folder: Path
    host: str = "127.0.0.1"
    port: int = 11112
    title: str = "RTDECODE"
    callers: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    largest_bytes: int = MAX_FILE_BYTES

    def __post_init__(self) -> None:
        problems = [
            f"{option}: expected 1 to 16 printable characters without a backslash, got {title!r}"
            for option, title in (("--ae-title", self.title), *(("--calling", title) for title in self.callers))
            if not _TITLE.fullmatch(title)
        ]
        problems += [
            f"{option}: expected an address like 192.0.2.7, got {address!r}"
            for option, address in (("--host", self.host), *(("--from", address) for address in self.addresses))
            if _address(address) is None
        ]
        own = _address(self.host)
        if own is not None and not own.is_loopback and not self.addresses:
            problems.append(
                f"--from: expected the scanner's address beside --host {self.host}, got none; "
                "whoever reaches the port could store images"
            )
        if not self.folder.is_dir():
            problems.append(f"--out: expected a folder, got {self.folder}; make it first")
        if problems:
            raise SettingsError(problems)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def keep(folder: Path, uid: str, content: bytes) -> Path:
    """Write an object so that it is whole under its name, and on the disk, or not there at all.

    The name tells the instance and the content: the same object sent again is the same file, another one never
    replaces it.

    Parameters
    ----------
    folder : Path
    uid : str
        SOP instance.
    content : bytes

    Raises
    ------
    OSError
        The disk refuses; nothing is left behind.
    """
    path = folder / f"{uid}-{hashlib.sha256(content).hexdigest()[:16]}.dcm"
    descriptor, draft = tempfile.mkstemp(dir=folder, prefix=".receiving-")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    bring_to_disk(folder)
    return path


class Receiver:
    """Listens from its making to `close`, on threads of its own.

    Parameters
    ----------
    reception : Reception
    write : callable
        Keeps an object; see `keep`.

    Attributes
    ----------
    port : int
        That it listens at.

    Raises
    ------
    ProtocolError
        pynetdicom is not there, or the port cannot be had.
    """

    def __init__(self, reception: Reception, write: Callable[[Path, str, bytes], Path] = keep) -> None:
        try:
            from pynetdicom import AE, AllStoragePresentationContexts, evt
            from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
            from pynetdicom.transport import ThreadedAssociationServer
        except ImportError as error:
            raise ProtocolError(f"no DICOM network service here ({error}): pip install 'rtdecode[receive]'") from None
        logging.getLogger("pynetdicom").setLevel(logging.WARNING)
        self._reception = reception
        self._write = write
        self._lock = threading.Lock()
        self._outcomes: dict[Any, Counter[str]] = {}
        self._coming: Counter[Any] = Counter()
        entity = AE(ae_title=reception.title)
        entity.require_called_aet = True
        entity.require_calling_aet = list(reception.callers)
        entity.maximum_associations = _MOST_PEERS
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(str(context.abstract_syntax), list(_SYNTAXES))
        entity.add_supported_context(Verification)
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_DATA_RECV, self._count),
            (evt.EVT_CONN_CLOSE, self._over),
            (evt.EVT_REJECTED, self._rejected),
        ]
        allowed = {_address(address) for address in reception.addresses}

        class Server(ThreadedAssociationServer):
            def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - as servers are asked
                """Whether a peer may connect at all, before a byte of it is read."""
                known = not allowed or _address(client_address[0]) in allowed
                if not known:
                    _log.warning("refused a connection from %s: not among --from", client_address[0])
                return known

        try:
            self._server = entity.make_server(
                (reception.host, reception.port), evt_handlers=handlers, server_class=Server
            )
        except OSError as error:
            raise ProtocolError(
                f"cannot listen at {reception.host} port {reception.port}: {error}; choose another --port"
            ) from None
        self._entity = entity
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="dicom-receiver", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more and end what is under way; an object that was not acknowledged is sent again."""
        TCPServer.shutdown(self._server)
        self._server.server_close()
        self._entity.shutdown()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _store(self, event: Event) -> Any:
        """Keep an object and answer; of the association's thread."""
        uid = str(event.request.AffectedSOPInstanceUID)  # type: ignore[union-attr]
        peer = event.assoc
        with self._lock:
            self._coming[peer] = 0
        if not _UID.fullmatch(uid) or len(uid) > _LONGEST_UID:
            return self._answer(peer, NOT_UNDERSTOOD, f"no SOP instance UID: {uid!r}")
        try:
            path = self._write(self._reception.folder, uid, event.encoded_dataset())
        except OSError as error:
            return self._answer(peer, OUT_OF_RESOURCES, f"cannot be kept: {error.strerror or error}")
        _log.debug("%s", path.name)
        return self._answer(peer, STORED, "")

    def _answer(self, peer: Any, status: int, why: str) -> Any:
        from pydicom.dataset import Dataset

        answer = Dataset()
        answer.Status = status
        if why:
            answer.ErrorComment = why[:_LONGEST_COMMENT]
            _log.error("refused an object of %s: %s", _name(peer), why)
        with self._lock:
            self._outcomes.setdefault(peer, Counter())["refused" if why else "stored"] += 1
        return answer

    def _count(self, event: Event) -> None:
        """Cut a peer off whose object grows beyond what is kept; of the thread that reads its bytes."""
        peer = event.assoc
        with self._lock:
            before = self._coming[peer]
            self._coming[peer] += len(event.data)
            over = before <= self._reception.largest_bytes < self._coming[peer]
        if over:
            _log.error(
                "cut off %s: expected objects of at most %d bytes, got a larger one",
                _name(peer),
                self._reception.largest_bytes,
            )
            threading.Thread(target=peer.abort, daemon=True).start()  # it waits for the thread that this is

    def _rejected(self, event: Event) -> None:
        _log.warning(
            "refused %s, which called %s: expected %s%s",
            _name(event.assoc),
            getattr(event.assoc.requestor.primitive, "called_ae_title", "nobody"),
            self._reception.title,
            f" called by {' or '.join(self._reception.callers)}" if self._reception.callers else "",
        )

    def _over(self, event: Event) -> None:
        """Say what a peer has sent."""
        with self._lock:
            outcome = self._outcomes.pop(event.assoc, Counter[str]())
            self._coming.pop(event.assoc, None)
        if outcome:
            _log.info("%s: %d stored, %d refused", _name(event.assoc), outcome["stored"], outcome["refused"])


def _name(peer: Any) -> str:
    return f"{peer.requestor.ae_title} at {peer.requestor.address}"
