"""A cache of embeddings that cannot lie: its key, its shards, kills, two writers, its size, and what it saves."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import esmtune
from esmtune import embedding, footprint
from esmtune.cache import Cache, Collector, Kind, cache_at
from esmtune.embedding import kind_of
from esmtune.events import Progress
from esmtune.heads import Head, Linear, head
from esmtune.shards import Shard
from tests.conftest import TEN, in_new_process, tiny_encoder

KIND = Kind(sha256="0" * 64, shape=(2, 32, 4), pool="mean", precision="float32", device="cpu")
ROWS = [(sequence, float(len(sequence) % 7) + number / 10) for number, sequence in enumerate(TEN)]
OPTIONS = {"epochs": 2, "tokens_per_batch": 120, "valid_fraction": 0.2, "test_fraction": 0.2}


def vectors(sequence: str, layers: int = 2, points: int = 1):
    draw = np.random.default_rng(len(sequence))
    return tuple(draw.normal(size=(points, 8)).astype(np.float32) for _ in range(layers))


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def counted(monkeypatch):
    """The sequences that pass through an encoder."""
    from esmtune.esm2 import ESM2

    seen = []
    real = ESM2.representations

    def representations(self, tokens, layers):
        seen.extend(tokens.lengths)
        return real(self, tokens, layers)

    monkeypatch.setattr(ESM2, "representations", representations)
    return seen


def test_what_is_written_is_read_for_each_sequence_and_layer(cache):
    given = [vectors(sequence, points=len(sequence)) for sequence in TEN]
    cache.write(KIND, "tiny", (0, 2), TEN[:6], given[:6])
    cache.write(KIND, "tiny", (0, 2), TEN[6:], given[6:])
    found = cache.read(KIND, (2, 0), [TEN[7], "GG", TEN[0], TEN[7]])
    assert found[1] is None
    for arrays, place in zip([found[0], found[2], found[3]], [7, 0, 7], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(arrays, reversed(given[place]), strict=True))
    assert cache.read(KIND, (0, 1), TEN) == [None] * 10  # a layer that was never kept


@pytest.mark.parametrize(
    "other",
    [{"sha256": "1" * 64}, {"shape": (2, 32, 2)}, {"pool": "cls"}, {"precision": "bfloat16"}, {"device": "cuda"}],
    ids=lambda change: next(iter(change)),
)
def test_everything_that_decides_the_numbers_is_in_the_key(cache, other):
    cache.write(KIND, "tiny", (2,), TEN, [vectors(sequence, 1) for sequence in TEN])
    assert None not in cache.read(KIND, (2,), TEN)
    assert cache.read(Kind(**{**vars(KIND), **other}), (2,), TEN) == [None] * 10


def test_an_encoder_is_known_by_every_weight_and_not_by_its_name():
    import torch

    one, other = tiny_encoder(), tiny_encoder()
    assert kind_of(one, "mean", "float32") == kind_of(other, "mean", "float32")
    with torch.no_grad():
        other.layers[1].contract.bias[3] += 1e-6
    assert kind_of(one, "mean", "float32") != kind_of(other, "mean", "float32")


def test_a_flipped_bit_anywhere_is_told_from_what_was_written(cache):
    given = [vectors(sequence, 1) for sequence in TEN]
    cache.write(KIND, "tiny", (2,), TEN, given)
    (file,) = cache.folder.glob("*/*.safetensors")
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    draw = np.random.default_rng(0)
    places = [*range(0, header, 3), *draw.integers(header, len(content), 100)]
    lost = 0
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(draw.integers(8))
        file.write_bytes(damaged)
        cache.contents()
        found = cache.read(KIND, (2,), TEN)
        lost += None in found
        assert all(x is None or np.array_equal(x[0], g[0]) for x, g in zip(found, given, strict=True))
    assert lost > len(places) / 2  # names of encoders and the like may be wrong, numbers not


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "no shard"])
def test_a_damaged_shard_is_not_believed(cache, damage):
    cache.write(KIND, "tiny", (2,), TEN, [vectors(sequence, 1) for sequence in TEN])
    (file,) = cache.folder.glob("*/*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1 if damage == "flipped" else 0
    file.write_bytes({"cut": content[:-100], "emptied": b"", "no shard": b"hello, I am a file"}.get(damage, content))
    assert cache.read(KIND, (2,), TEN) == [None] * 10
    cache.write(KIND, "tiny", (2,), TEN, [vectors(sequence, 1) for sequence in TEN])
    assert None not in cache.read(KIND, (2,), TEN)


def test_what_was_not_used_for_longest_makes_room(tmp_path):
    cache = Cache(tmp_path / "cache", limit=4000)
    for place, sequence in enumerate(TEN[:3]):
        cache.write(KIND, "tiny", (2,), [sequence], [vectors(sequence, 1)])
        shard = max(cache.folder.glob("*/*.safetensors"), key=lambda file: file.stat().st_mtime_ns)
        os.utime(shard, (place, place))
    assert None not in cache.read(KIND, (2,), TEN[:1])  # looked at, and so the newest
    for length in range(1, 9):
        cache.write(KIND, "tiny", (2,), ["A" * length], [vectors("A" * length, 1)])
        assert sum(file.stat().st_size for file in cache.folder.glob("*/*")) <= cache.limit
        assert None not in cache.read(KIND, (2,), TEN[:1])
    assert cache.read(KIND, (2,), TEN[1:3]) == [None, None]
    cache.write(KIND, "tiny", (2,), ["AG"], [vectors("AG", 1, points=300)])
    assert cache.read(KIND, (2,), ["AG"]) == [None]  # more than there may ever be: nothing else is lost for it
    assert cache.read(KIND, (2,), TEN[:1])[0] is not None


BOTH = """
import json, sys
from pathlib import Path
import numpy as np
from esmtune.cache import Cache, Kind
from tests.conftest import TEN
from tests.test_cache import vectors
cache, kind = Cache(Path(sys.argv[1])), Kind(**json.loads(sys.argv[2]))
given = {sequence: vectors(sequence, 1) for sequence in TEN}
print("ready", flush=True)
sys.stdin.readline()
for _ in range(5):
    for sequence in TEN[int(sys.argv[3]) : int(sys.argv[4])]:
        cache.write(kind, "tiny", (2,), [sequence], [given[sequence]])
        for name, found in zip(TEN, cache.read(kind, (2,), TEN)):
            assert found is None or np.array_equal(found[0], given[name][0])
