"""What other systems that fine-tune protein language models were seen to do wrong, each as a test that we do not.

Read from their sources in November 2026: biotrainer 1.4.0 and 2.1.1 (1), VenusFactory2 (2, 3, 4), ColabSaprot (5), the
transformers notebook on ESM-2 (6), transformers before February 2026 (7), and the reference system, BioNeMo (8).
"""

import json

import numpy as np
import polars as pl
import pytest
import torch

import esmtune
from esmtune import events
from esmtune.esm2 import Tokens
from esmtune.heads import head
from tests.conftest import TEN, tiny_encoder

LENGTHS = [(sequence, float(len(sequence))) for sequence in TEN]


def train(tiny, rows=LENGTHS, **options):
    return esmtune.train(rows, encoder=str(tiny), **{"folds": 1, "head": "mlp", **options})


@pytest.mark.parametrize("tuning", ["frozen", "full", "lora"])
def test_1_labels_stay_with_their_sequences_whatever_their_lengths(tiny, tuning):
    """A batch was sorted by length, longest first, and paired with labels that were not."""
    assert [len(s) for s in TEN] != sorted(map(len, TEN), reverse=True)
    run = train(tiny, tuning=tuning, epochs=1, valid_fraction=0, test_fraction=0, global_batch_size=10,
                head_learning_rate=0.0, encoder_learning_rate=0.0, head={"name": "mlp", "dropout": 0.0},
                task={"name": "regression", "ranking_weight": 0.0})  # fmt: skip
    alone = np.array([run.predictor.predict([sequence])[0] for sequence in TEN])
    labels = np.array([label for _, label in LENGTHS])
    error = ((alone - labels) / labels.std()) ** 2
    assert run.history[0]["train_loss"] == pytest.approx(error.mean(), abs=1e-5)
    assert run.predictions["prediction"].to_list() == pytest.approx(alone, abs=1e-4)


def test_2_full_tuning_moves_every_weight_of_the_encoder(tiny):
    """The forward pass stood in `torch.no_grad()`: weights were in the optimizer and got no gradient."""
    before = esmtune.load_encoder(tiny)[0].state_dict()
    run = train(tiny, tuning="full", epochs=1, ema=0, valid_fraction=0, test_fraction=0)
    after = run.predictor.encoder.state_dict()
    assert [n for n in before if n != "frequency" and torch.equal(before[n], after[n])] == []


def test_3_a_missing_split_is_never_another_split_in_disguise(tiny):
    """Without a file for validation the training rows were taken, without one for test the validation rows."""
    said = []
    table = pl.DataFrame({"sequence": TEN, "label": [x for _, x in LENGTHS], "split": ["train"] * 8 + ["valid"] * 2})
    run = train(tiny, table, epochs=1, watch=said.append)
    assert "test" not in run.metrics
    assert any("There are no test rows" in event.text for event in said if isinstance(event, events.Notice))
    run = train(tiny, epochs=1, valid_fraction=0.2, test_fraction=0.2)
    splits = {
        split: set(run.predictions.filter(pl.col("split") == split)["id"]) for split in ("train", "valid", "test")
    }
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == 10
    run = train(tiny, epochs=1, valid_fraction=0, test_fraction=0)
    assert "valid" not in run.metrics
    assert "test" not in run.metrics


