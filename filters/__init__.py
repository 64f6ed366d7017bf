"""The links of the chain, one file each; none knows another."""
