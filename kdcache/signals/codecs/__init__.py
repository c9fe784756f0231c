"""Codecs: how logits and rows of features are stored."""
