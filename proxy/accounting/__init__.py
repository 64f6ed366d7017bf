"""What an exchange used, what that costs, and the record that says so."""
