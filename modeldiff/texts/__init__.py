"""Texts: what a user gives to read, document by document, and where the tokens of both models end in them."""
