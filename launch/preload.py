"""Imported once by the helper process that forks the cells, and by nothing else."""

import os

# A session of its own: Ctrl-C and a closed terminal reach the driver only, which then asks each cell to stop, once.
if os.getpid() != os.getpgrp():
    os.setsid()
