"""Training of packs: one loop, its checkpoints, and MindEye2's objectives on several participants."""
