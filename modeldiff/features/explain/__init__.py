"""What features respond to: a description from the texts, a judge's explanation, and how well either detects them."""
