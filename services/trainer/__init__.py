"""The trainer: datasets, training jobs, and the workers that train."""
