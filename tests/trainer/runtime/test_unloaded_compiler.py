"""A training loads torch's compiler only where something is compiled, and learns the same without it."""

from __future__ import annotations

import subprocess
import sys

import pytest

TRAIN = """
import sys
from pathlib import Path
from trainer.__main__ import run

assert run([sys.argv[1], "--run-dir", sys.argv[2]]) == 0
loaded = [name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules]
print("compiler:", loaded, flush=True)
"""
UPDATES = """
import sys
import torch
from torch.nn.parallel import DistributedDataParallel
from trainer.optim.optimizer import make_optimizer
from trainer.runtime.unloaded_compiler import leave_compiler_unloaded, use_deterministic_algorithms

if sys.argv[1] == "unloaded":
    leave_compiler_unloaded()
    use_deterministic_algorithms()
else:
    torch.use_deterministic_algorithms(True, warn_only=True)
assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
for name in ("SGD", "Adam", "AdamW"):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 3))
    optimizer = make_optimizer(model, name, lr=0.01, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        model(torch.randn(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert torch.is_grad_enabled()
    print(name, sum(p.double().sum() for p in model.parameters()).item().hex(), len(saved["state"]))
print("torch._dynamo" in sys.modules)
"""


def printed(*command):
    ended = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(TRAIN)
    return path


def test_one_rank_never_loads_it(script, run_config, tmp_path):
    assert printed(script, run_config(epochs=1), tmp_path / "run")[-1] == "compiler: []"


def test_two_ranks_never_load_it(script, run_config, tmp_path):
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    lines = printed(*start, script, run_config(epochs=1), tmp_path / "run")
    assert [line for line in lines if line.startswith("compiler:")] == ["compiler: []"] * 2


def test_updates_are_torchs_own_to_the_bit(tmp_path):
    script = tmp_path / "updates.py"
    script.write_text(UPDATES)
    *unloaded, is_loaded = printed(script, "unloaded")
    *loaded, was_loaded = printed(script, "loaded")
    assert unloaded == loaded
    assert (is_loaded, was_loaded) == ("False", "True")


def test_what_has_no_answer_here_is_asked_of_the_compiler(tmp_path):
    script = tmp_path / "ask.py"
    script.write_text(
        "import sys, torch\n"
        "from trainer.runtime.unloaded_compiler import compiler_not_asked\n"
        "with compiler_not_asked():\n"
        "    print(torch._dynamo.utils.get_optimize_ddp_mode(), 'torch._dynamo' in sys.modules)\n"
        "    print(torch._dynamo.config.suppress_errors, 'torch._dynamo' in sys.modules)\n"
        "print(torch._dynamo.__name__)\n"
    )
    assert printed(script) == ["no_optimization False", "False True", "torch._dynamo"]
