"""Pure decisions: standard library only, synchronous, no clock, no randomness, no I/O; time and seeds are arguments."""
