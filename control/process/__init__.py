"""Processes: one for both halves, or a supervisor with its workers. Signals, drain, reload.

The data half comes in as an object (`DataHalf`), because what builds it, gateway.py, stands above this package.
"""
