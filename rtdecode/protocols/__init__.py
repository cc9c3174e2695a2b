"""What is made of a protocol: its design drawn, events and conditions written, participants allocated, seals opened."""
