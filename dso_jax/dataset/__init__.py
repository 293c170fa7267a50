"""The dataset folder: written by any number of processes, read, checked, merged, measured."""
