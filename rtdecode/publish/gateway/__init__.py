"""The stream for programs that speak neither ZeroMQ nor msgpack: HTTP with JSON, WebSocket, lines of text."""
