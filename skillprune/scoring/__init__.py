"""Importance scores of FFN neurons: one file per family of criteria, one table of names, one streaming engine."""

from skillprune.scoring.criterion import Criterion, LayerScores, Read, Settings
from skillprune.scoring.engine import CRITERIA, ScoringData, prepare_criteria, score_neurons, settings_for
from skillprune.scoring.exchange import of_main, processes
from skillprune.scoring.predictivity import reference_skill_neurons
from skillprune.scoring.scores import NeuronScores, Provenance, load_scores, ranking, save_scores
from skillprune.scoring.trials import combine_trials

__all__ = [
    "CRITERIA",
    "Criterion",
    "LayerScores",
    "NeuronScores",
    "Provenance",
    "Read",
    "ScoringData",
    "Settings",
    "combine_trials",
    "load_scores",
    "of_main",
    "prepare_criteria",
    "processes",
    "ranking",
    "reference_skill_neurons",
    "save_scores",
    "score_neurons",
    "settings_for",
]
