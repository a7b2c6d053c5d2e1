"""A language model: where it comes from, its blocks, its residual stream, its tokens, what it writes."""
