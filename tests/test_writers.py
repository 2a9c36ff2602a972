"""What is written is read back by others, whole or not at all."""

import datetime
import decimal
import json
import os
import stat

import h5py
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from esmtune.readers import read
from esmtune.writers import (
    Embeddings,
    check_out,
    embeddings_writer,
    table_writer,
    whole_file,
    whole_folder,
    write_embeddings,
    write_json,
    write_table,
)

ABOUT = {"encoder": "esm2_t6_8M_UR50D", "layers": "-1", "pool": "mean"}
HOSTILE = ["a/b", "..", ".", "%2E", "%", "a%2Fb", "/", "./a", "é β", " ", "a b", "sp|P69905|HBA_HUMAN", "-1", "A", "a"]


# Tables

TABLE = pl.DataFrame(
    {
        "id": ["007", "8", None],
        "sequence": ["MKTV", 'G,"G', ""],
        "notes": ["two\nlines", "tab\there", "carriage\rreturn"],
        "prediction": pl.Series([0.1, 1e-9, None], dtype=pl.Float32),
        "count": [1, 2, None],
        "flag": [True, None, False],
    }
)


def test_csv_and_tsv_are_read_back(tmp_path):
    for suffix in (".csv", ".tsv"):
        write_table(TABLE, tmp_path / f"t{suffix}")
        back = read(tmp_path / f"t{suffix}").frame
        assert back.columns == TABLE.columns
        assert back["notes"].to_list() == TABLE["notes"].to_list()
        assert back["id"].to_list() == ["007", "8", ""]
        assert back["sequence"].to_list() == TABLE["sequence"].to_list()
        assert np.float32(back["prediction"][0]) == np.float32(0.1)
        assert (back["prediction"][2], back["count"].to_list(), back["flag"][0]) == ("", ["1", "2", ""], "true")


def test_parquet_and_json_lines_are_read_back(tmp_path):
    write_table(TABLE, tmp_path / "t.parquet")
    assert pl.read_parquet(tmp_path / "t.parquet").equals(TABLE)
    write_table(TABLE, tmp_path / "t.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().split("\n")[:-1]]
    assert [{**row, "prediction": None} for row in rows] == TABLE.with_columns(prediction=None).to_dicts()
    assert np.float32(rows[1]["prediction"]) == np.float32(1e-9)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
@settings(deadline=None)
def test_any_text_is_written_as_it_was_read(tmp_path_factory, rows):
    frame = pl.DataFrame(rows, schema={"x": pl.String, "y": pl.String}, orient="row")
    for suffix in table_writer:
        path = tmp_path_factory.getbasetemp() / f"any{suffix}"
        write_table(frame, path)
        assert read(path).frame.equals(frame), suffix


ODD = {
    "bytes": [b"MK\xff"],
    "day": [datetime.date(2020, 1, 2)],
    "span": [datetime.timedelta(hours=1)],
    "exact": [decimal.Decimal("1.50")],
    "category": pl.Series(["a"], dtype=pl.Categorical),
    "list": [[1.5, None]],
    "days": [[datetime.date(2020, 1, 2)]],
    "struct": [{"a": 1, "b": "x"}],
    "list of bytes": [[b"a"]],
    "array": pl.Series([[1.0, 2.0]], dtype=pl.Array(pl.Float32, 2)),
    "nothing": [None],
    "large": pl.Series([10**25], dtype=pl.Int128),
    "not a number": [float("nan")],
}


@pytest.mark.parametrize("suffix", sorted(table_writer))
@pytest.mark.parametrize("name", ODD)
def test_every_type_can_be_written(tmp_path, name, suffix):
    frame = pl.DataFrame({"sequence": ["MK"], "odd": ODD[name]})
    write_table(frame, tmp_path / f"t{suffix}")
    back = read(tmp_path / f"t{suffix}").frame
    assert back.columns == ["sequence", "odd"]
    assert back.height == 1
    if name == "struct":
        assert back["odd"][0] in ({"a": 1, "b": "x"}, '{"a": 1, "b": "x"}')
    if name == "bytes":
        assert back["odd"][0] in (b"MK\xff", r"MK\xff")


def test_json_refuses_what_json_has_no_word_for(tmp_path):
    write_json({"r": 0.5, "é": None}, tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text(encoding="utf-8")) == {"r": 0.5, "é": None}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"r": float("nan")}, tmp_path / "n.json")
    assert os.listdir(tmp_path) == ["m.json"]


