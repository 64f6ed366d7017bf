"""What the gateway costs: the benchmark beside other gateways, the deterministic gate, and the price of each part.

Not shipped in the wheel. `scripts/bench` runs `perf.bench`; perf/README.md says how to read the figures.
"""
