"""What must hold for every registered part. A new part is tested before its author writes a test."""

import pytest
import torch

from esmtune.batching import Budget, by_length, shuffled
from esmtune.esm2 import Tokens
from esmtune.heads import head
from esmtune.losses import loss
from esmtune.tasks import task
from esmtune.tuning import tuning
from tests.conftest import tiny_encoder

LABELS = {"regression": [1.0, 2.0, None, 4.0], "binary": ["b", "a", None, "b"], "multiclass": ["b", "a", None, "c"]}
HEADS = [
    {"name": name, **({"pool": pool} if pool else {})}
    for name in head
    for pool in (("mean", "cls") if "pool" in head.options(name) else (None,))
]
TASKS = [
    {"name": name, **({"loss": error} if error else {})}
    for name in task
    for error in (loss if "loss" in task.options(name) else (None,))
]


def named(spec):
    return "-".join(map(str, spec.values()))


def fit(spec):
    options = task.resolve(spec)
    return task[options.pop("name")].fit(LABELS[spec["name"]], **options)


def test_every_task_has_labels_here():
    assert set(LABELS) == set(task)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("spec", HEADS, ids=named)
def test_company_changes_nothing(spec, training):
    """Also in training: what dropout drops depends on a sequence's own seed alone."""
    torch.manual_seed(0)
    encoder = tiny_encoder().double()
    part = head.build(spec, 32, 3).double().train(training)
    seeds = torch.tensor([7, 8, 9])
    with torch.inference_mode():
        alone = part(encoder(Tokens.of(["KALTARQQE"], seeds[1:2])))
        crowd = part(encoder(Tokens.of(["GGA", "KALTARQQE", "MKV"], seeds)))
    torch.testing.assert_close(alone, crowd[1:2], rtol=0, atol=1e-12)  # float64: a hundred roundings of 1e-16 and some


@pytest.mark.parametrize("spec", HEADS, ids=named)
def test_what_the_pool_gives_may_be_kept(spec):
    encoder, part = tiny_encoder(), head.build(spec, 32, 2).train()
    x = encoder(Tokens.of(["GGA", "MKV"], torch.tensor([1, 2])))
    torch.testing.assert_close(part(part.pool(x)), part(x), rtol=0, atol=0)


@pytest.mark.parametrize("spec", HEADS, ids=named)
def test_a_head_standardizes_what_it_sees(spec):
    """A shift and a scale of the features that the fit has seen change nothing."""
    torch.manual_seed(0)
    part = head.build(spec, 32, 2).eval().double()
    pooled = part.pool(tiny_encoder().double()(Tokens.of(["GGAK", "MKV", "WWLE", "PPTS"])))
    part.standardize.fit(pooled.features)
    before = part(pooled)
    moved = type(pooled)(pooled.features * 3 + 5, pooled.seeds)
    part.standardize.fit(moved.features)
    torch.testing.assert_close(part(moved), before, rtol=0, atol=1e-6)  # the statistics are kept in float32 buffers


@pytest.mark.parametrize("spec", TASKS, ids=named)
def test_unknown_labels_weigh_nothing(spec):
    fitted, labels = fit(spec), LABELS[spec["name"]]
    targets, outputs = fitted.targets(labels), torch.randn(4, fitted.num_outputs, requires_grad=True)
    known = [i for i, x in enumerate(labels) if x is not None]
    whole, part = fitted.loss(outputs, targets), fitted.loss(outputs[known], targets[known])
    assert whole.count == part.count == 3 == int(fitted.known(targets).sum())
    torch.testing.assert_close(whole.sum, part.sum)
    whole.sum.backward()
    assert outputs.grad is not None
    assert not outputs.grad[2].any()
    assert outputs.grad[0].any()


@pytest.mark.parametrize("spec", TASKS, ids=named)
def test_a_batch_split_in_two_has_the_same_loss(spec):
    fitted = fit(spec)
    targets, outputs = fitted.targets(LABELS[spec["name"]]), torch.randn(4, fitted.num_outputs)
    halves = fitted.loss(outputs[:1], targets[:1]) + fitted.loss(outputs[1:], targets[1:])
    torch.testing.assert_close(halves.mean, fitted.loss(outputs, targets).mean)


@pytest.mark.parametrize("spec", TASKS, ids=named)
def test_a_task_does_not_know_of_levels(spec):
    """Per residue, in a grid, a loss is the sum of the losses of the residues."""
    fitted = fit(spec)
    flat, outputs = fitted.targets(LABELS[spec["name"]]), torch.randn(2, 2, fitted.num_outputs)
    grid, line = fitted.loss(outputs, flat.view(2, 2)), fitted.loss(outputs.flatten(0, 1), flat)
    assert grid.count == line.count
    torch.testing.assert_close(grid.sum, line.sum)


