"""What several test files share: small models, folders, datasets and servers, made here and nowhere else."""
