"""The page: everything that a workspace holds about a list of differences, in one file that needs nothing else."""