# Embeddings


def embeddings(ids, *, lengths=None, layers=0, dtype=np.float32):
    rows = sum(lengths) if lengths else len(ids)
    shape = (rows, layers, 4) if layers else (rows, 4)
    vectors = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    return Embeddings(ids=list(ids), vectors=vectors, lengths=lengths, about=ABOUT)


def back_from_npz(path):
    with np.load(path, allow_pickle=False) as file:
        assert {key: str(file[key]) for key in ABOUT} == ABOUT
        vectors = file["embedding"]
        if "length" in file:
            vectors = np.split(vectors, np.cumsum(file["length"])[:-1])
        return list(zip(file["id"].tolist(), vectors, strict=True))


def back_from_parquet(path):
    frame = pl.read_parquet(path)
    assert frame.columns == ["id", "embedding"]
    assert pl.read_parquet_metadata(path).items() >= ABOUT.items()
    return list(zip(frame["id"].to_list(), [np.array(x) for x in frame["embedding"].to_list()], strict=True))


def back_from_h5(path):
    with h5py.File(path) as file:
        assert dict(file.attrs) == ABOUT
        return [(file[key].attrs["id"], file[key][()]) for key in file]


def back_from_safetensors(path):
    with safe_open(path, "numpy") as file:
        about = file.metadata()
        assert about.items() >= ABOUT.items()
        vectors, ids = file.get_tensor("embedding"), json.loads(about["id"])
        if "length" in file.keys():  # noqa: SIM118 - no dictionary
            return list(zip(ids, np.split(vectors, np.cumsum(file.get_tensor("length"))[:-1]), strict=True))
        return list(zip(ids, vectors, strict=True))


BACK = {
    ".npz": back_from_npz,
    ".parquet": back_from_parquet,
    ".h5": back_from_h5,
    ".hdf5": back_from_h5,
    ".safetensors": back_from_safetensors,
}


def test_every_embeddings_format_is_here():
    assert set(BACK) == set(embeddings_writer)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("layers", [0, 3])
@pytest.mark.parametrize("per_residue", [False, True])
@pytest.mark.parametrize("suffix", sorted(BACK))
def test_embeddings_are_read_back_under_hostile_ids(tmp_path, suffix, per_residue, layers, dtype):
    lengths = [n % 4 + 1 for n in range(len(HOSTILE))] if per_residue else None
    written = embeddings(HOSTILE, lengths=lengths, layers=layers, dtype=dtype)
    write_embeddings(written, tmp_path / f"e{suffix}")
    back = BACK[suffix](tmp_path / f"e{suffix}")
    assert sorted(name for name, _ in back) == sorted(HOSTILE)
    if "h5" not in suffix and "hdf5" not in suffix:
        assert [name for name, _ in back] == HOSTILE
    ends = np.cumsum(lengths) if lengths else np.arange(1, len(HOSTILE) + 1)
    for name, vectors in back:
        place = HOSTILE.index(name)
        expected = written.vectors[ends[place] - lengths[place] : ends[place]] if lengths else written.vectors[place]
        np.testing.assert_array_equal(vectors, expected)
    assert os.listdir(tmp_path) == [f"e{suffix}"]


@pytest.mark.parametrize("suffix", sorted(BACK))
def test_float16_takes_half_the_room(tmp_path, suffix):
    vectors = np.random.default_rng(0).standard_normal((64, 1024))
    sizes = []
    for dtype in (np.float32, np.float16):
        write_embeddings(
            Embeddings(ids=[*map(str, range(64))], vectors=vectors.astype(dtype), lengths=None, about={}),
            tmp_path / f"{np.dtype(dtype)}{suffix}",
        )
        sizes.append((tmp_path / f"{np.dtype(dtype)}{suffix}").stat().st_size)
    assert sizes[1] < 0.75 * sizes[0]


def test_copies_of_an_id(tmp_path):
    twice = embeddings(["a", "b", "a"])
    for suffix in (".npz", ".parquet", ".safetensors"):
        write_embeddings(twice, tmp_path / f"e{suffix}")
        assert [name for name, _ in BACK[suffix](tmp_path / f"e{suffix}")] == ["a", "b", "a"]
    kept = sorted(os.listdir(tmp_path))
    for wrong in (twice, embeddings(["", "b"])):
        with pytest.raises(ValueError, match=r"an \.h5 file is keyed by id.*(empty or|several).*Write \.npz"):
            write_embeddings(wrong, tmp_path / "e.h5")
    assert sorted(os.listdir(tmp_path)) == kept


