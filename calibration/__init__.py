"""The visit: from betas of the first runs to a sealed ParticipantBundle."""
