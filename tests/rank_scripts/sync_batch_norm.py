"""One rank's share of some batches through a synchronized batch norm: outputs, gradients, statistics."""

import copy
import sys

import torch
from torch import nn

from trainer.runtime.distributed import DistEnv, process_group
from trainer.runtime.sync_batch_norm import synchronize_batch_norm

given_path, out, *shares = sys.argv[1:]
env, device = DistEnv.from_environ(), torch.device("cpu")
start = sum(map(int, shares[: env.rank]))
mine = slice(start, start + int(shares[env.rank]))


def measure(given):
    """What becomes of this rank's images."""
    model = synchronize_batch_norm(nn.Sequential(nn.BatchNorm2d(given["images"].shape[1])))
    model.load_state_dict(given["state"])
    model.to(given["weights"])
    images = given["images"][mine].to(memory_format=torch.channels_last).requires_grad_()
    output = model(images)
    output.backward(given["gradient"][mine])
    result = {"output": output.detach(), "images": images.grad, "state": copy.deepcopy(model).state_dict()}
    result |= {name: parameter.grad for name, parameter in model.named_parameters()}
    result["evaluated"] = model.eval()(given["images"]).detach()
    return result


with process_group(env, device):
    results = [measure(given) for given in torch.load(given_path)]
torch.save(results, f"{out}.{env.rank}")
