"""What `fedgh predict`, `export`, `evaluate` and `score` do for a pose model."""

from fedgh_app.pose.evaluation.official_run import evaluate_run as evaluate
from fedgh_app.pose.official import score
from fedgh_app.pose.prediction.prediction import asked_boxes, check_output, find_sources, predict_all
from fedgh_app.pose.prediction.trained import export, predictor

__all__ = ["asked_boxes", "check_output", "evaluate", "export", "find_sources", "predict_all", "predictor", "score"]
