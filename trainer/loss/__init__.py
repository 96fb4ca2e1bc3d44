"""What training minimizes: who owns a target, one function a term, and their weighted sum."""

from trainer.loss.assign import LevelMatches, match_targets
from trainer.loss.detection import DetectionLoss, LossGains, LossTerms, scaled_gains

__all__ = ["DetectionLoss", "LevelMatches", "LossGains", "LossTerms", "match_targets", "scaled_gains"]
