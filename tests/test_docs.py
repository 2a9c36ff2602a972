"""Every command and code block of the README and of docs/ runs, and every option they name exists.

What a fenced block is, by the word after its fence:

- `sh`: commands, one a line (a backslash at the end goes on). `esmtune ...` is run; what `NOT_RUN` lists is not.
- `python`: run. All blocks of a page run from top to bottom in one process, one namespace and one new folder.
- `csv`, `tsv`, `jsonl`, `fasta`: a file that the page's commands read. The line above it ends with the file's
  name in backticks and a colon (`stability.csv`:), and the file is written when its turn comes.
- `json`, `toml`: shown, and must parse. `text`: shown.

The models that a page names lie in a made-up Hugging Face cache with random weights, so no network is needed.

    python tests/test_docs.py docs/format.md

plays one page in the current folder.
"""

import json
import re
import shlex
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {str(page.relative_to(ROOT)): page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
NOTHING_TO_RUN = ("docs/LOG.md", "docs/recipes.md", "docs/decisions/")  # what was tried and why, not what to do
FILES = ("csv", "tsv", "jsonl", "fasta")
SHOWN = ("text", "json", "toml")
NOT_RUN = {
    "make": "its targets are the tests themselves, and a demo that fetches from a package index",
    "git": "needs a network",
    "pip": "needs a package index",
    "source": "the environment is active where the tests run",
    "cd": "a page is played in a folder of its own",
    "python": "tests/test_examples.py runs the examples; an environment is there already",
    "hf": "needs a network",
    "torchrun": "starts several machines",
    "srun": "starts several machines",
}
OTHERS_OPTIONS = {
    "--config.epochs": "jsonargparse's name for our --epochs",
    "--local-dir": "hf's",
    "--constraint": "pip's",
    "--nproc-per-node": "torchrun's",
    "--nnodes": "torchrun's",
    "--ntasks-per-node": "srun's",
}
THEIRS = "BioNeMo"  # a table whose first column is headed so has another system's options in it
CACHED = "esm2_t6_8M_UR50D"


# --- Reading a page -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block: its kind, the line where its text starts, and the last line of prose before it."""

    kind: str
    line: int
    text: str
    caption: str

    @property
    def file(self) -> str:
        """The name of the file that the block is."""
        found = re.search(r"`([\w.-]+)`:$", self.caption)
        if not found or Path(found[1]).suffix != f".{self.kind}":
            raise ValueError(
                f"line {self.line}: above a block of {self.kind} its file's name is wanted, `x.{self.kind}`:"
            )
        return found[1]

    @property
    def commands(self) -> list[str]:
        """The commands of the block, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]

    @property
    def runs(self) -> bool:
        """Whether there is anything in it to run."""
        return self.kind == "python" or (self.kind == "sh" and any(c.startswith("esmtune ") for c in self.commands))


def blocks(text: str) -> list[Block]:
    found, caption, fence, start, inside = [], "", None, 0, []
    for number, line in enumerate(text.splitlines(), start=1):
        mark = re.match(r"\s*```(.*)", line)
        if fence is None and mark:
            fence, start, inside = mark[1].strip(), number + 1, []
        elif mark:
            found.append(Block(str(fence), start, "\n".join(inside) + "\n", caption))
            fence = None
        elif fence is not None:
            inside.append(line)
        elif line.strip():
            caption = line.strip()
    if fence is not None:
        raise ValueError(f"line {start}: the block is not closed")
    return found


def check(block: Block) -> None:
    """Refuse what nobody would run or read."""
    if block.kind == "json":
        json.loads(block.text)
    elif block.kind == "toml":
        tomllib.loads(block.text)
    elif block.kind in FILES:
        assert block.file
    elif block.kind == "sh":
        for command in block.commands:
            word = shlex.split(command)[0].removeprefix(".venv/bin/")
            if word != "esmtune" and re.sub(r"3(\.\d+)?$", "", word) not in NOT_RUN:
                raise ValueError(f"line {block.line}: {word!r} is neither esmtune nor listed in NOT_RUN")
    elif block.kind not in ("python", *SHOWN):
        raise ValueError(f"line {block.line}: {block.kind!r} is no kind of block that is known here")


def prose(text: str) -> str:
    """A page without the cells in which other systems' options stand, and without commands of others."""
    kept, theirs = [], False
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("|"):
            first, _, rest = line.strip("|").partition(" | ")
            theirs = THEIRS in first or (theirs and line != "")
            kept.append(rest if theirs else line)
        else:
            theirs = False
            word = (line.split() or [""])[0]
            kept.append("" if word in NOT_RUN else line)
    return "\n".join(kept)


# --- Playing a page, in a process of its own ----------------------------------------------------


def play(page: Path) -> None:
    """Run the blocks of a page, in order, in the current folder."""
    namespace: dict = {"__name__": "__main__"}
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.kind in FILES:
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.kind == "python":
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)
        elif block.kind == "sh":
            for command in block.commands:
                if command.startswith("esmtune "):
                    run(command, f"{page.name}, line {block.line}")


