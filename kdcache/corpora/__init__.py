"""Corpora: files of any form to documents, and what their labels mean."""
