"""What must hold for every registered part. A new part is tested before its author writes a test."""

from dataclasses import replace
from typing import get_args

import pytest
import torch

from esmtune.batching import Budget, by_length, shuffled
from esmtune.distributions import distribution
from esmtune.esm2 import Tokens
from esmtune.heads import head
from esmtune.losses import class_loss, loss, ranking
from esmtune.metrics import sign_of
from esmtune.records import Marks
from esmtune.tasks import Multitask, Regression, task
from esmtune.tuning import tuning
from tests.conftest import tiny_encoder

LABELS = {
    "regression": [1.0, 2.0, None, 4.0],
    "binary": ["b", "a", None, "b"],
    "multiclass": ["b", "a", None, "c"],
    "ordinal": ["9", "2", None, "10"],
    "multilabel": [Marks(frozenset("a")), Marks(frozenset("bc")), None, Marks(frozenset(), frozenset("a"))],
    "mlm": ["M", "K", None, "V"],
    "multitask": [(1.0, "b"), (2.0, None), None, (4.0, "a")],
}
ERRORS = {"multilabel": 8, "multitask": 5}  # of all others as many as known labels, 3
HEADS = [
    {"name": name, **({"pool": pool} if pool else {})}
    for name in head
    for pool in (get_args(head.options(name)["pool"].annotation) if "pool" in head.options(name) else (None,))
]
HEADS += [{"name": "mlp", "ridge": True}]
LOSSES = {"regression": (*loss, *ranking, *distribution)}
TASKS = [
    {"name": name, **({"loss": error} if error else {}), **more}
    for name in task
    for error in (LOSSES.get(name, class_loss) if "loss" in task.options(name) else (None,))
    for more in (
        {},
        *([{"label_smoothing": 0.1, "class_weights": "balanced"}] if error in class_loss else []),
        *([{"ranking_weight": 2.0}, {"scale": "normal"}] if error == "squared" else []),
    )
]


def named(spec):
    return "-".join(map(str, spec.values()))


def fit(spec):
    labels = LABELS[spec["name"]]
    if spec["name"] == "multitask":
        own = [[None if x is None else x[place] for x in labels] for place in (0, 1)]
        return Multitask.of([("tm", Regression.fit(own[0])), ("soluble", task["binary"].fit(own[1]))])
    options = task.resolve(spec)
    return task[options.pop("name")].fit(labels, **options)


def test_every_task_has_labels_here():
    assert set(LABELS) == set(task)


def over_heads(test):
    """Run a law over every head, each of its pools, and one layer of the encoder or a mix of three."""
    return pytest.mark.parametrize("layers", [1, 3])(pytest.mark.parametrize("spec", HEADS, ids=named)(test))


def built(spec, encoder, layers):
    """A head in which every weight matters, those that start at zero too."""
    torch.manual_seed(0)
    part = head.build(spec, 32, 3, layers)
    part.tie(encoder)
    for weight in part.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    if part.beside is not None:
        part.beside.tell(*(torch.randn(shape) for shape in ((3, layers * 32), (3,))), torch.tensor([0.3, 0.0, 0.9]))
    return part.to(encoder.embed_tokens.weight.dtype)


def seen(encoder, sequences, layers, seeds=None, precision=torch.float64):
    """What the encoder says, of its last layer or of three side by side; heads always compute as they are."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        x = encoder.representations(Tokens.of(sequences, seeds), [-1, 0, 1][:layers])
    cls, residues = (torch.cat([getattr(y, name) for y in x], dim=1) for name in ("cls", "residues"))
    return replace(x[0], cls=cls, residues=residues)


def in_either_precision(law):
    """Run a law in float64, and with products in bfloat16 as training and prediction have them.

    Its tolerance is in shares of the largest output: a hundred roundings of 1e-16 and some, then five of 2^-8, for
    rows multiplied at once may be added up in another order than alone.
    """
    kinds = [(torch.float64, 1e-12), (torch.bfloat16, 2e-2)]
    return pytest.mark.parametrize(("precision", "bound"), kinds, ids=["float64", "bfloat16"])(law)


def encoder_in(precision):
    return tiny_encoder().to(torch.float64 if precision == torch.float64 else torch.float32)


def rows_of(part, sequences):
    """How many rows of the head's output belong to each sequence."""
    return [len(sequence) if part.level == "residue" else 1 for sequence in sequences]


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@in_either_precision
@over_heads
def test_company_changes_nothing(spec, layers, training, precision, bound):
    """Also in training: what dropout drops depends on a sequence's own seed alone."""
    encoder, crowd = encoder_in(precision), ["GGA", "KALTARQQE", "M", "MKV"]
    part, seeds = built(spec, encoder, layers).train(training), torch.tensor([7, 8, 9, 10])
    with torch.inference_mode():
        together = part(seen(encoder, crowd, layers, seeds, precision))
        for number, (sequence, own) in enumerate(zip(crowd, together.split(rows_of(part, crowd)), strict=True)):
            alone = part(seen(encoder, [sequence], layers, seeds[number : number + 1], precision))
            torch.testing.assert_close(alone, own, rtol=0, atol=bound * together.abs().max().item())


