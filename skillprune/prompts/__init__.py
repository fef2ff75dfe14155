"""Soft prompts: vectors put beside the embedded input and tuned while the model stays as it is.

Scoring streams a prompted model like any other task model; what the slots' activations mean is left to it.
"""

from skillprune.prompts.files import load_prompt, save_prompt
from skillprune.prompts.prompted import Prompted, PromptSettings, SoftPrompt
from skillprune.prompts.slots import check_fit
from skillprune.prompts.tuning import tune_prompt

__all__ = ["PromptSettings", "Prompted", "SoftPrompt", "check_fit", "load_prompt", "save_prompt", "tune_prompt"]
