"""What an application imports to have the gateway inside itself: the same chain, the same decisions, no listener."""
