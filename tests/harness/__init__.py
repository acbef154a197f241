"""What several tests share. A test imports nothing else from tests/, and nothing of it by a bare name."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
