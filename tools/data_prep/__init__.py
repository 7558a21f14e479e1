"""Makers and checkers of data sets; `tools/prepare_data.py` is their command line."""
