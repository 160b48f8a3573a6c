"""Makes `corruption_world` importable: tests are collected without packages."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
