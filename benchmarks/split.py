"""How long a split by identity of synthetic families takes, and how much memory.

python benchmarks/split.py 10000 100000
"""

import random
import resource
import sys
import time

import polars as pl

import esmtune

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def families(count: int, length: int = 300) -> list[str]:
    """Sequences in families of five at about 60 % identity."""
    dice = random.Random(0)
    found = []
    while len(found) < count:
        founder = dice.choices(LETTERS, k=length)
        for _ in range(5):
            found.append("".join(dice.choice(LETTERS) if dice.random() < 0.25 else x for x in founder))
    return found[:count]


def main() -> None:
    for count in map(int, sys.argv[1:] or ["10000"]):
        table = pl.DataFrame({"sequence": families(count)})
        started = time.perf_counter()
        told: list[str] = []

        def hear(event: object, told: list[str] = told) -> None:
            told.append(getattr(event, "text", ""))

        esmtune.split(table, method="identity", watch=hear)
        wall = time.perf_counter() - started
        cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{count:,} sequences of 300: {wall:,.0f} s, "
            f"so far {cpu.ru_utime + cpu.ru_stime:,.0f} s of a core in MMseqs2; "
            f"peak {own / 2**20:.2f} GiB here, {cpu.ru_maxrss / 2**20:.2f} GiB in MMseqs2\n  {told[-1]}"
        )


if __name__ == "__main__":
    main()