@over_heads
def test_no_sequence_sees_another(spec, layers):
    """Whatever stands beside a sequence, were it no number at all: not a bit of its outputs or gradients changes."""
    encoder, sequences = tiny_encoder(), ["GGA", "KALTARQQE", "MKV"]
    part = built(spec, encoder, layers).eval()
    pooled = part.pool(seen(encoder, sequences, layers))
    counts, answers = pooled.lengths, []
    for neighbor in (0.0, 1e6, torch.nan):
        features = pooled.features.detach().clone()
        features[counts[0] : counts[0] + counts[1]] += neighbor
        outputs = part(replace(pooled, features=features.requires_grad_())).split(rows_of(part, sequences))
        (outputs[0].sum() + outputs[2].sum()).backward()
        first, second, third = features.grad.split(counts)
        answers.append((outputs[0], outputs[2], first, third))
        assert first.any()
        assert third.any()
        assert neighbor != 0 or not second.any()
    for answer in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answer, answers[0], strict=True))


@over_heads
def test_what_the_pool_gives_may_be_kept(spec, layers):
    encoder = tiny_encoder()
    part = built(spec, encoder, layers).train()
    seeds = torch.tensor([1, 2])
    x = seen(encoder, ["GGA", "MKVL"], layers, seeds)
    expected = part(x)
    assert torch.equal(part(part.pool(x)), expected)
    pooled = part.pool(x)
    assert torch.equal(part(part.pooled(pooled.features, pooled.lengths, seeds)), expected)
    assert pooled.features.shape[1] == 32 * layers


@over_heads
def test_a_head_standardizes_what_it_sees(spec, layers):
    """A shift and a scale of the features that the fit has seen change nothing."""
    encoder = tiny_encoder().double()
    part = built(spec, encoder, layers).eval()
    pooled = part.pool(seen(encoder, ["GGAK", "MKV", "WWLE", "PPTS"], layers))
    if not part.standardizes:
        assert torch.equal(part.standardize(pooled.features), pooled.features)
        return
    part.fit(pooled)
    before = part(pooled)
    moved = replace(pooled, features=pooled.features * 3 + 5)
    part.fit(moved)
    torch.testing.assert_close(part(moved), before, rtol=0, atol=1e-9)


@in_either_precision
@over_heads
def test_outputs_come_in_the_order_of_the_sequences(spec, layers, precision, bound):
    """One row a sequence, or one a residue, as the head's level says."""
    encoder, sequences, order = encoder_in(precision), ["GGA", "KALTARQQE", "M", "MKV"], [2, 0, 3, 1]
    part = built(spec, encoder, layers).eval()
    rows = part(seen(encoder, sequences, layers, precision=precision)).split(rows_of(part, sequences))
    turned = part(seen(encoder, [sequences[i] for i in order], layers, precision=precision))
    wanted = torch.cat([rows[i] for i in order])
    torch.testing.assert_close(turned, wanted, rtol=0, atol=bound * wanted.detach().abs().max().item())


