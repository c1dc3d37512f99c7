"""What people use today, measured beside our own system: torchrun elastic and torchft (see README.md)."""
