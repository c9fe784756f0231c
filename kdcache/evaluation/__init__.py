"""Evaluation: how good a model is, and how far it agrees with its teacher."""
