"""Computes what training minimizes: target assignment, one function a term, and the weighted sum of the terms."""

from trainer.loss.assign import Matches, match_targets
from trainer.loss.detection import DetectionLoss, LossGains, scaled_gains

__all__ = ["DetectionLoss", "LossGains", "Matches", "match_targets", "scaled_gains"]
