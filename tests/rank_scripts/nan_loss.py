"""One rank of a training whose loss is made NaN at given micro steps, on the rank NAN_RANK or on all."""

import os
import sys
from pathlib import Path

import trainer.training.loop as loop
from trainer.config.fields import read_options
from trainer.config.train import make_config
from trainer.loss.detection import DetectionLoss, LossTerms
from trainer.training.rollback import Run
from trainer.training.worker import main

config_path, run_dir, steps = sys.argv[1:4]
bad_steps = {int(step) for step in steps.split(",")}
concerned = os.environ.get("NAN_RANK", os.environ.get("RANK", "0")) == os.environ.get("RANK", "0")
train_step, compute = loop.train_step, DetectionLoss.__call__
current = {"bad": False}


def step_with_nan(run: Run, batch, *, is_update):
    current["bad"] = concerned and run.state.progress.micro_step in bad_steps
    return train_step(run, batch, is_update=is_update)


def loss_with_nan(self, predictions, matches, counts):
    terms = compute(self, predictions, matches, counts)
    if not current["bad"]:
        return terms
    current["bad"] = False
    return LossTerms(terms.total * float("nan"), terms.items * float("nan"))


loop.train_step, DetectionLoss.__call__ = step_with_nan, loss_with_nan
sys.exit(main(make_config(read_options(Path(config_path))), Path(run_dir)))
