"""Fakes of the ports that need no world around them."""