"""


def test_two_processes_that_write_at_once_lose_nothing(cache):
    import subprocess
    import sys

    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", BOTH, cache.folder, json.dumps(vars(KIND)), first, last],
            env={**os.environ, "PYTHONPATH": os.getcwd()}, **pipes,
        )
        for first, last in (("0", "7"), ("3", "10"))
    ]  # fmt: skip
    for writer in both:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in both:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in both:
        _, said = writer.communicate(timeout=60)
        assert writer.returncode == 0, said
    for sequence, found in zip(TEN, cache.read(KIND, (2,), TEN), strict=True):
        assert found is not None
        assert np.array_equal(found[0], vectors(sequence, 1)[0])


WRITER = """
import json, sys, numpy as np
from pathlib import Path
from esmtune.cache import Cache
from esmtune.cache import Kind
KIND = Kind(**json.loads(sys.argv[2]))
cache = Cache(Path(sys.argv[1]))
print("ready", flush=True)
number = 0
while True:
    name = "A" * (1 + number % 50)
    cache.write(KIND, "tiny", (2,), [name], [(np.full((20000, 8), len(name), np.float32),)])
    number += 1
"""


def test_a_writer_killed_at_any_moment_leaves_whole_shards_alone(cache):
    import subprocess
    import sys

    for pause in (0.03, 0.2):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, cache.folder, json.dumps(vars(KIND))], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        assert writer.stdout.readline()
        time.sleep(pause)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    shards = list(cache.folder.glob("*/*.safetensors"))
    assert shards
    opened = [Shard.open(file) for file in shards]
    assert all(shard is not None and shard.is_whole() for shard in opened)
    names = ["A" * length for length in range(1, 51)]
    for name, found in zip(names, cache.read(KIND, (2,), names), strict=True):
        assert found is None or np.array_equal(found[0], np.full((20000, 8), len(name)))
    for file in cache.folder.glob("*/.*.tmp"):  # what was never renamed goes, a day later
        os.utime(file, (0, 0))
    cache.write(KIND, "tiny", (2,), ["GG"], [vectors("GG", 1)])
    assert not list(cache.folder.glob("*/.*.tmp"))


def test_a_second_run_computes_nothing_and_comes_to_the_same(tiny, tmp_path, counted):
    options = OPTIONS | {"encoder": str(tiny), "cache": str(tmp_path / "cache")}
    first = esmtune.train(ROWS, **options)
    assert sorted(counted) == sorted(len(sequence) + 2 for sequence in TEN)  # each sequence once
    counted.clear()
    second = esmtune.train(ROWS, **options)
    assert not counted
    assert first.history == second.history
    assert first.predictions.equals(second.predictions)
    esmtune.train(ROWS, **options | {"head": {"name": "linear"}, "layers": "0,2", "seed": 3})
    assert not counted  # fewer layers, another head and seed
    esmtune.train(ROWS, **options | {"head": "linear.cls" and {"name": "linear", "pool": "cls"}})
    assert len(counted) == 10  # another pool


@pytest.mark.parametrize("change", ["none", "folder"])
def test_without_a_cache_nothing_is_kept(tiny, tmp_path, counted, monkeypatch, change):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ESMTUNE_CACHE")
    options = OPTIONS | {"encoder": str(tiny)} | ({"cache": "none"} if change == "none" else {})
    esmtune.train(ROWS, **options)
    esmtune.train(ROWS, **options)
    assert len(counted) == (20 if change == "none" else 10)
    assert (tmp_path / "esmtune").exists() == (change != "none")


def test_replicates_are_computed_once(tiny, counted):
    esmtune.train(ROWS + [(sequence, label + 1) for sequence, label in ROWS], encoder=str(tiny), **OPTIONS)
    assert len(counted) == 10


def test_what_a_stopped_run_computed_is_used_and_changes_no_bit(tiny, tmp_path, monkeypatch, counted):
    """Whole batches are missing, and the same batches are computed."""
    monkeypatch.setattr("esmtune.cache.SHARD_SECONDS", 0.0)  # so that every batch is written as soon as it is there
    options = OPTIONS | {"encoder": str(tiny), "head": {"name": "conv"}}
    whole = esmtune.train(ROWS, **options)
    counted.clear()
    real, calls = Collector.add, [0]

    def add(self, sequences, vectors):
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        real(self, sequences, vectors)

    monkeypatch.setattr(Collector, "add", add)
    with pytest.raises(KeyboardInterrupt):
        esmtune.train(ROWS, cache=str(tmp_path), **options)
    before = len(counted)
    monkeypatch.setattr(Collector, "add", real)
    again = esmtune.train(ROWS, cache=str(tmp_path), **options)
    assert before < 10 <= len(counted) < 10 + before  # the batch in hand was lost
    assert again.history == whole.history
    assert again.predictions.equals(whole.predictions)


def test_what_a_stopped_embedding_computed_is_kept(tiny, tmp_path, monkeypatch, counted):
    monkeypatch.setattr("esmtune.cache.SHARD_SECONDS", 0.0)
    sequences = [sequence for sequence, _ in ROWS]
    whole = esmtune.embed(tiny, sequences, cache="none", tokens_per_batch=60).vectors
    counted.clear()

    def stop(event):
        if isinstance(event, Progress) and event.done >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        esmtune.embed(tiny, sequences, cache=str(tmp_path), tokens_per_batch=60, watch=stop)
    before = len(counted)
    again = esmtune.embed(tiny, sequences, cache=str(tmp_path), tokens_per_batch=60).vectors
    assert 5 <= before < 10 == len(counted)
    assert (again == whole).all()


def test_features_that_do_not_fit_are_read_from_disk(tiny, tmp_path, monkeypatch, counted):
    options = OPTIONS | {"encoder": str(tiny), "head": {"name": "attention"}, "cache": str(tmp_path)}
    inside = esmtune.train(ROWS, **options)
    monkeypatch.setattr(footprint, "SHARE_OF_MEMORY", 0.0)
    counted.clear()
    said = []
    outside = esmtune.train(ROWS, watch=said.append, **options)
    assert not counted
    assert inside.history == outside.history
    assert any("they are read from" in getattr(event, "text", "") for event in said)
    fresh = esmtune.train(ROWS, **options | {"cache": str(tmp_path / "fresh")})
    assert len(counted) == 10  # written, then read
    assert inside.history == fresh.history
    esmtune.train(ROWS, **options | {"cache": "none"})
    assert len(counted) > 30  # computed in each epoch


def test_a_head_with_a_pool_of_its_own_is_not_cached(tiny, tmp_path, counted):
    @head("last-residue")
    class LastResidue(Linear):
        def pool(self, x):
            return self.pooled(x.cls * 2, (1,) * len(x.lengths), x.seeds)

    assert LastResidue.pool is not Head.pool
    try:
        for _ in range(2):
            esmtune.train(ROWS, encoder=str(tiny), head="last-residue", cache=str(tmp_path / "c"), **OPTIONS)
    finally:
        head._parts.pop("last-residue")
    assert len(counted) == 20
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("pool", ["mean", "cls", "residue"])
@pytest.mark.parametrize("layers", [(-1,), (0, 2)])
def test_embed_is_the_same_from_the_cache(tiny, tmp_path, counted, pool, layers):
    options = {"layers": layers, "pool": pool}
    plain = esmtune.embed(str(tiny), list(TEN), **options).vectors
    counted.clear()
    first = esmtune.embed(str(tiny), list(TEN[:4]), cache=str(tmp_path), **options).vectors
    second = esmtune.embed(str(tiny), [*TEN, TEN[2]], cache=str(tmp_path), **options).vectors
    assert len(counted) == 10
    assert np.array_equal(second[: len(first)], first)
    np.testing.assert_allclose(second[: len(plain)], plain, atol=1e-6)  # batches of other company round otherwise
    assert embedding.kind_of(esmtune.load_encoder(tiny)[0], pool, "float32").name in os.listdir(tmp_path)


def test_two_processes_share_what_the_cache_has_and_add_the_rest(tiny, tmp_path):
    script = """
