"""What a job is made of on Kubernetes: pure builders of each object, from the job and its `kubernetes` section."""

from __future__ import annotations
