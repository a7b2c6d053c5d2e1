"""What features and contrast artifacts hold, read: the rows of their lists, examples, a feature as a direction."""
