"""The engine: carries one exchange from client to provider and back. Knows no concrete filter and no concrete
dialect."""
