"""Makers of the two generated data sets; `tools/prepare_data.py` is their command line."""
