"""Mathematics and data that need torch and nothing else."""