@over_heads
def test_a_head_saved_is_a_head_loaded(spec, layers):
    """By its weights alone, in a new one of the same options: outputs are equal bit for bit."""
    from safetensors.torch import load, save

    encoder = tiny_encoder()
    part = built(spec, encoder, layers).eval()
    pooled = part.pool(seen(encoder, ["GGAK", "MKV", "WWLE", "PPTS"], layers))
    if part.standardizes:
        part.fit(pooled)
    torch.manual_seed(1)
    again = head.build(spec, 32, 3, layers).eval()
    again.tie(encoder)
    torch.nn.init.normal_(next(again.parameters()))  # whatever it starts with
    expected = part(seen(encoder, ["GGAK", "M"], layers))
    again.load_state_dict(load(save({name: weight.contiguous() for name, weight in part.state_dict().items()})))
    assert torch.equal(again(seen(encoder, ["GGAK", "M"], layers)), expected)


@over_heads
def test_a_gradient_reaches_every_weight_of_a_new_head(spec, layers):
    torch.manual_seed(0)
    encoder, part = tiny_encoder(), head.build(spec, 32, 3, layers)
    part.tie(encoder)
    x = seen(encoder, ["GGAKLV", "KALTARQQE", "M"], layers)
    gradients = []
    for _ in range(2):
        part.zero_grad()
        part(x).square().sum().backward(retain_graph=True)
        gradients.append({name: weight.grad.clone() for name, weight in part.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 1e-6, name
        assert torch.equal(gradient, gradients[1][name]), name  # bit for bit


@over_heads
def test_a_batch_of_nothing_is_part_of_the_graph(spec, layers):
    """A process for which no sequence is left must take part in the step all the same."""
    encoder = tiny_encoder()
    part = built(spec, encoder, layers).train()
    outputs = part(seen(encoder, [], layers))
    assert len(outputs) == 0
    outputs.sum().backward()
    for name, weight in (*part.named_parameters(), ("encoder", encoder.embed_tokens.weight)):
        assert weight.grad is not None, name
        assert not weight.grad.any(), name


def over_tasks(test):
    """Run a law over every task and each of its losses."""
    return pytest.mark.parametrize("spec", TASKS, ids=named)(test)


def case(spec, *, members=()):
    """A fitted task, its labels, their targets, and some outputs for them."""
    torch.manual_seed(0)
    fitted, labels = fit(spec), LABELS[spec["name"]]
    outputs = torch.randn(*members, len(labels), fitted.num_outputs, dtype=torch.float64)
    return fitted, labels, fitted.targets(labels), outputs


def learned(fitted, targets, steps=300):
    """The outputs that a loss leads to."""
    outputs = torch.zeros(len(targets), fitted.num_outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([outputs])
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        optimizer.zero_grad()
        fitted.loss(outputs, targets).mean.backward()
        optimizer.step()
    return outputs.detach()


def same(prediction, label):
    """Whether a prediction is the label, as far as the label is known."""
    if isinstance(label, tuple):
        return all(same(a, b) for a, b in zip(prediction, label, strict=True))
    if isinstance(label, Marks):
        return prediction.yes - label.unknown == label.yes
    return label is None or prediction == (label if isinstance(label, str) else pytest.approx(label, abs=0.01))


@over_tasks
def test_unknown_labels_weigh_nothing(spec):
    fitted, labels, targets, outputs = case(spec)
    outputs.requires_grad_()
    known = [i for i, x in enumerate(labels) if x is not None]
    whole, part = fitted.loss(outputs, targets), fitted.loss(outputs[known], targets[known])
    assert whole.count == part.count == fitted.count(targets) == ERRORS.get(spec["name"], 3)
    torch.testing.assert_close(whole.sum, part.sum)
    whole.sum.backward()
    assert not outputs.grad[2].any()
    assert all(outputs.grad[i].any() for i in (0, 1))
    broken = outputs.detach().index_fill(0, torch.tensor(2), torch.nan)
    assert torch.equal(fitted.loss(broken, targets).sum, whole.sum)


@over_tasks
def test_what_is_no_number_is_not_hidden(spec):
    fitted, _, targets, outputs = case(spec)
    outputs[0] = torch.nan
    assert fitted.loss(outputs, targets).sum.isnan()


@over_tasks
def test_targets_are_numbers_in_rows_and_nan_where_unknown(spec):
    fitted, _, targets, _ = case(spec)
    assert targets.dtype == torch.float64
    assert targets.ndim == 2
    assert targets[2].isnan().all()
    assert targets[0].isfinite().any()
    assert fitted.targets([]).shape == (0, targets.shape[1])


@over_tasks
def test_a_batch_split_in_two_has_the_same_loss(spec):
    fitted, _, targets, outputs = case(spec)
    halves = fitted.loss(outputs[:1], targets[:1]) + fitted.loss(outputs[1:], targets[1:])
    whole = fitted.loss(outputs, targets)
    assert halves.count == whole.count
    assert fitted.compares != torch.allclose(halves.sum, whole.sum)


@over_tasks
def test_a_batch_has_the_same_loss_in_any_order(spec):
    fitted, _, targets, outputs = case(spec)
    order = [3, 1, 0, 2]
    torch.testing.assert_close(fitted.loss(outputs[order], targets[order]).sum, fitted.loss(outputs, targets).sum)


@over_tasks
def test_a_task_does_not_know_of_levels(spec):
    """Per residue, in a grid, a loss is the sum of the losses of the residues."""
    fitted, _, flat, outputs = case(spec)
    weights = torch.tensor([0.5, 1.5, 1.0, 1.0])
    line = fitted.loss(outputs, flat, weights)
    grid = fitted.loss(outputs.unflatten(0, (2, 2)), flat.unflatten(0, (2, 2)), weights.view(2, 2))
    assert grid.count == line.count == fitted.count(flat.unflatten(0, (2, 2)))
    torch.testing.assert_close(grid.sum, line.sum)


@over_tasks
def test_a_weight_of_two_is_the_point_twice_and_of_zero_unknown(spec):
    fitted, _, targets, outputs = case(spec)
    plain, weights = fitted.loss(outputs, targets), torch.ones(4)
    assert torch.equal(fitted.loss(outputs, targets, weights).sum, plain.sum)
    weights[1] = 2
    twice = fitted.loss(torch.cat((outputs, outputs[1:2])), torch.cat((targets, targets[1:2])))
    double = fitted.loss(outputs, targets, weights)
    torch.testing.assert_close(double.sum, twice.sum)
    assert double.count == plain.count
    weights[1] = 0
    without = fitted.loss(outputs, targets.index_fill(0, torch.tensor(1), torch.nan))
    torch.testing.assert_close(fitted.loss(outputs, targets, weights).sum, without.sum)


@over_tasks
def test_a_loss_of_nothing_is_zero_and_part_of_the_graph(spec):
    fitted, _, targets, outputs = case(spec)
    outputs.requires_grad_()
    for chosen, weights in ([], None), ([2], None), ([0, 1, 2, 3], torch.zeros(4)):
        outputs.grad = None
        total = fitted.loss(outputs[chosen], targets[chosen], weights)
        assert total.sum == 0
        assert total.count == fitted.count(targets[chosen])
        total.sum.backward()
        assert not outputs.grad.any()


@over_tasks
def test_a_task_saved_is_a_task_loaded(spec):
    import json

    fitted = fit(spec)
    again = task.load(json.loads(json.dumps(fitted.spec(), allow_nan=False)))
    assert again == fitted
    assert type(again) is type(fitted)


@over_tasks
def test_what_a_loss_leads_to_reads_as_the_label_and_has_the_best_scores(spec):
    fitted, labels, targets, _ = case(spec)
    outputs = learned(fitted, targets)
    best, worst = fitted.scores(outputs, labels), fitted.scores(outputs.roll(1, 0), labels)
    predictions = fitted.finished(outputs, labels).predict(outputs)
    assert len(predictions) == 4
    if fitted.compares:  # an order, and no more
        known = [p for p, label in zip(predictions, labels, strict=True) if label is not None]
        assert sorted(known) == known
        assert best["spearman"] == 1 > worst["spearman"]
        return
    assert all(same(p, label) for p, label in zip(predictions, labels, strict=True)), predictions
    assert best[fitted.metric] is not None
    for name, value in best.items():
        metric = name.rpartition(".")[2]
        perfect = {"rmse": 0, "mae": 0, "hamming_loss": 0, "perplexity": 1}.get(metric, 1)
        if value is not None:
            assert value == pytest.approx(perfect, abs=0.02), name
            assert (worst[name] - value) * -sign_of(metric) > 0, name


@over_tasks
def test_scores_are_of_known_labels_and_never_nan(spec):
    fitted, labels, _, outputs = case(spec)
    known = [i for i, x in enumerate(labels) if x is not None]
    scores = fitted.scores(outputs, labels)
    assert scores == fitted.scores(outputs[known], [labels[i] for i in known])
    assert fitted.metric in scores
    for some in ([], [0], [2], [0, 0]):
        found = fitted.scores(outputs[some], [labels[i] for i in some])
        assert found.keys() == scores.keys()
        assert all(value is None or value == value for value in found.values())
        if not fitted.compares:  # which leaves an order, of one value none
            assert any(value is not None for value in found.values()) == (0 in some)
    ignorant = fitted.scores(fitted.baseline(4), labels)
    assert all(value is None or abs(value) < 1e3 for value in ignorant.values())


@over_tasks
def test_a_baseline_knows_the_training_labels_alone(spec):
    from collections import Counter

    fitted, labels, *_ = case(spec)
    outputs = fitted.baseline(5)
    assert outputs.shape == (5, fitted.num_outputs)
    assert outputs.dtype == torch.float32
    assert fitted.baseline(0).shape == (0, fitted.num_outputs)
    for place, (_, part, own) in enumerate(fitted.parts()):
        known = [x for x in (x[place] if isinstance(x, tuple) else x for x in labels) if x is not None]
        if part.reads == "number":
            assert part.predict(outputs[:, own]) == pytest.approx([sum(known) / len(known)] * 5)
            continue
        shares = {name: count / len(known) for name, count in Counter(known).items()}
        if part.reads == "names":
            shares = {"a": 1 / 2, "b": 1 / 3, "c": 1 / 3}
        found = part.probabilities(outputs[:, own])
        assert {name: found[name] for name in shares} == {n: pytest.approx([share] * 5) for n, share in shares.items()}
        assert max(sum(found[name][0] for name in found.keys() - shares), 0) < 1e-6


@over_tasks
def test_members_that_agree_are_as_one(spec):
    fitted, _, targets, outputs = case(spec)
    assert torch.equal(fitted.average(outputs[None]), outputs)
    assert fitted.disagreement(outputs[None]) == [0] * 4
    together = fitted.average(outputs.expand(3, -1, -1))
    assert together.dtype == outputs.dtype
    torch.testing.assert_close(fitted.loss(together, targets).sum, fitted.loss(outputs, targets).sum)
    assert fitted.disagreement(outputs.expand(3, -1, -1)) == pytest.approx([0] * 4, abs=1e-9)
    for prediction, alone in zip(fitted.predict(together), fitted.predict(outputs), strict=True):
        assert same(prediction, alone)


@over_tasks
def test_members_are_averaged_by_what_they_say(spec):
    fitted, *_, members = case(spec, members=(3,))
    for _, part, own in fitted.parts():
        together = part.average(members[..., own])
        if part.reads == "number":
            mean = torch.tensor([part.predict(m[:, own]) for m in members]).mean(0)
            assert part.predict(together) == pytest.approx(mean.tolist())
            continue
        each = [part.probabilities(m[:, own]) for m in members]
        for name, column in part.probabilities(together).items():
            assert column == pytest.approx([sum(p) / 3 for p in zip(*(found[name] for found in each), strict=True)])
    assert all(value > 0 for value in fitted.disagreement(members))
    assert fitted.disagreement(members.float()) == pytest.approx(fitted.disagreement(members), rel=1e-4)


@over_tasks
def test_a_task_understands_itself(spec):
    fitted, labels, _, outputs = case(spec)
    assert torch.equal(fitted.translated(outputs, fit(spec)), outputs)
    finished = fitted.finished(outputs, labels)
    assert task.load(finished.spec()) == finished
    understood = finished.predict(finished.translated(outputs, fitted))
    for prediction, before in zip(understood, fitted.predict(outputs), strict=True):
        assert same(prediction, before)


@over_tasks
def test_the_parts_of_a_task_share_its_outputs(spec):
    fitted, *_, outputs = case(spec)
    places = [place for _, _, own in fitted.parts() for place in range(fitted.num_outputs)[own]]
    assert places == list(range(fitted.num_outputs))
    together = [part.predict(outputs[:, own]) for _, part, own in fitted.parts()]
    assert fitted.predict(outputs) == (together[0] if len(together) == 1 else list(zip(*together, strict=True)))
    assert fitted.compares == any(part.compares for _, part, _ in fitted.parts())


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
    from esmtune.pooling import uniform
    from esmtune.readouts import Dropout

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
