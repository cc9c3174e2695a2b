"""A running session: inputs are journalled, folded in order and answered; it can be resumed at any moment."""
