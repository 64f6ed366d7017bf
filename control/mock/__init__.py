"""`headgate mock`: a provider on a socket of its own that answers well, or badly on purpose."""
