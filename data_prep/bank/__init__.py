"""Proposes a concept bank from the nouns of captions."""