def run(command: str, where: str) -> None:
    """Run an `esmtune` command as a new process would."""
    from esmtune import cli

    if set(command) & set("|<>;&$*"):
        raise ValueError(f"{where}: {command!r} needs a shell; write it without")
    print(f"$ {command}", flush=True)
    sys.argv = shlex.split(command)
    cli.app.config = ()
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{where}: {command!r} ended with {end.code}") from None


def played(page: Path, folder: Path, **environment: str):
    """What a page says and how it ends when it is played in a new process, in a folder."""
    from conftest import in_new_process

    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return in_new_process(Path(__file__), page, cwd=folder, **environment)


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """A Hugging Face cache in which an ESM-2 of random weights goes by the name of a real one."""
    import torch

    from esmtune import load_encoder, save_huggingface

    folder = tmp_path_factory.mktemp("hub")
    model, commit = folder / f"models--facebook--{CACHED}", "0" * 40
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder, _ = load_encoder(f"random:{CACHED}")
    save_huggingface(encoder, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    return folder


@pytest.mark.parametrize("name", PAGES)
def test_blocks_of_a_page_are_of_known_kinds(name):
    found = blocks(PAGES[name].read_text(encoding="utf-8"))
    for block in found:
        check(block)
    is_listed = name.startswith(NOTHING_TO_RUN)
    if not found and name == "README.md":
        pytest.skip("the README has no blocks yet")
    assert is_listed != any(block.runs for block in found), "a page with nothing to run is listed in NOTHING_TO_RUN"


@pytest.mark.parametrize("name", [name for name in PAGES if not name.startswith(NOTHING_TO_RUN)])
def test_a_page_runs_as_it_is_written(name, cache, tmp_path):
    if not any(block.runs for block in blocks(PAGES[name].read_text(encoding="utf-8"))):
        pytest.skip(f"{name} has nothing to run")
    done = played(PAGES[name], tmp_path, HF_HUB_CACHE=str(cache))
    assert done.code == 0, f"{name}:\n{done.out[-2000:]}\n{done.err[-4000:]}"


def test_what_a_page_is_played_by_can_fail(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One\n\n```python\nx = 1\n```\n\n```sh\nmake demo\n```\n\n```python\nassert x == 2\n```\n")
    done = played(page, tmp_path)
    assert done.code == 1
    assert f'"{page}", line 12' in done.err  # in its own line, and with the x of the block above
    page.write_text("```sh\nesmtune predict nowhere none.csv\n```\n")
    done = played(page, tmp_path)
    assert done.code == 1
    assert "ended with 2" in done.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```yaml\na: 1\n```", "'yaml' is no kind"),
        ("```\na\n```", "'' is no kind"),
        ("```sh\nrm -r /\n```", "'rm' is neither"),
        ("```csv\na,b\n```", "file's name is wanted"),
        ("`x.tsv`:\n\n```csv\na,b\n```", "file's name is wanted"),
        ("```toml\na = \n```", "Invalid value"),
        ("```json\n{\n```", "Expecting"),
        ("```python\n", "not closed"),
    ],
)
def test_a_block_that_cannot_be_run_or_read_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        [check(block) for block in blocks(text)]


# --- What the pages name ------------------------------------------------------------------------


def options_of_the_command_line(shell) -> set[str]:
    commands = ([], ["train"], ["evaluate"], ["predict"], ["embed"], ["split"], ["search"], ["compare"])
    text = "".join(shell(*words, "--help").out for words in commands)
    return {name.split(".")[0] for name in re.findall(r"--[a-z][\w.-]*", text)}


