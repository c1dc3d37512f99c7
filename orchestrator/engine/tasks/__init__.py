"""Ready tasks and the loader of tasks that users bring."""

from __future__ import annotations
