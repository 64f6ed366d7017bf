"""Headgate: an Envoy-style gateway for LLM traffic."""
