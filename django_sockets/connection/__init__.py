"""One websocket connection, from the handshake to its end."""
