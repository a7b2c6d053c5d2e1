"""Crosscoders of other libraries, and ours for them: files in their formats, the hub, and a card for it."""