import sys, esmtune
from tests.test_cache import ROWS, OPTIONS
if __name__ == "__main__":
    run = esmtune.train(ROWS, encoder=sys.argv[1], cache=sys.argv[2], devices=2, accelerator="cpu", **OPTIONS)
    print(run.history[-1]["train_loss"])
"""
    one = esmtune.train(ROWS, encoder=str(tiny), **OPTIONS)
    file = tmp_path / "two.py"
    file.write_text(script)
    esmtune.embed(str(tiny), list(TEN[:5]), layers=[0, 1, 2], cache=str(tmp_path / "c"))
    answer = in_new_process(file, tiny, tmp_path / "c", PYTHONPATH=os.getcwd())
    assert answer.code == 0, answer.err
    assert float(answer.out.split()[-1]) == pytest.approx(one.history[-1]["train_loss"], rel=1e-5)
    (kept,) = Cache(tmp_path / "c").contents()
    assert kept.sequences == 10


def test_the_shell_shows_and_clears_it(shell, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("ESMTUNE_CACHE", str(tmp_path / "cache"))
    answer = shell("cache")
    assert answer.code == 0
    assert "nothing" in answer.out
    esmtune.train(ROWS, encoder=str(tiny), **OPTIONS)
    (tmp_path / "cache" / "mine").mkdir()
    (tmp_path / "cache" / "mine" / "thesis.txt").write_text("mine")
    (tmp_path / "cache" / "mine" / "model.safetensors").write_text("mine too")
    (tmp_path / "cache" / "empty").mkdir()
    (kind,) = (path for path in (tmp_path / "cache").iterdir() if path.name not in ("mine", "empty"))
    (kind / "model.safetensors").write_text("laid there")
    answer = shell("cache")
    assert answer.code == 0
    assert "tiny" in answer.out
    assert "10" in answer.out
    answer = shell("cache", "--clear")
    assert answer.code == 0
    assert "nothing" in shell("cache").out
    assert (tmp_path / "cache" / "mine" / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "cache" / "mine" / "model.safetensors").read_text() == "mine too"
    assert (tmp_path / "cache" / "empty").is_dir()
    assert [file.name for file in kind.iterdir()] == ["model.safetensors"]


def test_the_folder_and_its_size_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ESMTUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("ESMTUNE_CACHE_GB", "0.5")
    cache = cache_at(None)
    assert cache is not None
    assert (cache.folder, cache.limit) == (tmp_path, 2**29)
    assert cache_at("none") is None
    for wrong in ("plenty", "-3", "nan", "inf"):
        monkeypatch.setenv("ESMTUNE_CACHE_GB", wrong)
        with pytest.raises(ValueError, match=f"ESMTUNE_CACHE_GB is '{wrong}', expected a number, 0 or more"):
            cache_at(None)
    monkeypatch.delenv("ESMTUNE_CACHE_GB")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file is a file, expected a folder"):
        cache_at(str(tmp_path / "file"))


def test_files_of_others_are_neither_counted_nor_replaced(tmp_path):
    cache = Cache(tmp_path, limit=3000)
    tmp_path.chmod(0o755)
    (tmp_path / "mine").mkdir()
    foreign = [tmp_path / "mine" / "model.safetensors", tmp_path / "mine" / "a.safetensors.tmp"]
    for file in foreign:
        file.write_bytes(bytes(5000))
        os.utime(file, (0, 0))
    for length in range(1, 9):
        cache.write(KIND, "tiny", (2,), ["A" * length], [vectors("A" * length, 1)])
        assert None not in cache.read(KIND, (2,), ["A" * length])
    assert cache.read(KIND, (2,), ["A"]) == [None]  # its own made room
    assert all(file.stat().st_size == 5000 for file in foreign)
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert (tmp_path / KIND.name).stat().st_mode & 0o077 == 0


def _unwritable(*_):
    raise OSError(30, "Read-only file system")


def test_a_cache_that_cannot_be_written_costs_no_run(tiny, tmp_path, monkeypatch, counted):
    options = OPTIONS | {"encoder": str(tiny), "cache": str(tmp_path)}
    whole = esmtune.train(ROWS, **options | {"cache": "none"})
    monkeypatch.setattr("esmtune.cache.whole_file", _unwritable)
    run = esmtune.train(ROWS, **options)
    (said,) = (notice for notice in run.notices if notice.startswith("CACHE"))
    assert str(tmp_path) in said
    assert "Read-only file system" in said
    assert run.history == whole.history
    heard = []
    esmtune.embed(str(tiny), list(TEN), cache=str(tmp_path), watch=heard.append)
    assert any("Read-only" in getattr(event, "text", "") for event in heard)
    monkeypatch.setattr(footprint, "SHARE_OF_MEMORY", 0.0)
    with pytest.raises(ValueError, match="cannot be written to the cache, from which they were to be read"):
        esmtune.train(ROWS, **options)


def test_features_that_a_cache_has_no_room_for_are_not_left_in_memory_unsaid(tiny, tmp_path, monkeypatch):
    """As where another process filled the disk after the run had begun."""
    monkeypatch.setattr(footprint, "SHARE_OF_MEMORY", 0.0)
    monkeypatch.setattr(Cache, "_make_room", lambda self, size: False)
    with pytest.raises(ValueError, match="cannot be written to the cache, from which they were to be read"):
        esmtune.train(ROWS, **OPTIONS, encoder=str(tiny), cache=str(tmp_path))


def test_a_cache_may_be_cleared_while_others_write_and_read(cache, monkeypatch):
    """What is being written stays; a folder that went is made again."""
    real = os.replace

    def cleared(*paths):
        Cache(cache.folder).clear()
        return real(*paths)

    monkeypatch.setattr("esmtune.writers.os.replace", cleared)
    cache.write(KIND, "tiny", (2,), TEN[:1], [vectors(TEN[0], 1)])
    assert cache.read(KIND, (2,), TEN[:1]) != [None]
    monkeypatch.setattr("esmtune.writers.os.replace", real)
    times = []

    def gone_once(self, mode=0o777, **options):
        times.append(self)
        if len(times) == 1:
            return
        os.makedirs(self, exist_ok=True)

    cache.clear()
    assert cache.contents() == []
    monkeypatch.setattr(Path, "mkdir", gone_once)
    cache.write(KIND, "tiny", (2,), TEN[:1], [vectors(TEN[0], 1)])
    assert len(times) > 1
    assert cache.read(KIND, (2,), TEN[:1]) != [None]
    monkeypatch.undo()
    shard = next(cache.folder.glob("*/*.safetensors")).parent
    assert Cache(shard / "gone").contents() == []
    assert Cache(shard / "gone").read(KIND, (2,), TEN[:1]) == [None]


def test_nobody_else_reads_it(cache):
    cache.write(KIND, "tiny", (2,), TEN[:1], [vectors(TEN[0], 1)])
    assert cache.folder.stat().st_mode & 0o077 == 0
    header = json.dumps(next(iter(cache.contents())).__dict__)
    assert TEN[0] not in header
