"""Benches: each prints what it measured and ends with one line of JSON, {"bench": name, "figures": {...}}."""