@pytest.mark.parametrize("name", PAGES)
def test_options_that_a_page_names_exist(name, shell, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = prose(PAGES[name].read_text(encoding="utf-8"))
    named = {found.rstrip(".-") for found in re.findall(r"(?<![\w-])--[a-z][\w.-]*", text)} - OTHERS_OPTIONS.keys()
    known = options_of_the_command_line(shell)
    assert {"--encoder", "--target", "--out", "--subset", "--layers", "--help"} <= known
    assert sorted({option.split(".")[0] for option in named} - known) == []


@pytest.mark.parametrize("name", PAGES)
def test_parts_and_their_options_that_a_page_names_exist(name):
    from esmtune.heads import head
    from esmtune.tasks import task
    from esmtune.tuning import tuning

    text = prose(PAGES[name].read_text(encoding="utf-8"))
    for kind, registry in {"head": head, "task": task, "tuning": tuning}.items():
        options = {option for part in registry for option in registry.options(part)}
        for part in re.findall(rf"--{kind}[ =]([a-z0-9_-]+)\b|\b{kind}=\"([a-z0-9_-]+)\"", text):
            assert "".join(part) in (*registry, "auto")
        for option in re.findall(rf"--{kind}\.(\w+)", text):
            assert option in options | {"name"}


def tables(text: str) -> dict[str, dict[str, str]]:
    """The tables of a page by the head of their first column: names in backticks to the rest of their row."""
    found, rows = {}, {}
    for line in text.splitlines():
        cells = line.strip("|").split(" | ")
        if not line.startswith("|"):
            rows = {}
        elif name := re.fullmatch(r"`([\w-]+)`", cells[0].strip()):
            rows[name[1]] = " | ".join(cells[1:])
        elif not line.startswith("|-"):
            rows = found.setdefault(cells[0].strip(), {})
    return found


def of_ours(registry) -> dict:
    """The parts of a registry that no test has put there."""
    return {name: registry[name] for name in registry if registry[name].__module__.startswith("esmtune.")}


@pytest.mark.parametrize("kind", ["head", "tuning", "task"])
def test_the_page_of_parts_has_every_part_option_and_default(kind):
    from esmtune.heads import head
    from esmtune.tasks import task
    from esmtune.tuning import tuning

    registry = {"head": head, "tuning": tuning, "task": task}[kind]
    found = tables(PAGES["docs/parts.md"].read_text(encoding="utf-8"))
    assert found[kind].keys() == of_ours(registry).keys()
    known = set()
    for part, row in found[kind].items():
        options = registry.options(part)
        said = dict(pair.split("=", 1) for pair in re.findall(r"`([^`=]+=[^`]*)`", row))
        assert said == {name: _shown(option.default) for name, option in options.items()}, part
        known |= options.keys()
    assert found[f"option of a {kind}"].keys() == known


def test_the_page_of_parts_has_every_loss_and_what_is_usual():
    from esmtune.config import DEFAULT_HEAD, DEFAULT_TUNING, REGRESSION
    from esmtune.distributions import distribution
    from esmtune.losses import class_loss, loss, ranking

    text = PAGES["docs/parts.md"].read_text(encoding="utf-8")
    doors = (loss, class_loss, ranking, distribution)
    assert tables(text)["loss"].keys() == set().union(*map(of_ours, doors))
    for door in doors:
        for name, part in of_ours(door).items():
            assert set(door.options(name)) <= tables(text)["option of a task"].keys(), part
    for name, value in REGRESSION.items():
        assert f"`{name}={value}`" in text
    assert f"`--head`, `{DEFAULT_HEAD}` unless" in text
    assert f"`--tuning`, `{DEFAULT_TUNING}` unless" in text


def _shown(default) -> str:
    """A default as one writes it in the shell."""
    return str(default).lower() if isinstance(default, bool) else str(default) or '""'


@pytest.mark.parametrize("name", PAGES)
def test_files_that_a_page_links_to_are_there(name):
    page = PAGES[name]
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not re.match(r"\w+:", link):
            assert (page.parent / link).exists(), f"{name} links to {link}"


def test_the_readmes_file_table_is_the_package():
    text = PAGES["README.md"].read_text(encoding="utf-8")
    section = re.search(r"^#+ Files\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    if section is None:
        pytest.skip("the README has no heading Files yet")
    named = [
        name for row in re.findall(r"^\|([^|]*)\|", section[1], re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)
    ]
    modules = [
        Path(name).name
        for name in named
        if name.endswith(".py") and not name.startswith(("examples/", "tests/", "benchmarks/"))
    ]
    assert sorted(modules) == sorted(path.name for path in (ROOT / "esmtune").glob("*.py"))


def test_decisions_are_numbered_and_say_what_would_change_them():
    pages = [name for name in PAGES if name.startswith("docs/decisions/")]
    numbers = [int(Path(name).name[:4]) for name in pages]
    assert numbers == list(range(1, len(pages) + 1))
    for name in pages:
        headings = re.findall(r"^## (.*)$", PAGES[name].read_text(encoding="utf-8"), re.MULTILINE)
        assert headings == ["Question", "Options", "Choice", "What would change our mind"], name


if __name__ == "__main__":
    play(Path(sys.argv[1]))
