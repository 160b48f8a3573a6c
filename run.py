"""The one command: composes the cells of a sweep, checks them, freezes them and runs them. `python run.py --help` says how."""

import sys

if __name__ == "__main__":  # the processes that run cells import this file again: they must not compose anything
    from launch.main import main

    sys.exit(main())
