"""Where a study's runs go: this machine, Slurm, Hugging Face Jobs."""
