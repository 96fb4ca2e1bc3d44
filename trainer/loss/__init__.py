"""Computes what training minimizes: who owns a target, one function a term, and their weighted sum."""

from trainer.loss.assign import match_targets
from trainer.loss.detection import DetectionLoss, LossGains, scaled_gains

__all__ = ["DetectionLoss", "LossGains", "match_targets", "scaled_gains"]
