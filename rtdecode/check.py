"""`rtdecode check`: what would fail in the scan, told before it."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rtdecode import client as wire
from rtdecode.acquire.folder import is_remote
from rtdecode.clock import Clock
from rtdecode.decode.decoder import Decoder
from rtdecode.decode.loading import load_decoder
from rtdecode.decode.runtime.backends import choose
from rtdecode.errors import RtdecodeError, SettingsError
from rtdecode.estimate.calibrated import Calibrated, calibration_of, open_calibrated
from rtdecode.packs import EnginePack, open_pack, open_participant
from rtdecode.packs.group_prior import open_group_prior
from rtdecode.protocol_file import read_protocol
from rtdecode.publish.access import read_keys
from rtdecode.session.blind import open_blind
from rtdecode.session.films import open_films
from rtdecode.session.recording import session_folder
from rtdecode.settings import Settings

T = TypeVar("T")
DISK_BYTES = 5 << 30
CLOCK_S = 2.0
EXPORT = "scanner.export_dir"

EXAMPLE = """\
# Settings of one rtdecode session. Relative paths are relative to this file.
[session]
participant = "01"
session = "01"
output = "sessions"          # the session folder is made in here

[scanner]
export_dir = "export"        # the folder the scanner writes to
poll_s = 0.05                # longest time between two looks at it
n_dummy = 0                  # volumes before the steady state
gap_timeout_s = 5.0          # how long an absent volume is waited for
watch = "auto"               # or "polling" for a network mount, "native" for file events
# series = [{description = "*bold*"}]   # only these become runs; without, all that are not seen to be something else

[estimate]
registration = "rigid"       # or "off" for data that are motion-corrected already
revise_at_s = [5.0, 6.5]     # seconds after onset at which a beta is published ...
final_at_s = 8.0             # ... and at which it is final

[decode]
pack = "tiny"                # an installed engine pack, or a folder
stimuli = "stimuli"          # <stimulus>.png or .jpg: calibration targets and retrieval pool
# bundle = "bundle"          # decode from the start with this ParticipantBundle

[calibration]
runs = 6                     # runs 1 to 6 calibrate, later ones are decoded

