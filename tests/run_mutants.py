"""Tries every mutant of every function and every sum and prints which survive the golden numbers: `python tests/run_mutants.py`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1])]

import mutation
import sum_mutation
from loss_world import golden_modules


def main() -> int:
    """One line for every file of objectives/ and every sum; 1 when any mutant survives."""
    total, survivors = 0, list[str]()
    tried = [(f"{name}.py", name, mutation.survivors_of) for name in golden_modules()]
    tried += [(f"{name}.yaml", name, sum_mutation.survivors_of) for name in sum_mutation.SUMS]
    for label, name, survivors_of in tried:
        number, found = survivors_of(name)
        total += number
        survivors += found
        print(f"{label:<30} {number:>5} mutants, survivors: {len(found) or 'none'}", flush=True)
    print(f"{'all':<30} {total:>5} mutants, survivors: {len(survivors) or 'none'}")
    print("\n".join(survivors), end="")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
