"""How the weights move, beside what the field's own words say: decay, schedule, average, clipping."""

import math

import pytest
import torch

import esmtune
from esmtune.config import TrainConfig
from esmtune.optimization import Schedule, moved_average, parameter_groups
from tests.conftest import TEN

ROWS = [(sequence, float(number % 3) + number / 10) for number, sequence in enumerate(TEN)]


def completed(**options) -> TrainConfig:
    usual = {"epochs": 4, "global_batch_size": 5, "head_learning_rate": 1e-2, "encoder_learning_rate": 1e-3}
    return TrainConfig(**usual | options)


@pytest.mark.parametrize("name", ["full", "lora", "ia3", "bitfit"])
def test_matrices_decay_and_nothing_else_does(name, tiny):
    predictor = esmtune.train(ROWS, encoder=str(tiny), tuning=name, max_steps=1).predictor
    names = {id(weight): name for name, weight in predictor.named_parameters()}
    groups = parameter_groups(predictor, completed(weight_decay=0.3))
    seen = [names[id(weight)] for group in groups for weight in group["params"]]
    assert sorted(seen) == sorted(n for n, w in predictor.named_parameters() if w.requires_grad)
    decays = {names[id(w)]: group["weight_decay"] for group in groups for w in group["params"]}
    assert set(decays.values()) == {0.0, 0.3}
    for weight, decay in decays.items():
        is_still = weight.endswith("bias") or "norm" in weight or "ia3_" in weight
        assert decay == (0.0 if is_still else 0.3), weight
    rates = {names[id(w)].startswith("encoder."): group["peak"] for group in groups for w in group["params"]}
    assert rates == {True: 1e-3, False: 1e-2}


@pytest.mark.parametrize(
    ("schedule", "shape"),
    [
        ("constant", lambda done: 1.0),
        ("linear", lambda done: 1 - done),
        ("cosine", lambda done: (1 + math.cos(math.pi * done)) / 2),
    ],
)
def test_the_rate_rises_in_a_line_and_falls_as_the_schedule_says(schedule, shape):
    steps = Schedule(completed(epochs=20, warmup=0.1, schedule=schedule), count=25)
    assert steps.total == 100
    assert [steps.factor(step) for step in range(1, 11)] == pytest.approx([step / 11 for step in range(1, 11)])
    assert [steps.factor(step) for step in range(11, 101)] == pytest.approx([shape(n / 90) for n in range(90)])
    without = Schedule(completed(epochs=20, warmup=0.0, schedule=schedule), count=25)
    assert without.factor(1) == 1.0


def test_every_record_comes_once_an_epoch():
    for step, epoch, batch, is_last in (found := list(Schedule(completed(), count=12))):
        assert (epoch, is_last) == (1 + (step - 1) // 3, step % 3 == 0)
        assert len(batch) == (2 if is_last else 5)
    epochs = [sorted(i for _, at, batch, _ in found if at == epoch for i in batch) for epoch in range(1, 5)]
    assert epochs == [list(range(12))] * 4
    assert len(list(Schedule(completed(max_steps=7), count=12))) == 7


def test_the_moving_average_is_that_of_its_recurrence():
    draw = torch.Generator().manual_seed(0)
    steps = [torch.randn(3, generator=draw, dtype=torch.float64) for _ in range(60)]
    average, right = {"w": steps[0].clone()}, steps[0].clone()
    for step, weight in enumerate(steps[1:], start=1):
        moved_average(average, {"w": weight}, 10.0, step)
        share = max(1 / 10, 9 / (step + 9))
        right = (1 - share) * right + share * weight
    torch.testing.assert_close(average["w"], right, rtol=0, atol=1e-12)
    first = {"w": steps[0].clone()}
    moved_average(first, {"w": steps[1]}, 1000.0, 1)
    assert torch.allclose(first["w"], 0.1 * steps[0] + 0.9 * steps[1])  # what stood at first is soon forgotten


@pytest.mark.parametrize("micro", [None, 2])
def test_gradients_are_clipped_to_the_norm_of_the_whole_step(tiny, monkeypatch, micro):
    norms, real = [], torch.optim.AdamW.step

    def step(self, *args, **options):
        gradients = [w.grad for group in self.param_groups for w in group["params"] if w.grad is not None]
        norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
        return real(self, *args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    options = {"encoder": str(tiny), "tuning": "full", "max_steps": 3, "valid_fraction": 0, "test_fraction": 0,
               "folds": 1, "global_batch_size": 4, "micro_batch_size": micro}  # fmt: skip
    esmtune.train(ROWS, clip=1e6, **options)
    free = norms.copy()
    norms.clear()
    esmtune.train(ROWS, clip=0.01, **options)
    assert len(free) == len(norms) == 3
    assert min(free) > 0.02
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)  # torch divides by the norm and 1e-6
