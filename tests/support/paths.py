"""The folder of the repository, and that of the sample conversations."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]

DATA = ROOT.parent / "shared" / "data"
"""Sample conversations. They are not part of the repository."""
