"""Test kit, shipped with the product: fakes of the ports in virtual time, and the cluster simulator."""