[publish]
stream = "tcp://127.0.0.1:5591"
requests = "tcp://127.0.0.1:5592"
# keys = "keys.toml"         # of `rtdecode keys new`: for clients on other machines, stream = "tcp://0.0.0.0:5591"
picture = "jpeg"             # how messages carry pictures: "webp" and "png" lose nothing and take longer
"""


@dataclass(frozen=True, slots=True)
class Checked:
    """One thing that was looked at: `problem` is empty if it is well, else it says what to do."""

    subject: str
    detail: str
    problem: str = ""


def check(settings: Settings, clock: Clock) -> list[Checked]:
    """Look at everything that a session needs.

    Parameters
    ----------
    settings : Settings
    clock : Clock

    Returns
    -------
    list of Finding
        One per subject, in the order of the settings; nothing is changed on disk.
    """
    findings = [_export(settings, clock), *_output(settings, clock)]
    findings += [Checked(name, "missing", why) for name, why in missing(settings).items() if name != EXPORT]
    findings += _engines(settings)
    if settings.film.predictions:
        films, finding = _attempt("film predictions", lambda: open_films(settings.film))
        findings.append(finding if films is None else Checked("film predictions", films.described()))
    if settings.publish.keys is not None and settings.publish.keys.is_file():
        findings.append(_keys(settings.publish.keys))
    if settings.session.protocol is not None:
        findings.append(_protocol(settings, settings.session.protocol))
    findings += [_port(name, getattr(settings.publish, name)) for name in ("stream", "requests")]
    return findings


def _protocol(settings: Settings, path: Path) -> Checked:
    """Look at the protocol, and open the seal without telling what it says."""
    protocol = read_protocol(path)  # the settings have come of it
    session = settings.session
    try:
        blind = open_blind(settings.blinding, protocol, session.participant, "", lambda *_: None)
    except RtdecodeError as error:
        return Checked("blinding", str(settings.blinding.allocation), str(error))
    told = "open" if blind is None else "blinded: the key opens the participant's seal"
    return Checked("protocol", f"{protocol.name} {protocol.version} [{protocol.hash}], {told}")


def check_client(stream: str, requests: str, key: str | None, wait_s: float = 5.0) -> list[Checked]:
    """Look, from a client's machine, at whether the daemon can be reached.

    Parameters
    ----------
    stream, requests : str
        Addresses of the daemon.
    key : str or None
        File of the client's key.
    wait_s : float
        How long the daemon may take to answer, and to be heard, seconds.

    Returns
    -------
    list of Checked
        Requests, clocks, the stream, and the session.
    """
    with wire.Client(stream, requests, topics=["heartbeat"], timeout_s=wait_s, key=key) as client:
        try:
            ahead_s, round_trip_s = client.ping()
        except TimeoutError as error:
            return [Checked("requests", requests, f"{error}; and is the port open in its firewall?")]
        findings = [Checked("requests", f"{requests} answers in {1e3 * round_trip_s:.0f} ms")]
        far = abs(ahead_s) > CLOCK_S
        findings.append(
            Checked(
                "clocks",
                f"the daemon's is ahead by {ahead_s:+.3f} s",
                "times of the two machines cannot be compared: synchronise their clocks" if far else "",
            )
        )
        heard = client.receive(wait_s)
        findings.append(
            Checked(
                "stream",
                stream,
                "" if heard is not None else f"nothing came within {wait_s:g} s: is its port open in the firewall?",
            )
        )
        told = [message for message in client.snapshot() if isinstance(message, wire.Session)]
        state = f"{told[0].session}: {told[0].state}, {told[0].mode}" if told else "none yet"
        findings.append(Checked("session", state))
    return findings


def missing(settings: Settings) -> dict[str, str]:
    """Say by setting which files and folders that a session reads are not there."""
    estimate, stimuli = settings.estimate, settings.decode.stimuli
    folders = {EXPORT: settings.scanner.export_dir}
    folders |= {} if stimuli is None else {"decode.stimuli": stimuli}
    folders |= {} if estimate.motion_file is None else {"estimate.motion_file": estimate.motion_file}
    files = {f"estimate.regions.{name}": path for name, path in estimate.regions.items()}
    files |= {f"estimate.parcels.{name}": path for name, path in estimate.parcels.items()}
    files |= {} if settings.publish.keys is None else {"publish.keys": settings.publish.keys}
    tokens, pool = settings.decode.pool_tokens, settings.decode.pool
    files |= {} if tokens is None else {"decode.pool_tokens": tokens}
    files |= {} if pool is None or pool.is_dir() else {"decode.pool": pool}
    files |= {} if estimate.mask == "auto" else {"estimate.mask": estimate.mask}
    found = {name: f"expected a folder, found none at {path}" for name, path in folders.items() if not path.is_dir()}
    return found | {
        name: f"expected a file, found none at {path}" for name, path in files.items() if not path.is_file()
    }


def _export(settings: Settings, clock: Clock) -> Checked:
    folder = settings.scanner.export_dir
    subject = "export folder"
    if not folder.is_dir():
        return Checked(subject, str(folder), "there is no such folder: mount it, or mend scanner.export_dir")
    if not os.access(folder, os.R_OK | os.X_OK):
        return Checked(subject, str(folder), "cannot be read: mend its permissions")
    newest = max((entry.stat().st_mtime for entry in os.scandir(folder)), default=None)
    if newest is not None and newest > clock.wall() + CLOCK_S:
        ahead = newest - clock.wall()
        return Checked(subject, str(folder), f"its newest file is dated {ahead:.0f} s ahead: set the clocks")
    content = "empty" if newest is None else "not empty: old files will be read too"
    polled = settings.scanner.watch == "polling" or (settings.scanner.watch == "auto" and is_remote(folder))
    return Checked(subject, f"{folder} ({content}; {'polled' if polled else 'watched by file events'})")


def _output(settings: Settings, clock: Clock) -> list[Checked]:
    target = session_folder(settings.session)
    if target.exists():
        return [Checked("session folder", str(target), "exists already: choose another session.session or output")]
    parent = next(p for p in (target.parent, *target.parent.parents) if p.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=parent) as probe:
            skew = abs(Path(probe.name).stat().st_mtime - clock.wall())
    except OSError as error:
        return [Checked("session folder", str(target), f"cannot be written: {error}")]
    free = shutil.disk_usage(parent).free
    disk = Checked(
        "disk",
        f"{free / 2**30:.0f} GiB free",
        "" if free >= DISK_BYTES else f"a session needs about {DISK_BYTES >> 30} GiB: make room",
    )
    clocks = Checked(
        "clocks",
        f"disk and system differ by {skew:.2f} s",
        "" if skew <= CLOCK_S else "file times and the system clock disagree: check time synchronisation",
    )
    return [Checked("session folder", str(target)), disk, clocks]


def _engines(settings: Settings) -> list[Checked]:
    decode = settings.decode
    pack, pack_finding = _attempt("engine pack", lambda: open_pack(decode.pack))
    findings, decoder = [pack_finding], None
    if pack is not None:
        backend, finding = _attempt("backend", lambda: choose(decode.backend, pack))
        findings.append(
            finding
            if backend is None
            else Checked("backend", f"{backend.name} in {backend.precision}: {backend.reason}")
        )
        decoder, finding = _attempt("engines and stimuli", lambda: load_decoder(pack, decode))
        findings.append(finding if decoder is None else Checked(finding.subject, _ready(decoder)))
    if decode.bundle is not None:
        folder = decode.bundle
        findings.append(_attempt("participant bundle", lambda: _bundle(settings, folder, pack, decoder))[1])
    earlier = settings.calibration.earlier_session
    if earlier is not None:
        findings.append(_attempt("earlier session", lambda: _earlier(earlier, settings.session.participant))[1])
    if settings.calibration.group_prior is not None:
        findings.append(_group_prior(settings.calibration.group_prior, pack))
    if decode.bundle is None and settings.calibration.runs == 0:
        findings.append(
            Checked("participant bundle", "none", "give decode.bundle, or let calibration.runs be at least 1")
        )
    return findings


def _ready(decoder: Decoder) -> str:
    told = [f"ready: {len(decoder.candidates.names)} stimuli of {len(decoder.candidates.categories)} categories"]
    if decoder.absent:
        told.append(f"no {', no '.join(decoder.absent)}: the pack has no such stage")
    if decoder.pool:
        told.append(f"pool: {decoder.pool}")
    return "; ".join([*told, *decoder.fallbacks])


def _bundle(settings: Settings, folder: Path, pack: EnginePack | None, decoder: Decoder | None) -> Calibrated | None:
    """Open the bundle and, where they are there, hold it to the settings and load it into the decoder."""
    calibrated = open_calibrated(open_participant(folder)) if pack is None else calibration_of(settings, pack)
    if decoder is not None:
        decoder.load(open_participant(folder))
    return calibrated


def _earlier(folder: Path, participant: str) -> None:
    """Check that a session was calibrated, and of whom."""
    of = open_participant(folder / "bundle").provenance.participant
    if of != participant:
        raise SettingsError([f"{folder}: expected an earlier session of participant {participant}, got one of {of}"])


def _group_prior(path: Path, pack: EnginePack | None) -> Checked:
    subject = "group prior"
    found, checked = _attempt(subject, lambda: open_group_prior(path))
    if found is None:
        return checked
    head = found.head
    if pack is not None and head.pack != pack.identity:
        return Checked(subject, "unusable", f"{path}: expected one of pack {pack.name}, got one of {head.pack_name}")
    return Checked(subject, f"ready: {head.people} participants, {head.trials} trials")


def _keys(path: Path) -> Checked:
    keys, finding = _attempt("keys", lambda: read_keys(path))
    if keys is None:
        return finding
    told = ", ".join(f"{key.name} ({key.role})" for key in keys.clients if not key.revoked)
    return Checked("keys", told or "of nobody", "" if told else "give a client a key: rtdecode keys new")


def _attempt(subject: str, step: Callable[[], T]) -> tuple[T | None, Checked]:
    try:
        value = step()
    except RtdecodeError as error:
        return None, Checked(subject, "unusable", str(error))
    return value, Checked(subject, "ready")


def _port(name: str, address: str) -> Checked:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))
        except (OSError, ValueError, OverflowError) as error:
            return Checked(f"{name} address", address, f"cannot be bound ({error}): is another daemon running?")
    return Checked(f"{name} address", address)
