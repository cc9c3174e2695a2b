"""The published networks, written anew in torch; nothing of the base path imports this package."""