@pytest.mark.parametrize("spec", TASKS, ids=named)
def test_a_task_saved_is_a_task_loaded(spec):
    import json

    fitted = fit(spec)
    assert task.load(json.loads(json.dumps(fitted.spec()))) == fitted


@pytest.mark.parametrize("spec", TASKS, ids=named)
def test_a_perfect_prediction_reads_as_the_label(spec):
    fitted = fit(spec)
    labels = [x for x in LABELS[spec["name"]] if x is not None]
    targets = fitted.targets(labels)
    if fitted.num_outputs == 1:
        outputs = targets[:, None].float() if spec["name"] == "regression" else (targets[:, None] * 20.0 - 10)
    else:
        outputs = torch.nn.functional.one_hot(targets, fitted.num_outputs) * 20.0
    predictions = fitted.predict(outputs)
    assert predictions == pytest.approx(labels) if spec["name"] == "regression" else predictions == labels
    for name, column in fitted.probabilities(outputs).items():
        assert [p > 0.5 for p in column] == [x == name for x in labels]


@pytest.mark.parametrize("spec", TASKS, ids=named)
def test_a_baseline_knows_the_training_labels_alone(spec):
    from collections import Counter

    fitted = fit(spec)
    known = [x for x in LABELS[spec["name"]] if x is not None]
    outputs = fitted.baseline(5)
    assert outputs.shape == (5, fitted.num_outputs)
    if spec["name"] == "regression":
        assert fitted.predict(outputs) == pytest.approx([sum(known) / len(known)] * 5)
    else:
        for name, share in Counter(known).items():
            assert fitted.probabilities(outputs)[name] == pytest.approx([share / len(known)] * 5)


@pytest.mark.parametrize("name", list(tuning))
def test_a_tuning_moves_what_it_says(name):
    encoder = tiny_encoder(lm_head=False).requires_grad_(False)
    tuning.build({"name": name, **({"layers": 1} if "layers" in tuning.options(name) else {})}, encoder)
    moving = {n for n, w in encoder.named_parameters() if w.requires_grad}
    expected = {
        "frozen": set(),
        "last": {n for n, _ in encoder.named_parameters() if n.startswith(("layers.1.", "norm."))},
        "full": {n for n, _ in encoder.named_parameters()},
    }
    assert moving == expected[name]


@pytest.mark.parametrize("registry", [head, task, tuning], ids=lambda r: r.kind)
def test_a_wrong_name_or_option_is_named(registry):
    name = next(iter(registry))
    with pytest.raises(ValueError, match=f"There are: .*{name}"):
        registry.resolve({"name": name + "x"})
    with pytest.raises(ValueError, match=r"has no option 'colour'.* It has: "):
        registry.resolve({"name": name, "colour": 1})


@pytest.mark.parametrize("budget", [1, 7, 30, 1000])
@pytest.mark.parametrize("sequences", [None, 2])
def test_every_record_is_in_one_batch(budget, sequences):
    lengths = [3, 1, 9, 4, 4, 20, 2]
    indices = [0, 2, 3, 4, 5, 6]
    batches = list(by_length(indices, lengths, Budget(tokens=budget, sequences=sequences)))
    assert sorted(i for batch in batches for i in batch) == indices
    assert all(batches)
    assert all(len(b) == 1 or sum(lengths[i] + 2 for i in b) <= budget for b in batches)
    assert all(len(b) <= (sequences or 99) for b in batches)


def test_every_epoch_has_all_records_once_in_an_order_of_its_own():
    epochs = [list(shuffled(10, 4, seed=0, epoch=epoch)) for epoch in (1, 2)]
    assert [len(batch) for batch in epochs[0]] == [4, 4, 2]
    orders = [[i for batch in batches for i in batch] for batches in epochs]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))
    assert orders[0] != orders[1]
    assert orders[0] == [i for batch in shuffled(10, 4, seed=0, epoch=1) for i in batch]


def test_dropout_drops_its_share_and_keeps_the_mean():
    from esmtune.heads import Dropout, uniform

    x = Dropout(0.25)(torch.ones(2000, 500), torch.arange(2000))
    assert x.unique().tolist() == pytest.approx([0.0, 4 / 3])
    # A million coins: the share of zeros lies within five standard deviations, 5 * sqrt(.25 * .75 / 1e6).
    assert abs((x == 0).double().mean().item() - 0.25) < 0.0022
    per_channel, per_point = (x == 0).double().mean(0), (x == 0).double().mean(1)
    assert per_channel.std().item() == pytest.approx((0.25 * 0.75 / 2000) ** 0.5, rel=0.2)
    assert per_point.std().item() == pytest.approx((0.25 * 0.75 / 500) ** 0.5, rel=0.2)
    u = uniform(torch.arange(1000)[:, None], torch.arange(1000)[None])
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(torch.corrcoef(torch.stack((u[:, :-1].flatten(), u[:, 1:].flatten())))[0, 1].item()) < 0.005
