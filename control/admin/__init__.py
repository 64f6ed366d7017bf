"""The admin listener: what an operator sees, and the few things he may change."""
