"""The client's side: sockets, HTTP parsing limits, deadlines, processes."""
