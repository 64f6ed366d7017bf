"""What filters count in, over exchanges: per process (memory.py)."""
