"""Real-time fMRI decoding: volumes in; pictures, captions and honest scores out.

What a script may import is what this module and the ``__init__`` of each room name; all else may change. From here:

- `open_pack`, `load_decoder`, `open_participant`: decode a beta without a session (`Decoder.load`, `Decoder.decode`);
- `process_runs`: take recorded runs through the online estimator;
- `Client`: follow a session's stream and talk to its daemon;
- `load_settings`: read a session's settings file.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rtdecode.version import __version__ as __version__

if TYPE_CHECKING:
    from rtdecode.client import Client
    from rtdecode.decode import Decoder, load_decoder
    from rtdecode.packs import EnginePack, ParticipantBundle, open_pack, open_participant
    from rtdecode.process import process_runs
    from rtdecode.settings import Settings, load_settings

__all__ = [
    "Client",
    "Decoder",
    "EnginePack",
    "ParticipantBundle",
    "Settings",
    "load_decoder",
    "load_settings",
    "open_pack",
    "open_participant",
    "process_runs",
]
_ROOMS = {
    "Client": "client",
    "Decoder": "decode",
    "load_decoder": "decode",
    "process_runs": "process",
    "Settings": "settings",
    "load_settings": "settings",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for: most of them are slow to load."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_ROOMS.get(name, 'packs')}"), name)
