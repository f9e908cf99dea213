"""What happened in a run, as a page: it reads what the run has saved, and nothing else."""
