"""The languages of providers, one file each."""