# Whole or not at all


@pytest.mark.parametrize("was_there", [False, True])
def test_a_failure_while_writing_leaves_what_was_there(tmp_path, was_there):
    path = tmp_path / "a.csv"
    if was_there:
        path.write_text("old")

    def fail(error):
        with whole_file(path) as temporary:
            temporary.write_text("half")
            raise error

    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(error)
    assert os.listdir(tmp_path) == (["a.csv"] if was_there else [])
    assert not was_there or path.read_text() == "old"


def test_a_writer_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(_, path):
        path.write_text("half")
        raise OSError("no space left on device")

    monkeypatch.setitem(table_writer._parts, ".csv", fail)
    monkeypatch.setitem(embeddings_writer._parts, ".npz", fail)
    with pytest.raises(OSError, match="no space left"):
        write_table(TABLE, tmp_path / "t.csv")
    with pytest.raises(OSError, match="no space left"):
        write_embeddings(embeddings(["a"]), tmp_path / "e.npz")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("was_there", [False, True])
def test_a_failure_while_filling_a_folder_leaves_what_was_there(tmp_path, was_there):
    path = tmp_path / "run"
    if was_there:
        path.mkdir()
        (path / "old").write_text("old")

    def fail():
        with whole_folder(path) as temporary:
            (temporary / "half").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert os.listdir(tmp_path) == (["run"] if was_there else [])
    assert not was_there or os.listdir(path) == ["old"]


def test_a_folder_takes_the_place_of_another(tmp_path):
    path = tmp_path / "deep" / "run"
    for name in ("one", "two"):
        with whole_folder(path) as temporary:
            (temporary / name).write_text(name)
    assert os.listdir(path) == ["two"]
    assert os.listdir(path.parent) == ["run"]
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


# Places that cannot be written to


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.parquet", "t.jsonl", "T.CSV", "deep/er/t.csv"])
def test_good_places_of_tables(tmp_path, name):
    check_out(tmp_path / name, overwrite=False, kind="table")
    assert os.listdir(tmp_path) == []
    write_table(TABLE, tmp_path / name)
    assert (tmp_path / name).is_file()


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("t.xlsx", "table", r"t\.xlsx: \.xlsx is no format for table\. There are: \.csv, \.jsonl, \.parquet, \.tsv"),
        ("t", "table", "no suffix is no format"),
        ("t.csv.gz", "table", r"\.gz is no format"),
        ("e.csv", "embeddings", r"\.csv is no format for embeddings\. There are: .*\.npz"),
        ("m.csv", "scores", r"\.csv is no format for scores\. There are: \.json"),
        ("there.csv", "table", r"there\.csv exists\. Write another name, or --overwrite"),
        ("full", "folder", r"full exists\. Write another name, or --overwrite"),
        ("there.csv", "folder", r"there\.csv is a file"),
        ("folder.csv", "table", r"folder\.csv is a folder"),
        ("there.csv/t.csv", "table", r"there\.csv is not a folder"),
        ("there.csv/run", "folder", r"there\.csv is not a folder"),
    ],
)
def test_bad_places(tmp_path, name, kind, message):
    (tmp_path / "there.csv").write_text("old")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "run.toml").write_text("old")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match=message):
        check_out(tmp_path / name, overwrite=False, kind=kind)
    if "overwrite" in message:
        check_out(tmp_path / name, overwrite=True, kind=kind)
    else:
        with pytest.raises(ValueError, match=message):
            check_out(tmp_path / name, overwrite=True, kind=kind)


def test_a_folder_of_something_else_is_never_overwritten(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years")
    with pytest.raises(ValueError, match="thesis is a folder with other things than a run in it"):
        check_out(tmp_path / "thesis", overwrite=True, kind="folder")


def test_an_empty_folder_is_a_good_place_for_a_run(tmp_path):
    check_out(tmp_path, overwrite=False, kind="folder")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_one_may_not_write_to(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ValueError, match="not a folder that one may write to"):
            check_out(tmp_path / "t.csv", overwrite=False, kind="table")
    finally:
        tmp_path.chmod(0o700)
