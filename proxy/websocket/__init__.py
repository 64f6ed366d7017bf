"""WebSockets: the handshake, the frames, and the session between a client and a provider."""
