"""Everything that runs a model: sessions, validation, timing. Sessions are made here and nowhere else."""
