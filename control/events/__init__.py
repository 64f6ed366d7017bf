"""The ledger: the workers' spools, tailed into the event store, and what can be read from it."""
