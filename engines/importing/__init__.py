"""From published checkpoint files to sealed engine packs, every key accounted for."""
