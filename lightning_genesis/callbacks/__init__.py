"""Callbacks; they know the contracts and Lightning, no model and no dataset."""