def test_4_a_sequence_beyond_the_budget_is_a_batch_of_its_own_and_not_lost(tiny):
    """A sampler by tokens left out sequences longer than its budget."""
    run = train(tiny, tuning="full", epochs=1, tokens_per_batch=8, valid_fraction=0.2, test_fraction=0.2)
    assert run.predictions.height == 10
    assert run.metrics["records"] == {"train": 6, "valid": 2, "test": 2}
    assert len(run.predictor.predict(TEN, tokens_per_batch=8)) == 10
    assert run.history[0]["step"] == -(-6 // run.config.global_batch_size)


def test_5_nothing_is_cut_or_run_unasked(tiny, tmp_path, shell):
    """Sequences were cut without a word, and a string of the configuration was evaluated as code."""
    long = "MKTV" * 300
    run = train(tiny, [*LENGTHS, (long, 1200.0)], epochs=1, valid_fraction=0, test_fraction=0)
    assert run.predictor.predict([long]) != run.predictor.predict([long[:1022]])
    table, trap = tmp_path / "ten.csv", tmp_path / "trap"
    table.write_text("sequence,label\n" + "".join(f"{s},{x}\n" for s, x in LENGTHS))
    code = f"__import__('pathlib').Path({str(trap)!r}).touch()"
    for option in ("--head", "--layers", "--task.loss", "--encoder", "--metric"):
        answer = shell("train", table, "--encoder", tiny, option, code, "--out", tmp_path / "run")
        assert answer.code == 2, option
    config = tmp_path / "run.toml"
    config.write_text(f"head = {json.dumps(code)}\n")
    assert shell("train", table, "--encoder", tiny, "--config", config, "--out", tmp_path / "run").code != 0
    assert not trap.exists()


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_6_the_test_rows_choose_nothing(tiny, tuning):
    """The best epoch was chosen by the test set: here other test labels change neither weights nor history."""
    split = ["train"] * 6 + ["valid"] * 2 + ["test"] * 2
    runs = []
    for labels in ([1.0, 2.0], [-500.0, 900.0]):
        table = pl.DataFrame({"sequence": TEN, "label": [x for _, x in LENGTHS][:8] + labels, "split": split})
        runs.append(train(tiny, table, tuning=tuning, epochs=4, patience=2))
    assert runs[0].history == runs[1].history
    one, other = (run.predictor.state_dict() for run in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert runs[0].metrics["test"] != runs[1].metrics["test"]


def test_7_embeddings_do_not_depend_on_company():
    """The attention mask and the rescaling for masked tokens made embeddings depend on padding."""
    encoder = tiny_encoder().double()
    with torch.inference_mode():
        together = encoder(Tokens.of(TEN)).residues.split([len(s) for s in TEN])
        for sequence, found in zip(TEN, together, strict=True):
            torch.testing.assert_close(found, encoder(Tokens.of([sequence])).residues, rtol=0, atol=1e-12)


def test_8a_the_last_rows_that_fill_no_batch_are_predicted(tiny):
    """Partial last batches were not predicted."""
    run = train(tiny, epochs=1, valid_fraction=0, test_fraction=0)
    for count in (1, 3, 7, 10):
        assert len(run.predictor.predict(TEN[:count], tokens_per_batch=150)) == count


def test_8b_the_loss_is_a_mean_over_residues_and_not_of_means(tiny):
    """The mean over batches of means over residues weighs a residue of a short protein more."""
    cells = [";".join(f"{ord(c) / 10:.1f}" for c in s) for s in TEN]
    rows = pl.DataFrame({"sequence": TEN, "label": cells, "split": "train"})
    run = train(tiny, rows, tuning="full", epochs=1, max_steps=1, global_batch_size=10, micro_batch_size=3,
                valid_fraction=0, head={"name": "mlp", "dropout": 0.0}, head_learning_rate=0.0,
                encoder_learning_rate=0.0)  # fmt: skip
    labels = np.array([float(x) for cell in rows["label"] for x in cell.split(";")])
    predictions = np.array([x for found in run.predictor.predict(TEN) for x in found])
    wanted = (((predictions - labels) / labels.std()) ** 2).mean()
    assert run.history[0]["train_loss"] == pytest.approx(wanted, abs=1e-5)


def test_8c_a_convolution_does_not_see_the_neighbor():
    """Padding, and the protein beside it, leaked into a convolution."""
    torch.manual_seed(0)
    part = head.build({"name": "conv", "pool": "residue"}, 32, 2).eval().double()
    encoder = tiny_encoder().double()
    with torch.inference_mode():
        together = part(encoder(Tokens.of(TEN[:3]))).split([len(s) for s in TEN[:3]])
        for sequence, found in zip(TEN, together, strict=False):
            torch.testing.assert_close(found, part(encoder(Tokens.of([sequence]))), rtol=0, atol=1e-12)
