"""A package by name, so that a wheel that installs a folder ``tests`` of its own (plottable 0.1.5) cannot hide ours."""
