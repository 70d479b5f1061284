"""Trains as train.py does, with a lock in a bucket that expires after seconds.

A campaign of many kills would wait a minute after each.
"""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scratchdet_jax.buckets import lease  # noqa: E402

lease.RENEWED_EVERY, lease.EXPIRES = 1.0, 4.0

if __name__ == "__main__":
    sys.argv[0] = str(ROOT / "train.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
