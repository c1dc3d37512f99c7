"""The simulator: the real supervisor core and the real driver over fake ports, in virtual time, under seeds.

`python -m orchestrator.testkit.sim --runs N` runs seeds.
"""
