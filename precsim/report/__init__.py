"""Recorded runs as one HTML file that can be sent to somebody: tables, curves, a step player."""
