"""Rates and recipes as functions of the step, against the published schedule."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from trainer.config.hyperparameters import Hyperparameters
from trainer.optim.schedule import REFINING_SPAN, Schedule, make_recipe, multi_scale_size, updates_in


def make_schedule(**changes):
    values = {
        "epochs": 60,
        "batches_per_epoch": 13,
        "lr0": 0.01,
        "lrf": 0.01,
        "momentum": 0.937,
        "warmup_momentum": 0.8,
        "warmup_bias_lr": 0.1,
        "warmup_steps": 100,
        "accumulation": 4.0,
        "cosine": False,
        "decay_each_step": False,
    }
    return Schedule(**{**values, **changes})


def test_warm_up_starts_and_ends_where_yolov5_does():
    schedule = make_schedule()
    assert schedule.learning_rate(0) == 0
    assert schedule.bias_learning_rate(0) == pytest.approx(0.1)
    assert schedule.momentum_at(0) == pytest.approx(0.8)
    assert schedule.accumulation_at(0) == 1
    assert schedule.learning_rate(101) == schedule.bias_learning_rate(101)
    assert schedule.momentum_at(101) == pytest.approx(0.937)
    assert schedule.accumulation_at(101) == 4
    middle = schedule.learning_rate(50)
    assert middle == pytest.approx(0.5 * 0.01 * schedule.decay(50))


@pytest.mark.parametrize("cosine", [False, True])
def test_decay_falls_from_one_to_lrf(cosine):
    schedule = make_schedule(cosine=cosine)
    values = [schedule.decay(step) for step in range(60 * 13 + 1)]
    assert values[0] == 1
    assert values[-1] == pytest.approx(0.01)
    assert all(later <= earlier for earlier, later in itertools.pairwise(values))
    assert values[12] == 1, "each epoch has one rate"
    assert make_schedule(decay_each_step=True).decay(12) < 1
    assert values[30 * 13] == pytest.approx(0.505)


def test_yolov5_recipe_has_its_fixed_constants():
    recipe = make_recipe("yolov5", epochs=60, batches_per_epoch=13, global_batch_size=16, warmup_epochs=3.0)
    assert (recipe.warmup_steps, recipe.nominal_batch_size) == (100, 64)
    assert (recipe.ema_decay, recipe.ema_tau_updates) == (0.9999, 2000.0)
    assert (recipe.closing_epochs, recipe.decay_each_step, recipe.optimizer) == (0, False, "SGD")
    long = make_recipe("yolov5", epochs=300, batches_per_epoch=1000, global_batch_size=64, warmup_epochs=3.0)
    assert long.warmup_steps == 3000


def test_auto_recipe_fits_short_and_long_schedules():
    short = make_recipe("auto", epochs=60, batches_per_epoch=13, global_batch_size=16, warmup_epochs=3.0)
    assert short.warmup_steps <= 78, "warm-up takes at most a tenth of the run"
    assert short.ema_tau_updates < 100
    assert (short.optimizer, short.nominal_batch_size) == ("AdamW", 16)
    long = make_recipe("auto", epochs=300, batches_per_epoch=1850, global_batch_size=64, warmup_epochs=3.0)
    published = make_recipe("yolov5", epochs=300, batches_per_epoch=1850, global_batch_size=64, warmup_epochs=3.0)
    assert long.warmup_steps == published.warmup_steps
    assert long.ema_tau_updates == published.ema_tau_updates
    assert long.ema_decay == published.ema_decay
    assert (long.optimizer, long.lr_scale, long.nominal_batch_size) == ("SGD", 1.0, 64)
    assert (long.gain_image_size, long.gain_classes) == (published.gain_image_size, published.gain_classes)


SHORT = {"epochs": 4, "batches_per_epoch": 13, "global_batch_size": 16, "warmup_epochs": 3.0}
LONG = {"epochs": 300, "batches_per_epoch": 1850, "global_batch_size": 64, "warmup_epochs": 3.0}


@pytest.mark.parametrize("run", [SHORT, LONG])
def test_weights_that_know_the_classes_are_refined_by_slow_steps_and_an_average_that_starts_from_them(run):
    refined = vars(make_recipe("auto", **run, learned_images=0))
    published = vars(make_recipe("yolov5", **run))
    changed = {name: value for name, value in refined.items() if value != published[name] and name != "ema_decay"}
    assert changed == {
        "knows_classes": True,
        "warmup_bias_scale": 0.1,
        "ema_tau_updates": 0.0,
        "decay_each_step": True,
    }
    hyp = Hyperparameters()
    assert hyp.warmup_bias_lr * refined["warmup_bias_scale"] <= hyp.lr0 * refined["lr_scale"] + 1e-12


def test_a_short_refinement_ends_its_warm_up_before_the_rate_is_high():
    recipe = make_recipe("auto", **SHORT, learned_images=0)
    schedule = make_schedule(epochs=4, warmup_steps=recipe.warmup_steps, decay_each_step=recipe.decay_each_step)
    assert max(schedule.learning_rate(step) for step in range(4 * 13)) < 0.2 * 0.01


def test_the_average_of_a_refinement_spans_a_share_of_its_updates():
    assert make_recipe("auto", **SHORT, learned_images=0).ema_decay == pytest.approx(
        1 - 1 / (REFINING_SPAN * updates_in(52, 100, 4.0))
    )
    assert make_recipe("auto", **LONG, learned_images=0).ema_decay == 0.9999


@pytest.mark.parametrize(("micro_steps", "warmup_steps"), [(13, 100), (52, 100), (260, 100), (1300, 100), (50, -1)])
@pytest.mark.parametrize("accumulation", [0.5, 1.0, 4.0, 16.0])
def test_the_number_of_updates_is_about_that_of_the_loop(micro_steps, warmup_steps, accumulation):
    schedule = make_schedule(warmup_steps=warmup_steps, accumulation=max(accumulation, 1.0))
    updates, pending = 0, 0
    for step in range(micro_steps):
        pending += 1
        if pending >= schedule.accumulation_at(step):
            updates, pending = updates + 1, 0
    assert updates_in(micro_steps, warmup_steps, accumulation) == pytest.approx(updates, rel=0.25, abs=2)


def test_few_images_move_weights_that_many_images_taught_by_small_steps():
    images = SHORT["batches_per_epoch"] * SHORT["global_batch_size"]
    for learned, factor in ((10_000 * images, 0.001), (images, 1.0), (images // 2, 1.0), (0, 1.0)):
        recipe = make_recipe("auto", **SHORT, learned_images=learned)
        assert recipe.lr_scale == pytest.approx(factor)
        assert recipe.warmup_bias_scale == pytest.approx(0.1 * factor)
        assert recipe.statistics_scale == pytest.approx(factor)
    assert make_recipe("auto", **SHORT, learned_images=10_000 * images, chosen={"lr0"}).lr_scale == 1.0
    assert make_recipe("yolov5", **SHORT, learned_images=100 * images).lr_scale == 1.0


def test_a_first_rate_of_biases_that_a_user_chose_is_kept():
    assert make_recipe("auto", **SHORT, learned_images=0, chosen={"warmup_bias_lr"}).warmup_bias_scale == 1.0


@pytest.mark.parametrize("run", [SHORT, LONG])
def test_the_recipe_yolov5_stays_the_same_whatever_the_weights_know(run):
    known, unknown = (make_recipe("yolov5", **run, learned_images=learned) for learned in (0, None))
    assert known == replace(unknown, knows_classes=True)


def test_multi_scale_sizes_are_multiples_between_half_and_one_and_a_half():
    sizes = [multi_scale_size(640, 32, fraction / 100) for fraction in range(100)]
    assert min(sizes) == 320
    assert max(sizes) == 960
    assert all(size % 32 == 0 for size in sizes)


def test_multi_scale_leaves_two_cells_to_a_side():
    assert min(multi_scale_size(64, 32, fraction / 100) for fraction in range(100)) == 64
