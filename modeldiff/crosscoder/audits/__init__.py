"""Audits during training: which exclusive features are, and what to plant in the place of those that are not."""
