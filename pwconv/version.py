"""The version of the package. It is written here and nowhere else."""

__version__ = "0.2.0"
