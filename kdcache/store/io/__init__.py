"""Bytes: folders and object stores behind one path, written for good and checked when read."""
