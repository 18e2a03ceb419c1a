"""Metrics of the images that a model draws: one class in one file for each, chosen by the config group `metric`."""
