"""Importance scores of FFN neurons: one file per family of criteria, one table of names, one streaming engine."""

from skillprune.scoring.criterion import Criterion, Settings
from skillprune.scoring.engine import CRITERIA, ScoringData, prepare_criteria, score_neurons
from skillprune.scoring.scores import NeuronScores, Provenance, load_scores, ranking, save_scores

__all__ = [
    "CRITERIA",
    "Criterion",
    "NeuronScores",
    "Provenance",
    "ScoringData",
    "Settings",
    "load_scores",
    "prepare_criteria",
    "ranking",
    "save_scores",
    "score_neurons",
]
