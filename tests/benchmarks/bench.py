"""`make bench`: our training step and TRL's, side by side in one run, as markdown tables.

Every side runs in a process of its own that stays alive; they do one step each in turn, never at the same time, so that a change of the
machine's pace meets all of them. Same random weights, initial adapter, pairs, batch order and schedule; float32; no checkpointing.
Tables come out section by section, progress goes to standard error: a run that is stopped leaves what it finished.
"""

import argparse
import sys
import time

from tests.benchmarks.gate import end_orderly
from tests.benchmarks.sections import SECTIONS, Effort
from tests.benchmarks.tables import surroundings


def main() -> None:
    """Measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only dpo, answers of 50 tokens, 32,000 rows of vocabulary")
    parser.add_argument("--only", choices=SECTIONS, help="one section")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before the timed ones")
    parser.add_argument("--timed", type=int, help="timed steps on the main shape, 5 or with --quick 4; at most 2 on the others")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    effort = Effort(warm_up=chosen.warm_up, timed=chosen.timed or (4 if chosen.quick else 5), threads=chosen.threads, quick=chosen.quick)
    wanted = [chosen.only] if chosen.only else ["main"] if chosen.quick else list(SECTIONS)
    end_orderly()
    print(surroundings(chosen.threads), flush=True)
    for name in wanted:
        started = time.monotonic()
        print(f"\nsection {name}", file=sys.stderr, flush=True)
        for text in SECTIONS[name](effort):
            print("\n" + text, flush=True)
        print(f"\nsection {name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
