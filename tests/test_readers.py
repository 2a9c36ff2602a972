"""Every format gives the same table, cell for cell and line for line."""

import csv
import gzip
import io
import json

import hypothesis
import pandas as pd
import polars as pl
import pytest
from conftest import TEN
from hypothesis import given, settings
from hypothesis import strategies as st

from esmtune.datasets import find_columns, read_rows
from esmtune.readers import read, reader
from esmtune.records import BadRowsError

HEADER = ("id", "sequence", "label", "split", "notes")
ROWS = [(f"{n:03d}", TEN[n], f"{n}.50", "train" if n < 7 else "test", f"note, {n}") for n in range(10)]


def as_csv(delimiter=","):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows([HEADER, *ROWS])
    return text.getvalue().encode()


def as_parquet():
    file = io.BytesIO()
    pl.DataFrame(ROWS, schema=list(HEADER), orient="row").write_parquet(file)
    return file.getvalue()


def as_json_lines():
    return "".join(json.dumps(dict(zip(HEADER, row, strict=True))) + "\n" for row in ROWS).encode()


def as_fasta():
    return "".join(
        f">{id} label={label} split={split} notes={notes}\n{sequence[:30]}\n{sequence[30:]}\n"
        for id, sequence, label, split, notes in ROWS
    ).encode()


FILES = {
    ".csv": as_csv(),
    ".tsv": as_csv("\t"),
    ".tab": as_csv("\t"),
    ".parquet": as_parquet(),
    ".pq": as_parquet(),
    ".jsonl": as_json_lines(),
    ".ndjson": as_json_lines(),
    **dict.fromkeys((".fasta", ".fa", ".faa", ".fas"), as_fasta()),
}


def test_every_format_is_here():
    assert set(FILES) == set(reader)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", sorted(FILES))
def test_all_formats_give_the_same_records(tmp_path, suffix, compressed):
    path = tmp_path / f"data{suffix}{'.gz' * compressed}"
    path.write_bytes(gzip.compress(FILES[suffix]) if compressed else FILES[suffix])
    table = read(path)
    assert table.frame.select(HEADER).rows() == ROWS
    rows = read_rows(table, find_columns(table), max_length=None).rows
    assert [(x.record.id, x.record.sequence, x.cells[0], x.record.split) for x in rows] == [row[:4] for row in ROWS]


@pytest.mark.parametrize("make", [pl.DataFrame, pd.DataFrame], ids=["polars", "pandas"])
def test_frames_give_the_same_records(make):
    table = read(make({name: [row[i] for row in ROWS] for i, name in enumerate(HEADER)}))
    assert table.frame.rows() == ROWS
    assert table.where(2) == "the frame, row 3"


def test_lists():
    assert read([("MKTV", 1.5), ("GG", None)]).frame.to_dict(as_series=False) == {
        "sequence": ["MKTV", "GG"],
        "label": [1.5, None],
    }
    assert read(["MKTV", "GG"]).frame.to_dict(as_series=False) == {"sequence": ["MKTV", "GG"]}
    assert read([("MK", 1), ("GG", "a"), ("AA", None)]).frame["label"].to_list() == ["1", "a", None]


def test_upper_case_suffix(tmp_path):
    (tmp_path / "DATA.CSV").write_text("sequence\nMK\n")
    assert read(tmp_path / "DATA.CSV").frame.rows() == [("MK",)]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_table_that_polars_writes_is_read_back(tmp_path_factory, data):
    width = data.draw(st.integers(1, 4))
    names = data.draw(st.lists(TEXT.map(lambda name: "c" + name), min_size=width, max_size=width, unique=True))
    hypothesis.assume(width > 1 or not set(names[0]) & set(",;\t"))  # one column that seems to be two is asked about
    rows = data.draw(st.lists(st.lists(TEXT, min_size=width, max_size=width), min_size=1, max_size=5))
    frame = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")
    for suffix, separator in ((".csv", ","), (".tsv", "\t")):
        path = tmp_path_factory.getbasetemp() / f"any{suffix}"
        frame.write_csv(path, separator=separator, quote_style="always")
        assert read(path).frame.equals(frame)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), TEXT, min_size=1), min_size=1, max_size=5))
