"""Behaviour: what the features that a child has alone make it, and its parent, do."""
