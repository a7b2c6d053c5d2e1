"""What each feature of a crosscoder does: usage, examples in context, twins, predictability; a table to list them."""
