"""Observation: listeners on the engine's events; the engine does not know them."""
