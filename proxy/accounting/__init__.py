"""What an exchange used and what that costs: usage, estimates, prices, the record and the spool it is written to."""
