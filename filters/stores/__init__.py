"""What filters count in, over exchanges: in one process (memory.py), or in all of one host (shared.py)."""
