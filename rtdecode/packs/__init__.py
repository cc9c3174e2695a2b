"""The two sealed folders that the runtime reads: engine packs and participant bundles."""

from rtdecode.packs.engine_pack import EnginePack, open_pack
from rtdecode.packs.participant_bundle import ParticipantBundle, open_participant

__all__ = ["EnginePack", "ParticipantBundle", "open_pack", "open_participant"]
