"""Messages out to clients, requests in from them, and the display page."""