@settings(deadline=None)
def test_any_json_lines_are_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="")
    found = read(path).frame.to_dicts()
    assert [{k: v for k, v in row.items() if v is not None} for row in found] == rows


CELLS = ["007", "1.0", "1e5", "TRUE", " x ", "NA", "", "2020-01-02", "0x10", "None", "é µ β"]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_text_stays_as_it_was_written(tmp_path, newline):
    path = tmp_path / "data.csv"
    path.write_text("sequence,mine\n" + "".join(f"MK,{cell}\n" for cell in CELLS), encoding="utf-8", newline=newline)
    table = read(path)
    assert table.frame["mine"].to_list() == CELLS
    assert table.places == list(range(2, len(CELLS) + 2))


def test_types_of_frames_stay():
    frame = pl.DataFrame(
        {
            "sequence": ["MK", "GG"],
            "flag": [True, None],
            "kind": pl.Series(["a", "b"], dtype=pl.Categorical),
            "number": pl.Series([1, 2], dtype=pl.Int8),
            "list": [[1, 2], []],
        }
    )
    assert read(frame).frame.equals(frame)
    assert read(frame).frame.schema == frame.schema


def test_pandas_columns_of_every_kind():
    frame = pd.DataFrame(
        {
            "sequence": pd.Categorical(["MK", "GG"]),
            "flag": [True, False],
            "gap": pd.array([1, None], dtype="Int64"),
            "float": [1.0, float("nan")],
            "time": pd.to_datetime(["2020-01-01", None]),
            "mixed": [1, "a"],
            "object": [complex(1), None],
            7: ["x", "y"],
        },
        index=[5, 5],
    )
    found = read(frame).frame
    assert found.columns == [*map(str, frame.columns)]
    assert found["sequence"].to_list() == ["MK", "GG"]
    assert found["flag"].to_list() == [True, False]
    assert found["gap"].to_list() == [1, None]
    assert found["float"].to_list() == [1.0, None]
    assert found["mixed"].to_list() == ["1", "a"]
    assert found["object"].to_list() == ["(1+0j)", None]
    assert found["7"].to_list() == ["x", "y"]


