"""Normalizes batches over the images of all ranks.

Torch's own cannot on a CPU; on CUDA it makes the host wait for the device in every layer of every step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as functional
from torch import Tensor, nn

_OVER_IMAGES = (0, 2, 3)


def synchronize_batch_norm(model: nn.Module) -> nn.Module:
    """Returns the model with batch norms whose statistics are those of all ranks' images, as if one rank had them all.

    Parameters, buffers and their names stay as they are. A rank may have no image at all: it takes part with an empty
    batch. Needs an initialized process group when it is trained.
    """
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
    return model


class SyncBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with the mean and variance of all ranks while training. Source: arXiv 1502.03167."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes ``input``: (B, channels, rows, columns); B may be 0 and differ between ranks. Same shape out."""
        if not self.training:
            return super().forward(input)
        output, mean, variance, count = _Normalize.apply(input, self.weight, self.bias, self.eps)
        unbiased = variance * (count / (count - 1))
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
        return output


class _Normalize(torch.autograd.Function):
    """Normalize by statistics of all ranks; the gradient flows through them to the images of every rank."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        mean, variance, count = _statistics(images.to(weight.dtype))
        ctx.save_for_backward(images, weight, mean.to(weight), variance.to(weight))
        if not count.is_cuda and count <= 1:  # a GPU would have to be waited for; there it becomes a NaN, which is told
            raise ValueError(f"batch norm needs more than one value a channel to learn, got {int(count)} on all ranks")
        ctx.count, ctx.eps = count, eps
        output = functional.batch_norm(images, mean.to(weight), variance.to(weight), weight, bias, eps=eps)
        ctx.mark_non_differentiable(mean, variance, count)
        return output, mean, variance, count

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        # With z = (x - mean) / std: dx = w / std (dy - mean(dy) - z mean(dy z)), the means being over all ranks.
        images, weight, mean, variance = ctx.saved_tensors
        grad, values = grad_output.to(weight.dtype), images.to(weight.dtype)
        inverse_std = (variance + ctx.eps).rsqrt()
        grad_bias, grad_weight = grad.sum(_OVER_IMAGES), _products_of(grad, values, mean) * inverse_std
        means = torch.stack((grad_bias, grad_weight)).double()
        dist.all_reduce(means)
        mean_grad, mean_product = (means / ctx.count).to(weight)
        scale = weight * inverse_std
        # In place from here on: memory for another batch of images takes as long to get as a sum over it.
        grad_images = values - _per_channel(mean)
        grad_images.mul_(_per_channel(-scale * mean_product * inverse_std))
        grad_images.addcmul_(grad, _per_channel(scale)).sub_(_per_channel(scale * mean_grad))
        return grad_images.to(images.dtype), grad_weight, grad_bias, None


def _statistics(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mean and biased variance of each channel, and the number of their values, over all ranks: float64.

    Ranks add up squared distances from their own means and correct them, which loses no digits to cancellation.
    """
    channels, count = images.shape[1], images.numel() // images.shape[1]
    local = images.new_zeros(2 * channels + 1, dtype=torch.float64)
    if count:
        mean, squares = _sums_at_once(images) if images.is_cuda else _sums_by_image(images)
        local[:channels] = mean
        local[channels:-1] = squares
        local[-1] = count
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, local)
    means, squares, counts = torch.stack(parts).split((channels, channels, 1), dim=1)
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    variance = (squares + counts * (means - mean).square()).sum(0) / total
    return mean, variance, total


def _sums_at_once(images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean and the sum of squared distances from it of each channel."""
    variance, mean = torch.var_mean(images, _OVER_IMAGES, correction=0)
    return mean, variance.double() * (images.numel() // images.shape[1])


def _sums_by_image(images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the same, image by image, so that what lies between stays in the processor's cache."""
    mean = images.mean(_OVER_IMAGES)
    squares = torch.zeros_like(mean, dtype=torch.float64)
    for image in images.split(1):
        squares += (image - _per_channel(mean)).square_().sum(_OVER_IMAGES)
    return mean, squares


def _products_of(grad: Tensor, values: Tensor, mean: Tensor) -> Tensor:
    """Returns the sum of gradient times (value - mean) of each channel."""
    return (_products if values.is_cuda else _products_by_kernel)(grad, values, mean)


def _products(grad: Tensor, values: Tensor, mean: Tensor) -> Tensor:
    return (values - _per_channel(mean)).mul_(grad).sum(_OVER_IMAGES)


def _products_by_kernel(grad: Tensor, values: Tensor, mean: Tensor) -> Tensor:
    """Returns the same by the kernel of torch's own batch norm, the fastest on a CPU."""
    ones, zeros = torch.ones_like(mean), torch.zeros_like(mean)  # a variance of 0 and an eps of 1: divided by 1
    if not len(values):
        return zeros
    backward, only_weight = torch.ops.aten.native_batch_norm_backward, (False, True, False)
    _, products, _ = backward(grad, values, ones, mean, zeros, None, None, False, 1.0, only_weight)
    return products


def _per_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)
