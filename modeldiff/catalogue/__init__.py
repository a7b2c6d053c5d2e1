"""What a features artifact holds, read: rows of the list, examples, a feature as a direction to steer along."""