def test_lines_of_rows(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(
        b'\xef\xbb\xbf\r\n"sequence","notes"\r\nMK,"one\r\ntwo\r\n\r\nfour"\r\n\r\nGG,x\r\n\r\n\r\nAA,"y\ny"\r\nCC,z'
    )
    table = read(path)
    assert table.frame["sequence"].to_list() == ["MK", "GG", "AA", "CC"]
    assert table.frame.columns == ["sequence", "notes"]
    assert [table.where(row) for row in range(4)] == [f"{path}, line {n}" for n in (3, 8, 11, 13)]
    assert table.frame["notes"][0] == "one\r\ntwo\r\n\r\nfour"


def test_lines_of_json_and_fasta(tmp_path):
    lines, fasta = tmp_path / "a.jsonl", tmp_path / "a.fa"
    lines.write_bytes(b'\xef\xbb\xbf{"sequence": "MK"}\r\n\r\n  \n{"sequence": "GG"}\n')
    fasta.write_bytes(b"\xef\xbb\xbf\r\n>a\r\nMK\r\nTV \r\n\r\n>b\r\n>c\r\nGG")
    assert (read(lines).frame["sequence"].to_list(), read(lines).places) == (["MK", "GG"], [1, 4])
    assert (read(fasta).frame.rows(), read(fasta).places) == ([("a", "MKTV"), ("b", ""), ("c", "GG")], [2, 6, 7])


def test_a_cell_of_any_size(tmp_path):
    limit = csv.field_size_limit()
    path = tmp_path / "data.csv"
    path.write_text(f"sequence,notes\nMK,{'x' * 300_000}\n")
    assert len(read(path).frame["notes"][0]) == 300_000
    assert csv.field_size_limit() == limit


def test_fasta_as_flip_and_biotrainer_write_it(tmp_path):
    path = tmp_path / "data.fasta"
    path.write_text(
        ">Sequence0 TARGET=8.5 SET=train VALIDATION=False\nMKTV\n"
        ">Sequence1 SET=train TARGET=-0.25 VALIDATION=True\nMKTI\n"
        ">Sequence2 TARGET=Cell membrane SET=test VALIDATION=False\nMKTL\n"
    )
    table = read(path)
    columns = find_columns(table)
    assert (columns.target, columns.split, columns.validation, columns.id) == (("TARGET",), "SET", "VALIDATION", "id")
    rows = read_rows(table, columns, max_length=None).rows
    assert [(row.record.id, row.cells[0], row.record.split) for row in rows] == [
        ("Sequence0", "8.5", "train"),
        ("Sequence1", "-0.25", "valid"),
        ("Sequence2", "Cell membrane", "test"),
    ]


def test_a_fasta_header_loses_nothing(tmp_path):
    path = tmp_path / "data.fasta"
    path.write_text(
        ">sp|P69905|HBA_HUMAN Hemoglobin subunit alpha OS=Homo sapiens OX=9606\nMV\nLS\n>é\tβ-strand = x\nMK\n",
        encoding="utf-8",
    )
    assert read(path).frame.to_dicts() == [
        {
            "id": "sp|P69905|HBA_HUMAN",
            "sequence": "MVLS",
            "description": "Hemoglobin subunit alpha",
            "OS": "Homo sapiens",
            "OX": "9606",
        },
        {"id": "é", "sequence": "MK", "description": "β-strand = x", "OS": None, "OX": None},
    ]


BAD = {
    "no_such.csv": (None, r"no_such\.csv cannot be read: No such file"),
    "a.xlsx": (b"x", r"a\.xlsx: \.xlsx is no known format"),
    "a": (b"x", "no suffix is no known format"),
    "bom.csv": (b"\xef\xbb\xbf\r\n", r"bom\.csv is empty"),
    "bom.fasta": (b"\xef\xbb\xbf\n", "is empty"),
    "blank.jsonl": (b" \n\n", "is empty"),
    "latin.csv": ("sequence,µ\n".encode("latin-1"), r"latin\.csv, line 1: not UTF-8"),
    "latin2.csv": ("sequence,m\nMK,1\nMK,µ\n".encode("latin-1"), "line 3: not UTF-8"),
    "utf16.csv": ("sequence\nMK\n".encode("utf-16"), "line 1: not UTF-8"),
    "header.csv": (b"sequence,label\n", "has no rows, only the names of its columns: sequence, label"),
    "quote.csv": (b'sequence,notes\nMK,x\nMK,"y\nMK,z\n', r"quote\.csv, line 3: .*quotation mark"),
    "quote2.csv": (b'sequence,notes\nMK,"y"z\n', "line 2: .*quotation mark"),
    "twice.csv": (b"label,sequence,label\n1,MK,2\n", "two columns are called 'label'"),
    "semicolon.csv": (b"sequence;label\nMK;1\n", "separated by semicolons"),
    "tab.csv": (b"sequence\tlabel\nMK\t1\n", "separated by tabs"),
    "comma.tsv": (b"sequence,label\nMK,1\n", "separated by commas"),
    "a.parquet": (b"PAR1 but no more", r"a\.parquet cannot be read as Parquet"),
    "cut.parquet": (as_parquet()[:-9], "cannot be read as Parquet"),
    "a.jsonl": (b'{"sequence": "MK"}\n{"sequence": \n', r"a\.jsonl, line 2: no JSON"),
    "list.jsonl": (b'["MK"]\n', "line 1: expected an object"),
    "mixed.jsonl": (b'{"x": [1]}\n{"x": {"a": 1}}\n', r"mixed\.jsonl: a column holds values that do not go together"),
    "no_header.fasta": (b"\nMKTV\n", "cannot be read as FASTA: .*line 2"),
    "letter.fasta": ("\n>é\nMK\nMé\n".encode(), r"letter\.fasta, line 4: 'é' is no amino acid"),
    "id.fasta": (b">a id=5\nMK\n", r"id\.fasta, line 1: the header has a key 'id'"),
    "cut.csv.gz": (gzip.compress(b"sequence\nMK\n" * 99)[:-12], r"cut\.csv\.gz cannot be decompressed .*complete\?"),
    "not.csv.gz": (b"sequence\nMK\n", "cannot be decompressed"),
    "empty.csv.gz": (gzip.compress(b""), "is empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_table(tmp_path, name):
    content, message = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


def test_a_folder_is_no_table(tmp_path):
    with pytest.raises(ValueError, match="is a folder, expected a file"):
        read(tmp_path)


def test_every_ragged_row_is_named(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("sequence,label\nMK,1\nMK,1,2\n\nMK\n" + "MK,1,2,3\n" * 30)
    with pytest.raises(BadRowsError) as error:
        read(path)
    assert len(error.value.problems) == 32
    assert f"{path}, line 3: the number of fields is 3, but 2 in the header" in str(error.value)
    assert f"{path}, line 5: the number of fields is 1" in str(error.value)
    assert "12 more" in str(error.value)
    assert "sequence, label" in str(error.value)


@pytest.mark.parametrize("data", [None, 5, {"MK": 1}, b"MK", [("MK", 1), "MK"], [("MK", 1, 2)]])
def test_what_is_no_data(data):
    with pytest.raises(ValueError, match="expected a path, a polars or pandas frame, or a list"):
        read(data)


@pytest.mark.parametrize("data", [[], pl.DataFrame(), pl.DataFrame({"sequence": []}), pd.DataFrame({"sequence": []})])
def test_no_rows(data):
    with pytest.raises(ValueError, match="has no rows"):
        read(data)


def test_two_pandas_columns_of_one_name():
    for names in (["a", "a"], ["1", 1]):
        with pytest.raises(ValueError, match="two columns of one name"):
            read(pd.DataFrame([[1, 2]], columns=names))


def test_the_checksum_is_that_of_the_content(tmp_path):
    import hashlib

    (tmp_path / "a.csv").write_bytes(as_csv())
    assert read(tmp_path / "a.csv").sha256 == hashlib.sha256(as_csv()).hexdigest()
    assert read(["MK", "GG"]).sha256 == read(["MK", "GG"]).sha256 != read(["GG", "MK"]).sha256


# Not Parquet: over some damage polars asks for more memory than there is, and that ends the process.
@given(st.sampled_from(sorted(FILES.keys() - {".parquet", ".pq"})), st.binary(max_size=40), st.data())
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_a_table_or_an_answer(tmp_path_factory, suffix, noise, data):
    good = FILES[suffix]
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, len(good)))
    path = tmp_path_factory.getbasetemp() / f"noise{suffix}"
    path.write_bytes(good[:start] + noise + good[end:])
    try:
        table = read(path)
    except ValueError as error:
        assert str(error).startswith((str(path), "1 row", f"{len(getattr(error, 'problems', ()))} rows"))  # noqa: PT017
    else:
        assert len(table.places) == table.frame.height > 0


def test_damage_that_polars_panics_over(tmp_path, monkeypatch):
    def panic(_):
        raise pl.exceptions.PanicException("range end index 3256 out of range")

    (tmp_path / "a.parquet").write_bytes(as_parquet())
    monkeypatch.setattr(pl, "read_parquet", panic)
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as Parquet \(range end index"):
        read(tmp_path / "a.parquet")
