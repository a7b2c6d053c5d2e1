"""Screen and verify (paper 3.3): evidence in the order of its cost, each step narrowing the list to a short one."""
